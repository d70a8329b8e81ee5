"""The default selector: importance plus coverage of the graph.

Maximises, over sets S of the budget's size,

    F(S) = λ · (Σ_{i∈S} importance_i) / I  +  (1 - λ) · (Σ_i max_{j∈S} w_ij) / C,    w_ii = 1

by exact greedy (`gracekit.greedy`). Both sums run over candidates. I and C put the two on one
scale whatever the data: each is what its term can gain, the value that it reaches alone (the most
important rows; greedy for coverage only) less that of a random draw. So λ = 0.5 means that a
tenth of what importance could gain weighs as much as a tenth of what coverage could gain. On raw
sums it would not: features of a language model crowd together, and their similarities, nearly
all alike, would drown the importance or be drowned by it.

Importance and similarities are not negative, so F is monotone submodular: greedy reaches
(1 - 1/e) of the best value, 1/2 under quotas.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gracekit.protocols import SelectionTask
from gracekit.selection.ranking import best_rows, random_rows
from gracekit.selection.weights import represent
from gracekit.types import Rows, Selection

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
        from gracekit.greedy import lazy_greedy

        need = task.candidates.astype(np.float64)
        num_candidates = int(task.candidates.sum())
        importance = np.where(task.candidates, task.scores.importance, 0).astype(np.float64)

        def greedy(importance_unit: float, coverage_unit: float) -> GreedyResult:
            return lazy_greedy(
                task.graph,
                modular=importance_unit * importance,
                need=coverage_unit * need,
                budget=task.budget,
                order=task.order,
                candidates=task.candidates,
                groups=None if task.quotas is None else task.samples.groups,
                quotas=task.quotas,
            )

        def reached(rows: Rows) -> tuple[float, float]:
            # fsum rounds once: the order of the rows is no matter.
            by_importance = math.fsum(importance[rows].tolist())
            covered = represent(task.graph, rows, task.candidates).coverage * num_candidates
            return by_importance, covered

        drawn = reached(random_rows(task, task.seed))
        of_importance = Span(drawn[0], reached(best_rows(importance, task))[0])
        of_coverage = Span(drawn[1], greedy(0.0, 1.0).objective)
        weight = task.settings.importance_weight
        result = greedy(weight / of_importance.gain, (1 - weight) / of_coverage.gain)
        values = reached(result.rows)
        return Selection(
            rows=result.rows,
            gains=result.gains.astype(np.float32),
            weights=np.ones(len(result.rows), np.float32),
            objective=result.objective,
            details={
                "importance_weight": weight,
                "importance_share": of_importance.share(values[0]),
                "coverage_share": of_coverage.share(values[1]),
                "importance_gain": of_importance.gain / task.budget,
                "coverage_gain": of_coverage.gain / num_candidates,
            },
        )
