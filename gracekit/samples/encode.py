"""Rendered text to token ids and loss masks, in batches and without Python work per token."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from gracekit.samples.marks import Span
from gracekit.samples.rendered import Part, Rendered
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
        self._encode_pieces(rendered, max_length, encoded)
        whole = [k for k, r in enumerate(rendered) if r.pieces is None]
        for adds_special in {rendered[k].adds_special for k in whole}:
            places = [k for k in whole if rendered[k].adds_special == adds_special]
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
                    if rendered[k].within_spans:
                        mask &= target_mask(encoding.offsets[:max_length], rendered[k].spans)
                end = rendered[k].end
                if end is not None:
                    ids = np.array(encoding.ids, np.int32)
                    mask |= end_mask(encoding.offsets, rendered[k].spans, ids, end)[:max_length]
                if rendered[k].drops_long and len(encoding.ids) > max_length:
                    mask[:] = False
                encoded[k] = np.array(encoding.ids[:max_length], np.int32), mask
        return encoded

    def _encode_pieces(
        self, rendered: list[Rendered], max_length: int, encoded: list[tuple[Int32, Bool]]
    ) -> None:
        """Put the tokens of those that come in pieces into `encoded`."""
        in_pieces = [(k, r.pieces) for k, r in enumerate(rendered) if r.pieces is not None]
        for adds_special in {pieces.adds_special for _, pieces in in_pieces}:
            same = [(k, p) for k, p in in_pieces if p.adds_special == adds_special]
            texts = [
                part
                for _, pieces in same
                for turn in pieces.turns
                for side in turn
                for part in side
                if isinstance(part, str)
            ]
            found = iter(self._encode(texts, adds_special))

            def ids(side: Sequence[Part], found: Iterator[Any] = found) -> list[int]:
                parts = ([part] if isinstance(part, int) else next(found).ids for part in side)
                return [*chain.from_iterable(parts)]

            for k, pieces in same:
                turns = [(ids(asked), ids(answered)) for asked, answered in pieces.turns]
                encoded[k] = pieces.join(turns, max_length)

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


def end_mask(offsets: list[Span], spans: list[Span], ids: Int32, end: int) -> Bool:
    """[T] the first token `end` behind each span, where at most 3 tokens lie between."""
    starts = [start for start, _ in offsets]
    mask = np.zeros(len(ids), dtype=bool)
    for _, last in spans:
        behind = bisect_left(starts, last)
        found = np.flatnonzero(ids[behind : behind + 4] == end)
        mask[behind + found[:1]] = True
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
