"""The space in which scores are propagated: the log of the length-corrected score.

Changes of different samples are comparable there (a factor is a difference), the length is out of
the way, and every finite score has a place. Gradient norms of mean losses shrink with the number
of target tokens and are multiplied by its root first, whatever the recipe's length correction is:
the factor is known for every row, so nothing is lost on the way back.
"""

from __future__ import annotations

import numpy as np

from gracekit.scoring.scorers import scorer_class
from gracekit.types import Float32, Float64, Int32

SMALLEST = 1e-8
"""Scores below count as this: the log of a loss of 0 would drown everything else."""


def to_working(scores: dict[str, Float32], num_targets: Int32) -> dict[str, Float32]:
    """Log of each score [n], corrected for length; NaN stays NaN, infinities become NaN."""
    working = {}
    for name, score in scores.items():
        value = score.astype(np.float64) * _length_factor(name, num_targets)
        value[~np.isfinite(value)] = np.nan
        working[name] = np.log(np.maximum(value, SMALLEST)).astype(np.float32)
    return working


def from_working(values: dict[str, Float32], num_targets: Int32) -> dict[str, Float32]:
    """The inverse of `to_working`."""
    return {
        name: (np.exp(value.astype(np.float64)) / _length_factor(name, num_targets)).astype(
            np.float32
        )
        for name, value in values.items()
    }


def _length_factor(name: str, num_targets: Int32) -> Float64 | float:
    if not scorer_class(name).shrinks_with_length:
        return 1.0
    factor: Float64 = np.sqrt(np.maximum(num_targets, 1).astype(np.float64))
    return factor
