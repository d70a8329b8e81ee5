"""Exact greedy for importance plus coverage on a sparse graph.

Maximises, over sets S of at most `budget` candidate rows, the monotone submodular

    F(S) = Σ_{j∈S} modular_j + Σ_i need_i · max_{j∈S∪initial} w_ij,    w_ii = 1

and so reaches (1 - 1/e) of the best value (1/2 under group quotas, a partition matroid).

Where rows cost something (tokens), greedy by gain per cost and greedy by gain alone are both run
and the better one counts: (1 - 1/e)/2 of the best set within the budget (Leskovec et al. 2007,
"Cost-effective outbreak detection"); no bound is known to us under quotas as well.

*Gains are whole numbers* of a fixed quantum, a power of two near 2⁻⁶¹ of the largest possible
total. So they can be corrected in place for ever without drifting: a pick changes the gains two
edges around it and nothing else, about k² additions. And their sums do not depend on the order
of the edges: ties are true ties, broken by `order`, and renumbering the rows changes nothing.

*The queue is lazy.* Gains only fall, so a row waits at the level of an earlier gain, an upper
bound, and moves down when its level is reached. Levels, each a small heap while it is worked
on, take half the time of one heap at a million rows, whose every step misses the cache.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numba import boolean, float32, int32, int64, types

from gracekit.greedy.compiled import admit, compiled, inlined, read_only, sift_down
from gracekit.types import Bool, Float32, Float64, Int32, Int64, Rows, SparseGraph

NUM_LEVELS = 1024
NEED, BEST = 0, 1
"""Columns of `state`, side by side because they are read together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GreedyResult:
    """What greedy picked, and who covers every row."""

    rows: Rows
    """[b] in the order picked, best first; fewer than the budget when candidates run out."""
    gains: Float64
    """[b] increase of F when picked."""
    covered_by: Int32
    """[n] the picked or initial row of largest similarity above 0 (the first of equals; such a
    row covers itself); -1: no row does."""
    objective: float
    """F of the picked rows, with what the initial rows cover."""


def lazy_greedy(
    graph: SparseGraph,
    *,
    modular: Float64,
    need: Float64,
    budget: int,
    order: Int64,
    candidates: Bool,
    groups: Int32 | None = None,
    quotas: Int64 | None = None,
    free: int = 0,
    costs: Int64 | None = None,
    initial: Rows | None = None,
) -> GreedyResult:
    """Pick `budget` candidate rows, at each step the one that adds most to F.

    Args:
        graph: Symmetric, weights in [0, 1], no self loops, no repeated edges.
        modular: [n] finite; what a row is worth by itself. Zero or more keeps F monotone (and is
            required with costs).
        need: [n] finite, zero or more; how much it matters that a row is covered (kept as
            float32, so F is exact to about 1e-7).
        budget: Rows to pick, zero or more; with costs what they may cost together.
        order: [n] distinct; of equal gains the smaller order wins.
        candidates: [n] rows that may be picked.
        groups: [n] index into `quotas`.
        quotas: [g] places of each group, in rows or in cost, the initial rows not counted.
        free: Places beyond the quotas, for any group; without quotas there is the budget alone.
        costs: [n] 1 or more; without them every row costs 1. A row that costs more than is left
            is passed over.
        initial: Rows that cover already; neither counted nor returned. With `budget=0` this
            evaluates the coverage of a given set.
    """
    n = graph.num_nodes
    assert budget >= 0 and len(modular) == len(need) == len(order) == len(candidates) == n
    assert (groups is None) == (quotas is None) and free >= 0
    assert costs is None or (len(costs) == n and int(np.min(costs, initial=1)) >= 1)
    assert costs is None or float(np.min(modular, initial=0)) >= 0
    if groups is None or quotas is None:
        groups, quotas, free = np.zeros(n, np.int32), np.zeros(1, np.int64), budget
    scale = _quanta_in_one(modular, need)

    def run(by_ratio: bool) -> tuple[Int64, Int64, Int32, int]:
        return _pick(
            np.ascontiguousarray(graph.indptr, np.int64),
            np.ascontiguousarray(graph.indices, np.int32),
            np.ascontiguousarray(graph.weights, np.float32),
            np.rint(modular * scale).astype(np.int64),
            np.stack([need * scale, np.zeros(n)], axis=1).astype(np.float32),
            np.ascontiguousarray(order, np.int64),
            np.array(candidates, np.bool_),
            np.ascontiguousarray(groups, np.int32),
            np.append(quotas, free).astype(np.int64),
            np.ascontiguousarray([] if costs is None else costs, np.int64),
            by_ratio,
            np.ascontiguousarray([] if initial is None else initial, np.int64),
            budget,
        )

    best = run(by_ratio=costs is not None)
    if costs is not None:
        other = run(by_ratio=False)
        best = other if other[3] > best[3] else best
    rows, gains, covered_by, objective = best
    return GreedyResult(
        rows=rows, gains=gains / scale, covered_by=covered_by, objective=objective / scale
    )


def _quanta_in_one(modular: Float64, need: Float64) -> float:
    """Quanta in 1: the largest power of two for which no sum can overflow int64."""
    largest = float(np.max(need, initial=0.0) + np.max(np.abs(modular), initial=0.0))
    assert math.isfinite(largest) and float(np.min(need, initial=0.0)) >= 0
    _, exponent = math.frexp(largest * len(need))
    return math.ldexp(1.0, min(61 - exponent, 1000))


@inlined
def _coverage_gain(need: float, weight: float, best: float) -> int:
    """What raising a row's best similarity to `weight` adds, in quanta.

    The similarities are float32, so their difference in float64 is exact.
    """
    return int(np.int64(need * max(weight - best, 0.0) + 0.5))


@inlined
def _raise_best(
    i: int,
    best: float,
    indptr: Int64,
    indices: Int32,
    weights: Float32,
    state: Float32,
    gains: Int64,
) -> None:
    """Row `i` is now covered by `best`: its neighbours and itself have less to add."""
    need, before = np.float64(state[i, NEED]), np.float64(state[i, BEST])
    state[i, BEST] = best
    gains[i] -= _coverage_gain(need, 1.0, before) - _coverage_gain(need, 1.0, best)
    for edge in range(indptr[i], indptr[i + 1]):
        weight = np.float64(weights[edge])
        if weight > before:
            fallen = _coverage_gain(need, weight, before) - _coverage_gain(need, weight, best)
            gains[indices[edge]] -= fallen


@inlined
def _add_to_set(
    row: int,
    indptr: Int64,
    indices: Int32,
    weights: Float32,
    state: Float32,
    gains: Int64,
    covered_by: Int32,
) -> None:
    """Take `row` into the set."""
    _raise_best(row, 1.0, indptr, indices, weights, state, gains)
    covered_by[row] = row
    for edge in range(indptr[row], indptr[row + 1]):
        i, weight = indices[edge], np.float64(weights[edge])
        if weight > state[i, BEST]:
            _raise_best(i, weight, indptr, indices, weights, state, gains)
            covered_by[i] = row


@compiled(
    types.Tuple((int64[::1], int64[::1], int32[::1], int64))(
        read_only(int64),
        read_only(int32),
        read_only(float32),
        int64[::1],
        float32[:, ::1],
        read_only(int64),
        boolean[::1],
        read_only(int32),
        int64[::1],
        read_only(int64),
        boolean,
        read_only(int64),
        int64,
    )
)
def _pick(
    indptr: Int64,
    indices: Int32,
    weights: Float32,
    modular: Int64,
    state: Float32,
    order: Int64,
    candidates: Bool,
    groups: Int32,
    places: Int64,
    costs: Int64,
    by_ratio: bool,
    initial: Int64,
    budget: int,
) -> tuple[Int64, Int64, Int32, int]:
    """The loop, in quanta; uses up `state`, `candidates` and `places` (quotas, then free).

    The key that the queue is ordered by is the gain, or by ratio the gain over the cost in whole
    quanta: like the gain it only falls.

    Returns the picked rows [b], their gains [b] in quanta, `covered_by` [n], and F in quanta.
    """
    n = len(indptr) - 1
    covered_by = np.full(n, -1, np.int32)
    for row in initial:
        state[row, BEST] = 1.0
        covered_by[row] = row
        candidates[row] = False
        for edge in range(indptr[row], indptr[row + 1]):
            i = indices[edge]
            if weights[edge] > state[i, BEST]:
                state[i, BEST] = weights[edge]
                covered_by[i] = row
    objective = 0
    for row in range(n):
        objective += _coverage_gain(state[row, NEED], state[row, BEST], 0.0)
    picked = np.empty(min(budget, n), np.int64)
    picked_gains = np.empty(min(budget, n), np.int64)
    if budget == 0 or not np.any(candidates):
        return picked[:0], picked_gains[:0], covered_by, objective

    # From here on `gains` holds what each row would add now, exactly: `_add_to_set` corrects it
    # for every row whose gain a pick changes.
    gains = modular.copy()
    for row in range(n):
        gains[row] += _coverage_gain(state[row, NEED], 1.0, state[row, BEST])
        for edge in range(indptr[row], indptr[row + 1]):
            i = indices[edge]
            gains[row] += _coverage_gain(state[i, NEED], weights[edge], state[i, BEST])

    # The queue. A row waits at the level of a key that it once had: level = (key - low) >> shift,
    # which parts the range of all keys into at most NUM_LEVELS equal steps. Keys only fall, so a
    # row may wait too high but never too low. The rows of a level are a linked list: `first_at`
    # holds its first row, `after` the next one of each row, -1 ends it.
    low, high = np.int64(0), np.max(gains)
    if not by_ratio:
        low = np.min(modular)
    shift = 0
    while (high - low) >> shift >= NUM_LEVELS:
        shift += 1
    first_at = np.full(NUM_LEVELS, -1, np.int32)
    after = np.empty(n, np.int32)
    for row in range(n):
        if candidates[row]:
            key = gains[row] // costs[row] if by_ratio else gains[row]
            level = (key - low) >> shift
            after[row], first_at[level] = first_at[level], row

    keys = np.empty(n, np.int64)
    rows = np.empty(n, np.int32)
    num_picked = 0
    for level in range(NUM_LEVELS - 1, -1, -1):
        if budget == 0:
            break
        # Part the rows that wait here: those whose key is still of this level go into a heap
        # (`keys` and `rows`, `size` long), the others wait on at the lower level they fell to.
        size = 0
        row = first_at[level]
        while row >= 0:
            following = after[row]
            key = gains[row] // costs[row] if by_ratio else gains[row]
            now = (key - low) >> shift
            if now == level:
                keys[size], rows[size] = key, row
                size += 1
            else:
                after[row], first_at[now] = first_at[now], row
            row = following
        for at in range(size // 2 - 1, -1, -1):
            sift_down(keys, rows, order, size, at)

        # The heap's top has the largest key as it was noted; of equals the smallest order. Noted
        # keys are upper bounds, so when the top's key is still what was noted, no row adds more.
        while size > 0 and budget > 0:
            row = rows[0]
            key = gains[row] // costs[row] if by_ratio else gains[row]
            now = (key - low) >> shift
            if now == level and key < keys[0]:  # it fell within the level: note that, sift it down
                keys[0] = key
            else:  # it leaves the heap: to a lower level, into the set, or because it does not fit
                cost = 0
                if now < level:
                    after[row], first_at[now] = first_at[now], row
                else:
                    cost = admit(row, groups, costs, places, budget)
                if cost > 0:
                    picked[num_picked], picked_gains[num_picked] = row, gains[row]
                    num_picked += 1
                    objective += gains[row]
                    budget -= cost
                    _add_to_set(row, indptr, indices, weights, state, gains, covered_by)
                size -= 1
                keys[0], rows[0] = keys[size], rows[size]
            sift_down(keys, rows, order, size, 0)
    return picked[:num_picked], picked_gains[:num_picked], covered_by, objective
