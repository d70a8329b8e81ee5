"""How large a row's gradient has to be expected: what a draw in proportion to norms needs."""

from __future__ import annotations

import math

import numpy as np

from gracekit.recipe import ScoringSection
from gracekit.scores.meaning import score_meaning
from gracekit.types import Bool, Float64, Int32, Origin, ScoreTable


def expected_norms(
    table: ScoreTable, num_targets: Int32, settings: ScoringSection | None
) -> Float64:
    """[n] root of the second moment of each row's norm, zero or more.

        sqrt(norm² + sd²),    sd = (1 - confidence) · norm · (sd / mean of the measured norms)

    The norm is the recipe's importance score, times the root of the number of target tokens where
    it shrinks with them (not with `length_correction: none`). A row that was measured now has the
    confidence 1 and so its norm; one that nothing is known of is expected to differ from its
    estimate by as much as measured rows differ from each other. Where the score can be negative
    (influence, margin), or `settings` are not known, importance itself takes the norm's place.
    Rows without a finite value get the mean of the others.

    Only products, quotients, roots and exactly rounded sums: the same on every machine and in
    every order of the rows.

    Args:
        table: Scores, origins and confidences [n].
        num_targets: [n] tokens that carry loss.
        settings: How importance was made.
    """
    norms = _norms(table, num_targets, settings)
    known = table.usable & np.isfinite(norms)
    norms = np.where(known, np.maximum(norms, 0), 0)
    if not known.any():
        return np.ones(len(norms))
    measured = known & (table.origin == Origin.MEASURED)
    mean, variation = _mean_and_variation(norms, measured if measured.any() else known)
    norms[~known] = mean
    doubt = np.where(known, 1 - np.nan_to_num(table.confidence.astype(np.float64)), 1)
    roots: Float64 = norms * np.sqrt(1 + (doubt * variation) ** 2)
    return roots


def _norms(table: ScoreTable, num_targets: Int32, settings: ScoringSection | None) -> Float64:
    if settings is None or settings.importance not in table.scores:
        return table.importance.astype(np.float64)
    meaning = score_meaning(settings.importance)
    if meaning.scale != "log":
        return table.importance.astype(np.float64)
    norms = table.scores[settings.importance].astype(np.float64)
    if meaning.shrinks_with_length and settings.length_correction != "none":
        norms = norms * np.sqrt(num_targets.astype(np.float64))
    return norms


def _mean_and_variation(norms: Float64, rows: Bool) -> tuple[float, float]:
    """The mean, and the standard deviation in units of it (0 where the mean is 0)."""
    values = norms[rows].tolist()
    mean = math.fsum(values) / len(values)
    if mean == 0:
        return 0.0, 0.0
    square = math.fsum((value / mean - 1) ** 2 for value in values) / len(values)
    return mean, math.sqrt(square)
