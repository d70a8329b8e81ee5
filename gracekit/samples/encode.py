"""Rendered text to token ids and loss masks, in batches and without Python work per token."""

from __future__ import annotations

import json
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from gracekit.samples.render import Rendered, Span
from gracekit.types import Bool, Int32

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Encoder:
    """A private copy of a fast tokenizer, made to tell exactly where its tokens lie.

    Some tokenizers trim whitespace off the offsets of their tokens, and all of them keep the
    truncation and padding of their last call. The copy does neither; the original stays as it is.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        content: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
        content |= {"truncation": None, "padding": None}
        processor = content.get("post_processor") or {}
        for step in (processor, *processor.get("processors", ())):
            if "trim_offsets" in step:
                step["trim_offsets"] = False
        self.content = json.dumps(content)
        """Everything that the ids depend on, as text."""

    @cached_property
    def _backend(self) -> Any:
        from tokenizers import Tokenizer

        return Tokenizer.from_str(self.content)

    def encode(self, rendered: list[Rendered], max_length: int) -> list[tuple[Int32, Bool]]:
        """(ids, loss mask) of each text.

        Special tokens are those written in the texts, and for a text with `adds_special` those
        that the tokenizer puts beside it.
        """
        encoded: list[tuple[Int32, Bool]] = [(np.empty(0, np.int32), np.empty(0, bool))] * len(
            rendered
        )
        for adds_special in {r.adds_special for r in rendered}:
            places = [k for k, r in enumerate(rendered) if r.adds_special == adds_special]
            encodings = self._encode([rendered[k].text for k in places], adds_special)
            prompts = iter(
                self._encode([p for k in places if (p := rendered[k].prompt)], adds_special)
            )
            for k, encoding in zip(places, encodings, strict=True):
                prompt = rendered[k].prompt
                if prompt is None:
                    mask = target_mask(encoding.offsets[:max_length], rendered[k].spans)
                else:
                    given = np.array(next(prompts).ids if prompt else [], np.int32)
                    mask = mask_behind(given, np.array(encoding.ids, np.int32))[:max_length]
                encoded[k] = np.array(encoding.ids[:max_length], np.int32), mask
        return encoded

    def _encode(self, texts: list[str], adds_special: bool) -> list[Any]:
        encodings: list[Any] = self._backend.encode_batch(texts, add_special_tokens=adds_special)
        return encodings


def mask_behind(prompt: Int32, ids: Int32) -> Bool:
    """[T] tokens behind those that the ids [T] share with a prompt's; the first never has loss."""
    length = min(len(prompt), len(ids))
    differs = np.flatnonzero(prompt[:length] != ids[:length])
    mask = np.arange(len(ids)) >= (differs[0] if len(differs) else length)
    mask[:1] = False
    return mask


def target_mask(offsets: list[Span], spans: list[Span]) -> Bool:
    """[T] tokens that overlap a span of characters; the first token never carries loss.

    So a token that straddles the border of prompt and response carries loss.
    """
    places = np.array(offsets, np.int64).reshape(-1, 2)
    first, last = places[:, 0], places[:, 1]
    mask = np.zeros(len(places), dtype=bool)
    for start, end in spans:
        mask |= (first < end) & (last > start)
    mask[:1] = False
    return mask
