"""`selection.quotas`: largest remainders within capacities."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gracekit.errors import SelectionError
from gracekit.recipe import SelectionSection
from gracekit.selection.quotas import apportion
from tests.worlds import World

NAMES = ("a", "b", "c", "d")


def split(budget: int, shares: list[int], capacity: list[int]) -> list[int]:
    quotas = apportion(
        budget, np.array(shares, np.int64), np.array(capacity, np.int64), NAMES[: len(shares)]
    )
    listed: list[int] = quotas.tolist()
    return listed


@pytest.mark.parametrize(
    ("budget", "shares", "capacity", "expected"),
    [
        (10, [50, 30, 20], [50, 30, 20], [5, 3, 2]),
        (10, [1, 1, 1], [9, 9, 9], [4, 3, 3]),
        (11, [1, 1, 1], [9, 9, 9], [4, 4, 3]),
        (10, [1, 1, 1], [2, 9, 9], [2, 4, 4]),
        (10, [1, 1, 1], [1, 2, 9], [1, 2, 7]),
        (12, [1, 1, 1, 1], [0, 9, 9, 9], [0, 4, 4, 4]),
        (7, [6, 1, 1], [6, 1, 1], [5, 1, 1]),
        (2, [1, 1, 1, 1], [5, 5, 5, 5], [1, 1, 0, 0]),
        (0, [1, 1], [5, 5], [0, 0]),
        (8, [100, 1, 1], [2, 3, 3], [2, 3, 3]),
    ],
)
def test_known_cases(
    budget: int, shares: list[int], capacity: list[int], expected: list[int]
) -> None:
    assert split(budget, shares, capacity) == expected


def test_equal_remainders_go_by_the_name_of_the_group() -> None:
    quotas = apportion(1, np.ones(3, np.int64), np.full(3, 5), ("z", "m", "a"))
    assert quotas.tolist() == [0, 0, 1]


def test_a_budget_that_the_groups_cannot_fill_is_an_error() -> None:
    with pytest.raises(SelectionError, match="9 samples are to be selected, and the groups have 5"):
        split(9, [1, 1, 0], [2, 3, 50])


@given(st.data())
def test_within_both_bounds_and_level_between(data: st.DataObject) -> None:
    """The water level: groups inside their bounds have equal quota per share, to one sample."""
    num_groups = data.draw(st.integers(1, 5))
    names = tuple("abcde"[:num_groups])
    shares = data.draw(st.lists(st.integers(1, 30), min_size=num_groups, max_size=num_groups))
    low = data.draw(st.lists(st.integers(0, 9), min_size=num_groups, max_size=num_groups))
    room = data.draw(st.lists(st.integers(0, 30), min_size=num_groups, max_size=num_groups))
    capacity = [a + b for a, b in zip(low, room, strict=True)]
    budget = data.draw(st.integers(sum(low), sum(capacity)))
    quotas = apportion(budget, shares, np.array(capacity), names, least=np.array(low)).tolist()
    assert sum(quotas) == budget
    for q, least, most in zip(quotas, low, capacity, strict=True):
        assert least <= q <= most
    for g in range(num_groups):
        for h in range(num_groups):
            if quotas[g] > low[g] and quotas[h] < capacity[h]:
                # g gave nothing up and h got nothing though h had less for its share.
                assert (quotas[g] - 1) / shares[g] <= (quotas[h] + 1) / shares[h] + 1e-9


@given(st.data())
def test_exact_within_capacity_and_near_the_shares(data: st.DataObject) -> None:
    num_groups = data.draw(st.integers(1, 4))
    counts = st.lists(st.integers(0, 40), min_size=num_groups, max_size=num_groups)
    shares, capacity = data.draw(counts), data.draw(counts)
    room = sum(c for c, s in zip(capacity, shares, strict=True) if s)
    budget = data.draw(st.integers(0, room))
    quotas = split(budget, shares, capacity)
    assert sum(quotas) == budget
    assert all(0 <= q <= c for q, c in zip(quotas, capacity, strict=True))
    assert all(q == 0 for q, s in zip(quotas, shares, strict=True) if s == 0)
    # Among groups that are not full, no one is more than one sample from its share of the rest.
    open_groups = [g for g in range(num_groups) if shares[g] and quotas[g] < capacity[g]]
    rest = sum(quotas[g] for g in open_groups)
    for g in open_groups:
        exact = rest * shares[g] / sum(shares[h] for h in open_groups)
        assert abs(quotas[g] - exact) <= 1


# --- by a power of the size ---


@pytest.mark.parametrize(("power", "twin"), [(0.0, "equal"), (0.5, "sqrt"), (1.0, "proportional")])
def test_a_temperature_is_between_equal_and_proportional(power: float, twin: str) -> None:
    world = World.make(seed=3)
    quotas = []
    for settings in (
        {"group_quota": "temperature", "group_temperature": power},
        {"group_quota": twin},
    ):
        selection = world.select(fraction=0.5, selector="balanced", **settings)
        quotas.append(selection.details["quotas"])
    assert quotas[0] == quotas[1]


@pytest.mark.parametrize("settings", [{"group_quota": "temperature"}, {"group_temperature": 0.3}])
def test_a_temperature_goes_with_its_quota(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="belong together"):
        SelectionSection(**settings)
