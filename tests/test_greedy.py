"""`greedy`: the compiled queue against plain greedy that evaluates every row at every step."""

from __future__ import annotations

import dataclasses
import runpy
from fractions import Fraction
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gracekit.greedy import GreedyResult, apart, lazy_greedy
from gracekit.types import Float32, Float64, SparseGraph

EIGHTHS = 8
"""Weights in eighths: float sums of them are exact, so plain greedy sees every tie too."""


def graph_of(dense: Float32 | Float64) -> SparseGraph:
    """The CSR form of a symmetric matrix; its diagonal and zeros are no edges."""
    dense = dense.astype(np.float32)
    edges = (dense > 0) & ~np.eye(len(dense), dtype=bool)
    return SparseGraph(
        indptr=np.concatenate([[0], np.cumsum(edges.sum(axis=1))]).astype(np.int64),
        indices=np.nonzero(edges)[1].astype(np.int32),
        weights=dense[edges],
    )


def random_weights(rng: np.random.Generator, n: int, density: float, ties: bool) -> Float64:
    """A symmetric [n, n] matrix with a diagonal of ones."""
    weights = rng.integers(0, EIGHTHS + 1, (n, n)) / EIGHTHS if ties else rng.random((n, n))
    weights = np.where(rng.random((n, n)) < density, weights, 0).astype(np.float32)
    weights = np.triu(weights, 1)
    symmetric: Float64 = (weights + weights.T + np.eye(n)).astype(np.float64)
    return symmetric


def value(weights: Float64, modular: Float64, need: Float64, rows: list[int]) -> float:
    """F by its definition."""
    covered = weights[rows].max(axis=0) if rows else np.zeros(len(need))
    return float(modular[rows].sum() + need @ covered)


def plain_greedy(
    weights: Float64,
    *,
    modular: Float64,
    need: Float64,
    budget: int,
    order: Any,
    candidates: Any,
    groups: Any = None,
    quotas: Any = None,
    initial: Any = (),
) -> tuple[list[int], list[float]]:
    """Evaluate F anew for every candidate at every step."""
    chosen: list[int] = []
    gains: list[float] = []
    start = list(initial)
    modular = np.where(np.isin(np.arange(len(need)), start), 0, modular)
    while len(chosen) < budget:
        best = None
        base = value(weights, modular, need, start + chosen)
        for row in np.flatnonzero(candidates):
            if row in chosen or row in start:
                continue
            if groups is not None:
                used = sum(groups[r] == groups[row] for r in chosen)
                if used >= quotas[groups[row]]:
                    continue
            gain = value(weights, modular, need, [*start, *chosen, int(row)]) - base
            key = (gain, -order[row])
            if best is None or key > best[0]:
                best = (key, int(row))
        if best is None:
            break
        gains.append(best[0][0])
        chosen.append(best[1])
    return chosen, gains


@dataclasses.dataclass
class Problem:
    """A random problem, and what both sides are given."""

    weights: Float64
    options: dict[str, Any]

    @classmethod
    def draw(cls, seed: int, *, ties: bool, most: int = 14) -> Problem:
        rng = np.random.default_rng(seed)
        n = int(rng.integers(1, most))

        def grid(count: int) -> Float64:
            return rng.integers(0, 5, count) / EIGHTHS if ties else rng.random(count)

        options: dict[str, Any] = {
            "modular": grid(n) * rng.integers(0, 2),
            "need": grid(n) if rng.random() < 0.7 else np.ones(n),
            "budget": int(rng.choice([0, 1, n // 2, n, n + 3])),
            "order": rng.permutation(n),
            "candidates": rng.random(n) < rng.choice([0.5, 1.0]),
        }
        if rng.random() < 0.4:
            options["groups"] = rng.integers(0, 3, n).astype(np.int32)
            options["quotas"] = rng.integers(0, n + 1, 3)
        if rng.random() < 0.4:
            options["initial"] = rng.integers(0, n, rng.integers(0, n + 1))
        density = float(rng.choice([0, 0.2, 0.6, 1]))
        return cls(random_weights(rng, n, density, ties), options)

    def solve(self) -> GreedyResult:
        return lazy_greedy(graph_of(self.weights), **self.options)


def test_same_picks_as_plain_greedy_with_many_ties() -> None:
    for seed in range(2000):
        problem = Problem.draw(seed, ties=True)
        result = problem.solve()
        rows, gains = plain_greedy(problem.weights, **problem.options)
        assert result.rows.tolist() == rows, seed
        assert result.gains.tolist() == pytest.approx(gains, abs=1e-9), seed


def test_same_picks_as_plain_greedy_with_any_weights() -> None:
    for seed in range(500):
        problem = Problem.draw(seed, ties=False)
        result = problem.solve()
        rows, gains = plain_greedy(problem.weights, **problem.options)
        # Where gains differ by rounding only, either row is right.
        assert result.gains.tolist() == pytest.approx(gains, rel=1e-5, abs=1e-6), seed
        if len(gains) < 2 or np.min(np.abs(np.diff(gains))) > 1e-5:
            assert result.rows.tolist() == rows, seed


def test_a_larger_graph_works_through_many_levels() -> None:
    rng = np.random.default_rng(0)
    weights = random_weights(rng, 250, 0.03, ties=True)
    options: dict[str, Any] = {
        "modular": rng.integers(0, 40, 250) / EIGHTHS,
        "need": np.ones(250),
        "budget": 80,
        "order": rng.permutation(250),
        "candidates": np.ones(250, bool),
    }
    expected, _ = plain_greedy(weights, **options)
    assert lazy_greedy(graph_of(weights), **options).rows.tolist() == expected


@given(st.integers(0, 2**32), st.booleans())
@settings(max_examples=200)
def test_objective_and_cover_are_those_of_the_definition(seed: int, ties: bool) -> None:
    problem = Problem.draw(seed, ties=ties)
    options, weights = problem.options, problem.weights
    result = problem.solve()
    start = [int(r) for r in options.get("initial", [])]
    rows = start + result.rows.tolist()
    nothing = np.zeros(len(weights))
    expected = value(weights, nothing, options["need"], rows) + sum(options["modular"][result.rows])
    assert result.objective == pytest.approx(expected, rel=1e-6, abs=1e-9)
    for i, coverer in enumerate(result.covered_by):
        best = weights[rows, i].max() if rows else 0
        assert (coverer == -1) == (best == 0)
        if coverer >= 0:
            assert coverer in rows
            assert weights[coverer, i] == best
        if i in rows:
            assert coverer == i


@given(st.integers(0, 2**32), st.booleans())
@settings(max_examples=100)
def test_renumbering_the_rows_changes_nothing(seed: int, ties: bool) -> None:
    problem = Problem.draw(seed, ties=ties)
    options, result = problem.options, problem.solve()
    n = len(problem.weights)
    old = np.random.default_rng(seed).permutation(n)
    new = np.argsort(old)
    moved = {
        name: option[old] if name not in ("budget", "quotas", "initial") else option
        for name, option in options.items()
    }
    if "initial" in options:
        moved["initial"] = new[options["initial"]]
    again = Problem(problem.weights[np.ix_(old, old)], moved).solve()
    assert old[again.rows].tolist() == result.rows.tolist()
    assert again.gains.tolist() == result.gains.tolist()
    assert again.objective == result.objective


def plain_with_costs(weights: Float64, by_ratio: bool, options: dict[str, Any]) -> list[int]:
    """Cost-benefit or plain greedy over rows that still fit, from whole numbers: ties are ties."""
    costs, left, free = options["costs"], options["budget"], options["free"]
    places = list(options["quotas"])
    chosen: list[int] = []
    open_rows = set(np.flatnonzero(options["candidates"]).tolist())
    while open_rows:
        base = value(weights, options["modular"], options["need"], chosen)
        keys = {}
        for row in sorted(open_rows):
            gain = value(weights, options["modular"], options["need"], [*chosen, row]) - base
            keys[row] = (
                Fraction(gain) / int(costs[row]) if by_ratio else Fraction(gain),
                -options["order"][row],
            )
        row = max(keys, key=lambda r: keys[r])
        open_rows.remove(row)
        cost, group = int(costs[row]), options["groups"][row]
        if cost > left or cost > places[group] + free:
            continue
        own = min(cost, places[group])
        places[group] -= own
        free -= cost - own
        left -= cost
        chosen.append(row)
    return chosen


def test_costs_and_free_places_against_plain_greedy() -> None:
    for seed in range(600):
        rng = np.random.default_rng(seed)
        n = int(rng.integers(1, 10))
        weights = random_weights(rng, n, 0.5, ties=True)
        costs = rng.choice([1, 2, 4, 8], n)
        options: dict[str, Any] = {
            "modular": rng.integers(0, 5, n) / EIGHTHS,
            "need": np.ones(n),
            "budget": int(rng.integers(0, costs.sum() + 2)),
            "order": rng.permutation(n),
            "candidates": rng.random(n) < 0.9,
            "groups": rng.integers(0, 2, n).astype(np.int32),
            "quotas": rng.integers(0, 6, 2),
            "free": int(rng.integers(0, 12)),
            "costs": costs,
        }
        result = lazy_greedy(graph_of(weights), **options)
        both = [plain_with_costs(weights, by_ratio, options) for by_ratio in (True, False)]
        values = [value(weights, options["modular"], options["need"], rows) for rows in both]
        best = both[int(values[1] > values[0])]
        assert result.rows.tolist() == best, seed
        assert costs[result.rows].sum() <= options["budget"]
        assert result.objective == pytest.approx(max(values), rel=1e-9)


def test_cost_benefit_greedy_reaches_its_share_of_the_best_set() -> None:
    from itertools import chain, combinations

    for seed in range(40):
        rng = np.random.default_rng(seed)
        weights = random_weights(rng, 8, 0.5, ties=False)
        modular, need, costs = rng.random(8), np.ones(8), rng.integers(1, 30, 8)
        budget = int(rng.integers(5, 60))
        result = lazy_greedy(
            graph_of(weights), modular=modular, need=need, budget=budget, order=np.arange(8),
            candidates=np.ones(8, bool), costs=costs,
        )  # fmt: skip
        sets = chain.from_iterable(combinations(range(8), k) for k in range(9))
        fitting = [list(s) for s in sets if costs[list(s)].sum() <= budget]
        best = max(value(weights, modular, need, s) for s in fitting)
        assert (1 - 1 / np.e) / 2 * best <= result.objective + 1e-9
        assert result.objective <= best * (1 + 1e-6)


@given(st.integers(0, 2**32))
def test_rows_kept_apart_are_a_maximal_set(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 20))
    weights = random_weights(rng, n, 0.4, ties=True)
    ranking = rng.permutation(n)[: rng.integers(0, n + 1)]
    initial = np.setdiff1d(np.arange(n), ranking)[:2]
    kept = apart(graph_of(weights), ranking, initial=initial, most=0.5)
    stay: list[int] = []
    for row in ranking.tolist():
        near = weights[row, [*initial.tolist(), *stay]]
        if not (near > 0.5).any():
            stay.append(row)
    assert np.flatnonzero(kept).tolist() == sorted(stay)


def test_values_of_any_size_do_not_overflow_or_vanish() -> None:
    weights = random_weights(np.random.default_rng(3), 12, 0.5, ties=True)
    order, everything = np.arange(12), np.ones(12, bool)
    for size in (1e-280, 1e-30, 1.0, 1e30, 1e280):
        result = lazy_greedy(
            graph_of(weights), modular=np.full(12, size), need=np.full(12, size), budget=5,
            order=order, candidates=everything,
        )  # fmt: skip
        one, _ = plain_greedy(
            weights, modular=np.ones(12), need=np.ones(12), budget=5, order=order,
            candidates=everything,
        )  # fmt: skip
        assert result.rows.tolist() == one
        assert result.objective / size == pytest.approx(
            value(weights, np.ones(12), np.ones(12), one)
        )


def test_greedy_reaches_its_share_of_the_best_set() -> None:
    from itertools import combinations

    for seed in range(30):
        rng = np.random.default_rng(seed)
        weights = random_weights(rng, 9, 0.5, ties=False)
        modular, need = rng.random(9), np.ones(9)
        result = lazy_greedy(
            graph_of(weights), modular=modular, need=need, budget=3, order=np.arange(9),
            candidates=np.ones(9, bool),
        )  # fmt: skip
        best = max(value(weights, modular, need, list(s)) for s in combinations(range(9), 3))
        assert (1 - 1 / np.e) * best <= result.objective <= best * (1 + 1e-6)


def test_no_rows_and_read_only_input() -> None:
    empty = lazy_greedy(
        graph_of(np.zeros((0, 0))), modular=np.zeros(0), need=np.zeros(0), budget=3,
        order=np.zeros(0, np.int64), candidates=np.zeros(0, bool),
    )  # fmt: skip
    assert (len(empty.rows), empty.objective) == (0, 0.0)
    graph = graph_of(random_weights(np.random.default_rng(0), 6, 0.5, ties=True))
    inputs = {
        "modular": np.ones(6),
        "need": np.ones(6),
        "order": np.arange(6),
        "candidates": np.ones(6, bool),
        "quotas": np.array([4]),
        "groups": np.zeros(6, np.int32),
    }
    before = {name: array.copy() for name, array in inputs.items()}
    for array in (*inputs.values(), graph.indptr, graph.indices, graph.weights):
        array.flags.writeable = False
    options: dict[str, Any] = inputs
    assert len(lazy_greedy(graph, budget=6, **options).rows) == 4
    assert all((before[name] == inputs[name]).all() for name in inputs)


@pytest.mark.parametrize("state", ["unwritable", "truncated"])
def test_compiles_without_a_usable_cache(
    tmp_path: Path, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "compiled_module.py"
    module.write_text(
        "from numba import int64\n"
        "from gracekit.greedy.compiled import compiled\n"
        "@compiled(int64(int64))\n"
        "def double(x):\n"
        "    return 2 * x\n"
    )
    # Leave only the place beside the file, not the user's cache directory.
    monkeypatch.setattr(numba.config, "CACHE_LOCATOR_CLASSES", "InTreeCacheLocator", raising=False)
    cache = tmp_path / "__pycache__"
    if state == "unwritable":
        cache.write_text("a file, not a directory")
    else:
        assert runpy.run_path(str(module))["double"](4) == 8
        stored = [*cache.glob("*.nbi"), *cache.glob("*.nbc")]
        assert len(stored) == 2
        for path in stored:
            path.write_bytes(path.read_bytes()[:20])
    assert runpy.run_path(str(module))["double"](4) == 8
