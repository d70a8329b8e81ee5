"""What a draw is worth: how many random samples estimate the mean gradient as well.

    second moment of a draw   V(π) = mean over rows of t² g² / π
    value                     V(random) / V(π),  random: π ∝ t
    best                      V(random) / V(π*), π* ∝ t g, none above 1
    kept                      (value - 1) / (best - 1)

g is the norm of a row's part in the trainer's average, t what is to be trained on. V is, up to
what the mean gradient itself is, the variance of Σ w g / Σ w with weights t/π (Horvitz and
Thompson 1952; the optimum is that of Neyman 1934). With costs c (a budget in tokens) the best
probabilities are in proportion to t g / √c.

All of it is told by rows that were drawn uniformly and measured. Their own probabilities follow
from exact norms, those of the rows that were not measured do not. So of the measured share f the
second moment is that of the rows' own probabilities, and of the rest that of the probabilities
which they would have had by what other rows say of them:

    V(π) = f · V(own) + (1 - f) · V(held out)

The probabilities of all rows have a known total, which those of the drawn rows meet on average
only; so each V is multiplied by the ratio of the two. With it no draw is better than the best one
on any sample (Cauchy and Schwarz), up to what the cap at 1 does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from gracekit.types import Float64

NUM_RESAMPLES = 400
MOST_BLOCKS = 1000
"""Rows are resampled one by one, or in so many random blocks where there are more."""
LEAST_GAIN = 1.05
"""Where the interval of `best` reaches below, there is nothing to gain, and no share of it."""
_LOW, _HIGH = 0.05, 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Stratum:
    """Rows drawn uniformly from the candidates that share one total of the draw."""

    num_rows: int
    """Candidates of the stratum, measured or not, 1 or more."""
    share_measured: float
    """Share of the candidates whose own norm is known, 0 to 1."""
    mean_cost: float
    """Σ π · cost over the candidates by their number: what the draw takes of each on average."""
    norms: Float64
    """[p] g, zero or more; p is 1 or more."""
    targets: Float64
    """[p] t, above 0, in units common to all strata."""
    costs: Float64
    """[p] above 0; 1 where a budget is in rows."""
    own: Float64
    """[p] inclusion probability, above 0, by the row's own norm."""
    held_out: Float64
    """[p] inclusion probability, above 0, by what other rows say of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A number with its 90 % interval; NaN where it is not defined."""

    found: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Worth:
    """What a draw is worth, and what could be had."""

    value: Estimate
    best: Estimate
    kept: Estimate
    """Not defined where there is nothing to gain."""
    kept_if_measured: float
    """What the same draw would keep if every row's norm were exact."""

    @property
    def can_gain(self) -> bool:
        """Whether norms can gain anything worth the name over a random draw."""
        return self.best.low >= LEAST_GAIN


def worth(strata: list[Stratum], *, seed: int) -> Worth:
    """The value of a draw, of the best one, and the share of its gain that is kept.

    Intervals are by a bootstrap over the rows of each stratum. What is measured is known, so only
    the rest is uncertain: deviations are multiplied by the root of the share not measured, and
    with everything measured the intervals have no width.

    Args:
        strata: One, or one a group where the draw's totals of groups are fixed.
        seed: Of the resamples.
    """
    rng = np.random.default_rng(seed)
    each = [_second_moments(stratum, rng) for stratum in strata]
    found = np.sum([moments.found for moments in each], axis=0)
    resampled = np.sum([moments.resampled for moments in each], axis=0)
    if found[0] == 0:  # all norms are 0
        nothing, one = (Estimate(found=x, low=x, high=x) for x in (math.nan, 1.0))
        return Worth(value=one, best=one, kept=nothing, kept_if_measured=math.nan)
    # One row left out at a time: the others strata are as they are.
    without = np.vstack([found - moments.found + moments.without for moments in each])

    def estimate(ratio: Callable[[Float64], Float64]) -> Estimate:
        with np.errstate(divide="ignore", invalid="ignore"):  # where only norms of 0 are left
            return _estimate(float(ratio(found)), ratio(resampled), ratio(without))

    best = estimate(_best)
    nothing = Estimate(found=math.nan, low=math.nan, high=math.nan)
    can_gain = best.low >= LEAST_GAIN
    if_measured = float((found[0] / found[2] - 1) / (_best(found) - 1)) if can_gain else math.nan
    return Worth(
        value=estimate(_value),
        best=best,
        kept=estimate(_kept) if can_gain else nothing,
        kept_if_measured=if_measured,
    )


def _value(moments: Float64) -> Float64:
    ratio: Float64 = moments[..., 0] / moments[..., 1]
    return ratio


def _best(moments: Float64) -> Float64:
    ratio: Float64 = moments[..., 0] / moments[..., 3]
    return ratio


def _kept(moments: Float64) -> Float64:
    return (_value(moments) - 1) / (_best(moments) - 1)


def best_probabilities(sizes: Float64, costs: Float64, mean_cost: float) -> Float64:
    """[p] probabilities in proportion to the sizes, none above 1, with mean π · cost as given.

    All are 1 where the rows cost no more than that on average, and alike where all sizes are 0.
    """
    if costs.mean() <= mean_cost:
        return np.ones(len(sizes))
    if not sizes.any():
        return np.full(len(sizes), mean_cost / costs.mean())
    by_size = np.argsort(sizes, kind="stable")
    below = np.cumsum((sizes * costs)[by_size])
    above = costs.sum() - np.cumsum(costs[by_size])
    left = mean_cost * len(sizes) - above  # of the total, for the rows up to each
    # The scale with which the rows up to each share what is left, those above it being certain.
    is_certain = (left > 0) & (left * sizes[by_size] >= below)
    last_open = int(np.argmax(is_certain)) - 1 if is_certain.any() else len(sizes) - 1
    if last_open < 0 or below[last_open] == 0:
        return np.where(sizes > 0, 1.0, 0.0)
    scaled: Float64 = np.minimum(sizes * (left[last_open] / below[last_open]), 1)
    return scaled


@dataclass(frozen=True, slots=True)
class _Moments:
    """Σ over the candidates of V of a random draw, this one, this one by exact norms, the best."""

    found: Float64
    """[4]"""
    resampled: Float64
    """[resamples, 4]"""
    without: Float64
    """[rows or blocks, 4] with one of them left out."""


def _second_moments(rows: Stratum, rng: np.random.Generator) -> _Moments:
    sizes = rows.targets * rows.norms
    best = best_probabilities(sizes / np.sqrt(rows.costs), rows.costs, rows.mean_cost)
    columns = []
    for probabilities in (rows.targets, rows.own, rows.held_out, best):
        squares = np.divide(sizes**2, probabilities, out=np.zeros_like(sizes), where=sizes > 0)
        columns += [squares, probabilities * rows.costs]
    sums, counts = _in_blocks(np.stack(columns, axis=1), rng)
    share, m = rows.share_measured, len(counts)
    mean = sums.sum(axis=0) / counts.sum()
    times = rng.multinomial(m, np.full(m, 1 / m), NUM_RESAMPLES).astype(np.float64)
    resampled = (times @ sums) / (times @ counts)[:, None]
    without = mean[None] if m == 1 else (sums.sum(axis=0) - sums) / (counts.sum() - counts)[:, None]

    def moments(means: Float64) -> Float64:
        """What is measured is known: of the draw, only the rows held out can be otherwise."""
        of_draw = share * (mean[2:4] - mean[4:6]) + means[..., 4:6]
        each = means[..., 0::2] * means[..., 1::2]
        each[..., 2] = each[..., 1]
        each[..., 1] = of_draw[..., 0] * of_draw[..., 1]
        return (rows.num_rows / rows.mean_cost) * each

    spread = math.sqrt(1 - share)
    return _Moments(
        moments(mean),
        moments(mean + spread * (resampled - mean)),
        moments(mean + spread * (without - mean)),
    )


def _in_blocks(values: Float64, rng: np.random.Generator) -> tuple[Float64, Float64]:
    """Rows [p, c] added up in at most `MOST_BLOCKS` random blocks, and how many are in each."""
    p = len(values)
    if p <= MOST_BLOCKS:
        return values, np.ones(p)
    block = rng.permutation(p) % MOST_BLOCKS
    sums: Float64 = np.stack([np.bincount(block, column) for column in values.T], axis=1)
    return sums, np.bincount(block).astype(np.float64)


def _estimate(found: float, resampled: Float64, without: Float64) -> Estimate:
    """The value with its interval: quantiles of the resamples, corrected for bias and skewness.

    BCa of Efron, "Better bootstrap confidence intervals" (1987).
    """
    resampled, without = resampled[np.isfinite(resampled)], without[np.isfinite(without)]
    if not (math.isfinite(found) and len(resampled)):
        return Estimate(found=found, low=math.nan, high=math.nan)
    normal, r = NormalDist(), len(resampled)
    below = float((resampled < found).sum() + (resampled == found).sum() / 2)
    bias = normal.inv_cdf(min(max(below, 0.5), r - 0.5) / r)
    left = without.mean() - without
    size = float((left**2).sum()) ** 1.5
    skew = float((left**3).sum()) / (6 * size) if size > 0 else 0.0
    ends = []
    for share in (_LOW, _HIGH):
        z = bias + normal.inv_cdf(share)
        ends.append(normal.cdf(bias + z / max(1 - skew * z, 0.1)))
    low, high = np.quantile(resampled, ends)
    return Estimate(found=found, low=min(float(low), found), high=max(float(high), found))
