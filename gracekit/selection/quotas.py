"""Group quotas: how many samples of each group, exactly."""

from __future__ import annotations

from typing import Literal

import numpy as np

from gracekit.errors import SelectionError
from gracekit.types import Bool, Int64, SampleTable


def group_quotas(
    kind: Literal["none", "proportional", "equal"],
    budget: int,
    samples: SampleTable,
    usable: Bool,
    candidates: Bool,
) -> Int64 | None:
    """[g] how many of each group, in all the budget; None where groups do not matter.

    `proportional` keeps the groups' shares of the usable samples, `equal` gives each group that
    has a candidate the same. What a group cannot fill goes to the others in the same proportion.
    """
    if kind == "none":
        return None
    num_groups = len(samples.group_names)
    capacity = np.bincount(samples.groups[candidates], minlength=num_groups)
    if kind == "proportional":
        shares = np.bincount(samples.groups[usable], minlength=num_groups)
    else:
        shares = np.ones(num_groups, np.int64)
    return apportion(budget, shares, capacity, samples.group_names)


def apportion(budget: int, shares: Int64, capacity: Int64, group_names: tuple[str, ...]) -> Int64:
    """Split a budget by shares within capacities, by largest remainders.

    Args:
        budget: Zero or more.
        shares: [g] zero or more, relative.
        capacity: [g] most that a group can take.
        group_names: [g] of equal remainders the smaller name is served first.

    Returns:
        int64 [g], sum exactly `budget`, nowhere above the capacity.

    Raises:
        SelectionError: The capacities of the groups with a share are below the budget.
    """
    takes_part = (shares > 0) & (capacity > 0)
    if budget > capacity[takes_part].sum():
        raise SelectionError(
            f"the group quotas cannot be met: {budget} samples are to be selected, and the groups "
            f"have {capacity[takes_part].sum()}. Lower selection.fraction or selection.count, or "
            "set selection.group_quota: none"
        )
    quotas = np.zeros(len(shares), np.int64)
    left = budget
    while True:
        total = shares[takes_part].sum()
        # Whole numbers, so that equal remainders are equal.
        full = takes_part & (shares * left >= capacity * total)
        if not full.any():
            break
        quotas[full] = capacity[full]
        left -= int(capacity[full].sum())
        takes_part = takes_part & ~full
    if left:
        quotas[takes_part] = shares[takes_part] * left // total
        by_remainder = sorted(
            np.flatnonzero(takes_part).tolist(),
            key=lambda group: (-(shares[group] * left % total), group_names[group]),
        )
        quotas[by_remainder[: budget - int(quotas.sum())]] += 1
    return quotas
