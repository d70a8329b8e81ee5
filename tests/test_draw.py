"""`draw`: probabilities with exact totals, and a draw that has them, beside a plain twin."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from gracekit.draw import pivotal
from gracekit.draw.probabilities import Inclusion, inclusion
from gracekit.draw.walk import RankedGraph, places_along
from gracekit.errors import SelectionError
from gracekit.graph import symmetric
from gracekit.types import Float64, Int64, KnnGraph, Rows, SparseGraph
from tests.test_greedy import graph_of, random_weights

MASK = (1 << 64) - 1


def uniform(seed: int, number: int) -> float:
    """SplitMix64 by its published definition, in whole numbers of any size."""
    z = (seed + number * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return float((z ^ (z >> 31)) >> 11) * 2.0**-53


def draw_spread(graph: SparseGraph, chances: Inclusion, *, order: Int64, **more: Any) -> Rows:
    return pivotal.draw_spread(RankedGraph.of(graph, order), chances, **more)


class PlainDraw:
    """The draw by its docstring: sets and lists, every neighbour looked at every time."""

    def __init__(
        self, graph: SparseGraph, chances: Inclusion, order: Int64, seed: int, groups: Any
    ) -> None:
        self.order, self.seed, self.number = order, seed, 0
        self.groups = groups.tolist()
        self.mass, self.whole = chances.masses.tolist(), chances.wholes.tolist()
        self.drawn: list[int] = []
        self.by_rank: list[int] = np.argsort(order).tolist()
        self.near: list[list[tuple[float, int]]] = []
        for row in range(len(order)):
            edges = slice(graph.indptr[row], graph.indptr[row + 1])
            pairs = zip(graph.weights[edges].tolist(), graph.indices[edges].tolist(), strict=True)
            self.near.append(sorted(pairs, key=lambda pair: (-pair[0], order[pair[1]])))
        self.undecided = set(self.by_rank)
        # A cluster: its rows in the order in which their edges are looked at, the key is the row
        # that stands for it.
        self.cluster_of: dict[int, int] = {row: row for row in self.by_rank}
        self.members = {row: [row] for row in self.by_rank}
        for row in self.by_rank:
            self.settle(row)

    def settle(self, row: int) -> None:
        if self.mass[row] in (0, self.whole[row]):
            self.undecided.discard(row)
            if self.mass[row]:
                self.drawn.append(row)

    def join(self, a: int, b: int) -> None:
        if b in self.undecided:
            a, b = b, a
        for member in self.members[b]:
            self.cluster_of[member] = a
        self.members[a] += self.members.pop(b)

    def meet(self, a: int, b: int) -> None:
        up = min(self.whole[a] - self.mass[a], self.mass[b])
        down = min(self.mass[a], self.whole[b] - self.mass[b])
        change = up if uniform(self.seed, self.number) * (up + down) < down else -down
        self.number += 1
        self.mass[a] += change
        self.mass[b] -= change
        self.settle(a)
        self.settle(b)

    def nearest(self, row: int) -> tuple[float, int] | None:
        for weight, other in self.near[row]:
            if other in self.undecided and self.groups[other] == self.groups[row]:
                return weight, other
        return None

    def reach(self, row: int) -> int | None:
        for member in self.members[row]:  # grows while clusters without an undecided row join
            for _, other in self.near[member]:
                cluster = self.cluster_of[other]
                if self.groups[other] != self.groups[row] or cluster == row:
                    continue
                if cluster in self.undecided:
                    return cluster
                self.join(row, cluster)
        return None

    def walk(self) -> list[int]:
        found: list[int] = []
        visited: set[int] = set()
        for start in self.by_rank:
            path = [start] if start not in visited else []
            while path:
                if path[-1] not in visited:
                    visited.add(path[-1])
                    found.append(path[-1])
                ahead = [other for _, other in self.near[path[-1]] if other not in visited]
                if ahead:
                    path.append(ahead[0])
                else:
                    path.pop()
        return found

    def rows(self, across: bool) -> list[int]:
        for start in self.by_rank:
            path = [start]
            while path:
                row = path[-1]
                found = self.nearest(row) if row in self.undecided else None
                if found is None:
                    path.pop()
                    continue
                further = self.nearest(found[1])
                if further is not None and further[0] > found[0]:
                    path.append(found[1])
                    continue
                self.meet(row, found[1])
                self.join(row, found[1])
        looking = [row for row in self.by_rank if row in self.undecided]
        while looking:
            again = []
            for row in looking:
                other = self.reach(row) if row in self.undecided else None
                if other is None:
                    continue
                self.meet(row, other)
                self.join(row, other)
                if row in self.undecided:
                    again.append(row)
            looking = again
        if not self.undecided:
            return self.drawn
        passed: dict[int, int] = {}
        for row in self.walk():
            if row in self.undecided:
                last = passed.pop(self.groups[row], None)
                if last is not None:
                    self.meet(last, row)
                for left in (row, last):
                    if left in self.undecided and left is not None:
                        passed[self.groups[row]] = left
        held: int | None = None
        for group in sorted(passed):
            if across and held is not None:
                self.meet(held, passed[group])
            if across and held not in self.undecided:
                held = passed[group] if passed[group] in self.undecided else None
        return self.drawn


@given(st.integers(0, 100_000))
def test_places_follow_a_walk_through_the_graph_part_by_part(seed: int) -> None:
    graph, _, order, parts = random_case(seed)
    plain = PlainDraw(graph, even(len(order), 1), order, seed, parts)
    for part_of in (parts, np.zeros_like(parts)):
        walk = sorted(plain.walk(), key=lambda row: int(part_of[row]))
        places = places_along(RankedGraph.of(graph, order), part_of)
        assert np.argsort(places).tolist() == walk
        assert sorted(places.tolist()) == list(range(len(order)))


def even(n: int, budget: int, **more: Any) -> Inclusion:
    return inclusion(np.ones(n), budget=budget, order=np.arange(n), **more)


def random_case(seed: int) -> tuple[SparseGraph, Float64, Int64, Any]:
    """A graph (with ties, loose rows, none at all), sizes (with zeros, ties, one above all)."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 40))
    weights = random_weights(rng, n, [0.0, 0.1, 0.3, 1.0][seed % 4], ties=seed % 3 == 0)
    sizes = rng.choice([0.5, 1.0, 3.0], n) if seed % 2 else rng.lognormal(0, 1, n)
    sizes[rng.random(n) < 0.15] = 0
    sizes[rng.integers(n)] = 50
    return graph_of(weights), sizes, rng.permutation(n), rng.integers(0, 4, n).astype(np.int32)


@given(st.integers(0, 100_000))
def test_probabilities_are_proportional_capped_and_sum_to_the_budget(seed: int) -> None:
    _, sizes, order, _ = random_case(seed)
    rng = np.random.default_rng(seed)
    can = int((sizes > 0).sum())
    budget = int(rng.integers(1, can + 1))
    found = inclusion(sizes, budget=budget, order=order)
    probabilities = found.probabilities
    assert int(found.masses.sum()) == budget * int(found.wholes[0])
    assert (found.masses[sizes > 0] > 0).all() and (found.masses[sizes == 0] == 0).all()
    assert (found.masses <= found.wholes).all()
    # Capping again and again, as it is usually written.
    expected = np.zeros(len(sizes))
    certain = np.zeros(len(sizes), bool)
    while True:
        rest = ~certain & (sizes > 0)
        expected[certain] = 1
        if rest.any():
            expected[rest] = (budget - certain.sum()) * sizes[rest] / sizes[rest].sum()
        above = rest & (expected >= 1)
        if not above.any():
            break
        certain |= above
    assert probabilities == pytest.approx(expected, abs=1e-9)


@given(st.integers(0, 100_000))
def test_totals_of_groups_and_of_tokens(seed: int) -> None:
    _, sizes, order, groups = random_case(seed)
    rng = np.random.default_rng(seed)
    can = np.bincount(groups[sizes > 0], minlength=4)
    quotas = rng.integers(0, can + 1)
    fixed = inclusion(
        sizes, budget=int(quotas.sum()), order=order, groups=groups, quotas=quotas
    )  # fmt: skip
    one = int(fixed.wholes[0])
    totals = [int(fixed.masses[groups == g].sum()) for g in range(4)]
    assert totals == [int(q) * one for q in quotas]

    free = int(rng.integers(0, can.sum() - quotas.sum() + 1))
    budget = int(quotas.sum()) + free
    least = inclusion(
        sizes, budget=budget, order=order, groups=groups, quotas=quotas, free=free
    )  # fmt: skip
    totals = [int(least.masses[groups == g].sum()) for g in range(4)]
    assert sum(totals) == budget * one
    assert all(total >= int(q) * one for total, q in zip(totals, quotas, strict=True))
    if free:  # groups above their quota share by size
        scales = {
            round(float(p / s), 6)
            for p, s, g in zip(least.probabilities, sizes, groups, strict=True)
            if 0 < p < 1 and totals[g] > int(quotas[g]) * one
        }
        assert len(scales) <= 1 or max(scales) - min(scales) < 1e-5

    costs = rng.integers(1, 50, len(sizes))
    tokens = int(rng.integers(1, costs.sum() + 5))
    bought = inclusion(sizes, budget=tokens, order=order, costs=costs)
    reach = int(costs[sizes > 0].sum())
    assert int(bought.masses.sum()) == min(tokens, reach) * int(bought.wholes[0] // costs[0])
    open_rows = (bought.masses < bought.wholes) & (sizes > 0)
    if open_rows.any():
        scale = bought.probabilities[open_rows] / sizes[open_rows]
        assert scale == pytest.approx(scale[0], rel=1e-6)


@given(st.integers(0, 100_000))
def test_the_compiled_loop_draws_what_the_plain_twin_draws(seed: int) -> None:
    graph, sizes, order, groups = random_case(seed)
    rng = np.random.default_rng(seed)
    kind = seed % 5
    costs, more = None, {}
    if kind == 0:
        costs = rng.integers(1, 50, len(sizes))
    if kind >= 2:
        can = np.bincount(groups[sizes > 0], minlength=4)
        quotas = rng.integers(0, can + 1)
        free = 0 if kind == 2 else int(rng.integers(0, can.sum() - quotas.sum() + 1))
        more = {"groups": groups, "quotas": quotas, "free": free}
        budget = int(quotas.sum()) + free
    elif costs is None:
        budget = int(rng.integers(1, (sizes > 0).sum() + 1))
        groups = np.zeros_like(groups)
    else:
        budget = int(rng.integers(1, costs.sum()))
    chances = inclusion(sizes, budget=budget, order=order, costs=costs, **more)
    across = costs is None
    rows = draw_spread(graph, chances, order=order, seed=seed, groups=groups, across=across)
    plain = PlainDraw(graph, chances, order, seed, groups).rows(across)
    assert rows.tolist() == plain
    assert len(set(plain)) == len(plain)
    assert (chances.masses[rows] > 0).all()
    assert set(np.flatnonzero(chances.masses == chances.wholes)) <= set(plain)
    if costs is None:
        assert len(rows) == budget
    else:
        left = min(budget, int(costs[sizes > 0].sum())) - int(costs[rows].sum())
        assert 0 <= left < 4 * costs.max()
    counts = np.bincount(groups[rows], minlength=4)
    totals = np.bincount(groups, chances.probabilities, minlength=4)
    if costs is None:
        assert (np.abs(counts - totals) < 1).all()

    # Neither another numbering of the rows nor ids that are further apart matter.
    old = rng.permutation(len(order))
    dense = np.zeros((len(order), len(order)))
    for row in range(len(order)):
        edges = slice(graph.indptr[row], graph.indptr[row + 1])
        dense[row, graph.indices[edges]] = graph.weights[edges]
    again = draw_spread(
        graph_of(dense[np.ix_(old, old)]),
        Inclusion(masses=chances.masses[old], wholes=chances.wholes[old]),
        order=3 * order[old] + 5,
        seed=seed,
        groups=groups[old],
        across=across,
    )
    assert old[again].tolist() == plain


DRAWS = 10_000


def frequencies(graph: SparseGraph, chances: Inclusion, groups: Any = None) -> Int64:
    counts = np.zeros(graph.num_nodes, np.int64)
    order = np.arange(graph.num_nodes)
    for seed in range(DRAWS):
        counts[draw_spread(graph, chances, order=order, seed=seed, groups=groups)] += 1
    return counts


@pytest.mark.parametrize("case", ["ties", "disconnected", "no edges", "groups", "uneven"])
def test_rows_are_drawn_as_often_as_their_probabilities_say(case: str) -> None:
    rng = np.random.default_rng(7)
    n = 24
    density = {"no edges": 0.0, "disconnected": 0.08}.get(case, 0.3)
    weights = random_weights(rng, n, density, ties=case == "ties")
    sizes = rng.choice([1.0, 2.0, 4.0], n)
    sizes[:2], sizes[2:4] = 0, 100  # never and always
    groups = rng.integers(0, 3, n).astype(np.int32) if case in ("groups", "uneven") else None
    order = np.arange(n)
    chances = inclusion(sizes, budget=9, order=order)
    if case == "groups":
        quotas = np.array([2, 3, 4])
        assert groups is not None
        chances = inclusion(sizes, budget=9, order=order, groups=groups, quotas=quotas)
    counts = frequencies(graph_of(weights), chances, groups)
    p = chances.probabilities
    assert (counts[p == 0] == 0).all() and (counts[p == 1] == DRAWS).all()
    assert counts.sum() == 9 * DRAWS
    open_rows = (p > 0) & (p < 1)
    # Of a row alone the count is binomial; spreading makes rows repel, so their sum of squares is
    # held against the χ² of independent ones within generous bounds.
    z = (counts - DRAWS * p)[open_rows] / np.sqrt(DRAWS * p * (1 - p))[open_rows]
    assert float(z @ z) < stats.chi2.ppf(0.9999, open_rows.sum())
    assert np.abs(z).max() < 4.5
    # And so weighted totals are unbiased.
    values = rng.normal(size=n) * (p > 0)
    estimate = float((counts / DRAWS) @ np.divide(values, p, out=np.zeros(n), where=p > 0))
    spread = float(np.sqrt(np.sum(values[open_rows] ** 2 / p[open_rows]) / DRAWS))
    assert abs(estimate - values.sum()) < 4.5 * spread


def neighbors_in_the_plane(n: int, seed: int) -> tuple[SparseGraph, Float64]:
    rng = np.random.default_rng(seed)
    places = rng.random((n, 2))
    distance = np.linalg.norm(places[:, None] - places, axis=2)
    np.fill_diagonal(distance, np.inf)
    nearest = np.argsort(distance, axis=1)[:, :8]
    similar = np.exp(-np.take_along_axis(distance, nearest, axis=1))
    graph = KnnGraph(neighbors=nearest.astype(np.int32), similarities=similar.astype(np.float32))
    return symmetric(graph), places


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6])
@pytest.mark.parametrize("with_groups", [False, True])
def test_totals_that_are_smooth_on_the_graph_vary_less_than_with_independent_draws(
    share: float, with_groups: bool
) -> None:
    n = 400
    graph, places = neighbors_in_the_plane(n, 3)
    rng = np.random.default_rng(0)
    sizes = 0.25 + 0.75 * rng.lognormal(size=n)
    groups = rng.integers(0, 4, n).astype(np.int32) if with_groups else None
    chances = inclusion(sizes, budget=int(share * n), order=np.arange(n))
    p = chances.probabilities
    smooth = np.sin(6 * places[:, :1] + np.arange(4)) + np.cos(5 * places[:, 1:])
    weighted = smooth / p[:, None]
    errors = []
    for seed in range(300):
        rows = draw_spread(graph, chances, order=np.arange(n), seed=seed, groups=groups)
        errors.append(weighted[rows].sum(axis=0) - smooth.sum(axis=0))
    independent = ((1 - p)[:, None] / p[:, None] * smooth**2).sum()
    spread = np.square(errors).mean(axis=0).sum()
    assert spread < (0.85 if with_groups else 0.6) * independent
    # Every neighbourhood gets about its share: without edges it does not.
    no_edges = dataclasses.replace(
        graph,
        indptr=np.zeros(n + 1, np.int64),
        indices=graph.indices[:0],
        weights=graph.weights[:0],
    )
    loose = []
    for seed in range(300):
        rows = draw_spread(no_edges, chances, order=rng.permutation(n), seed=seed)
        loose.append(weighted[rows].sum(axis=0) - smooth.sum(axis=0))
    assert spread < (0.9 if with_groups else 0.7) * np.square(loose).mean(axis=0).sum()


def test_other_seeds_draw_others_and_large_seeds_are_fine() -> None:
    graph, _ = neighbors_in_the_plane(60, 1)
    chances = even(60, 20)
    found = [
        draw_spread(graph, chances, order=np.arange(60), seed=seed).tolist()
        for seed in (0, 1, 2**63, 2**64 - 1, 0)
    ]
    assert found[0] == found[4]
    assert len({tuple(sorted(rows)) for rows in found}) == 4


def test_a_long_chain_and_a_star_take_no_time_worth_speaking_of() -> None:
    """Similarities that grow along a line make the longest way to the pair that meets first."""
    n = 30_000
    line = np.arange(n - 1)
    weights = np.linspace(0.1, 0.9, n - 1, dtype=np.float32)
    ends = {"line": (line, line + 1), "star": (np.zeros(n - 1, np.int64), line + 1)}
    for a, b in ends.values():
        rows, others = np.concatenate([a, b]), np.concatenate([b, a])
        by_row = np.argsort(rows, kind="stable")
        graph = SparseGraph(
            indptr=np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=n))]),
            indices=others[by_row].astype(np.int32),
            weights=np.concatenate([weights, weights])[by_row],
        )
        drawn = draw_spread(graph, even(n, 9_000), order=np.arange(n), seed=1)
        assert len(drawn) == 9_000


@pytest.mark.parametrize(
    ("sizes", "budget", "message"),
    [
        ([1, 0, 1], 3, "3 rows are to be drawn, and only 2 have a probability above 0"),
        ([1, -1, 1], 2, "sizes of zero or more for all 3 rows; found -1.0 for row 1"),
        ([1, 1, np.nan], 2, "found nan for row 2"),
        ([np.inf, 1, 1], 2, "found inf for row 0"),
    ],
)
def test_what_cannot_be_drawn_is_an_error(sizes: list[float], budget: int, message: str) -> None:
    with pytest.raises(SelectionError, match=message):
        inclusion(np.array(sizes, np.float64), budget=budget, order=np.arange(3))


def test_sizes_of_any_scale() -> None:
    for scale in (1e-300, 1e-30, 1.0, 1e200):
        found = inclusion(scale * np.arange(1.0, 9), budget=3, order=np.arange(8))
        assert found.probabilities == pytest.approx(np.arange(1, 9) / 12, rel=1e-9)
    lopsided = inclusion(np.array([1e-200, 1e-200, 1e300]), budget=1, order=np.arange(3))
    assert int(lopsided.masses.sum()) == int(lopsided.wholes[0])
    assert even(5, 5).probabilities.tolist() == [1.0] * 5
