"""Probabilities in proportion to sizes, none above 1, in floats. NumPy only.

`probabilities.inclusion` has the same in whole units, with exact totals, for the draw itself.
"""

from __future__ import annotations

import numpy as np

from gracekit.types import Float64


def capped_probabilities(sizes: Float64, costs: Float64, total: float) -> Float64:
    """[n] probabilities in proportion to the sizes, none above 1, with Σ π · cost = total.

    All are 1 where the rows cost no more than that, and alike where all sizes are 0.

    Args:
        sizes: [n] finite, zero or more.
        costs: [n] above 0; ones where the total is in rows.
        total: Zero or more.
    """
    if costs.sum() <= total:
        return np.ones(len(sizes))
    if not sizes.any():
        return np.full(len(sizes), total / costs.sum())
    by_size = np.argsort(sizes, kind="stable")
    below = np.cumsum((sizes * costs)[by_size])
    left = total - (costs.sum() - np.cumsum(costs[by_size]))  # for the rows up to each
    is_certain = (left > 0) & (left * sizes[by_size] >= below)
    last_open = int(np.argmax(is_certain)) - 1 if is_certain.any() else len(sizes) - 1
    if last_open < 0 or below[last_open] == 0:
        return np.where(sizes > 0, 1.0, 0.0)
    scaled: Float64 = np.minimum(sizes * (left[last_open] / below[last_open]), 1)
    return scaled
