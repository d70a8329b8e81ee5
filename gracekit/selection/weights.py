"""How many samples each selected one stands for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from gracekit.greedy import lazy_greedy
from gracekit.types import Bool, Float32, Float64, Rows, SampleTable, Selection, SparseGraph

STRATA = "strata"
"""Key of `Selection.details`: [n] the stratum of each row, from a selector that draws by strata.
It is taken out before the details are published."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Representation:
    """How a coreset represents the rows it stands for."""

    weights: Float32
    """[b] > 0, mean 1."""
    coverage: float
    """Mean over those rows of the similarity to their best selected row, in [0, 1]."""
    num_uncovered: int
    """Such rows without a selected neighbour."""


def represent(graph: SparseGraph, rows: Rows, represented: Bool) -> Representation:
    """Let every row count for the selected row that it is most similar to.

    A selected row counts for itself at least; rows that no selected row is a neighbour of are
    shared out evenly; and the counts are divided by their mean.

    Args:
        graph: The similarities.
        rows: [b] distinct and represented; of equal similarities the first counts.
        represented: [n] the rows to represent.
    """
    n = graph.num_nodes
    covering = lazy_greedy(
        graph,
        modular=np.zeros(n),
        need=represented.astype(np.float64),
        budget=0,
        order=np.arange(n),
        candidates=represented,
        initial=rows,
    )
    covered_by = covering.covered_by[represented]
    num_uncovered = int((covered_by < 0).sum())
    counts = np.bincount(covered_by[covered_by >= 0], minlength=n)[rows]
    share = num_uncovered / max(1, len(rows))
    weights = (counts + share) * (len(rows) / len(covered_by))
    return Representation(
        weights=weights.astype(np.float32),
        coverage=covering.objective / len(covered_by),
        num_uncovered=num_uncovered,
    )


def weigh(
    kind: Literal["coverage", "uniform", "none", "inverse-probability", "selector"],
    selection: Selection,
    represented: Representation,
    samples: SampleTable,
    population: Bool,
) -> Float32:
    """[b] > 0, mean 1.

    `inverse-probability` is the population of a selected row's group (or stratum, where the
    selector drew by strata) by how many of it are selected: exact for random draws within quotas,
    post-stratification for other selectors.
    """
    if kind == "coverage":
        return represented.weights
    if kind == "selector":
        return mean_one(selection.weights.astype(np.float64))
    if kind in ("uniform", "none"):
        return np.ones(len(selection.rows), np.float32)
    strata = np.asarray(selection.details.get(STRATA, samples.groups))
    sizes = np.bincount(strata[population], minlength=int(strata.max()) + 1)
    selected = strata[selection.rows]
    chosen = np.bincount(selected, minlength=len(sizes))
    return mean_one(sizes[selected] / chosen[selected])


def mean_one(weights: Float64) -> Float32:
    """Scale weights to mean 1; weights that are all zero become ones."""
    mean = weights.mean()
    scaled = weights / mean if mean > 0 else np.ones(len(weights))
    return scaled.astype(np.float32)
