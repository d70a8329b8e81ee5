"""What a selection starts from: which rows may be picked, how many, and the order of equals."""

from __future__ import annotations

import logging
import math

import numpy as np

from gracekit.errors import SelectionError
from gracekit.recipe import SelectionSection
from gracekit.types import Bool, Float32, Int64, Origin, SampleTable, ScoreTable, Strings

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
            f"none of the {len(scores)} samples can be selected: {origins[Origin.NEVER]} were "
            f"never measured, {origins[Origin.INVALID]} gave no finite score or have no target "
            "token. Measure with another checkpoint, or look at the data (`gracekit status`)"
        )
    return usable


def without_hardest(share: float, usable: Bool, importance: Float32, order: Int64) -> Bool:
    """[n] the usable rows but for the most important `share` of them, rounded down."""
    rows = np.flatnonzero(usable)
    hardest_first = rows[np.lexsort((-order[rows], -importance[rows]))] if share else rows
    kept = usable.copy()
    kept[hardest_first[: math.floor(share * len(rows))]] = False
    return kept


def num_to_select(settings: SelectionSection, *, num_usable: int, candidates: Bool) -> int:
    """The budget in rows: `count`, or `fraction` of the usable rows rounded, at least 1.

    Never more than there are candidates; then a warning says so.
    """
    fraction = DEFAULT_FRACTION if settings.fraction is None else settings.fraction
    asked = settings.count or max(1, math.floor(fraction * num_usable + 0.5))
    num_candidates = int(candidates.sum())
    if asked > num_candidates:
        logger.warning(
            "%d samples are to be selected, but only %d can be: all of them are",
            asked,
            num_candidates,
        )
    return min(asked, num_candidates)
