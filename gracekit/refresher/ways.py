"""The ways in which a first version can be made, and which of them is worth its price.

A way measures some rows, drawn uniformly, and has the features of those alone or of all rows. What
it is worth is reckoned from what replayed runs showed (docs/refresh.md): perfect norms make 1,000
samples worth `BEST` random ones, a graph over all rows `SPREAD`, and m measured rows keep a share
of the first gain that grows with the logarithm of m, all of it where everything is measured. It is
a rule of thumb to choose by; what a version turned out to be worth, the meter says.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass

import numpy as np

from gracekit.refresher.allowance import Allowance

BEST, SPREAD = 1.25, 1.15
_KEPT_BY_ONE, _KEPT_BY_E = 0.45, 0.05
"""Share of the gain that others keep by m measured rows: the first plus the second times log m."""
_WORTH_NAMING = 0.005
"""Difference in value below which the cheaper way is taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to make a first version."""

    name: str
    num_rows: int
    """Rows measured."""
    looks: bool
    """Whether the other rows get features."""
    cost: float
    """In tokens of training."""
    value: float
    """How many random samples one of its coreset is expected to be worth."""


def ways(allowance: Allowance, *, n: int, least: int, most: int) -> list[Way]:
    """What could be done, from nothing to everything, whatever is allowed.

    Args:
        allowance: What may be spent, and the prices.
        n: Samples in the data.
        least: Rows that a first version measures at least, where it may.
        most: And at most.
    """
    look_all = allowance.of_looking(np.arange(len(allowance.lengths)))

    def way(name: str, rows: int, looks: bool) -> Way:
        others = (n - rows) / max(n, 1)
        cost = rows * allowance.of_row + (look_all * others if looks else 0.0)
        seen = 1.0 if looks else 1 - others
        value = (1 + (BEST - 1) * kept_by(rows, n)) * (1 + (SPREAD - 1) * seen)
        return Way(name=name, num_rows=rows, looks=looks, cost=cost, value=value)

    paid = min(allowance.num_rows(), most)
    paid_beside = min(allowance.num_rows(spent=look_all), most)
    found = [
        way("draw all alike", 0, False),
        way("measure some, features of these", min(least, paid), False),
        way("measure more, features of these", paid, False),
        way("measure some, features of all", min(least, paid_beside), True),
        way("measure more, features of all", paid_beside, True),
        way("measure everything", n, False),
    ]
    different: dict[tuple[int, bool], Way] = {}
    for each in found:
        if each.num_rows or not each.looks:  # without a measured row nobody looks
            different.setdefault((each.num_rows, each.looks), each)
    return list(different.values())


def best_way(found: list[Way], allowance: Allowance, least_rows: int) -> Way:
    """The one of most value that is allowed; the cheapest of those that differ by next to nothing.

    Args:
        found: One of them at least costs nothing.
        allowance: What may be spent.
        least_rows: Measured rows below which nothing can be told: such ways do not count.
    """
    allowed = [
        each
        for each in found
        if each.cost <= allowance.tokens and (each.num_rows >= least_rows or each.num_rows == 0)
    ]
    most = max(each.value for each in allowed)
    return min(
        (each for each in allowed if each.value >= most - _WORTH_NAMING),
        key=lambda each: (each.cost, -each.value),
    )


def rows_that_keep(share: float, n: int) -> int:
    """The fewest measured rows, of n, that keep such a share of what perfect norms gain."""
    return bisect_left(range(n), share, key=lambda rows: kept_by(rows, n))


def kept_by(num_rows: int, n: int) -> float:
    """Share of what perfect norms gain that m rows measured, of n, keep in a first version."""
    if num_rows <= 0:
        return 0.0
    by_others = min(_KEPT_BY_ONE + _KEPT_BY_E * math.log(num_rows), 0.95)
    share = num_rows / max(n, 1)
    return by_others * (1 - share) + share
