"""From a measured score to importance: the number that selection uses."""

from __future__ import annotations

import numpy as np

from gracekit.model_pass.scorers import scorer_class
from gracekit.recipe import ScoringSection
from gracekit.scores.length import correct_length, ranks_within
from gracekit.types import Float32, Int32


def corrected_score(
    scores: dict[str, Float32], num_targets: Int32, settings: ScoringSection
) -> Float32:
    """The recipe's importance score [n], corrected for length where it shrinks with it.

    Raises `RecipeError` when the recipe names a scorer that does not exist.
    """
    score = scores[settings.importance]
    if not scorer_class(settings.importance).shrinks_with_length:
        return score.copy()
    return correct_length(score, num_targets, settings.length_correction)


def importance(corrected: Float32, *, groups: Int32 | None) -> Float32:
    """Rank of the corrected score, within its group or among all: [n] in [0, 1].

    Where a score differs between sources more than within them, ranking all samples together
    mostly ranks their sources; ranking within groups does not.

    Ties get the same rank; the mean over a group is 1/2 (before invalid rows).

    Args:
        corrected: [n] score after `correct_length`; a row that is not finite gets 0.
        groups: [n] to rank within; None ranks among all.
    """
    valid = np.isfinite(corrected)
    labels = np.zeros(len(corrected), np.int32) if groups is None else groups
    result = np.zeros(len(corrected), np.float32)
    result[valid] = ranks_within(corrected[valid], labels[valid])
    return result
