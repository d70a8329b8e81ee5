"""What the groups of the data gain for the target: the signal where one row's evidence is weak.

The mean cosine of the measured rows of a group with the target's gradient, less that of all, is
known from few rows. Groups of which few rows were measured are drawn to what was known before, or
to 0: Σ (c - mean c) + κ · before, by n + κ.
"""

from __future__ import annotations

import numpy as np

from gracekit.types import Float32, Int32, Rows

PRIOR_ROWS = 10.0
"""κ: measured rows that what was known before counts as."""


def group_means(groups: Int32, rows: Rows, worth: Float32, before: Float32 | None) -> Float32:
    """[n] what each row's group gains.

    Args:
        groups: [n]
        rows: [m] measured, drawn at random.
        worth: [m] their cosines with the target.
        before: [n] the same at the refresh before, NaN where unknown; None: nothing is known.
    """
    count = int(groups.max(initial=-1)) + 1
    sums = np.bincount(groups[rows], worth - worth.mean(), minlength=count)
    numbers = np.bincount(groups[rows], minlength=count)
    prior = np.zeros(len(groups)) if before is None else np.nan_to_num(before)
    of_row = (sums[groups] + PRIOR_ROWS * prior) / (numbers[groups] + PRIOR_ROWS)
    return np.asarray(of_row, np.float32)


def group_means_across(groups: Int32, worth: Float32, seed: int) -> Float32:
    """[m] the same for measured rows, each half of them by the other half.

    A row's own worth, and what it takes from the mean of the others, would else decide which of a
    group's rows come first.

    Args:
        groups: [m]
        worth: [m]
        seed: Of the halves.
    """
    order = np.random.default_rng([seed, len(groups)]).permutation(len(groups))
    found = np.zeros(len(groups), np.float32)
    for judged, told in ((order[::2], order[1::2]), (order[1::2], order[::2])):
        of_all = group_means(groups, told, worth[told], None)
        found[judged] = of_all[judged]
    return found
