"""Samples that are always in or never in: by id, or by an SQL condition on the store."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gracekit.errors import QueryError, SelectionError
from gracekit.recipe import SelectionSection
from gracekit.texts import Texts
from gracekit.types import Bool, SampleTable, ScoreTable

if TYPE_CHECKING:
    from gracekit.store import StoreReader

logger = logging.getLogger(__name__)

SHOWN = 3
"""Ids that a message names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """What the recipe says of single samples."""

    always: Bool
    """[n]"""
    never: Bool
    """[n]"""


def listed(
    settings: SelectionSection,
    *,
    scores: ScoreTable,
    samples: SampleTable,
    store: StoreReader | Path | None,
) -> Listed:
    """The rows that the recipe lists.

    Raises `SelectionError` for ids that do not exist, bad SQL, samples on both lists, and samples
    always in that have nothing to train on.
    """
    always, never = np.zeros((2, len(samples)), bool)
    wanted = {
        "always_in": (always, settings.always_in, settings.always_in_where),
        "never_in": (never, settings.never_in, settings.never_in_where),
    }
    for key, (chosen, ids, condition) in wanted.items():
        if ids:
            chosen[_rows_of_ids(ids, samples, f"selection.{key}")] = True
            if not samples.present[chosen].all():
                gone = _name_samples(chosen & ~samples.present, samples)
                logger.warning("selection.%s: %s: no longer in the data, left out", key, gone)
                chosen &= samples.present
        if condition is not None:
            chosen |= where(
                condition, scores=scores, samples=samples, store=store, key=f"{key}_where"
            )
    if np.any(always & never):
        raise SelectionError(
            f"{_name_samples(always & never, samples)}: both always in and never in; take them off "
            "one of the lists (selection.always_in, never_in and their _where)"
        )
    empty = always & (samples.num_response_tokens == 0)
    if np.any(empty):
        raise SelectionError(
            f"{_name_samples(empty, samples)}: always in, but without a token to train on; take "
            "them off selection.always_in, or look at the data (data.max_length cuts long prompts)"
        )
    return Listed(always=always, never=never)


def where(
    condition: str,
    *,
    scores: ScoreTable,
    samples: SampleTable,
    store: StoreReader | Path | None,
    key: str,
) -> Bool:
    """[n] rows for which an SQL condition holds, with the scores of this very selection.

    It may name the columns of the tables `samples` and `scores`; with a store, subqueries see all
    of its tables. Nothing outside of the store can be read.

    Raises `SelectionError` naming the recipe's `key`.
    """
    from gracekit.store import rows_where  # which loads DuckDB

    try:
        rows = rows_where(condition, scores=scores, samples=samples, store=store)
    except QueryError as error:
        raise SelectionError(
            f"selection.{key}: {condition!r} is not an SQL condition on the columns of samples "
            f"and scores: {error}"
        ) from None
    chosen = np.zeros(len(samples), bool)
    chosen[rows] = True
    return chosen & samples.present


def _rows_of_ids(ids: tuple[str, ...], samples: SampleTable, key: str) -> list[int]:
    rows: list[int] = samples.sample_ids.places_of(Texts.of(ids)).tolist()
    unknown = [sample_id for sample_id, row in zip(ids, rows, strict=True) if row < 0]
    if unknown:
        raise SelectionError(
            f"{key}: {len(unknown)} of {len(ids)} ids are not in the store, the first "
            f"{unknown[0]!r}; `gracekit sql 'SELECT sample_id FROM samples'` lists those that are"
        )
    return rows


def _name_samples(rows: Bool, samples: SampleTable) -> str:
    ids = samples.sample_ids[np.flatnonzero(rows)]
    more = f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else ""
    noun = "samples" if len(ids) > 1 else "sample"
    return f"{noun} {', '.join(map(repr, ids[:SHOWN].tolist()))}{more}"
