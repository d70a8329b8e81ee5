"""What a renderer makes of one sample: a text with spans that carry loss, or pieces of text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gracekit.samples.marks import Span
from gracekit.types import Bool, Int32

Part = str | int
"""Text that is tokenised by itself, or the id of a token."""
EncodedTurn = tuple[list[int], list[int]]
"""Ids of what is asked, and of what is answered."""


@dataclass(frozen=True, slots=True)
class Pieces:
    """Turns whose parts the trainer tokenises one by one, so that no token goes over a border."""

    turns: Sequence[tuple[Sequence[Part], Sequence[Part]]]
    """What is asked and what is answered."""
    join: Callable[[Sequence[EncodedTurn], int], tuple[Int32, Bool]]
    """From the turns' ids and `max_length` to (ids, loss mask), cut as the trainer cuts."""
    adds_special: bool = False
    """Whether the tokenizer puts its tokens of begin and end of sequence beside each text."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """The text of one sample, special tokens written out."""

    text: str
    spans: list[Span]
    """Characters that carry loss: [start, end), ascending."""
    was_rendered: bool = False
    """Whether it came with a token that begins or ends a sequence."""
    prompt: str | None = None
    """With it the spans say nothing: no loss is on the tokens that the text shares with this one,
    each tokenised as a whole; on all others there is."""
    within_spans: bool = False
    """Of a text with a prompt: loss is only on tokens within the spans as well."""
    adds_special: bool = False
    """Whether the tokenizer puts its tokens of begin and end of sequence beside the text."""
    pieces: Pieces | None = None
    """With it text and spans say nothing: these are tokenised instead."""
    end: int | None = None
    """Id of a token that carries loss where it follows a span, with up to 3 tokens between."""
    drops_long: bool = False
    """Whether the trainer drops a sample of more than `max_length` tokens: it carries no loss."""
