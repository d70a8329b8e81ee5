"""From a measured score to importance: the number that selection uses."""

from __future__ import annotations

import numpy as np

from gracekit.recipe import ScoringSection
from gracekit.scores.length import correct_length, ranks_within
from gracekit.scores.meaning import score_meaning
from gracekit.scores.working_values import from_working
from gracekit.types import Float32, Int32, SampleTable


def sample_importance(
    scores: dict[str, Float32], samples: SampleTable, settings: ScoringSection
) -> Float32:
    """[n] importance in [0, 1] of all samples: what selection uses.

    The recipe's importance score, corrected for length, as a rank within the sample's group or
    among all; 0 where the score is not finite.

    Args:
        scores: score name -> [n] as the pass gives them.
        samples: The sample table [n].
        settings: Which score it is, and how it is corrected and ranked.
    """
    corrected = corrected_score(scores, samples.num_response_tokens, settings)
    return importance(corrected, groups=samples.groups if settings.normalise == "group" else None)


def working_importance(values: Float32, samples: SampleTable, settings: ScoringSection) -> Float32:
    """`sample_importance` [n] of working values [n] of the recipe's importance score."""
    scores = from_working({settings.importance: values}, samples.num_response_tokens)
    return sample_importance(scores, samples, settings)


def corrected_score(
    scores: dict[str, Float32], num_targets: Int32, settings: ScoringSection
) -> Float32:
    """The recipe's importance score [n], corrected for length where it shrinks with it.

    Raises `RecipeError` when the recipe names a scorer that does not exist.
    """
    score = scores[settings.importance]
    if not score_meaning(settings.importance).shrinks_with_length:
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
