"""The plan: which rows a refresh measures, and why.

A plan has four parts: rows that were never measured; rows whose last measurement was not finite;
the probe, drawn uniformly from all rows that have scores; and rows that the recipe's rule picks,
blind to the probe. A probe row that the rule picks is no longer probe. So what is left of the
probe is, in every round, a uniform sample of the rows that the rule did not pick: exactly those
whose scores are propagated.

Shapes: `n` rows of the store, `m` planned rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gracekit.greedy import lazy_greedy
from gracekit.recipe import RefreshSection
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


def full_plan(present: Bool) -> RefreshPlan:
    """Measure every row that is in the data: the first version, or a full refresh."""
    rows = np.flatnonzero(present)
    return RefreshPlan(rows=rows, reasons=np.full(len(rows), Reason.FIRST, np.uint8))


def first_rows(measurable: Bool, count: int, *, seed: int, step: int) -> RefreshPlan:
    """What a first version measures where that is not everything: rows drawn uniformly.

    Args:
        measurable: [n] rows in the data with a token that carries loss.
        count: how many rows; all that there are, if these are fewer.
        seed: with the step, it fixes which.
        step: training step of the checkpoint.
    """
    rows = _random_of_round(seed, step, 0).permutation(np.flatnonzero(measurable))[:count]
    return RefreshPlan(rows=rows, reasons=np.full(len(rows), Reason.PROBE, np.uint8))


def plan_rows(
    settings: RefreshSection,
    *,
    scores: ScoreTable,
    graph: SparseGraph,
    values: Float32,
    measurable: Bool,
    step: int,
    budget: int,
    num_probe: int,
    before: RefreshPlan | None = None,
    seed: int,
) -> RefreshPlan:
    """Choose the rows to measure, `budget` in all, or as many as there are.

    Args:
        settings: the rule and how much age counts.
        scores: the present scores [n], for origin and age.
        graph: the graph over the features as they were known before.
        values: [n] the score that plan `grace` compares between neighbours; NaN where unknown.
        measurable: [n] rows with a token that carries loss; others are not tried again.
        step: training step of the checkpoint.
        budget: rows of the returned plan, those of `before` included.
        num_probe: how many rows are drawn at random for the audit, in the first round.
        before: the plan of the round before, which this one goes on from.
        seed: with the step and the round, it fixes everything random.

    Returns:
        The plan of all rounds so far; distinct rows, those of `before` first in their order.
    """
    if before is None:
        before = _rows_before_the_rule(
            scores, measurable, budget, num_probe, _random_of_round(seed, step, 0)
        )
    chosen = before.rows[before.reasons != Reason.PROBE]
    candidates = scores.usable.copy()
    candidates[chosen] = False
    inputs = PlanInputs(
        graph=graph,
        values=values,
        ages=np.maximum(step - scores.measured_step, 0).astype(np.float64),
        usable=scores.usable,
        candidates=candidates,
        covering=np.sort(chosen),
        age_weight=settings.age_weight,
    )
    num_new = max(budget - len(before.rows), 0)
    most = min(num_new + len(before.probe_rows), int(candidates.sum()))
    ranked = RULES[settings.plan](inputs, most, _random_of_round(seed, step, len(before.rows)))
    # The ranking may hold probe rows; these are measured anyway and add nothing to the budget. So
    # it is cut behind its last row that is new, and not further: otherwise a probe row that happens
    # to come next would count as picked, and the rest of the probe would no longer be uniform.
    num_counted = np.cumsum(~np.isin(ranked, before.probe_rows))
    picked = ranked[: np.searchsorted(num_counted, num_new) + 1] if num_new else ranked[:0]
    reasons = before.reasons.copy()
    reasons[np.isin(before.rows, picked)] = Reason.PRIORITY
    new = picked[~np.isin(picked, before.probe_rows)]
    return RefreshPlan(
        rows=np.concatenate([before.rows, new]),
        reasons=np.concatenate([reasons, np.full(len(new), Reason.PRIORITY, np.uint8)]),
    )


def _rows_before_the_rule(
    scores: ScoreTable, measurable: Bool, budget: int, num_probe: int, rng: np.random.Generator
) -> RefreshPlan:
    """What every plan begins with: never-measured rows, invalid ones, and the probe.

    Invalid rows take at most half of what the others leave: a model that has begun to diverge must
    not use up the refresh.
    """
    usable = np.flatnonzero(scores.usable)
    probe = rng.choice(usable, min(num_probe, budget, len(usable)), replace=False)
    left = budget - len(probe)
    never = rng.permutation(np.flatnonzero(scores.origin == Origin.NEVER))[:left]
    invalid = np.flatnonzero((scores.origin == Origin.INVALID) & measurable)
    invalid = rng.permutation(invalid)[: (left - len(never)) // 2]
    parts = [
        (never, Reason.NEVER_MEASURED),
        (invalid, Reason.INVALID),
        (probe, Reason.PROBE),
    ]
    return RefreshPlan(
        rows=np.concatenate([rows for rows, _ in parts]).astype(np.int64),
        reasons=np.concatenate([np.full(len(rows), reason, np.uint8) for rows, reason in parts]),
    )


def _random_of_round(seed: int, step: int, num_planned: int) -> np.random.Generator:
    """Chance of one round; another one at every step."""
    return np.random.default_rng([seed, max(step, 0), num_planned])


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanInputs:
    """What a rule may look at."""

    graph: SparseGraph
    values: Float32
    ages: Float64
    """[n] training steps since the last measurement."""
    usable: Bool
    """[n] rows that have scores."""
    candidates: Bool
    """[n] rows that may be picked."""
    covering: Rows
    """Rows that are measured anyway."""
    age_weight: float

    def relative_ages(self) -> Float64:
        """[n] age / the oldest candidate's age; all 1 when nothing has aged."""
        oldest = np.max(self.ages[self.candidates], initial=0.0)
        if oldest == 0:
            return np.ones_like(self.ages)
        return np.minimum(self.ages / oldest, 1.0)


def _cover(inputs: PlanInputs, count: int, rng: np.random.Generator) -> Rows:
    """Rows that cover the graph best: weighted facility location.

    A row needs cover by 1 - age_weight + age_weight · relative age, and gets it by the weight of
    its strongest edge to a measured row. Ties go to the smaller row.
    """
    need = 1 - inputs.age_weight + inputs.age_weight * inputs.relative_ages()
    n = len(need)
    return lazy_greedy(
        inputs.graph,
        modular=np.zeros(n),
        need=np.where(inputs.usable, need, 0.0),
        budget=count,
        order=np.arange(n),
        candidates=inputs.candidates,
        initial=inputs.covering,
    ).rows


def _grace(inputs: PlanInputs, count: int, rng: np.random.Generator) -> Rows:
    """The paper's priority: β · age / oldest + (1 - β) · |s_i - Σ_j α_ij s_j| / σ.

    β is `age_weight`, α the weights of the usable neighbours normalised to sum 1, σ a robust
    scale of the differences. A row without such neighbours differs by 0. Ties go to the smaller
    row.
    """
    difference = neighbourhood_difference(inputs.graph, inputs.values, inputs.usable)
    scale = np.median(difference[inputs.usable]) if inputs.usable.any() else 0.0
    scale = scale or np.max(difference, initial=0.0) or 1.0
    priority = (
        inputs.age_weight * inputs.relative_ages() + (1 - inputs.age_weight) * difference / scale
    )
    return _highest(priority, inputs.candidates, count)


def _oldest(inputs: PlanInputs, count: int, rng: np.random.Generator) -> Rows:
    """The rows measured longest ago; ties at random, as files are often sorted by source."""
    rows = rng.permutation(np.flatnonzero(inputs.candidates))
    oldest: Rows = rows[np.argsort(-inputs.ages[rows], kind="stable")[:count]]
    return oldest


def _random(inputs: PlanInputs, count: int, rng: np.random.Generator) -> Rows:
    """Uniformly random rows."""
    return rng.choice(np.flatnonzero(inputs.candidates), count, replace=False)


RULES: dict[str, Callable[[PlanInputs, int, np.random.Generator], Rows]] = {
    "cover": _cover,
    "grace": _grace,
    "oldest": _oldest,
    "random": _random,
}


def neighbourhood_difference(graph: SparseGraph, values: Float32, usable: Bool) -> Float64:
    """[n] |value - weighted mean of the usable neighbours' values|; 0 where one is unknown."""
    known = usable & np.isfinite(values)
    value = np.where(known, values, 0).astype(np.float64)
    weights = graph.weights * known[graph.indices]
    row_of_edge = np.repeat(np.arange(graph.num_nodes), np.diff(graph.indptr))
    mass = np.bincount(row_of_edge, weights, minlength=graph.num_nodes)
    total = np.bincount(row_of_edge, weights * value[graph.indices], minlength=graph.num_nodes)
    mean = total / np.where(mass > 0, mass, 1)
    difference: Float64 = np.where(known & (mass > 0), np.abs(value - mean), 0.0)
    return difference


def _highest(priority: Float64, candidates: Bool, count: int) -> Rows:
    rows = np.flatnonzero(candidates)
    highest: Rows = rows[np.argsort(-priority[rows], kind="stable")[:count]]
    return highest
