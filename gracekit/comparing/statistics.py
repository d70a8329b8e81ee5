"""Differences between arms with their intervals, and what it takes to reach a loss. NumPy only."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gracekit.types import Float64, Json

LEVEL = 0.95
"""Of all intervals."""
DRAWS = 2000
LEAST_SEEDS = 3
"""Seeds below which nothing is said of the spread over seeds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Loss of one arm less that of another, paired by seed and held-out row; below 0 is better.

    Also of a metric, where above 0 is a higher value.
    """

    mean: float
    low: float
    high: float
    """Interval of 95 % by bootstrap over seeds and rows; over rows alone below three seeds."""
    by_seed: list[float]
    over_seeds: bool
    """Whether the interval counts the spread over seeds."""

    @property
    def standard_error(self) -> float:
        """Of the mean over seeds; NaN for one seed."""
        number = len(self.by_seed)
        return float(np.std(self.by_seed, ddof=1) / number**0.5) if number > 1 else math.nan

    @property
    def is_better(self) -> bool:
        """Whether all of the interval is below 0, and every seed agrees."""
        return self.over_seeds and self.high < 0 and max(self.by_seed) < 0

    @property
    def is_worse(self) -> bool:
        """Whether all of the interval is above 0, and every seed agrees."""
        return self.over_seeds and self.low > 0 and min(self.by_seed) > 0

    def to_json(self) -> Json:
        """As a JSON object."""
        error = self.standard_error
        return {
            "mean": self.mean, "low": self.low, "high": self.high, "by_seed": self.by_seed,
            "standard_error": None if math.isnan(error) else error, "over_seeds": self.over_seeds,
        }  # fmt: skip


def difference(own: Float64, other: Float64, weights: Float64, *, seed: int = 0) -> Difference:
    """The paired difference of two arms.

    The bootstrap draws seeds and rows anew, each with replacement and independently (Owen 2007,
    "The pigeonhole bootstrap"), which errs to the wide side. With s seeds it would show a
    spread over seeds too small by the factor sqrt((s - 1) / s), so deviations of
    seeds are stretched by its inverse.

    Args:
        own: [s, k] mean losses of k rows under s seeds.
        other: [s, k] of the arm to compare with, the same seeds and rows.
        weights: [k] what each row counts for; the sum is 1.
        seed: Of the bootstrap.
    """
    apart = np.asarray(own - other, np.float64)
    num_seeds, num_rows = apart.shape
    by_seed = apart @ weights
    over_seeds = num_seeds >= LEAST_SEEDS
    rng = np.random.default_rng(seed)
    of_rows = apart.mean(axis=0)
    stretched = of_rows + (apart - of_rows) * (num_seeds / max(num_seeds - 1, 1)) ** 0.5
    counts = rng.multinomial(num_rows, np.full(num_rows, 1 / num_rows), size=DRAWS)
    part = weights * counts
    by_draw = (part @ stretched.T) / part.sum(axis=1, keepdims=True)
    if over_seeds:
        seeds = rng.integers(0, num_seeds, (DRAWS, num_seeds))
        by_draw = np.take_along_axis(by_draw, seeds, axis=1)
    found = by_draw.mean(axis=1)
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Difference(
        mean=float(by_seed.mean()),
        low=float(low),
        high=float(high),
        by_seed=[float(value) for value in by_seed],
        over_seeds=over_seeds,
    )


def first_reached(at: NDArray[np.float64], losses: Float64, level: float) -> float:
    """Where a curve first falls to a level, on straight lines between its points; NaN: nowhere.

    Args:
        at: [p] steps or compute, ascending.
        losses: [p].
        level: To be reached.
    """
    for place, loss in enumerate(losses):
        if loss > level:
            continue
        if place == 0:
            return float(at[0])
        before = losses[place - 1]
        share = (before - level) / (before - loss)
        return float(at[place - 1] + share * (at[place] - at[place - 1]))
    return math.nan


def share_closed(control: float, own: float, oracle: float) -> float:
    """Of the distance from a control's loss to the oracle's; NaN where there is none."""
    distance = control - oracle
    return (control - own) / distance if distance > 0 else math.nan
