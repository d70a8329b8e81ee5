"""How large a row's gradient has to be expected: what a draw in proportion to norms needs."""

from __future__ import annotations

import math

import numpy as np

from gracekit.recipe import ScoringSection
from gracekit.scores.meaning import score_meaning
from gracekit.scores.portable import exp, log
from gracekit.scores.working_values import SMALLEST
from gracekit.types import Float32, Float64, Int32, Origin, ScoreTable

_MOST_LOG = 4.0
"""Largest σ²: a row is not expected to be more than e⁴ times its estimate."""


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

        E[norm²]^½ = norm · exp(σ²),    σ = (1 - confidence) · sd

    The norm is that of `part_norms`. Scores are carried over in logs (`scores.working_values`), and
    there a row's error is about normal with the standard deviation σ, around the log of what the
    table says: the second moment of such a number is norm² · exp(2σ²). A confidence is 1 - (error
    to be expected) / sd, and sd the standard deviation of the working values of the rows that were
    measured now, so both are in the table. A row that was measured now has the confidence 1 and so
    its norm.

    A row without a finite score (never measured, or invalid) has the root mean square of the
    measured rows' scores, both corrected for length, times what its own length makes of it.

    Where the score can be negative (influence, margin), or `settings` are not known, importance
    itself takes the norm's place: sqrt(importance² + ((1 - confidence) · sd of importance)²).

    Only products, quotients, roots and exactly rounded sums: the same on every machine and in
    every order of the rows.

    Args:
        table: Scores, origins and confidences [n].
        num_targets: [n] tokens that carry loss.
        settings: How importance was made, and what the trainer averages over.
    """
    of_length = np.ones(len(table))
    sizes = table.importance.astype(np.float64)
    is_norm = settings is not None and settings.importance in table.scores and has_norms(settings)
    if settings is not None and is_norm:
        # What a row's part is, by its length, if its score corrected for length is 1.
        of_length = part_norms(1 / _corrected(np.ones(len(table)), num_targets, settings),
                               num_targets, settings)  # fmt: skip
        sizes = _corrected(table.scores[settings.importance], num_targets, settings)
    known = table.usable & np.isfinite(sizes)
    sizes = np.where(known, np.maximum(sizes, 0), 0)
    if not known.any():
        return np.ones(len(sizes))
    measured = known & (table.origin == Origin.MEASURED)
    measured = measured if measured.any() else known
    doubt = np.where(known, 1 - np.nan_to_num(table.confidence.astype(np.float64)), 0)
    if is_norm:
        sd = _standard_deviation(log(np.maximum(sizes[measured], SMALLEST)))
        roots = sizes * exp(np.minimum((doubt * sd) ** 2, _MOST_LOG))
    else:
        roots = np.sqrt(sizes**2 + (doubt * _standard_deviation(sizes[measured])) ** 2)
    roots[~known] = math.sqrt(_mean(sizes[measured] ** 2))
    return roots * of_length


def _corrected(scores: Float32 | Float64, num_targets: Int32, settings: ScoringSection) -> Float64:
    """The scores times √n where they shrink with length."""
    sizes = scores.astype(np.float64)
    if score_meaning(settings.importance).shrinks_with_length:
        sizes = sizes * np.sqrt(np.maximum(num_targets, 1).astype(np.float64))
    return sizes


def _mean(values: Float64) -> float:
    return math.fsum(values.tolist()) / len(values)


def _standard_deviation(values: Float64) -> float:
    return math.sqrt(_mean((values - _mean(values)) ** 2))
