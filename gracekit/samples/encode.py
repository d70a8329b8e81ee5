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
        """(ids, loss mask) of each text; special tokens are those written in the texts."""
        encodings = self._backend.encode_batch([r.text for r in rendered], add_special_tokens=False)
        return [
            (
                np.array(encoding.ids[:max_length], np.int32),
                target_mask(encoding.offsets[:max_length], r.spans),
            )
            for encoding, r in zip(encodings, rendered, strict=True)
        ]


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
