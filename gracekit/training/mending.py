"""Which settings of the recipe would give the trainer's tokens: tried, not guessed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from gracekit.errors import GracekitError
from gracekit.recipe import DataSection
from gracekit.samples import (
    LLAMAFACTORY_RENDERINGS,
    Conversation,
    open_conversations,
    rendered_tokens,
)
from gracekit.samples.encode import Encoder
from gracekit.training.measured import Measured
from gracekit.training.trainer_rows import FedRow

RENDERINGS = ("auto", "trl", "chat", "plain", "axolotl", *LLAMAFACTORY_RENDERINGS)
MEANS_BY_AUTO = ("auto", "trl", "chat", "plain")
"""Where `loss_on: auto` may be something else than `response`."""
LOSSES = ("auto", "response", "all")
WHOLE = 1 << 24
"""A `max_length` that cuts nothing."""


class Mend(NamedTuple):
    """Settings that give the trainer's tokens and loss."""

    settings: str
    """Such as `data.rendering: trl, data.loss_on: response`; empty: those that the recipe has."""
    num_mended: int
    """Of the rows that differ and were tried."""
    num_tried: int


def find_mend(
    measured: Measured,
    rows: Sequence[int],
    fed: Sequence[FedRow],
    tokenizer: Any,
    *,
    longest: int,
) -> Mend | None:
    """Settings under which most of the samples have the tokens that the trainer feeds.

    Args:
        measured: The samples.
        rows: Rows of the store that differ.
        fed: What the trainer has for each.
        tokenizer: The trainer's.
        longest: Tokens of the longest row of the trainer's that differs, tried or not.

    Returns:
        None where no settings help, or the data cannot be read.
    """
    source_rows = measured.samples.source_rows[list(rows)]
    try:
        found = [*open_conversations(measured.settings, source_rows, format_name=measured.layout)]
    except GracekitError:
        return None  # the data is not where the trainer runs
    read = [(c, theirs) for c, theirs in zip(found, fed, strict=True) if c is not None]
    if not read:
        return None
    best: Mend | None = None
    encoder = Encoder(tokenizer)

    def render(conversation: Conversation, settings: DataSection, max_length: int) -> FedRow | None:
        settings = settings.model_copy(update={"max_length": max_length})
        try:
            ((ids, mask),) = rendered_tokens([conversation], tokenizer, settings, encoder=encoder)
        except GracekitError:
            return None
        return FedRow(ids, mask)

    for settings, changes in _candidates(measured.settings):
        mended = []
        for conversation, theirs in read:
            ours = render(conversation, settings, WHOLE)
            length = _max_length(ours, theirs, settings.max_length)
            if length is None and ours is not None and len(ours.ids) > len(theirs.ids):
                # LLaMA-Factory cuts within a row.
                ours = render(conversation, settings, max(8, len(theirs.ids)))
                length = _max_length(ours, theirs, len(theirs.ids))
            if length is not None:
                mended.append(length)
        if mended and (best is None or len(mended) > best.num_mended):
            cut = [length for length in mended if length < settings.max_length]
            length = max(cut or mended)
            if length != settings.max_length:
                length = max(length, longest) if length > settings.max_length else length
                changes = [*changes, f"data.max_length: {length}"]
            best = Mend(", ".join(changes), len(mended), len(read))
    return best


def _candidates(settings: DataSection) -> Iterator[tuple[DataSection, list[str]]]:
    """Settings to try, those first that change least, with what they change."""
    tried = []
    for rendering in dict.fromkeys((settings.rendering, *RENDERINGS)):
        for loss_on in dict.fromkeys((settings.loss_on, *LOSSES)):
            values = {"rendering": rendering, "loss_on": loss_on}
            if rendering not in MEANS_BY_AUTO and loss_on == "response" != settings.loss_on:
                continue  # the same as auto
            if rendering != settings.rendering:
                values["chat_template"] = "auto"
            changes = [
                f"data.{key}: {value}"
                for key, value in values.items()
                if getattr(settings, key) != value
            ]
            tried.append((settings.model_copy(update=values), changes))
    yield from sorted(tried, key=lambda candidate: len(candidate[1]))


def _max_length(ours: FedRow | None, theirs: FedRow, max_length: int) -> int | None:
    """The `max_length` that makes a row the trainer's; None where none does."""
    length = len(theirs.ids)
    if ours is None or not np.array_equal(ours.ids[:length], theirs.ids):
        return None
    if not np.array_equal(ours.mask[:length], theirs.mask):
        return None
    is_whole = len(ours.ids) == length
    return max(max_length, length) if is_whole else length
