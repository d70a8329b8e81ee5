"""How far the rows moved together: what puts the others on the level of the measured rows.

A training step moves all gradients by about one factor, and each group by one of its own: a shift
in working values. Measured rows have it by themselves; without it the others would stay on an old
level, and origin would decide which rows are selected.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gracekit.types import Bool, Float64, Int32

LEAST_ROWS = 8
"""Measured rows below which not even a common shift is told."""
LEAST_GROUP_ROWS = 5
"""Measured rows below which a group has the common shift."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """Shifts of one score."""

    common: float
    """Of all rows."""
    of_group: Float64
    """[g] what the shift of each group is beyond that."""

    @property
    def is_zero(self) -> bool:
        """Whether every row stays as it is."""
        return self.common == 0 and not self.of_group.any()

    def __call__(self, groups: Int32) -> Float64:
        """[rows] shift of rows of the given groups."""
        shift: Float64 = self.common + self.of_group[groups]
        return shift


def fit_level(change: Float64, groups: Int32, num_groups: int, *, by_group: bool = True) -> Level:
    """The shifts that measured rows show, each only as far as it is more than noise.

    The common shift is the mean change, times 1 - (its standard error / itself)², at least 0: the
    positive part of James and Stein (1961). A shift of less than one standard error is none.

    A group's shift is a random effect around it (variances by the analysis of variance): the
    distance of the group's mean is taken by the share τ² / (τ² + s² / count), with s² the variance
    within groups and τ² that between them, 0 where the means differ by no more than s² explains.

    Args:
        change: [m] of the measured rows.
        groups: [m]
        num_groups: g.
        by_group: whether groups may have shifts of their own.
    """
    m, of_group = len(change), np.zeros(num_groups)
    if m < LEAST_ROWS:
        return Level(common=0.0, of_group=of_group)
    mean, error = float(change.mean()), float(change.std(ddof=1) / np.sqrt(m))
    common = mean * max(0.0, 1 - (error / mean) ** 2) if mean else 0.0
    counts = np.bincount(groups, minlength=num_groups)
    large = counts >= LEAST_GROUP_ROWS
    if by_group and large.sum() >= 2:
        _shrink_group_means(of_group, change, groups, counts, large)
    return Level(common=common, of_group=of_group)


def _shrink_group_means(
    of_group: Float64, change: Float64, groups: Int32, counts: Float64, large: Bool
) -> None:
    """Fill in the shifts of the groups that are large enough."""
    is_in = large[groups]
    total = np.bincount(groups[is_in], change[is_in], minlength=len(counts))
    num, number = int(is_in.sum()), int(large.sum())
    means = np.divide(total, counts, out=np.zeros(len(counts)), where=large)
    apart = means - total.sum() / num
    within = float(((change - means[groups])[is_in] ** 2).sum()) / (num - number)
    between = float((counts * apart**2)[large].sum()) - (number - 1) * within
    between /= num - float((counts[large] ** 2).sum()) / num
    if between > 0:
        of_group[large] = (apart * between / (between + within / np.maximum(counts, 1)))[large]
