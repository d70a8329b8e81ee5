"""The space in which scores are propagated: corrected for length, on the scale of the scorer.

Changes of different samples are comparable there. Losses and norms change by factors, so their log
is taken (`ScoreMeaning.scale` is `log`); a score of any sign stays as it is (`linear`). Norms of
mean gradients shrink with the number of target tokens and are multiplied by its root first,
whatever the recipe's length correction is: the factor is known for every row, so nothing is lost
on the way back.
"""

from __future__ import annotations

import numpy as np

from gracekit.scores.meaning import score_meaning
from gracekit.types import Float32, Float64, Int32, SampleTable

SMALLEST = 1e-8
"""On the log scale scores below count as this: the log of 0 would drown everything else."""


def to_working(scores: dict[str, Float32], num_targets: Int32) -> dict[str, Float32]:
    """Working values of each score [n]; NaN stays NaN, infinities become NaN."""
    working = {}
    for name, score in scores.items():
        value = score.astype(np.float64) * _length_factor(name, num_targets)
        value[~np.isfinite(value)] = np.nan
        if score_meaning(name).scale == "log":
            value = np.log(np.maximum(value, SMALLEST))
        working[name] = value.astype(np.float32)
    return working


def from_working(values: dict[str, Float32], num_targets: Int32) -> dict[str, Float32]:
    """The inverse of `to_working`."""
    scores = {}
    for name, working in values.items():
        value = working.astype(np.float64)
        if score_meaning(name).scale == "log":
            value = np.exp(value)
        scores[name] = (value / _length_factor(name, num_targets)).astype(np.float32)
    return scores


def changes_since(
    before: dict[str, Float32], values: dict[str, Float32], samples: SampleTable, *, version: int
) -> dict[str, Float32]:
    """Change of working values since those of an earlier version: score -> [n], 0 where unknown.

    Args:
        before: score -> [m] working values of the first m rows then; may lack scores.
        values: score -> [n] working values now.
        samples: The sample table [n]; a row whose content is newer than `version` has no change.
        version: The earlier version.
    """
    changes = {name: np.zeros_like(value) for name, value in values.items()}
    for name in before.keys() & values.keys():
        m = len(before[name])
        found = np.nan_to_num(values[name][:m] - before[name], posinf=0, neginf=0)
        is_same = samples.content_versions[:m] <= version
        np.copyto(changes[name][:m], found, where=is_same)
    return changes


def _length_factor(name: str, num_targets: Int32) -> Float64 | float:
    if not score_meaning(name).shrinks_with_length:
        return 1.0
    factor: Float64 = np.sqrt(np.maximum(num_targets, 1).astype(np.float64))
    return factor
