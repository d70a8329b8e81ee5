"""How large a row's gradient has to be expected: what a draw in proportion to norms needs."""

from __future__ import annotations

import math

import numpy as np

from gracekit.recipe import ScoringSection
from gracekit.scores.meaning import score_meaning
from gracekit.types import Bool, Float32, Float64, Int32, Origin, ScoreTable


def has_norms(settings: ScoringSection | None) -> bool:
    """Whether the recipe's importance score is a size, so that `part_norms` means something.

    Scores of any sign (influence, margin, changes of the loss) are none, and with `settings` that
    are not known nothing is.
    """
    return settings is not None and score_meaning(settings.importance).scale == "log"


def part_norms(norms: Float32 | Float64, num_targets: Int32, settings: ScoringSection) -> Float64:
    """[n] norm of each row's part in the gradient of the trainer's loss, up to a common factor.

    The mean over the tokens of a batch is Σ_i n_i · (gradient of row i's mean loss) / Σ_i n_i, so
    under `scoring.loss: tokens` a row's part is n_i times that gradient; under `samples` it is the
    gradient itself. Gradient norms that shrink with length are norms of just that mean gradient.

    The other scores are sizes that do not depend on length: of one token (loss, el2n, entropy …),
    or of a whole step (`adam-norm`, in which the sample's gradient is divided by its own size, and
    which is the gradient times √n where there is no optimizer). Token gradients of different
    directions add up like a random walk, which is what `length_correction: sqrt` says too: so
    their row's part is √n times the score under `tokens`, and 1/√n of it under `samples`.

    Args:
        norms: [n] of the recipe's importance score as the pass gives it; NaN stays NaN.
        num_targets: [n] tokens that carry loss; 0 counts as 1.
        settings: Which score it is (one for which `has_norms`), and what the trainer averages over.
    """
    lengths = np.maximum(num_targets, 1).astype(np.float64)
    parts = norms.astype(np.float64)
    if not score_meaning(settings.importance).shrinks_with_length:
        parts = parts / np.sqrt(lengths)
    return parts * lengths if settings.loss == "tokens" else parts


def expected_norms(
    table: ScoreTable, num_targets: Int32, settings: ScoringSection | None
) -> Float64:
    """[n] root of the second moment of the norm of each row's part, zero or more.

        sqrt(norm² + sd²),    sd = (1 - confidence) · norm · (sd / mean of the measured norms)

    The norm is that of `part_norms`. A row that was measured now has the
    confidence 1 and so its norm; one that nothing is known of is expected to differ from its
    estimate by as much as measured rows differ from each other. Where the score can be negative
    (influence, margin), or `settings` are not known, importance itself takes the norm's place.
    Rows without a finite value get the mean of the others.

    Only products, quotients, roots and exactly rounded sums: the same on every machine and in
    every order of the rows.

    Args:
        table: Scores, origins and confidences [n].
        num_targets: [n] tokens that carry loss.
        settings: How importance was made, and what the trainer averages over.
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
    if settings is None or settings.importance not in table.scores or not has_norms(settings):
        return table.importance.astype(np.float64)
    return part_norms(table.scores[settings.importance], num_targets, settings)


def _mean_and_variation(norms: Float64, rows: Bool) -> tuple[float, float]:
    """The mean, and the standard deviation in units of it (0 where the mean is 0)."""
    values = norms[rows].tolist()
    mean = math.fsum(values) / len(values)
    if mean == 0:
        return 0.0, 0.0
    square = math.fsum((value / mean - 1) ** 2 for value in values) / len(values)
    return mean, math.sqrt(square)
