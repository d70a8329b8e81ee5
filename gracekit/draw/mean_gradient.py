"""How far the mean gradient of a coreset is from that of all samples, by their sketches."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from gracekit.types import Bool, Float32, Float64, Rows

_ROWS_AT_ONCE = 65_536


def gradient_errors(
    features: NDArray[np.float16] | Float32,
    factors: Float64,
    of_pool: Bool,
    rows: Rows,
    weights: Float32,
) -> tuple[float, float]:
    """|Σ w g / Σ w - mean g| / |mean g| of the coreset, and of random draws of as many rows.

    The second is the root of the mean square over all draws without replacement,
    (1 - b/N) S² / b with S² = Σ |g - mean g|² / (N - 1) (Cochran, *Sampling Techniques*, chapter
    2). Both are NaN where the mean is 0 or nothing is selected.

    Args:
        features: [n, d] sketches of the rows' gradients, as they are known.
        factors: [n] what each is multiplied by to be the row's part g in the trainer's average.
        of_pool: [n] the N rows whose mean gradient is wanted, 1 or more.
        rows: [b] of the coreset, among these.
        weights: [b] zero or more.
    """
    pool, width = np.flatnonzero(of_pool), features.shape[1]
    total, square = np.zeros(width), 0.0
    for first in range(0, len(pool), _ROWS_AT_ONCE):
        part = pool[first : first + _ROWS_AT_ONCE]
        gradients = features[part] * factors[part, None]
        total += gradients.sum(axis=0)
        square += float(np.einsum("ij,ij->", gradients, gradients))
    mean = total / len(pool)
    size, weight = float(np.linalg.norm(mean)), float(weights.sum(dtype=np.float64))
    if size == 0 or weight == 0:
        return math.nan, math.nan
    estimate = np.zeros(width)
    for first in range(0, len(rows), _ROWS_AT_ONCE):
        some = slice(first, first + _ROWS_AT_ONCE)
        estimate += (weights[some].astype(np.float64) * factors[rows[some]]) @ features[rows[some]]
    n, b = len(pool), len(rows)
    variance = max(square - n * size**2, 0.0) / max(n - 1, 1)
    of_random = math.sqrt(max(1 - b / n, 0.0) * variance / b) / size
    return float(np.linalg.norm(estimate / weight - mean)) / size, of_random
