"""From sizes to inclusion probabilities: in proportion, none above 1, with exact totals.

Probabilities are whole numbers of small units. So their sums are exact, the draw that moves units
from row to row loses none, and neither the machine nor the order of the rows changes a result.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gracekit.errors import SelectionError
from gracekit.types import Bool, Float64, Int32, Int64

MOST_UNIT_BITS = 36
"""A row (or a token) is 2³⁶ units, or fewer where the sum over all rows would pass 2⁶²."""
SMALLEST = 1e-30
"""Sizes above 0 count as this share of the largest at least."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inclusion:
    """How likely each row is to be drawn, in units."""

    masses: Int64
    """[n] probability times cost, 0 to `wholes`."""
    wholes: Int64
    """[n] the cost of the row, 1 or more units: what `masses` is when the row is certain."""

    @property
    def probabilities(self) -> Float64:
        """[n] in [0, 1]."""
        probabilities: Float64 = self.masses / self.wholes
        return probabilities


def inclusion(
    sizes: Float64,
    *,
    budget: int,
    order: Int64,
    costs: Int64 | None = None,
    groups: Int32 | None = None,
    quotas: Int64 | None = None,
    free: int = 0,
) -> Inclusion:
    """Inclusion probabilities in proportion to the sizes, as far as caps and quotas allow.

    Within a group they are min(1, c · size): what is above 1 is cut, and the rest scaled up, until
    the total is met. Rows of size above 0 have a probability of one unit at least.

    Args:
        sizes: [n] finite, zero or more; a row of size 0 is never drawn.
        budget: Rows to draw, or with costs what they cost together, on average.
        order: [n] distinct; says who gets what rounding leaves.
        costs: [n] whole numbers of 1 or more; the probabilities then have Σ π · cost = budget, or
            are 1 where there is less than the budget.
        groups: [n] index into the quotas.
        quotas: [g] totals of each group in rows, or in cost (there upper bounds).
        free: Places beyond the quotas; quotas in rows are then lower bounds, and the groups share
            the rest in proportion to their sizes. Not with costs.

    Raises:
        SelectionError: Sizes are negative or not finite, or the rows with a size above 0 are too
            few for the budget or a quota.
    """
    if not np.isfinite(sizes).all() or np.any(sizes < 0):
        bad = np.flatnonzero(~(sizes >= 0) | np.isinf(sizes))
        raise SelectionError(
            f"the draw needs sizes of zero or more for all {len(sizes)} rows; found "
            f"{sizes[bad[0]]} for row {bad[0]} ({len(bad)} such rows). Measure them again, or put "
            "them on selection.never_in"
        )
    assert (groups is None) == (quotas is None) and (free == 0 or costs is None)
    given = np.ones(len(sizes), np.int64) if costs is None else costs
    bits = min(MOST_UNIT_BITS, 62 - int(given.sum(dtype=np.int64)).bit_length())
    wholes = given << bits
    pool = _Pool(sizes.astype(np.float64), given, wholes, order, bits, is_bounded=costs is not None)
    masses = np.zeros(len(sizes), np.int64)
    if groups is None or quotas is None:
        rows = np.flatnonzero(sizes > 0)
        masses[rows] = pool.share_out(rows, budget, "")
        return Inclusion(masses=masses, wholes=wholes)

    members = _members(groups, sizes > 0, len(quotas))
    lifted = np.ones(len(quotas), np.bool_)
    if free:
        lifted = _lifted(pool, members, quotas, budget)
        rest = np.concatenate([members[g] for g in np.flatnonzero(~lifted)])
        masses[rest] = pool.share_out(rest, budget - int(quotas[lifted].sum()), "")
    for group in np.flatnonzero(lifted).tolist():
        rows = members[group]
        masses[rows] = pool.share_out(rows, int(quotas[group]), f" of group {group}")
    return Inclusion(masses=masses, wholes=wholes)


def with_shares(
    chances: Inclusion,
    shares: Float64,
    *,
    order: Int64,
    groups: Int32,
    costs: Int64 | None = None,
) -> Inclusion:
    """Other probabilities, with exact totals.

    In rows, totals of groups that are whole numbers stay the same to the unit, and so does the
    total over all; in cost, the total of no group rises.

    Args:
        chances: Whose totals are kept.
        shares: [n] in [0, 1]; their totals differ from those by rounding only, or are less in cost.
        order: [n] distinct; says who gets what rounding leaves.
        groups: [n] zero or more.
        costs: [n] that the chances were made with; None: rows.
    """
    wholes = chances.wholes
    masses = np.clip(np.rint(shares * wholes).astype(np.int64), 0, wholes)

    def settle(rows: Int64, left: int) -> None:
        index = rows[(masses[rows] > 0) & (masses[rows] < wholes[rows])]
        _settle(masses, wholes, index[np.argsort(order[index])], left, least=0)

    by_group = np.argsort(groups, kind="stable")
    others = []
    for rows in np.split(by_group, np.flatnonzero(np.diff(groups[by_group])) + 1):
        total = int(chances.masses[rows].sum())
        left = total - int(masses[rows].sum())
        if costs is not None:
            settle(rows, min(0, left))
        elif len(rows) and total % int(wholes[rows[0]]):
            others.append(rows)
        else:
            settle(rows, left)
    if others:
        rows = np.concatenate(others)
        settle(rows, int(chances.masses[rows].sum() - masses[rows].sum()))
    return Inclusion(masses=masses, wholes=wholes)


def _settle(masses: Int64, wholes: Int64, rows: Int64, left: int, *, least: int) -> None:
    """Give the rows what rounding left (or take it), in place, about the same of each."""
    sign = 1 if left > 0 else -1
    left = abs(left)
    while left:
        room = wholes[rows] - masses[rows] if sign > 0 else masses[rows] - least
        rows, room = rows[room > 0], room[room > 0]
        if not len(rows):
            return
        part = np.minimum(room, max(1, left // len(rows)))
        before = np.cumsum(part) - part
        part = np.clip(left - before, 0, part)
        masses[rows] += sign * part
        left -= int(part.sum())


def _members(groups: Int32, drawable: Bool, num_groups: int) -> list[Int64]:
    """The drawable rows of each group."""
    rows = np.flatnonzero(drawable)
    rows = rows[np.argsort(groups[rows], kind="stable")]
    counts = np.bincount(groups[rows], minlength=num_groups)
    return np.split(rows, np.cumsum(counts)[:-1])


def _lifted(pool: _Pool, members: list[Int64], quotas: Int64, budget: int) -> Bool:
    """[g] groups whose share of the budget is below their quota, so that they are given that.

    What they are given more is taken from the others, which may fall below theirs in turn.
    """
    lifted = np.zeros(len(quotas), np.bool_)
    while True:
        others = np.flatnonzero(~lifted).tolist()
        rows = np.concatenate([members[g] for g in others])
        shared = pool.share_out(rows, budget - int(quotas[lifted].sum()), "")
        ends = np.cumsum([len(members[g]) for g in others])
        totals = [int(part.sum()) for part in np.split(shared, ends[:-1])]
        short = [
            g
            for g, total in zip(others, totals, strict=True)
            if total < int(quotas[g]) << pool.bits
        ]
        if not short:
            return lifted
        lifted[short] = True


@dataclass(frozen=True, slots=True)
class _Pool:
    sizes: Float64
    costs: Int64
    wholes: Int64
    order: Int64
    bits: int
    is_bounded: bool
    """Whether a total may stay below the budget, because all rows together cost less."""

    def share_out(self, rows: Int64, budget: int, whose: str) -> Int64:
        """The masses of the rows [m], sum exactly `budget` rows (or cost)."""
        reach = int(self.costs[rows].sum())
        if budget > reach and not self.is_bounded:
            raise SelectionError(
                f"{budget} rows{whose} are to be drawn, and only {reach} have a probability above "
                "0. Lower the budget or the quota, or take rows off selection.never_in"
            )
        if budget >= reach:
            return self.wholes[rows]
        if budget == 0:
            return np.zeros(len(rows), np.int64)
        cost, size = self.costs[rows], self.sizes[rows]
        size = np.maximum(size / size.max(), SMALLEST)
        # From the smallest to the largest; equal rows are interchangeable, so sums that go along
        # this order come out the same whatever the order of the rows is.
        by_size = np.lexsort((cost, size)) if self.is_bounded else np.argsort(size, kind="stable")
        below = np.cumsum((size * cost)[by_size])
        above = reach - np.cumsum(cost[by_size])
        # Row number k of this order is certain when even the rows up to it, given what those
        # above it leave of the budget, would have it above 1.
        is_certain = (budget - above) * size[by_size] >= below
        num_open = int(np.argmax(is_certain)) if is_certain.any() else len(rows)
        masses = self.wholes[rows]
        if num_open:
            is_open = by_size[:num_open]
            left = budget - int(above[num_open - 1])
            exact = np.ldexp(
                size[is_open] * cost[is_open] * (left / below[num_open - 1]), self.bits
            )
            least = min(1, left)
            masses[is_open] = np.clip(np.floor(exact).astype(np.int64), least, masses[is_open])
            index = is_open[np.argsort(self.order[rows[is_open]])]
            left = (budget << self.bits) - int(masses.sum())
            _settle(masses, self.wholes[rows], index, left, least=1)
        return masses
