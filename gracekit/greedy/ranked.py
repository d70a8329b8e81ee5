"""Walking down a ranking: what the budget has places for, and what is far enough apart."""

from __future__ import annotations

import numpy as np
from numba import boolean, float32, float64, int32, int64, types

from gracekit.greedy.compiled import admit, compiled, read_only
from gracekit.types import Bool, Float32, Int32, Int64, Rows, SparseGraph


@compiled(
    types.Tuple((int64[::1], int64))(
        read_only(int64),
        read_only(int32),
        int64[::1],
        read_only(int64),
        int64,
    )
)
def _fit(
    ranking: Int64, groups: Int32, places: Int64, costs: Int64, budget: int
) -> tuple[Int64, int]:
    taken = np.empty(len(ranking), np.int64)
    num_taken = 0
    for row in ranking:
        if budget == 0:
            break
        cost = admit(row, groups, costs, places, budget)
        if cost > 0:
            taken[num_taken] = row
            num_taken += 1
            budget -= cost
    return taken[:num_taken], budget


def fit(
    ranking: Rows,
    *,
    budget: int,
    groups: Int32 | None = None,
    quotas: Int64 | None = None,
    free: int = 0,
    costs: Int64 | None = None,
) -> Rows:
    """The rows of a ranking that the budget has places for, taken in its order.

    Arguments as for `lazy_greedy`.
    """
    if groups is None or quotas is None:
        groups = np.zeros(int(np.max(ranking, initial=-1)) + 1, np.int32)
        quotas, free = np.zeros(1, np.int64), budget
    rows, _ = _fit(
        np.ascontiguousarray(ranking, np.int64),
        np.ascontiguousarray(groups, np.int32),
        np.append(quotas, free).astype(np.int64),
        np.ascontiguousarray([] if costs is None else costs, np.int64),
        budget,
    )
    return rows


@compiled(
    boolean[::1](
        read_only(int64),
        read_only(int32),
        read_only(float32),
        read_only(int64),
        boolean[::1],
        float64,
    )
)
def _apart(
    indptr: Int64, indices: Int32, weights: Float32, ranking: Int64, kept: Bool, most: float
) -> Bool:
    for row in ranking:
        alone = True
        for edge in range(indptr[row], indptr[row + 1]):
            if kept[indices[edge]] and weights[edge] > most:
                alone = False
                break
        kept[row] = alone
    return kept


def apart(graph: SparseGraph, ranking: Rows, *, initial: Rows, most: float) -> Bool:
    """[n] the rows of a ranking that no row kept before them, or initial, is closer to than `most`.

    No two of them have a similarity above `most` in the graph. The initial rows are not among
    them unless they are in the ranking.
    """
    kept = np.zeros(graph.num_nodes, bool)
    kept[initial] = True
    ranked = np.zeros(graph.num_nodes, bool)
    ranked[ranking] = True
    kept = _apart(
        np.ascontiguousarray(graph.indptr, np.int64),
        np.ascontiguousarray(graph.indices, np.int32),
        np.ascontiguousarray(graph.weights, np.float32),
        np.ascontiguousarray(ranking, np.int64),
        kept,
        most,
    )
    apart_rows: Bool = ranked & kept
    return apart_rows
