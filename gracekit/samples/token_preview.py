"""What the tokens of a dataset look like: the first rows, and what is cut off or left out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from gracekit.leftovers import scratch_folder
from gracekit.recipe import DataSection
from gracekit.samples.raw import RawSamples, Skipped
from gracekit.samples.tokens import TokenTable, tokenize
from gracekit.types import Bool, Int32, Json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NUM_SHOWN = 3
"""Rows whose tokens are shown."""
LONGEST = 2**30
BLOCK_ROWS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownRow:
    """One row in tokens."""

    source_row: int
    num_tokens: int
    num_targets: int
    """Tokens that carry loss."""
    pieces: tuple[tuple[str, bool], ...]
    """The text in pieces, each with whether its tokens carry loss."""
    ids: tuple[int, ...]

    def to_json(self) -> Json:
        """As a JSON object."""
        return {
            "source_row": self.source_row,
            "num_tokens": self.num_tokens,
            "num_targets": self.num_targets,
            "ids": list(self.ids),
            "pieces": [{"text": text, "has_loss": has_loss} for text, has_loss in self.pieces],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPreview:
    """The tokens of a dataset under one tokenizer."""

    rows: tuple[ShownRow, ...]
    num_cut: int
    """Rows with more than `data.max_length` tokens; the rest of them is cut off."""
    num_answers_cut: int
    """Rows that lose tokens with loss by that."""
    num_without_answer: int
    """Rows that lose all of them."""
    unrendered: tuple[Skipped, ...]
    """Rows that have no tokens, and why."""


def preview_tokens(
    raw: RawSamples, tokenizer: PreTrainedTokenizerBase, data: DataSection
) -> TokenPreview:
    """Tokenise all samples without a limit, and look at what the limit does.

    Raises `DataError` as `tokenize` does.
    """
    whole = data.model_copy(update={"max_length": LONGEST})
    with scratch_folder("tokens") as folder:
        tokens = tokenize(raw, tokenizer, whole, folder)
        long = np.flatnonzero(tokens.lengths > data.max_length)
        losses = list(_losses(tokens, long, data.max_length))
        shown = [int(row) for row in np.flatnonzero(tokens.lengths)[:NUM_SHOWN]]
        rows = tuple(
            _shown(int(raw.source_rows[row]), ids, mask, tokenizer, data.max_length)
            for row, (ids, mask) in zip(shown, tokens.take(np.array(shown)), strict=True)
        )
        unrendered = tokens.unrendered
    return TokenPreview(
        rows=rows,
        num_cut=len(long),
        num_answers_cut=sum(kept < full for kept, full in losses),
        num_without_answer=sum(kept == 0 < full for kept, full in losses),
        unrendered=unrendered,
    )


def _losses(tokens: TokenTable, rows: np.ndarray, limit: int) -> Iterator[tuple[int, int]]:
    """Tokens with loss of each row: within the limit, and in all."""
    for start in range(0, len(rows), BLOCK_ROWS):
        for _, mask in tokens.take(rows[start : start + BLOCK_ROWS]):
            yield int(mask[:limit].sum()), int(mask.sum())


def _shown(
    source_row: int, ids: Int32, mask: Bool, tokenizer: PreTrainedTokenizerBase, limit: int
) -> ShownRow:
    ids, mask = ids[:limit], mask[:limit]
    pieces = []
    for has_loss, group in groupby(zip(ids.tolist(), mask.tolist(), strict=True), lambda t: t[1]):
        text = tokenizer.decode([i for i, _ in group], clean_up_tokenization_spaces=False)
        pieces.append((str(text), has_loss))
    return ShownRow(
        source_row=source_row,
        num_tokens=len(ids),
        num_targets=int(mask.sum()),
        pieces=tuple(pieces),
        ids=tuple(ids.tolist()),
    )
