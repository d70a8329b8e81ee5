"""How many samples each selected one stands for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gracekit.types import Bool, Float32, Rows, SparseGraph


@dataclass(frozen=True, slots=True, kw_only=True)
class Representation:
    """How a coreset represents the candidates."""

    weights: Float32
    """[b] > 0, mean 1."""
    coverage: float
    """Mean over the candidates of the similarity to their best selected row, in [0, 1]."""
    num_uncovered: int
    """Candidates without a selected neighbour."""


def represent(graph: SparseGraph, rows: Rows, candidates: Bool) -> Representation:
    """Let every candidate count for the selected row that it is most similar to.

    A selected row counts for itself at least; candidates that no selected row is a neighbour of
    are shared out evenly; and the counts are divided by their mean.

    Args:
        graph: The similarities.
        rows: [b] distinct candidates, at least one; of equal similarities the first one counts.
        candidates: [n] the rows to represent.
    """
    from gracekit.greedy import lazy_greedy

    n = graph.num_nodes
    covering = lazy_greedy(
        graph,
        modular=np.zeros(n),
        need=candidates.astype(np.float64),
        budget=0,
        order=np.arange(n),
        candidates=candidates,
        initial=rows,
    )
    covered_by = covering.covered_by[candidates]
    num_uncovered = int((covered_by < 0).sum())
    counts = np.bincount(covered_by[covered_by >= 0], minlength=n)[rows]
    weights = (counts + num_uncovered / len(rows)) * (len(rows) / len(covered_by))
    return Representation(
        weights=weights.astype(np.float32),
        coverage=covering.objective / len(covered_by),
        num_uncovered=num_uncovered,
    )
