"""What a draw is worth: how many random samples estimate the mean gradient as well.

    second moment of a draw   V(π) = Σ over rows of t² g² / π
    value                     V(random) / V(π),  random: π ∝ t, none above 1
    best                      V(random) / V(π*), π* ∝ t g, none above 1
    kept                      (value - 1) / (best - 1)

g is the norm of a row's part in the trainer's average, t what is to be trained on. V is, up to
what the mean gradient itself is, the variance of Σ w g / Σ w with weights t/π (Horvitz and
Thompson 1952; the optimum is that of Neyman 1934). With costs c (a budget in tokens) the best
probabilities are in proportion to t g / √c; totals of groups stay as the draw has them.

The norms of measured rows are known, and the probabilities of all. What is not known are the norms
of the others. Rows that were drawn uniformly and measured tell them, by a straight line over what
is known of every row (what other rows say of it, its length), which is fitted to their logs:

    log g = β · clues + e,

with the e that they leave over, all alike likely, for each row that was not measured. On what is so
filled in no draw is better than the best one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from gracekit.draw.capped import capped_probabilities
from gracekit.types import Bool, Float64, Int32, Rows
from gracekit.version.outcomes import LEAST_GAIN

NUM_RESAMPLES = 300
_MOST_TOLD, _MOST_OTHERS, _NUM_PAIRS = 2000, 2000, 20_000
"""Rows that a resample looks at, and pairs of a row and an e that tell what caps do."""
_SMALLEST = 1e-4
"""Norms below count as this share of the mean: the log of 0 would drown everything else."""
_RIDGE = 1e-3
"""Penalty of the slopes, in rows: where clues say the same, none runs away."""
_LOW, _HIGH = 0.05, 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """n rows that a draw may select, and what is known of their norms."""

    probabilities: Float64
    """[n] above 0, at most 1."""
    targets: Float64
    """[n] t, above 0, in any unit."""
    costs: Float64
    """[n] above 0; 1 where a budget is in rows."""
    groups: Int32
    """[n] rows of a group have a fixed total of probability · cost."""
    alpha: float
    """Share of the probability that all rows of a group get alike."""
    is_known: Bool
    """[n] rows whose norm is known."""
    norms: Float64
    """[n] g, zero or more; of no meaning where it is not known."""
    clues: Float64
    """[n, c] finite; what is known of every row."""
    told: Rows
    """[p] rows among the known ones that were drawn uniformly, 2 or more unless all are known."""
    told_clues: Float64
    """[p, c] what would be known of them, had they not been measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A number with its bootstrap interval, nominally 90 %; NaN where it is not defined."""

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
    """What the same draw would keep if every row's norm were known, but for caps."""

    can_gain: bool
    """Whether the interval of `best` stays above what is worth the name; if not, none is kept."""


def worth(rows: Drawn, *, seed: int) -> Worth:
    """The value of a draw, of the best one, and the share of its gain that is kept.

    Intervals are by a bootstrap over the told rows, with what the other rows can differ by: with
    everything measured they have no width.

    Args:
        rows: What is drawn from.
        seed: Of the resamples.
    """
    rng = np.random.default_rng(seed)
    known = np.where(rows.is_known, rows.norms, 0.0)
    if not known.any():
        nothing, one = (Estimate(found=x, low=x, high=x) for x in (math.nan, 1.0))
        return Worth(value=one, best=one, kept=nothing, kept_if_measured=math.nan, can_gain=False)
    others = np.flatnonzero(~rows.is_known)
    if not len(others):
        v = _moments(rows, known, known**2, known)
        return _as_worth(v[None, :3], v[3])
    floor = _SMALLEST * float(known[rows.is_known].mean())
    logs = np.log(np.maximum(rows.norms[rows.told], floor))
    line = _Line.fit(rows.told_clues, logs, np.ones((1, len(logs))))
    rest = np.exp(line.rest(rows.told_clues, logs)[0])
    first = np.exp(rows.clues[others] @ line.slopes[0])
    mean, square, norms = known.copy(), known**2, known.copy()
    mean[others], square[others] = first * rest.mean(), first**2 * (rest**2).mean()
    found = _moments(rows, mean, square, norms, pairs=_pairs(rows, others, first, rest, rng))
    return _as_worth(_resampled(rows, others, known, logs, found, mean, square, rng), found[3])


@dataclass(frozen=True, slots=True)
class _Line:
    """Straight lines, one a resample."""

    slopes: Float64
    """[r, c]"""

    @classmethod
    def fit(cls, clues: Float64, logs: Float64, times: Float64) -> _Line:
        """Least squares [r] of rows that count so many times [r, p]."""
        c = clues.shape[1]
        products = (clues[:, :, None] * clues[:, None, :]).reshape(len(clues), -1)
        square = (times @ products).reshape(-1, c, c) + _RIDGE * np.eye(c)
        slopes = np.linalg.solve(square, (times @ (clues * logs[:, None]))[..., None])
        return cls(np.asarray(slopes[..., 0], np.float64))

    def rest(self, clues: Float64, logs: Float64) -> Float64:
        """[r, p] what is left over."""
        left: Float64 = logs - self.slopes @ clues.T
        return left


def _sums(values: Float64, groups: Int32) -> Float64:
    return np.bincount(groups, values).astype(np.float64)


def _moments(
    rows: Drawn, mean: Float64, square: Float64, norms: Float64, pairs: Drawn | None = None
) -> Float64:
    """[4] V of a random draw, of this one, of the best one, and of this one by exact norms.

    Args:
        rows: What is drawn from.
        mean, square: [n] expected norm, and expected square of it.
        norms: [n] norms where they are known.
        pairs: Rows with norms that stand for all, where some are not known: they tell what caps
            do, and what exact norms would.
    """
    groups, totals = rows.groups, _sums(rows.probabilities * rows.costs, rows.groups)
    of_random = _random(rows, totals)
    weighed = rows.targets * mean * np.sqrt(rows.costs)
    best = _sums(weighed, groups) ** 2 / np.maximum(totals, 1e-300)
    v = [rows.targets**2 * square / p for p in (of_random, rows.probabilities)]
    factors = _of_norms(pairs or rows, norms if pairs is None else pairs.norms)
    least = (rows.targets**2 * square).sum()  # of probabilities that are all 1
    of_best = max(best.sum() * factors[0], least)
    return np.array([v[0].sum(), v[1].sum(), of_best, v[0].sum() * factors[1]])


def _random(rows: Drawn, totals: Float64) -> Float64:
    """[n] probabilities of a random draw: in proportion to t, none above 1, the totals the same."""
    shares = _sums(rows.targets * rows.costs, rows.groups)
    scaled: Float64 = rows.targets * (totals / np.maximum(shares, 1e-300))[rows.groups]
    if not (scaled > 1).any():
        return scaled
    for group in np.unique(rows.groups[scaled > 1]).tolist():
        some = rows.groups == group
        scaled[some] = capped_probabilities(
            rows.targets[some], rows.costs[some], float(totals[group])
        )
    return scaled


def _of_norms(rows: Drawn, norms: Float64) -> tuple[float, float]:
    """By how much caps raise V of the best draw; V of a draw by these norms, of a random one."""
    groups, totals = rows.groups, _sums(rows.probabilities * rows.costs, rows.groups)
    sizes = rows.targets * norms
    relative = sizes / np.sqrt(rows.costs)
    capped = open_ = 0.0
    for group in np.unique(groups).tolist():
        some = groups == group
        best = capped_probabilities(relative[some], rows.costs[some], float(totals[group]))
        capped += float(_quotient(sizes[some] ** 2, best).sum())
        open_ += float((sizes * np.sqrt(rows.costs))[some].sum() ** 2 / totals[group])
    means = (_sums(relative, groups) / np.maximum(_sums(np.ones(len(groups)), groups), 1))[groups]
    mixed = rows.targets * (rows.alpha + (1 - rows.alpha) * _quotient(relative, means))
    used = _sums(mixed * rows.costs, groups)
    exact = mixed * (totals / np.maximum(used, 1e-300))[groups]
    random = float((sizes**2 / _random(rows, totals)).sum())
    of_exact = float(_quotient(sizes**2, np.minimum(exact, 1)).sum())
    return (capped / open_ if open_ else 1.0), (of_exact / random if random else 1.0)


def _quotient(a: Float64, b: Float64) -> Float64:
    return np.divide(a, b, out=np.zeros_like(a), where=b > 0)


def _pairs(
    rows: Drawn, others: Rows, first: Float64, rest: Float64, rng: np.random.Generator
) -> Drawn:
    """Rows with norms, each as often as it stands for others of its kind, or thereabouts."""
    known = np.flatnonzero(rows.is_known)
    n = len(known) + len(others)
    times = max(1, _NUM_PAIRS // n)
    index = np.concatenate([np.repeat(known, times), np.repeat(others, times)])
    drawn = np.repeat(first, times) * rest[rng.integers(0, len(rest), len(others) * times)]
    norms = np.concatenate([np.repeat(rows.norms[known], times), drawn])
    if len(index) > 2 * _NUM_PAIRS:
        some = rng.choice(len(index), _NUM_PAIRS, replace=False)
        index, norms = index[some], norms[some]
    return Drawn(
        probabilities=rows.probabilities[index],
        targets=rows.targets[index],
        costs=rows.costs[index],
        groups=rows.groups[index],
        alpha=rows.alpha,
        is_known=np.ones(len(index), np.bool_),
        norms=norms,
        clues=np.zeros((len(index), 0)),
        told=rows.told[:0],
        told_clues=rows.told_clues[:0],
    )


def _resampled(
    rows: Drawn, others: Rows, known: Float64, logs: Float64, found: Float64, mean: Float64,
    square: Float64, rng: np.random.Generator,
) -> Float64:  # fmt: skip
    """[1 + resamples, 3] V of a random draw, this one and the best: as found, then resampled."""
    clues, p = rows.told_clues, len(logs)
    if p > _MOST_TOLD:
        some = rng.choice(p, _MOST_TOLD, replace=False)
        clues, logs = clues[some], logs[some]
    m = len(logs)
    times = np.vstack([np.ones(m), rng.multinomial(m, np.full(m, 1 / m), NUM_RESAMPLES)])
    line = _Line.fit(clues, logs, times)
    rest = np.exp(line.rest(clues, logs))
    means, squares = ((times * power).sum(axis=1) / m for power in (rest, rest**2))
    # Rows that were not measured, along their size, so that few of them stand for all.
    along = others[np.argsort(mean[others], kind="stable")]
    along = along[np.linspace(0, len(along) - 1, min(_MOST_OTHERS, len(along))).astype(np.int64)]
    sizes = np.exp(line.slopes @ rows.clues[along].T)
    totals = _sums(rows.probabilities * rows.costs, rows.groups)
    weighed = rows.targets * np.sqrt(rows.costs)
    by_group = _sums(weighed * mean, rows.groups) / np.maximum(totals, 1e-300)
    factors = (
        (rows.targets**2 / _random(rows, totals), squares, 2, square),
        (rows.targets**2 / rows.probabilities, squares, 2, square),
        (weighed * by_group[rows.groups], means, 1, mean),
    )
    columns = []
    for factor, rests, power, expected in factors:
        of_others = (sizes**power @ factor[along]) * rests
        part = float((factor * expected)[others].sum())
        fixed = float((factor * known**power)[rows.is_known].sum())
        # Deviations of what the told rows say, and of the others from what is to be expected.
        deviation = of_others / of_others[0] - 1
        deviation *= math.sqrt(m / p * (1 + p / len(others)))
        columns.append((fixed + part * np.maximum(1 + deviation, 0)) / (fixed + part))
    random, of_draw, best = columns
    resampled: Float64 = found[:3] * np.stack([random, of_draw, best**2], axis=1)
    return resampled


def _as_worth(moments: Float64, if_measured: float) -> Worth:
    random, of_draw, of_best = moments.T
    value, best = random / of_draw, random / of_best
    found = _estimate(best)
    nothing = Estimate(found=math.nan, low=math.nan, high=math.nan)
    if found.low < LEAST_GAIN:
        return Worth(
            value=_estimate(value),
            best=found,
            kept=nothing,
            kept_if_measured=math.nan,
            can_gain=False,
        )
    with np.errstate(divide="ignore", invalid="ignore"):
        kept = _estimate((value - 1) / (best - 1))
    exact = float((random[0] / if_measured - 1) / (best[0] - 1))
    return Worth(
        value=_estimate(value), best=found, kept=kept, kept_if_measured=exact, can_gain=True
    )


def _estimate(values: Float64) -> Estimate:
    """The first value, between quantiles of the others."""
    found, others = float(values[0]), values[np.isfinite(values)]
    if not (math.isfinite(found) and len(others)):
        return Estimate(found=found, low=math.nan, high=math.nan)
    low, high = np.quantile(others, (_LOW, _HIGH))
    return Estimate(found=found, low=min(float(low), found), high=max(float(high), found))
