"""The default selector: importance plus coverage of the graph.

Maximises, over sets S of the budget's size,

    F(S) = λ · (Σ_{i∈S} importance_i) / I  +  (1 - λ) · (Σ_i max_{j∈S} w_ij) / C,    w_ii = 1

by exact greedy (`gracekit.greedy`); the second sum runs over all rows that the coreset stands
for. I and C put the two on one
scale whatever the data: each is what its term can gain, the value that it reaches alone (the most
important rows; greedy for coverage only) less that of a random draw. So λ = 0.5 means that a
tenth of what importance could gain weighs as much as a tenth of what coverage could gain. On raw
sums it would not: features of a language model crowd together, and their similarities, nearly
all alike, would drown the importance or be drowned by it.

With `selection.churn_penalty` κ every row of the parent coreset is worth κ/b more (b rows in the
budget): keeping all of them is worth as much as a share κ of all that F can gain over a random
draw. The bonus is in the gains, not in the objective that is reported.

Importance and similarities are not negative, so F is monotone submodular: greedy reaches
(1 - 1/e) of the best value, 1/2 under quotas, (1 - 1/e)/2 with a budget in tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gracekit.greedy import lazy_greedy
from gracekit.protocols import SelectionTask
from gracekit.selection.ranking import best_rows, random_rows
from gracekit.types import Float64, Rows, Selection, SparseGraph

if TYPE_CHECKING:
    from gracekit.greedy import GreedyResult

LEAST_SPAN = 0.01
"""A term that can gain less than this share of its value over a random draw (nearly everything
is selected, or all are alike) counts as if it could gain that much: noise is not blown up."""


@dataclass(frozen=True, slots=True)
class Span:
    """What a term reaches by a random draw, and alone."""

    random: float
    alone: float

    @property
    def gain(self) -> float:
        """I or C of the objective."""
        return max(self.alone - self.random, LEAST_SPAN * self.alone) or 1.0

    def share(self, value: float) -> float:
        """How much of the gain a value reaches: 0 like the random draw, 1 like the term alone."""
        return (value - self.random) / self.gain


class Coverage:
    """Importance plus coverage, weighed by `selection.importance_weight` (λ)."""

    def select(self, task: SelectionTask) -> Selection:
        """Best first; `details` say what both terms reached of what they could have gained."""
        return select_covering(task, task.settings.importance_weight)


@dataclass(frozen=True, slots=True)
class Cover:
    """What is to be covered: the rows of the store themselves, or further nodes behind them."""

    graph: SparseGraph
    """Graph of n + t nodes; the first n are the store's rows."""
    need: Float64
    """[n + t] how much each node counts."""

    def value(self, rows: Rows) -> float:
        """What the rows cover: the sum over nodes of the similarity to the best of them."""
        n = len(self.need)
        covering = lazy_greedy(
            self.graph,
            modular=np.zeros(n),
            need=self.need,
            budget=0,
            order=np.arange(n),
            candidates=np.zeros(n, bool),
            initial=rows,
        )
        return covering.objective


def select_covering(task: SelectionTask, weight: float, cover: Cover | None = None) -> Selection:
    """Greedy for F with λ = `weight`; what is covered are the represented rows by default."""
    n = len(task.order)
    if cover is None:
        cover = Cover(task.graph, task.represented.astype(np.float64))
    num_behind = len(cover.need) - n
    behind = np.zeros(num_behind, np.int64)
    importance = np.where(task.candidates, task.scores.importance, 0).astype(np.float64)

    def greedy(importance_unit: float, coverage_unit: float, kept_unit: float) -> GreedyResult:
        modular = importance_unit * importance
        if kept_unit and task.parent is not None:
            modular[task.parent] += kept_unit
        return lazy_greedy(
            cover.graph,
            modular=np.concatenate([modular, behind]),
            need=coverage_unit * cover.need,
            budget=task.budget,
            order=np.concatenate([task.order, n + np.arange(num_behind)]),
            candidates=np.concatenate([task.candidates, behind > 0]),
            groups=None
            if task.quotas is None
            else np.concatenate([task.samples.groups, behind.astype(np.int32)]),
            quotas=task.quotas,
            free=task.free,
            costs=None if task.costs is None else np.concatenate([task.costs, behind + 1]),
            initial=task.initial,
        )

    def reached(rows: Rows) -> tuple[float, float]:
        # fsum rounds once: the order of the rows is no matter.
        by_importance = math.fsum(importance[rows].tolist())
        return by_importance, cover.value(np.concatenate([task.initial, rows]))

    drawn = reached(random_rows(task, task.seed))
    if task.costs is None:
        most_important = best_rows(importance, task)
    else:
        most_important = best_rows(importance / task.costs, task)
    of_importance = Span(drawn[0], reached(most_important)[0])
    of_coverage = Span(drawn[1], greedy(0.0, 1.0, 0.0).objective)
    num_places = max(1, len(most_important))
    penalty = task.settings.churn_penalty
    units = weight / of_importance.gain, (1 - weight) / of_coverage.gain, penalty / num_places
    result = greedy(*units)
    values = reached(result.rows)
    kept = 0.0
    if task.parent is not None:
        kept = units[2] * len(np.intersect1d(result.rows, task.parent))
    return Selection(
        rows=result.rows,
        gains=result.gains.astype(np.float32),
        weights=np.ones(len(result.rows), np.float32),
        objective=result.objective - kept,
        details={
            "importance_weight": weight,
            "importance_share": of_importance.share(values[0]),
            "coverage_share": of_coverage.share(values[1]),
            "importance_gain": of_importance.gain / num_places,
            "coverage_gain": of_coverage.gain / max(1.0, float(cover.need.sum())),
            "importance_unit": units[0],
            "coverage_unit": units[1],
            "kept_unit": units[2],
        },
    )
