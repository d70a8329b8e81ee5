"""How far the rows moved together: what puts the others on the level of the measured rows.

A training step moves all gradients by about one factor, and each group by one of its own: a shift
in working values. It may bring them together or apart, and values that were measured long ago tell
less: a scale. Measured rows have both by themselves; without them the others would stay on an old
level, and origin would decide which rows are selected.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gracekit.types import Bool, Float32, Float64, Int32, Int64

LEAST_ROWS = 8
"""Measured rows below which not even a common shift is told."""
LEAST_GROUP_ROWS = 5
"""Measured rows below which a group has the common shift."""
LEAST_SCALED_ROWS = 30
"""Measured rows below which the level is a shift without a scale."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """Shift and scale of one score."""

    common: float
    """Shift of all rows."""
    of_group: Float64
    """[g] what the shift of each group is beyond that."""
    slope: float
    """Change by standard deviation of the old score."""
    own: OwnScore | None
    """What the slope is for; None without one."""

    @property
    def is_zero(self) -> bool:
        """Whether every row stays as it is."""
        return self.common == 0 and self.slope == 0 and not self.of_group.any()

    def __call__(self, old: Float64, groups: Int32) -> Float64:
        """[rows] change of rows with the given old scores and groups."""
        change: Float64 = self.common + self.of_group[groups]
        return change if self.own is None else change + self.slope * self.own(old)


def fit_level(
    change: Float64, old: Float64, groups: Int32, num_groups: int, *, by_group: bool = True
) -> Level:
    """Shift and scale that measured rows show, each only as far as it is more than noise.

    The common shift is that of `common_shift`. The slope over the old score is what least squares
    gives of the change that the shifts leave, shrunk in the same way.

    A group's shift is a random effect around the common one (variances by the analysis of
    variance): the distance of the group's mean is taken by the share τ² / (τ² + s² / count), with
    s² the variance within groups and τ² that between them, 0 where the means differ by no more than
    s² explains.

    Args:
        change: [m] of the measured rows.
        old: [m] their old scores.
        groups: [m]
        num_groups: g.
        by_group: whether groups may have shifts of their own.
    """
    of_group = np.zeros(num_groups)
    if len(change) < LEAST_ROWS:
        return Level(common=0.0, of_group=of_group, slope=0.0, own=None)
    common = float(common_shift(change[:, None])[0])
    counts = np.bincount(groups, minlength=num_groups)
    large = counts >= LEAST_GROUP_ROWS
    if by_group and large.sum() >= 2:
        _shrink_group_means(of_group, change, groups, counts, large)
    slope, own = 0.0, OwnScore.of(old)
    if len(change) >= LEAST_SCALED_ROWS:
        slope = _shrunk_slope(change - common - of_group[groups], own(old))
    return Level(common=common, of_group=of_group, slope=slope, own=own if slope else None)


def _shrunk_slope(left: Float64, own: Float64) -> float:
    """The slope, times 1 - (its standard error / itself)², at least 0."""
    line = fit_line(left, own)
    square = float(((own - own.mean()) ** 2).sum())
    if square == 0 or line.slope == 0:
        return 0.0
    square_error = float(((left - line(own)) ** 2).sum()) / (len(own) - 2) / square
    return line.slope * max(0.0, 1 - square_error / line.slope**2)


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
    shrunk: Float64 = mean * max(0.0, 1 - square_error / square) if square > 0 else mean
    return shrunk


def _shrink_group_means(
    of_group: Float64, change: Float64, groups: Int32, counts: Int64, large: Bool
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
        seen: Float64 = np.clip(old.astype(np.float64), self.lowest, self.highest)
        return (seen - self.mean) / self.spread


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
