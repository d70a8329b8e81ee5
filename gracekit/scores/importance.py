"""From a measured score to importance: the number that selection uses."""

from __future__ import annotations

import numpy as np

from gracekit.recipe import ScoringSection
from gracekit.scores.length import correct_length, ranks_within
from gracekit.scores.meaning import score_meaning
from gracekit.scores.working_values import from_working, to_working
from gracekit.types import Bool, Float32, Int32, SampleTable


def sample_importance(
    scores: dict[str, Float32],
    samples: SampleTable,
    settings: ScoringSection,
    *,
    carried: Bool | None = None,
    stretch: float = 1.0,
) -> Float32:
    """[n] importance in [0, 1] of all samples: what selection uses.

    The recipe's importance score, corrected for length, as a rank within the sample's group or
    among all; 0 where the score is not finite.

    Scores that were carried over are ranked as `spread_out` gives them. As estimates they are too
    much alike, so that without it the highest ranks, and the lowest, would go to measured samples.

    Args:
        scores: score name -> [n] as the pass gives them.
        samples: The sample table [n].
        settings: Which score it is, and how it is corrected and ranked.
        carried: [n] samples whose score was carried over; None: none.
        stretch: by how much these are spread out.
    """
    if carried is not None and stretch != 1:
        name, num_targets = settings.importance, samples.num_response_tokens
        values = to_working({name: scores[name]}, num_targets)[name]
        values = spread_out(values, carried, samples.groups, stretch)
        scores = {**scores, name: np.where(
            carried, from_working({name: values}, num_targets)[name], scores[name]
        )}  # fmt: skip
    corrected = corrected_score(scores, samples.num_response_tokens, settings)
    return importance(corrected, groups=samples.groups if settings.normalise == "group" else None)


def spread_out(values: Float32, rows: Bool, groups: Int32, stretch: float) -> Float32:
    """Working values [n], those of the given rows farther from the mean of these in their group.

    Args:
        values: [n]; what is not finite stays.
        rows: [n] whose values are moved.
        groups: [n]
        stretch: factor of the distance to the mean.
    """
    moved = rows & np.isfinite(values)
    at, of_row = values[moved].astype(np.float64), groups[moved]
    means = np.bincount(of_row, at) / np.maximum(np.bincount(of_row), 1)
    result = values.copy()
    result[moved] = means[of_row] + stretch * (at - means[of_row])
    return result


def working_importance(
    values: Float32,
    samples: SampleTable,
    settings: ScoringSection,
    *,
    carried: Bool | None = None,
    stretch: float = 1.0,
) -> Float32:
    """`sample_importance` [n] of working values [n] of the recipe's importance score."""
    scores = from_working({settings.importance: values}, samples.num_response_tokens)
    return sample_importance(scores, samples, settings, carried=carried, stretch=stretch)


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
