"""Draws over time: uses follow probabilities, and totals stay exact; beside plain twins."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from gracekit.draw.along import draw_along
from gracekit.draw.over_time import (
    conditional,
    coordinated,
    kept_shares,
    next_shares,
    settled,
)
from gracekit.draw.pivotal import draw_spread
from gracekit.draw.probabilities import inclusion, with_shares
from gracekit.draw.walk import RankedGraph, places_along
from gracekit.types import Bool, DrawState, Float64, Int32, Rows
from tests.test_draw import neighbors_in_the_plane, random_case
from tests.test_greedy import graph_of


def a_state(rng: np.random.Generator, n: int) -> DrawState:
    """A state with narrow and wide intervals, and rows that are owed far too much or too little."""
    ends = np.sort(rng.random((n, 2)), axis=1)
    low, high = np.where(rng.random(n) < 0.3, [[0], [1]], ends.T)
    owed = rng.choice([0, 0.4, -0.7, 3.2, -5.0], n) + rng.normal(0, 0.2, n)
    return DrawState(
        uses=rng.integers(0, 9, n).astype(np.int32), owed=owed, start_low=low, start_high=high
    )


def probabilities_of(rng: np.random.Generator, n: int) -> Float64:
    """Some 0, some 1, the others anything, in all a whole number."""
    found = rng.random(n)
    found[rng.random(n) < 0.15] = 0
    found[rng.random(n) < 0.15] = 1
    is_open = (found > 0) & (found < 1)
    if is_open.any():
        found[is_open] *= np.floor(found[is_open].sum()) / found[is_open].sum()
    return found


def share_of(state: DrawState, row: int, probability: float, length: Fraction) -> Fraction:
    """`conditional` of one row by its docstring, exactly."""
    if probability in (0.0, 1.0):
        return Fraction(probability)
    low, high = Fraction(state.start_low[row]), Fraction(state.start_high[row])
    passes_from = 1 - Fraction(state.owed[row]) - Fraction(probability) * length
    return min(Fraction(1), max(Fraction(0), (high - max(low, passes_from)) / (high - low)))


@given(st.integers(0, 100_000))
def test_shares_have_the_totals_of_the_probabilities_and_one_length_a_part(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 40))
    state, p = a_state(rng, n), probabilities_of(rng, n)
    parts = rng.integers(0, 4, n).astype(np.int32)
    costs = rng.integers(1, 30, n) if seed % 3 == 0 else None
    found = next_shares(state, p, parts, costs)
    assert ((found >= 0) & (found <= 1)).all()
    sure = (p == 0) | (p == 1)
    assert (found[sure] == p[sure]).all()
    cost = np.ones(n) if costs is None else costs
    for part in range(4):
        rows = np.flatnonzero((parts == part) & ~sure)
        total, got = float(p[rows] @ cost[rows]), float(found[rows] @ cost[rows])
        if costs is not None or abs(total - round(total)) < 1e-6:
            assert got == pytest.approx(total, abs=1e-6)
        else:
            assert np.floor(total) - 1e-6 <= got <= np.ceil(total) + 1e-6
        # There is a length that gives no less, one a little shorter that gives no more.
        exact = [share_of(state, row, p[row], Fraction(1)) for row in rows.tolist()]
        if got == pytest.approx(float(sum(exact)), abs=1e-9) and costs is None:
            continue
        longer = [a for row, a in zip(rows, exact, strict=True) if found[row] > a + Fraction(1e-9)]
        shorter = [a for row, a in zip(rows, exact, strict=True) if found[row] < a - Fraction(1e-9)]
        assert not longer or not shorter
    if costs is None:
        assert float(found.sum()) == pytest.approx(float(p.sum()), abs=1e-6)


@given(st.integers(0, 100_000))
def test_the_state_is_that_of_a_plain_twin_with_exact_fractions(seed: int) -> None:
    """Rows used just when they pass: of all starts those stay that would have done the same."""
    rng = np.random.default_rng(seed)
    n, draws = 12, 9
    starts = [Fraction(int(x), 1 << 20) for x in rng.integers(0, 1 << 20, n)]
    state = DrawState.none(n)
    low, high = [Fraction(0)] * n, [Fraction(1)] * n
    total, uses = [Fraction(0)] * n, [0] * n
    for _ in range(draws):
        p = [Fraction(int(x), 64) for x in rng.choice([0, 64, *rng.integers(1, 64, 6)], n)]
        shares = conditional(state, np.array([float(x) for x in p]))
        passes = np.zeros(n, np.int64)
        for row in range(n):
            of_interval = Fraction(0)
            if low[row] < high[row]:
                first = max(low[row], 1 - (total[row] - uses[row]) - p[row])
                of_interval = max(Fraction(0), high[row] - first) / (high[row] - low[row])
            assert shares[row] == pytest.approx(float(min(Fraction(1), of_interval)), abs=1e-6)
            total[row] += p[row]
            passes[row] = int(total[row] + starts[row]) - uses[row]
            uses[row] += int(passes[row])
            low[row] = max(low[row], uses[row] - total[row])
            high[row] = min(high[row], uses[row] + 1 - total[row])
        state = settled(state, np.array([float(x) for x in p]), passes)
        assert state.uses.tolist() == uses
        assert state.owed == pytest.approx([float(t - u) for t, u in zip(total, uses, strict=True)])
        assert state.start_low == pytest.approx([float(x) for x in low])
        assert state.start_high == pytest.approx([float(x) for x in high])
        assert (np.abs(state.owed) < 1).all()


@given(st.integers(0, 100_000))
def test_what_a_state_owes_is_bounded_by_what_it_can_make_up_for(seed: int) -> None:
    """Whatever the uses were, a state stays one: intervals are not empty, shares are in [0, 1]."""
    rng = np.random.default_rng(seed)
    state = a_state(rng, 20)
    for _ in range(5):
        p, uses = rng.choice([0, 0.1, 0.5, 1], 20), rng.integers(0, 4, 20)
        before, state = state, settled(state, p, uses)
        assert (state.start_low < state.start_high).all()
        assert state.owed == pytest.approx(before.owed + p - uses)
        assert (state.uses == before.uses + uses).all()
        shares = conditional(state, p)
        assert ((shares >= 0) & (shares <= 1)).all()
        is_open = (p > 0) & (p < 1)
        assert (shares[is_open & (state.owed >= 1)] == 1).all()
        assert (shares[is_open & (state.owed <= -1)] == 0).all()


# --- draws that keep ---


@given(st.integers(0, 100_000))
def test_keeping_changes_nothing_where_nothing_changed(seed: int) -> None:
    rng = np.random.default_rng(seed)
    graph, sizes, order, groups = random_case(seed)
    can = int((sizes > 0).sum())
    budget = int(rng.integers(1, can + 1))
    more: dict[str, Any] = {}
    costs = None
    if seed % 4 == 1:  # parts with totals that are not whole
        more = {"groups": groups, "quotas": np.zeros(4, np.int64), "free": budget}
    else:
        groups = np.zeros_like(groups)
    if seed % 4 == 2:
        costs = rng.integers(1, 20, len(sizes))
        budget = int(rng.integers(1, costs.sum()))
    chances = inclusion(sizes, budget=budget, order=order, costs=costs, **more)
    p = chances.probabilities
    ranked = RankedGraph.of(graph, order)
    across = costs is None
    first = draw_spread(ranked, chances, seed=seed, groups=groups, across=across)
    was_drawn = np.isin(np.arange(len(p)), first)
    if costs is not None:  # what is left is filled up, as `balanced` does
        left = budget - int(costs[first].sum())
        for row in np.argsort(costs):
            if not was_drawn[row] and p[row] > 0 and costs[row] <= left:
                was_drawn[row] = True
                left -= int(costs[row])
    shares = kept_shares(p, was_drawn, p, groups, costs)
    if costs is None or left < costs[(p > 0) & (p < 1)].max(initial=1):
        assert shares.tolist() == was_drawn.astype(float).tolist()
    given_before = with_shares(chances, shares, order=order, groups=groups, costs=costs)
    again = draw_spread(ranked, given_before, seed=seed + 1, groups=groups, across=across)
    assert sorted(again.tolist()) == np.flatnonzero(was_drawn).tolist()


def test_a_row_that_could_not_be_drawn_or_had_to_be_comes_with_its_probability() -> None:
    before, now = np.array([0, 0, 1, 1, 0.5, 0.5]), np.full(6, 0.25)
    was_drawn = np.array([True, False] * 3)
    assert coordinated(before, was_drawn, now).tolist() == [0.25, 0.25, 0.25, 0.25, 0.5, 0]
    assert coordinated(before, was_drawn, np.array([0, 1.0] * 3)).tolist() == [0, 1] * 3


def test_keeping_changes_half_of_what_changed_each_way_and_keeps_the_probabilities() -> None:
    n, budget, draws = 200, 50, 400
    rng = np.random.default_rng(3)
    graph, _ = neighbors_in_the_plane(n, 2)
    ranked, order, one = RankedGraph.of(graph, np.arange(n)), np.arange(n), np.zeros(n, np.int32)
    sizes = rng.lognormal(0, 0.5, (2, n))
    sizes[1] = sizes[0] * rng.lognormal(0, 0.2, n)
    chances = [inclusion(s, budget=budget, order=order) for s in sizes]
    before, now = (c.probabilities for c in chances)
    counts, changed = np.zeros(n), []
    for seed in range(draws):
        first = draw_spread(ranked, chances[0], seed=seed)
        shares = kept_shares(before, np.isin(order, first), now, one)
        second = with_shares(chances[1], shares, order=order, groups=one)
        rows = draw_spread(ranked, second, seed=draws + seed)
        assert len(rows) == budget
        counts[rows] += 1
        changed.append(budget - len(np.intersect1d(first, rows)))
    moved = float(np.abs(now - before).sum()) / 2
    assert moved <= np.mean(changed) < 1.5 * moved
    is_open = (now > 0) & (now < 1)
    z = (counts - draws * now)[is_open] / np.sqrt(draws * now * (1 - now))[is_open]
    assert float(z @ z) < stats.chi2.ppf(0.9999, is_open.sum())
    assert abs(np.mean(z)) < 0.1


# --- many draws ---


@dataclass
class Run:
    """What many draws one after another gave."""

    uses: Float64
    due: Float64


def run(
    n: int = 200,
    *,
    draws: int = 50,
    num_groups: int = 1,
    change: int = 0,
    share: float = 0.2,
    is_free: bool = False,
    is_along: bool = False,
    with_costs: bool = False,
    seed: int = 0,
) -> Run:
    """Draw again and again, with other probabilities every `change` draws."""
    graph, _ = neighbors_in_the_plane(n, 3)
    order = np.arange(n)
    costs = np.random.default_rng(2).integers(1, 60, n) if with_costs else None
    ranked = RankedGraph.of(graph, order)
    groups = np.random.default_rng(5).integers(0, num_groups, n).astype(np.int32)
    places = places_along(ranked, groups)
    base = np.random.default_rng(9).normal(size=n)
    state, uses, due = DrawState.none(n), np.zeros(n), np.zeros(n)
    for number in range(draws):
        if number % (change or draws) == 0:
            noise = np.random.default_rng([number, seed]).normal(size=n)
            sizes = 0.25 + 0.75 * np.exp(0.8 * base + (0.6 * noise if change else 0))
            cost = np.ones(n, np.int64) if costs is None else costs
            quotas = np.floor(share * np.bincount(groups, cost)).astype(np.int64)
            budget = int(quotas.sum())
            free = budget - int((quotas // 2).sum()) if is_free else 0
            more: dict[str, Any] = {}
            if num_groups > 1:
                more = {"groups": groups, "quotas": quotas // 2 if is_free else quotas}
                more["free"] = free
            chances = inclusion(sizes, budget=budget, order=order, costs=costs, **more)
            p = chances.probabilities
        shares = next_shares(state, p, groups, costs)
        if is_along:
            rows: Rows = draw_along(shares, places, groups, np.random.default_rng([seed, number]))
        else:
            now = with_shares(chances, shares, order=order, groups=groups, costs=costs)
            seeds = np.random.default_rng([seed, number])
            across = costs is None
            rows = draw_spread(
                ranked, now, seed=int(seeds.integers(2**60)), groups=groups, across=across
            )
        if costs is None:
            assert len(rows) == budget
            if num_groups > 1 and not is_free:
                assert np.bincount(groups[rows], minlength=num_groups).tolist() == quotas.tolist()
        elif not is_along:
            assert (np.bincount(groups[rows], costs[rows], num_groups) <= quotas).all()
        used = np.isin(order, rows)
        state = settled(state, p, used.astype(np.int32))
        uses, due = uses + used, due + p
    assert state.uses.tolist() == uses.tolist()
    assert state.owed == pytest.approx(due - uses, abs=1e-9)
    return Run(uses, due)


@pytest.mark.parametrize("is_along", [False, True])
@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"change": 5},
        {"change": 1, "share": 0.6},
        {"num_groups": 5, "change": 3},
        {"num_groups": 5, "is_free": True, "change": 7},
        {"num_groups": 20},
        {"with_costs": True, "change": 5},
    ],
    ids=str,
)
def test_uses_follow_probabilities_over_fifty_draws(asked: dict[str, Any], is_along: bool) -> None:
    found = run(400, is_along=is_along, **asked)
    error = np.abs(found.uses - found.due)
    # Under a budget in tokens a draw leaves out the last row, so that fewer are used than are due.
    assert np.mean(error <= 1) >= (0.98 if "with_costs" in asked else 0.99)
    assert error.max() <= 2


def test_every_row_has_its_turn_before_any_comes_twice_where_all_are_alike() -> None:
    n = 60
    graph, _ = neighbors_in_the_plane(n, 1)
    order, one = np.arange(n), np.zeros(n, np.int32)
    ranked, chances = RankedGraph.of(graph, order), inclusion(np.ones(n), budget=12, order=order)
    state = DrawState.none(n)
    for number in range(10):
        shares = next_shares(state, chances.probabilities, one)
        now = with_shares(chances, shares, order=order, groups=one)
        rows = draw_spread(ranked, now, seed=number)
        state = settled(state, chances.probabilities, np.isin(order, rows).astype(np.int32))
        assert state.uses.max() == number // 5 + 1
        assert (number + 1) % 5 or state.uses.min() == state.uses.max()


@pytest.mark.parametrize("is_along", [False, True])
def test_each_draw_of_a_run_has_the_rows_with_their_probabilities(is_along: bool) -> None:
    """Over many runs, and not only on average over one: by frequencies of all draws but the first,
    which alone are not conditional.
    """
    n, runs, draws = 24, 400, 5
    rng = np.random.default_rng(7)
    weights = np.triu((rng.random((n, n)) < 0.2) * rng.choice([0.5, 0.9], (n, n)), 1)
    weights[:4] = weights[:, :4] = 0  # rows without a neighbour
    order, one = np.arange(n), np.zeros(n, np.int32)
    ranked = RankedGraph.of(graph_of((weights + weights.T).astype(np.float32)), order)
    sizes = rng.choice([1.0, 2.0, 3.0], n)
    sizes[4:6], sizes[6:8] = 0, 50
    chances = inclusion(sizes, budget=9, order=order)
    p, places = chances.probabilities, places_along(ranked, one)
    counts = np.zeros((draws, n))
    for number in range(runs):
        state = DrawState.none(n)
        for draw in range(draws):
            shares = next_shares(state, p, one)
            if is_along:
                rows = draw_along(shares, places, one, np.random.default_rng([number, draw]))
            else:
                now = with_shares(chances, shares, order=order, groups=one)
                rows = draw_spread(ranked, now, seed=number * draws + draw)
            assert len(rows) == 9
            counts[draw, rows] += 1
            state = settled(state, p, np.isin(order, rows).astype(np.int32))
    assert (counts[:, p == 0] == 0).all() and (counts[:, p == 1] == runs).all()
    is_open = (p > 0) & (p < 1)
    z = (counts - runs * p)[:, is_open] / np.sqrt(runs * p * (1 - p))[is_open]
    for of_draw in z:
        assert float(of_draw @ of_draw) < stats.chi2.ppf(0.9999, is_open.sum())
    total = counts[:, is_open].sum(axis=0)
    assert np.mean(np.abs(total / (runs * draws * p[is_open]) - 1)) < 0.02


# --- along an order ---


def plain_along(probabilities: Float64, places: Int32, parts: Int32, start: Fraction) -> list[int]:
    """Systematic sampling with exact fractions: pieces end to end, a grid of step 1."""
    drawn = [row for row, p in enumerate(probabilities.tolist()) if p >= 1]
    at = start
    for row in np.argsort(places).tolist():
        p = probabilities[row]
        if 0 < p < 1:
            ends = at + Fraction(float(p))
            if ends // 1 > at // 1:
                drawn.append(row)
            at = ends
    return sorted(drawn)


@given(st.integers(0, 100_000))
def test_a_draw_along_an_order_is_systematic_and_exact(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(0, 40))
    p = probabilities_of(rng, n)
    parts = np.sort(rng.integers(0, 4, n)).astype(np.int32) if seed % 2 else np.zeros(n, np.int32)
    places = np.arange(n, dtype=np.int32)
    old = rng.permutation(n)  # rows of one part are together in the order of places only
    p, parts, places = p[old], parts[old], places[old]
    start = Fraction(int(np.random.default_rng(seed).integers(1 << 36)), 1 << 36)
    found = draw_along(p, places, parts, np.random.default_rng(seed))
    assert found.tolist() == plain_along(p, places, parts, start)
    assert len(found) == round(float(p.sum()))
    for part in range(4):
        rows = parts == part
        assert abs(int(rows[found].sum()) - float(p[rows].sum())) < 1 + 1e-6


@settings(max_examples=30)
@given(st.integers(0, 100_000), st.sampled_from([0, 1, 2]))
def test_totals_of_parts_that_are_whole_are_exact_along_an_order(seed: int, kind: int) -> None:
    rng = np.random.default_rng(seed)
    n = 300
    parts = rng.integers(0, [1, 5, 60][kind], n).astype(np.int32)
    quotas = np.bincount(parts, minlength=1) // 3
    chances = inclusion(
        rng.lognormal(size=n), budget=int(quotas.sum()), order=np.arange(n), groups=parts,
        quotas=quotas,
    )  # fmt: skip
    places = np.argsort(np.lexsort((rng.random(n), parts))).astype(np.int32)
    found = draw_along(chances.probabilities, places, parts, rng)
    assert np.bincount(parts[found], minlength=len(quotas)).tolist() == quotas.tolist()


@pytest.mark.parametrize("num_parts", [1, 4])
def test_a_draw_along_a_walk_spreads_over_the_graph(num_parts: int) -> None:
    n, share, draws = 400, 0.2, 300
    graph, xy = neighbors_in_the_plane(n, 3)
    rng = np.random.default_rng(0)
    parts = rng.integers(0, num_parts, n).astype(np.int32)
    p = inclusion(rng.uniform(0.5, 1.5, n), budget=int(share * n), order=np.arange(n)).probabilities
    walk = places_along(RankedGraph.of(graph, np.arange(n)), parts)
    smooth = np.sin(6 * xy[:, :1] + np.arange(4)) + np.cos(5 * xy[:, 1:])
    errors, counts = [], np.zeros(n)
    for seed in range(draws):
        rows = draw_along(p, walk, parts, np.random.default_rng(seed))
        errors.append((smooth / p[:, None])[rows].sum(axis=0) - smooth.sum(axis=0))
        counts[rows] += 1
    independent = float((((1 - p) / p)[:, None] * smooth**2).sum())
    assert np.square(errors).mean(axis=0).sum() < (0.1 if num_parts == 1 else 0.3) * independent
    # All rows of a draw hang on one start, so that each count is binomial, and their sum of squares
    # is not a χ².
    z = (counts - draws * p) / np.sqrt(draws * p * (1 - p))
    assert np.abs(z).max() < 4.5


# --- the edges of all of it ---


def test_nobody_everybody_and_one_row() -> None:
    none, one = np.zeros(0, np.int32), np.zeros(1, np.int32)
    rng = np.random.default_rng(0)
    assert next_shares(DrawState.none(0), np.zeros(0), none).tolist() == []
    nobody: Bool = np.zeros(0, np.bool_)
    assert kept_shares(np.zeros(0), nobody, np.zeros(0), none).tolist() == []
    assert draw_along(np.zeros(0), none, none, rng).tolist() == []
    for p in (0.0, 1.0):
        assert next_shares(DrawState.none(1), np.array([p]), one).tolist() == [p]
        assert draw_along(np.array([p]), one, one, rng).tolist() == [0][: int(p)]
    alone = next_shares(DrawState.none(1), np.array([0.25]), one)
    assert alone.tolist() == pytest.approx([0.25])
    many = np.full(9, 1.0)
    zeros = np.zeros(9, np.int32)
    assert next_shares(a_state(rng, 9), many, zeros).tolist() == many.tolist()
    assert draw_along(many, np.arange(9, dtype=np.int32), zeros, rng).tolist() == list(range(9))


def test_rows_owed_far_too_much_come_first_and_make_up_for_it() -> None:
    n = 10
    state = DrawState(
        uses=np.zeros(n, np.int32), owed=np.where(np.arange(n) < 4, 6.0, -4.0),
        start_low=np.zeros(n), start_high=np.ones(n),
    )  # fmt: skip
    p, one = np.full(n, 0.3), np.zeros(n, np.int32)
    shares = next_shares(state, p, one)
    assert shares[:4] == pytest.approx(0.75)
    assert shares[4:].tolist() == [0] * 6
    # More are due than can come: those that have waited longest.
    state.owed[0] = 9
    assert next_shares(state, p, one)[:4] == pytest.approx([1, 2 / 3, 2 / 3, 2 / 3])
