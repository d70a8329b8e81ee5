"""What a selection starts from: which rows may be picked, how many, and the order of equals."""

from __future__ import annotations

import logging
import math

import numpy as np

from gracekit.errors import SelectionError
from gracekit.recipe import SelectionSection
from gracekit.types import (
    Bool,
    Float32,
    Int64,
    Origin,
    SampleTable,
    ScoreTable,
    SparseGraph,
    Strings,
)

logger = logging.getLogger(__name__)

DEFAULT_FRACTION = 0.3


def id_order(sample_ids: Strings) -> Int64:
    """[n] rank of each id among all: ties are broken by it, so the order of rows is no matter."""
    ids = sample_ids.tolist()
    order = np.empty(len(ids), np.int64)
    order[sorted(range(len(ids)), key=ids.__getitem__)] = np.arange(len(ids))
    return order


def usable_rows(scores: ScoreTable, samples: SampleTable) -> Bool:
    """[n] rows with scores, a finite importance and at least one target token."""
    usable: Bool = (
        scores.usable & np.isfinite(scores.importance) & (samples.num_response_tokens > 0)
    )
    if not usable.any():
        origins = np.bincount(scores.origin, minlength=len(Origin))
        raise SelectionError(
            f"none of the {samples.present.sum()} samples can be selected: "
            f"{origins[Origin.NEVER]} were "
            f"never measured, {origins[Origin.INVALID]} gave no finite score or have no target "
            "token. Measure with another checkpoint, or look at the data (`gracekit status`)"
        )
    return usable


def hardest_first(rows: Bool, importance: Float32, order: Int64) -> Int64:
    """The rows, most important first; of equals the larger id."""
    found = np.flatnonzero(rows)
    return found[np.lexsort((-order[found], -importance[found]))]


def without_hardest(share: float, usable: Bool, importance: Float32, order: Int64) -> Bool:
    """[n] the usable rows but for the most important `share` of them, rounded down."""
    kept = usable.copy()
    if share:
        hardest = hardest_first(usable, importance, order)
        kept[hardest[: math.floor(share * len(hardest))]] = False
    return kept


def without_near_duplicates(
    most: float | None,
    graph: SparseGraph,
    *,
    kept: Bool,
    always: Bool,
    importance: Float32,
    order: Int64,
) -> Bool:
    """[n] `kept` but for rows more similar than `most` to one that stays, or that is always in.

    Of near-duplicates the most important stays, of equals the smaller id. Only pairs that the
    graph joins are known.
    """
    from gracekit.greedy import apart

    if most is None:
        return kept
    others = np.flatnonzero(kept & ~always)
    ranking = others[np.lexsort((order[others], -importance[others]))]
    stay = apart(graph, ranking, initial=np.flatnonzero(always), most=most)
    stay[kept & always] = True
    return stay


def row_budget(settings: SelectionSection, *, num_usable: int, num_candidates: int) -> int:
    """The budget in rows: `count`, or `fraction` of the usable rows rounded, at least 1.

    Never more than there are candidates; then a warning says so.
    """
    fraction = DEFAULT_FRACTION if settings.fraction is None else settings.fraction
    asked = settings.count or max(1, math.floor(fraction * num_usable + 0.5))
    if asked > num_candidates:
        logger.warning(
            "%d samples are to be selected, but only %d can be: all of them are",
            asked,
            num_candidates,
        )
    return min(asked, num_candidates)


def row_tokens(samples: SampleTable) -> Int64:
    """[n] tokens that training on a row takes: prompt and response, at least 1."""
    tokens = samples.num_prompt_tokens.astype(np.int64) + samples.num_response_tokens
    at_least_one: Int64 = np.maximum(tokens, 1)
    return at_least_one
