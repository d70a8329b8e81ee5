"""Tokens of preference pairs: of the chosen sides, and with `data.pair: margin` of both."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from gracekit.errors import DataError
from gracekit.recipe import DataSection
from gracekit.samples.raw import RawSamples
from gracekit.samples.tokens import TokenTable, tokenize

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


def tokenize_pairs(
    raw: RawSamples,
    tokenizer: PreTrainedTokenizerBase,
    data: DataSection,
    cache_dir: Path,
    rejected_dir: Path,
) -> TokenTable:
    """`tokenize`, and with `data.pair: margin` the rejected sides too.

    Raises `DataError` as `tokenize` does, and where the data holds no pairs.
    """
    table = tokenize(raw, tokenizer, data, cache_dir)
    if data.pair == "chosen":
        return table
    if raw.format != "preference":
        raise DataError(
            f"data.pair is margin, but {data.name} is read as {raw.format}, which has no rejected "
            "sides. Leave data.pair at chosen, or name the columns of the pairs "
            "(data.columns: {chosen: ..., rejected: ...})"
        )
    rejected = tokenize(
        dataclasses.replace(raw, records=raw.records.rejected()), tokenizer, data, rejected_dir
    )
    num_lost = int(((rejected.num_targets == 0) & (table.num_targets > 0)).sum())
    if num_lost:
        logger.warning(
            "%d of %d pairs have a token to train on only on the chosen side (the rejected answer "
            "lies beyond data.max_length, %d, or cannot be rendered): they have no margin and are "
            "never selected",
            num_lost,
            len(table),
            data.max_length,
        )
    return dataclasses.replace(table, rejected=rejected)
