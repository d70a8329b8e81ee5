"""How far the rows moved together: what puts the others on the level of the measured rows.

A training step moves all gradients by about one factor, and each group by one of its own: a shift
in working values. Measured rows have it by themselves; without it the others would stay on an old
level, and origin would decide which rows are selected.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gracekit.types import Bool, Float32, Float64, Int32

LEAST_ROWS = 8
"""Measured rows below which not even a common shift is told."""
LEAST_GROUP_ROWS = 5
"""Measured rows below which a group has the common shift."""
LEAST_SCALED_ROWS = 30
"""Measured rows below which the level is a shift without a scale."""


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

    The common shift is that of `common_shift`.

    A group's shift is a random effect around it (variances by the analysis of variance): the
    distance of the group's mean is taken by the share τ² / (τ² + s² / count), with s² the variance
    within groups and τ² that between them, 0 where the means differ by no more than s² explains.

    Args:
        change: [m] of the measured rows.
        groups: [m]
        num_groups: g.
        by_group: whether groups may have shifts of their own.
    """
    of_group = np.zeros(num_groups)
    if len(change) < LEAST_ROWS:
        return Level(common=0.0, of_group=of_group)
    counts = np.bincount(groups, minlength=num_groups)
    large = counts >= LEAST_GROUP_ROWS
    if by_group and large.sum() >= 2:
        _shrink_group_means(of_group, change, groups, counts, large)
    return Level(common=float(common_shift(change[:, None])[0]), of_group=of_group)


def common_shift(change: Float32 | Float64) -> Float64:
    """[d] shift that m rows have in common, shrunk: the positive part of James and Stein (1961).

    The mean change, times 1 - (its standard error / its length)², at least 0: a shift of less than
    one standard error is none; nor is one of fewer than `LEAST_ROWS` rows.

    Args:
        change: [m, d]
    """
    m, d = change.shape
    if m < LEAST_ROWS:
        return np.zeros(d)
    mean = change.mean(axis=0, dtype=np.float64)
    square_error = float(change.var(axis=0, ddof=1, dtype=np.float64).sum()) / m
    square = float(mean @ mean)
    return mean * max(0.0, 1 - square_error / square) if square > 0 else mean


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


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnScore:
    """Old scores in standard deviations of the measured rows', kept inside what was seen there."""

    mean: float
    spread: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, measured: Float32 | Float64) -> OwnScore:
        """From the old scores of the measured rows [m], at least one."""
        return cls(
            mean=float(measured.mean(dtype=np.float64)),
            spread=float(measured.std(dtype=np.float64)),
            lowest=float(measured.min()),
            highest=float(measured.max()),
        )

    def __call__(self, old: Float32 | Float64) -> Float64:
        """[rows]; 0 where the measured rows do not differ."""
        if self.spread <= 1e-6 * (1 + abs(self.mean)):
            return np.zeros(len(old))
        standard: Float64 = (np.clip(old, self.lowest, self.highest) - self.mean) / self.spread
        return standard


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A change that is a line over the row's own old score."""

    intercept: float
    slope: float
    """Change by standard deviation of the old score."""

    def __call__(self, own: Float64) -> Float64:
        """[rows] at old scores as `OwnScore` gives them."""
        return self.intercept + self.slope * own


def fit_line(change: Float64, own: Float64) -> Line:
    """Least squares over [m] rows; the slope is shrunk as if one more row said that there is none.

    Args:
        change: [m]
        own: [m] old scores as `OwnScore` gives them.
    """
    centred, mean = own - own.mean(), float(change.mean())
    slope = float(centred @ change / (centred @ centred + 1))
    return Line(intercept=mean - slope * float(own.mean()), slope=slope)
