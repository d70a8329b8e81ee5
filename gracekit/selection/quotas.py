"""Group quotas: how many samples (or tokens) of each group, exactly."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from gracekit.errors import SelectionError
from gracekit.recipe import SelectionSection
from gracekit.types import Bool, Int64, SampleTable

logger = logging.getLogger(__name__)

_SQRT_UNIT = 10**6
"""Square roots are taken to a millionth, as whole numbers: equal shares are equal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupPlaces:
    """What may be picked of each group, rows that are in anyway included."""

    quotas: Int64 | None
    """[g] places of the group's own, in rows or tokens; None: groups do not matter."""
    free: int = 0
    """GroupPlaces for any group besides."""


def group_places(
    settings: SelectionSection,
    budget: int,
    *,
    samples: SampleTable,
    usable: Bool,
    candidates: Bool,
    forced: Bool,
    costs: Int64 | None,
) -> GroupPlaces:
    """The places of each group, in all the budget.

    Args:
        settings: `group_quota`, `group_shares`, `group_minimum`.
        budget: In rows, or in tokens where there are costs; at least what is forced.
        samples: Their groups.
        usable: [n] what `proportional` and `sqrt` measure groups by.
        candidates: [n] rows that may be picked, the forced ones included: a group's capacity.
        forced: [n] rows that are in anyway; a group's quota is at least what they take.
        costs: [n] tokens.

    Raises:
        SelectionError: No selection can meet the quotas; says which group, and what to change.
    """
    names = samples.group_names
    size, capacity, taken = (
        _size_by_group(rows, samples, costs) for rows in (usable, candidates, forced)
    )
    is_there = np.bincount(samples.groups[samples.present], minlength=len(names)) > 0
    least = np.maximum(taken, _least_by_group(settings, capacity, taken, is_there, names))
    if least.sum() > budget:
        raise SelectionError(
            f"the group quotas cannot be met: selection.group_minimum and what is always in need "
            f"{least.sum()} samples, the budget is {budget}. Lower group_minimum or "
            "keep_groups_below, or raise fraction or count"
        )
    kind = settings.group_quota
    if kind in ("none", "learned"):  # learned shares are a factor of the rows' places
        if not settings.group_minimum:
            return GroupPlaces(quotas=None)
        return GroupPlaces(quotas=least, free=budget - int(least.sum()))
    if kind == "shares":
        return GroupPlaces(
            quotas=_quotas_of_shares(settings, budget, capacity, taken, least, is_there, names)
        )
    shares = {
        "proportional": size.tolist(),
        "sqrt": [math.isqrt(int(s) * _SQRT_UNIT**2) for s in size],
        "equal": [int(s > 0) for s in size],
        "temperature": _tempered(size, settings.group_temperature or 0.0),
    }[kind]
    budget = min(budget, int(capacity.sum()))
    return GroupPlaces(quotas=apportion(budget, shares, capacity, names, least=least))


def _tempered(size: Int64, power: float) -> list[int]:
    """Sizes to a power from 0 to 1, in whole numbers; 0 stays 0, and 1 gives exact proportions."""
    largest = max(1, int(size.max(initial=0)))
    unit = _SQRT_UNIT * largest
    return [max(1, round(unit * (s / largest) ** power)) if s else 0 for s in size.tolist()]


def apportion(
    budget: int,
    shares: Sequence[int] | Int64,
    capacity: Int64,
    group_names: tuple[str, ...],
    *,
    least: Int64 | None = None,
) -> Int64:
    """Split a budget by shares within bounds, by largest remainders.

    What a group cannot take goes to the others in the proportion of their shares, and what a
    group needs beyond its share is taken from the others in the same proportion.

    Args:
        budget: Zero or more.
        shares: [g] zero or more, relative; a group without a share gets its least.
        capacity: [g] most that a group can take.
        group_names: [g] of equal remainders the smaller name is served first.
        least: [g] zero to the capacity.

    Returns:
        int64 [g], sum exactly `budget`, nowhere below the least or above the capacity.

    Raises:
        SelectionError: The capacities of the groups with a share are below the budget.
    """
    share = [int(s) for s in shares]
    most = [int(c) for c in capacity]
    low = [0] * len(share) if least is None else [int(x) for x in least]
    fixed = {g: low[g] for g in range(len(share)) if share[g] == 0 or most[g] == low[g]}
    takes_part = [g for g in range(len(share)) if g not in fixed]
    room = sum(most[g] for g in takes_part) + sum(fixed.values())
    if budget > room:
        raise SelectionError(
            f"the group quotas cannot be met: {budget} samples are to be selected, and the groups "
            f"have {room}. Lower selection.fraction or selection.count, or "
            "set selection.group_quota: none"
        )

    # Think of one water level for all groups: at a level, a group takes share · level, cut to its
    # own bounds. The higher the level, the more is given out in all, and wanted is the level at
    # which that is the budget. Between two levels at which some group meets a bound, what is given
    # out grows along a straight line; so the two of them that enclose the wanted level are found
    # by bisection, and between them the rest is shared out in proportion. Everything is a whole
    # number or a fraction: ties are true ties.
    def given_out(level: Fraction) -> Fraction:
        total = Fraction(sum(fixed.values()))
        for g in takes_part:
            total += min(max(share[g] * level, Fraction(low[g])), Fraction(most[g]))
        return total

    levels = sorted({Fraction(b, share[g]) for g in takes_part for b in (low[g], most[g])})
    start, end = 0, len(levels)
    while start < end:  # bisection: the first of the levels that gives out the budget
        middle = (start + end) // 2
        if given_out(levels[middle]) < budget:
            start = middle + 1
        else:
            end = middle
    under = levels[start - 1] if start else Fraction(0)
    # At the level just under, a group is full (it keeps its most), not there yet (it keeps its
    # least), or between its bounds: only these share what the others leave.
    quotas = low.copy()
    between = []
    for g in takes_part:
        if share[g] * under >= most[g]:
            quotas[g] = most[g]
        elif share[g] * under >= low[g]:
            between.append(g)
    left = budget - sum(q for g, q in enumerate(quotas) if g not in between)
    total = sum(share[g] for g in between)
    for g in between:  # whole places first; then one more each, by the largest remainder
        quotas[g] = share[g] * left // total
    by_remainder = sorted(between, key=lambda g: (-(share[g] * left % total), group_names[g]))
    for g in by_remainder[: budget - sum(quotas)]:
        quotas[g] += 1
    return np.array(quotas, np.int64)


def _size_by_group(rows: Bool, samples: SampleTable, costs: Int64 | None) -> Int64:
    """[g] rows, or their tokens."""
    num_groups = len(samples.group_names)
    weights = None if costs is None else costs[rows]
    return np.bincount(samples.groups[rows], weights, minlength=num_groups).astype(np.int64)


def _least_by_group(
    settings: SelectionSection,
    capacity: Int64,
    taken: Int64,
    is_there: Bool,
    names: tuple[str, ...],
) -> Int64:
    """[g] least samples of each group; one that is taken whole, or left the data, has enough."""
    is_enough = ((taken == capacity) & (capacity > 0)) | ~is_there
    short = np.flatnonzero((capacity < settings.group_minimum) & ~is_enough)
    if len(short):
        group = int(short[0])
        raise SelectionError(
            f"selection.group_minimum is {settings.group_minimum}, but group {names[group]!r} has "
            f"{capacity[group]} samples that can be selected ({len(short)} of {len(names)} groups "
            "have too few). Lower it; selection.keep_groups_below takes small groups whole"
            f"{_or_more_uses(settings)}"
        )
    return np.minimum(capacity, settings.group_minimum)


def _or_more_uses(settings: SelectionSection) -> str:
    """A way out besides, where rows can have been used too often."""
    if settings.max_uses is None:
        return ""
    return f"; or raise selection.max_uses, so that rows used {settings.max_uses} times come again"


def _quotas_of_shares(
    settings: SelectionSection,
    budget: int,
    capacity: Int64,
    taken: Int64,
    least: Int64,
    is_there: Bool,
    names: tuple[str, ...],
) -> Int64:
    """The quotas of `group_shares`, exactly: nothing flows to other groups.

    Groups that left the data have no part in it.
    """
    given = settings.group_shares or {}
    unknown = [name for name in given if name not in names]
    if unknown:
        raise SelectionError(
            f"selection.group_shares: there is no group {unknown[0]!r}; the store has "
            f"{', '.join(names[:20])}"
        )
    exact = []
    for name, there in zip(names, is_there, strict=True):
        if name in given and not there:
            logger.warning(
                "selection.group_shares: group %r is no longer in the data, left out", name
            )
        exact.append(Fraction(str(given.get(name, 0)) if there else 0))
    unit = math.lcm(*(share.denominator for share in exact))
    whole_shares = [int(share * unit) for share in exact]
    quotas = apportion(budget, whole_shares, np.full(len(names), budget), names)
    for group in np.flatnonzero((quotas > capacity) | (quotas < least)).tolist():
        if quotas[group] > capacity[group]:
            found = f"{capacity[group]} can be selected"
        elif quotas[group] < taken[group]:
            found = f"{taken[group]} are always in"
        else:
            found = f"selection.group_minimum is {settings.group_minimum}"
        raise SelectionError(
            f"selection.group_shares cannot be met: group {names[group]!r} is to have "
            f"{quotas[group]} of {budget}, and {found}. Change its share or the budget, or use "
            "group_quota: proportional, which lets other groups fill in"
            f"{_or_more_uses(settings)}"
        )
    return quotas
