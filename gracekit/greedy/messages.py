"""Message passing on the graph: every pick lowers its neighbours (D2 pruning)."""

from __future__ import annotations

import numpy as np
from numba import boolean, float32, int32, int64

from gracekit.greedy.compiled import admit, compiled, read_only, sift_down
from gracekit.types import Bool, Float32, Float64, Int32, Int64, Rows, SparseGraph

UNIT = 2.0**40
"""Values are whole numbers of 1/UNIT: their sums do not depend on the order of the edges."""


def pick_by_messages(
    graph: SparseGraph,
    *,
    values: Float64,
    forward: Float32,
    reverse: Float32,
    order: Int64,
    candidates: Bool,
    groups: Int32 | None,
    quotas: Int64 | None,
    free: int,
    costs: Int64 | None,
    initial: Rows,
    budget: int,
) -> tuple[Rows, Float64]:
    """Pick the row of largest value again and again; each lowers its neighbours.

    A row starts with its own value and `forward` times those of its neighbours. Once it is picked
    with the value v, each neighbour loses `reverse` times v (nothing where v is negative, so that
    values only fall). The initial rows do so before the first pick.

    Args:
        graph: The edges.
        values: [n] finite, below 10⁴.
        forward: [e] in [0, 1].
        reverse: [e] in [0, 1].
        order: [n] of equal values the smaller is picked.
        candidates: [n] rows that may be picked.
        groups: [n], with quotas, free, costs and budget as in `lazy_greedy`.
        quotas: [g]
        free: Places for any group.
        costs: [n]
        initial: Rows that are in already.
        budget: In rows, or in cost.

    Returns:
        Rows [b] in the order picked, and their values [b] when picked.
    """
    if groups is None or quotas is None:
        groups, quotas = np.zeros(len(order), np.int32), np.zeros(1, np.int64)
        free = budget
    received = np.rint(forward * values[graph.indices] * UNIT).astype(np.int64)
    total = np.concatenate([[0], np.cumsum(received)])
    start = np.rint(values * UNIT).astype(np.int64)
    rows, picked_at = _pick_by_messages(
        np.ascontiguousarray(graph.indptr, np.int64),
        np.ascontiguousarray(graph.indices, np.int32),
        np.ascontiguousarray(reverse, np.float32),
        start + total[graph.indptr[1:]] - total[graph.indptr[:-1]],
        np.ascontiguousarray(order, np.int64),
        np.array(candidates, np.bool_),
        np.ascontiguousarray(groups, np.int32),
        np.append(quotas, free).astype(np.int64),
        np.ascontiguousarray([] if costs is None else costs, np.int64),
        np.ascontiguousarray(initial, np.int64),
        budget,
    )
    return rows, picked_at / UNIT


@compiled(
    (
        read_only(int64),
        read_only(int32),
        read_only(float32),
        int64[::1],
        read_only(int64),
        boolean[::1],
        read_only(int32),
        int64[::1],
        read_only(int64),
        read_only(int64),
        int64,
    )
)
def _pick_by_messages(
    indptr: Int64,
    indices: Int32,
    reverse: Float32,
    values: Int64,
    order: Int64,
    candidates: Bool,
    groups: Int32,
    places: Int64,
    costs: Int64,
    initial: Int64,
    budget: int,
) -> tuple[Int64, Int64]:
    """The loop; uses up `values` and `places`."""
    for row in initial:
        for edge in range(indptr[row], indptr[row + 1]):
            values[indices[edge]] -= np.int64(reverse[edge] * max(values[row], 0) + 0.5)
    n = len(values)
    keys, rows = np.empty(n, np.int64), np.empty(n, np.int32)
    size = 0
    for row in range(n):
        if candidates[row]:
            keys[size], rows[size] = values[row], row
            size += 1
    for at in range(size // 2 - 1, -1, -1):
        sift_down(keys, rows, order, size, at)
    picked, picked_at = np.empty(size, np.int64), np.empty(size, np.int64)
    num_picked = 0
    while size > 0 and budget > 0:
        row = rows[0]
        if values[row] < keys[0]:
            keys[0] = values[row]
        else:
            cost = admit(row, groups, costs, places, budget)
            if cost > 0:
                picked[num_picked], picked_at[num_picked] = row, values[row]
                num_picked += 1
                budget -= cost
                sent = max(values[row], 0)
                for edge in range(indptr[row], indptr[row + 1]):
                    values[indices[edge]] -= np.int64(reverse[edge] * sent + 0.5)
            size -= 1
            keys[0], rows[0] = keys[size], rows[size]
        sift_down(keys, rows, order, size, 0)
    return picked[:num_picked], picked_at[:num_picked]
