"""Vectors of length 1."""

from __future__ import annotations

import numpy as np

from gracekit.types import Float32


def directions(vectors: Float32) -> Float32:
    """[m, d] each vector by its length; 0 where it is 0."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    return np.asarray(unit, np.float32)
