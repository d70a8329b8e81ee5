"""The plan: which rows a refresh measures, and why.

A plan has three parts: rows that were never measured; then rows that the recipe's rule picks;
then the probe, drawn uniformly from what the rule leaves, so that it is a fair sample of the rows
whose scores will be propagated. Rows of `Origin.INVALID` (not finite, or nothing to train on)
are measured again when everything is, and otherwise only with budget that nothing else needs.

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


def full_plan(num_rows: int) -> RefreshPlan:
    """Measure everything: the first version, or a forced or periodic full refresh."""
    return RefreshPlan(
        rows=np.arange(num_rows, dtype=np.int64),
        reasons=np.full(num_rows, Reason.FIRST, np.uint8),
    )


def plan_rows(
    settings: RefreshSection,
    *,
    scores: ScoreTable,
    graph: SparseGraph,
    values: Float32,
    step: int,
    budget: int,
    num_probe: int,
    planned: Bool | None = None,
    seed: int,
) -> RefreshPlan:
    """Choose the rows to measure now, at most `budget` in all.

    Args:
        settings: the rule and how much age counts.
        scores: the present scores [n], for origin and age.
        graph: the graph over the features as they were known before.
        values: [n] the score that plan `grace` compares between neighbours; NaN where unknown.
        step: training step of the checkpoint.
        budget: rows to plan, the probe included; rows of `planned` are not counted.
        num_probe: how many of them are drawn at random for the audit.
        planned: [n] rows that an earlier round of this refresh has measured. They are not planned
            again, and what they cover counts as covered.
        seed: with the step and the rows planned before, it fixes everything random.

    Returns:
        The plan; distinct rows, never-measured ones first, then by the rule, then the probe.
    """
    n = len(scores)
    planned = np.zeros(n, bool) if planned is None else planned
    rng = np.random.default_rng([seed, max(step, 0), int(planned.sum())])
    num_probe = min(num_probe, budget)

    never = np.flatnonzero((scores.origin == Origin.NEVER) & ~planned)
    never = rng.permutation(never)[: budget - num_probe]
    known = Known(
        graph=graph,
        values=values,
        ages=np.maximum(step - scores.measured_step, 0).astype(np.float64),
        usable=scores.usable,
        candidates=scores.usable & ~planned,
        covering=np.union1d(np.flatnonzero(planned), never),
        age_weight=settings.age_weight,
    )
    num_pickable = max(int(known.candidates.sum()) - num_probe, 0)
    num_picked = min(budget - num_probe - len(never), num_pickable)
    picked = RULES[settings.plan](known, num_picked, rng)

    left = known.candidates.copy()
    left[picked] = False
    probe = rng.choice(np.flatnonzero(left), min(num_probe, int(left.sum())), replace=False)
    num_left = budget - len(never) - len(picked) - len(probe)
    invalid = np.flatnonzero((scores.origin == Origin.INVALID) & ~planned)
    invalid = rng.permutation(invalid)[:num_left]

    parts = [
        (never, Reason.NEVER_MEASURED),
        (picked, Reason.PRIORITY),
        (probe, Reason.PROBE),
        (invalid, Reason.PRIORITY),
    ]
    return RefreshPlan(
        rows=np.concatenate([rows for rows, _ in parts]).astype(np.int64),
        reasons=np.concatenate([np.full(len(rows), reason, np.uint8) for rows, reason in parts]),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
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


def _cover(known: Known, count: int, rng: np.random.Generator) -> Rows:
    """Rows that cover the graph best: weighted facility location.

    A row needs cover by 1 - age_weight + age_weight · relative age, and gets it by the weight of
    its strongest edge to a measured row. Ties go to the smaller row.
    """
    need = 1 - known.age_weight + known.age_weight * known.relative_ages()
    n = len(need)
    return lazy_greedy(
        known.graph,
        modular=np.zeros(n),
        need=np.where(known.usable, need, 0.0),
        budget=count,
        order=np.arange(n),
        candidates=known.candidates,
        initial=known.covering,
    ).rows


def _grace(known: Known, count: int, rng: np.random.Generator) -> Rows:
    """The paper's priority: β · age / oldest + (1 - β) · |s_i - Σ_j α_ij s_j| / σ.

    β is `age_weight`, α the weights of the usable neighbours normalised to sum 1, σ a robust
    scale of the differences. A row without such neighbours differs by 0. Ties go to the smaller
    row.
    """
    difference = neighbourhood_difference(known.graph, known.values, known.usable)
    scale = np.median(difference[known.usable]) if known.usable.any() else 0.0
    scale = scale or np.max(difference, initial=0.0) or 1.0
    priority = (
        known.age_weight * known.relative_ages() + (1 - known.age_weight) * difference / scale
    )
    return _highest(priority, known.candidates, count)


def _oldest(known: Known, count: int, rng: np.random.Generator) -> Rows:
    """The rows measured longest ago; ties at random, as files are often sorted by source."""
    rows = rng.permutation(np.flatnonzero(known.candidates))
    oldest: Rows = rows[np.argsort(-known.ages[rows], kind="stable")[:count]]
    return oldest


def _random(known: Known, count: int, rng: np.random.Generator) -> Rows:
    """Uniformly random rows."""
    return rng.choice(np.flatnonzero(known.candidates), count, replace=False)


RULES: dict[str, Callable[[Known, int, np.random.Generator], Rows]] = {
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
