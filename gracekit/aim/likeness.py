"""Likeness: how similar a row's features are to those of the target set."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gracekit.aim.directions import directions
from gracekit.types import Bool, Float32, Rows

_BLOCK = 65_536


def likeness(
    features: NDArray[np.float16] | Float32,
    valid: Bool,
    targets: Float32,
    *,
    rows: Rows | None = None,
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
        total, known = np.zeros(features.shape[1]), np.flatnonzero(valid)
        for block in _blocks(known):
            total += features[block].sum(axis=0, dtype=np.float64)
        centre = (total / len(known)).astype(np.float32)
    goal = directions(targets - centre).mean(axis=0)
    asked = np.arange(len(features)) if rows is None else rows
    found = [np.zeros(0, np.float32)]
    found += [directions(features[block] - centre) @ goal for block in _blocks(asked)]
    similar: Float32 = np.concatenate(found)
    similar[~valid[asked]] = 0
    return similar


def _blocks(rows: Rows) -> list[Rows]:
    """A copy in float32 is made of so many at a time."""
    return [rows[start : start + _BLOCK] for start in range(0, len(rows), _BLOCK)]
