"""The plan: its parts, its order, the fairness of its probe, and its rules against slow twins."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse
from scipy.stats import chi2

from gracekit.recipe import RefreshSection
from gracekit.staleness import RULES, full_plan, neighbourhood_difference, plan_rows
from gracekit.types import (
    Bool,
    Float32,
    Float64,
    Origin,
    Reason,
    RefreshPlan,
    Rows,
    ScoreTable,
    SparseGraph,
)

EVERY_RULE = pytest.mark.parametrize("rule", sorted(RULES))


def random_graph(n: int, rng: np.random.Generator, degree: int = 4) -> SparseGraph:
    dense = np.where(rng.random((n, n)) < degree / n, rng.uniform(0.1, 1, (n, n)), 0)
    dense = np.maximum(dense, dense.T).astype(np.float32)
    np.fill_diagonal(dense, 0)
    matrix = sparse.csr_array(dense)
    matrix.sort_indices()
    return SparseGraph(
        indptr=matrix.indptr.astype(np.int64),
        indices=matrix.indices.astype(np.int32),
        weights=matrix.data,
    )


def dense_weights(graph: SparseGraph) -> Float64:
    n = graph.num_nodes
    matrix = sparse.csr_array((graph.weights, graph.indices, graph.indptr), shape=(n, n))
    weights: Float64 = matrix.toarray().astype(np.float64)
    np.fill_diagonal(weights, 1)
    return weights


def score_table(
    n: int, rng: np.random.Generator, *, never: int = 0, invalid: int = 0
) -> ScoreTable:
    origin = np.full(n, Origin.PROPAGATED, np.uint8)
    special = rng.permutation(n)
    origin[special[:never]] = Origin.NEVER
    origin[special[never : never + invalid]] = Origin.INVALID
    measured_step = rng.integers(0, 5, n) * 100
    measured_step[origin == Origin.NEVER] = -1
    values = rng.normal(size=n).astype(np.float32)
    return ScoreTable(
        scores={"loss": values},
        importance=values,
        origin=origin,
        measured_step=measured_step,
        measured_version=np.ones(n, np.int64),
        confidence=np.ones(n, np.float32),
    )


def make_plan(
    rule: str,
    table: ScoreTable,
    graph: SparseGraph,
    budget: int,
    num_probe: int,
    *,
    before: RefreshPlan | None = None,
    measurable: Bool | None = None,
    seed: int = 0,
    age_weight: float = 0.5,
) -> RefreshPlan:
    return plan_rows(
        RefreshSection.model_validate({"plan": rule, "age_weight": age_weight}),
        scores=table,
        graph=graph,
        values=table.importance,
        step=500,
        budget=budget,
        num_probe=num_probe,
        before=before,
        measurable=np.ones(len(table), bool) if measurable is None else measurable,
        seed=seed,
    )


def test_full_plan_measures_everything_in_the_data() -> None:
    plan = full_plan(np.array([True, True, False, True]))
    np.testing.assert_array_equal(plan.rows, [0, 1, 3])
    assert (plan.reasons == Reason.FIRST).all() and len(plan.probe_rows) == 0


@EVERY_RULE
@given(
    n=st.integers(1, 40),
    never=st.integers(0, 10),
    invalid=st.integers(0, 10),
    budget=st.integers(0, 50),
    num_probe=st.integers(0, 20),
    more=st.integers(0, 30),
    seed=st.integers(0, 999),
)
def test_what_every_plan_keeps(
    rule: str,
    n: int,
    never: int,
    invalid: int,
    budget: int,
    num_probe: int,
    more: int,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    table, graph = score_table(n, rng, never=never, invalid=invalid), random_graph(n, rng)
    measurable = rng.random(n) < 0.8
    before = None
    for limit in (budget, budget + more):
        plan = make_plan(
            rule, table, graph, limit, num_probe, before=before, measurable=measurable, seed=seed
        )
        again = make_plan(
            rule, table, graph, limit, num_probe, before=before, measurable=measurable, seed=seed
        )
        np.testing.assert_array_equal(plan.rows, again.rows)
        np.testing.assert_array_equal(plan.reasons, again.reasons)
        assert plan.rows.dtype == np.int64 and len(plan.rows) == len(plan.reasons)
        assert len(np.unique(plan.rows)) == len(plan.rows) <= limit
        origin = table.origin[plan.rows]
        assert ((plan.reasons == Reason.NEVER_MEASURED) == (origin == Origin.NEVER)).all()
        assert ((plan.reasons == Reason.INVALID) == (origin == Origin.INVALID)).all()
        assert measurable[plan.rows[plan.reasons == Reason.INVALID]].all()
        assert len(plan.probe_rows) <= num_probe
        # Budget is left only when no usable row is left to measure.
        if len(plan.rows) < limit:
            assert not table.usable[np.setdiff1d(np.arange(n), plan.rows)].any()
        if before is not None:
            np.testing.assert_array_equal(plan.rows[: len(before.rows)], before.rows)
            assert set(plan.probe_rows) <= set(before.probe_rows)
        before = plan


@EVERY_RULE
def test_never_measured_rows_come_first(rule: str) -> None:
    rng = np.random.default_rng(0)
    table, graph = score_table(60, rng, never=10, invalid=5), random_graph(60, rng)
    plan = make_plan(rule, table, graph, 20, 4)
    assert set(plan.rows[:10]) == set(np.flatnonzero(table.origin == Origin.NEVER))
    counts = np.bincount(plan.reasons, minlength=5)
    assert (counts[Reason.NEVER_MEASURED], counts[Reason.INVALID]) == (10, 3)
    assert counts.sum() == 20


@EVERY_RULE
def test_invalid_rows_are_tried_again_while_they_leave_half_the_budget(rule: str) -> None:
    rng = np.random.default_rng(0)
    table, graph = score_table(60, rng, invalid=20), random_graph(60, rng)
    plan = make_plan(rule, table, graph, 24, 4)
    assert (plan.reasons == Reason.INVALID).sum() == 10
    nothing = make_plan(rule, table, graph, 24, 4, measurable=np.zeros(60, bool))
    assert (nothing.reasons == Reason.INVALID).sum() == 0


@EVERY_RULE
@pytest.mark.parametrize("rounds", [1, 2])
def test_the_probe_is_a_fair_sample_of_what_is_propagated(rule: str, rounds: int) -> None:
    """Of the rows that the rule did not pick, every one is as likely to be probed, in any round."""
    n, num_probe, num_seeds = 30, 6, 600
    rng = np.random.default_rng(0)
    table, graph = score_table(n, rng), random_graph(n, rng)
    probed, expected = np.zeros(n), np.zeros(n)
    for seed in range(num_seeds):
        plan = None
        for budget in (10, 16)[:rounds]:
            plan = make_plan(rule, table, graph, budget, num_probe, before=plan, seed=seed)
        assert plan is not None
        outside = np.setdiff1d(np.arange(n), plan.rows[plan.reasons == Reason.PRIORITY])
        expected[outside] += len(plan.probe_rows) / len(outside)
        probed[plan.probe_rows] += 1
    chances = expected > 0
    statistic = ((probed - expected)[chances] ** 2 / expected[chances]).sum()
    assert statistic < chi2.ppf(0.999, int(chances.sum()) - 1)
    assert (probed[~chances] == 0).all()


def test_seed_step_and_round_change_what_is_random() -> None:
    rng = np.random.default_rng(0)
    table, graph = score_table(200, rng), random_graph(200, rng)
    first = make_plan("random", table, graph, 40, 10)
    assert set(first.rows) != set(make_plan("random", table, graph, 40, 10, seed=1).rows)
    second = make_plan("random", table, graph, 80, 10, before=first)
    np.testing.assert_array_equal(second.rows[:40], first.rows)
    assert len(second.rows) == 80


# Rules


def check_greedy(
    picked: Rows, weights: Float64, need: Float64, candidates: Bool, covering: Rows
) -> None:
    """Every pick has the largest gain of all that were left, by dense arithmetic."""
    covered = weights[:, covering].max(axis=1, initial=0.0)
    left = candidates.copy()
    for row in picked:
        gains = (need[:, None] * np.maximum(weights - covered[:, None], 0)).sum(axis=0)
        assert left[row] and gains[row] >= gains[left].max() - 1e-6
        left[row] = False
        covered = np.maximum(covered, weights[:, row])


@given(
    n=st.integers(4, 40),
    age_weight=st.sampled_from([0.0, 0.5, 1.0]),
    never=st.integers(0, 3),
    first=st.integers(0, 5),
    seed=st.integers(0, 999),
)
def test_cover_is_greedy(n: int, age_weight: float, never: int, first: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    table, graph = score_table(n, rng, never=never, invalid=2), random_graph(n, rng)
    before = make_plan("random", table, graph, first, 0, seed=seed)
    plan = make_plan(
        "cover", table, graph, first + n // 2, 0, before=before, age_weight=age_weight, seed=seed
    )
    candidates = table.usable.copy()
    candidates[before.rows] = False
    ages = 500.0 - table.measured_step
    oldest = ages[candidates].max(initial=0.0)
    relative = np.minimum(ages / oldest, 1) if oldest > 0 else np.ones(n)
    check_greedy(
        plan.rows[first:],
        dense_weights(graph),
        np.where(table.usable, 1 - age_weight + age_weight * relative, 0),
        candidates,
        before.rows,
    )


def test_cover_prefers_the_old_where_the_graph_is_alike() -> None:
    n, rng = 100, np.random.default_rng(0)
    table = score_table(n, rng)
    empty = SparseGraph(
        indptr=np.zeros(n + 1, np.int64),
        indices=np.zeros(0, np.int32),
        weights=np.zeros(0, np.float32),
    )
    picked = make_plan("cover", table, empty, 20, 0).rows
    left = np.setdiff1d(np.arange(n), picked)
    assert table.measured_step[picked].max() <= table.measured_step[left].min()


def test_oldest_breaks_ties_at_random() -> None:
    n, rng = 100, np.random.default_rng(0)
    table, graph = score_table(n, rng), random_graph(100, rng)
    picked = make_plan("oldest", table, graph, 30, 0).rows
    left = np.setdiff1d(np.arange(n), picked)
    assert table.measured_step[picked].max() <= table.measured_step[left].min()
    same_age = dataclasses.replace(table, measured_step=np.zeros(n, np.int64))
    assert make_plan("oldest", same_age, graph, 30, 0).rows.max() > 50


@given(seed=st.integers(0, 999), age_weight=st.floats(0, 1))
def test_grace_follows_its_formula(seed: int, age_weight: float) -> None:
    n, rng = 25, np.random.default_rng(seed)
    table, graph = score_table(n, rng, never=2, invalid=2), random_graph(n, rng)
    values = table.importance.copy()
    values[3] = np.nan
    table = dataclasses.replace(table, importance=values)
    difference = naive_difference(graph, values, table.usable)
    np.testing.assert_allclose(
        neighbourhood_difference(graph, values, table.usable), difference, atol=1e-6
    )
    ages = np.maximum(500.0 - table.measured_step, 0)
    scale = np.median(difference[table.usable]) or difference.max() or 1.0
    priority = age_weight * ages / ages[table.usable].max() + (1 - age_weight) * difference / scale
    priority[~table.usable] = -np.inf
    plan = make_plan("grace", table, graph, 10, 0, age_weight=age_weight)
    picked = plan.rows[plan.reasons == Reason.PRIORITY]
    left = np.setdiff1d(np.arange(n), picked)
    assert priority[picked].min() >= priority[left].max() - 1e-6


def naive_difference(graph: SparseGraph, values: Float32, usable: Bool) -> Float64:
    difference = np.zeros(graph.num_nodes)
    for row in range(graph.num_nodes):
        total = mass = 0.0
        for edge in range(graph.indptr[row], graph.indptr[row + 1]):
            other = graph.indices[edge]
            if usable[other] and np.isfinite(values[other]):
                total += float(graph.weights[edge]) * float(values[other])
                mass += float(graph.weights[edge])
        if mass > 0 and usable[row] and np.isfinite(values[row]):
            difference[row] = abs(values[row] - total / mass)
    return difference
