"""Likeness: how similar a row's features are to those of the target set."""

from __future__ import annotations

from typing import Any

import numpy as np

from gracekit.types import Bool, Float32, Float64


def likeness(features: Float32, valid: Bool, targets: Float32) -> Float32:
    """Mean cosine of each row's features with those of the target samples.

    Features have a large part in common that says nothing, so the mean of the rows is taken off
    first.

    Args:
        features: [n, d]
        valid: [n] rows that have features.
        targets: [t, d] finite.

    Returns:
        [n] in [-1, 1]; 0 for rows without features.
    """
    centre = np.zeros(features.shape[1], np.float32)
    if valid.any():
        centre = features[valid].mean(axis=0, dtype=np.float64).astype(np.float32)
    goal = _unit(targets - centre).mean(axis=0)
    found = _unit(features - centre) @ goal
    found[~valid] = 0
    return np.asarray(found, np.float32)


def _unit(vectors: Float32 | Float64) -> Any:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
