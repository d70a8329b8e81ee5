"""Weights as whole numbers of copies."""

from __future__ import annotations

import numpy as np

from gracekit.types import Float32, Float64, Int64


def whole_copies(weights: Float32 | Float64, random: np.random.Generator) -> Int64:
    """Round weights to whole numbers at random, keeping their total.

    Systematic sampling (Madow 1949) in random order: the cumulated weights are cut at every whole
    number, shifted by one random offset. Each weight is rounded down or up, and the expected
    result is the weight itself.

    Args:
        weights: [b] at least 0, b at least 1; their sum, above 0, is taken as the nearest whole
            number.
        random: Where chance comes from.

    Returns:
        int64 [b] copies; their sum is exactly that whole number.
    """
    order = random.permutation(len(weights))
    ends = np.cumsum(weights[order], dtype=np.float64)
    total = round(ends[-1])
    cuts = np.floor(ends * (total / ends[-1]) + random.random())
    cuts[cuts > total] = total  # the last end is the total, but for rounding errors
    cuts[-1] = total
    copies = np.empty(len(weights), np.int64)
    copies[order] = np.diff(cuts, prepend=0.0)
    return copies
