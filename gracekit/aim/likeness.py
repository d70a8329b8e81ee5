"""Likeness: how similar a row's features are to those of the target set."""

from __future__ import annotations

import numpy as np

from gracekit.aim.directions import directions
from gracekit.types import Bool, Float32, Rows


def likeness(
    features: Float32, valid: Bool, targets: Float32, *, rows: Rows | None = None
) -> Float32:
    """Mean cosine of rows' features with those of the target samples.

    Features have a large part in common that says nothing, so the mean of all rows is taken off
    first.

    Args:
        features: [n, d]
        valid: [n] rows that have features.
        targets: [t, d] finite.
        rows: [r] those that are asked for; None: all.

    Returns:
        [r] in [-1, 1]; 0 for rows without features.
    """
    centre = np.zeros(features.shape[1], np.float32)
    if valid.any():
        centre = features[valid].mean(axis=0, dtype=np.float64).astype(np.float32)
    goal = directions(targets - centre).mean(axis=0)
    asked = slice(None) if rows is None else rows
    found: Float32 = directions(features[asked] - centre) @ goal
    found[~valid[asked]] = 0
    return found
