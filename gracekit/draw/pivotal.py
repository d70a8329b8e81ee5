"""A draw with given inclusion probabilities that spreads over a graph: the local pivotal method.

Two rows that are not decided meet, and one takes from the other as much probability as it can:
afterwards at least one of them is in or out. Who takes is drawn so that each keeps its probability
on average. Neighbours meet first, so that where one is drawn, those like it are drawn less often.
(Deville and Tillé 1998; Grafström, Lundström and Schelin 2012.)

1. An undecided row, drawn at random, looks for its nearest undecided neighbour of its group, that
   one for its own, and so on as long as they are nearer; the last two meet.
2. Rows whose neighbours are all decided meet along a walk through the graph, depth first and
   nearest first: each meets the undecided row of its group that was passed last.
3. Of each group one undecided row is left at most. They meet each other where `across` allows it.

Every list of neighbours is sorted once and then only passed through, so all takes n log n steps. In
units (`probabilities`) nothing is lost: group totals that are whole numbers are met exactly.
"""

from __future__ import annotations

import numpy as np
from numba import boolean, float32, int32, int64, uint64

from gracekit.draw.probabilities import Inclusion
from gracekit.greedy.compiled import compiled, inlined, read_only
from gracekit.types import Bool, Float32, Int32, Int64, Rows, SparseGraph, UInt8

WEIGHT_OF_INFINITY = 0x7F800000
"""Bits of the float32 above all others: a key that starts with these less those of the weight sorts
the largest weight first."""
RANK_BITS = 32
RANK_MASK = (1 << RANK_BITS) - 1


def draw_spread(
    graph: SparseGraph,
    chances: Inclusion,
    *,
    order: Int64,
    seed: int,
    groups: Int32 | None = None,
    across: bool = True,
) -> Rows:
    """Draw rows, each with its probability, spread over the graph.

    The result depends on the order and the seed only: not on the machine, nor on how the rows are
    numbered.

    Args:
        graph: Symmetric, weights in [0, 1], no self loops.
        chances: Of n rows.
        order: [n] distinct, zero or more; of equal neighbours the smaller meets first.
        seed: 0 to 2⁶⁴ - 1.
        groups: [n] zero or more; rows meet within their group. The number drawn of a group (or
            their cost) is its total probability: exactly where that is a whole number, else within
            one row of it.
        across: Whether the rows that are left of each group meet each other in the end, so that
            the number drawn is exact over all groups. Without it they are left out, and so they
            are where costs differ: what is drawn never costs more than the total of the
            probabilities.

    Returns:
        int64 [b] distinct, in the order in which they were decided.
    """
    n = graph.num_nodes
    assert len(order) == len(chances.masses) == n <= RANK_MASK
    by_rank = np.argsort(order)
    rank = np.empty(n, np.int32)
    rank[by_rank] = np.arange(n, dtype=np.int32)
    of_row = np.zeros(n, np.int32) if groups is None else groups.astype(np.int32)[by_rank]
    drawn = _draw(
        np.ascontiguousarray(graph.indptr, np.int64),
        np.ascontiguousarray(graph.indices, np.int32),
        np.ascontiguousarray(graph.weights, np.float32).view(np.int32),
        by_rank,
        rank,
        chances.masses[by_rank],
        chances.wholes[by_rank],
        of_row,
        int(np.max(of_row, initial=0)) + 1,
        across,
        np.uint64(seed),
    )
    rows: Rows = by_rank[drawn]
    return rows


@inlined
def _uniform(seed: int, number: int) -> float:
    """The `number`th random number of a seed, uniform in [0, 1): SplitMix64 (Steele et al. 2014)."""
    z = seed + np.uint64(number) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return float(np.float64(z >> np.uint64(11)) * 2.0**-53)


@inlined
def _meet(a: int, b: int, masses: Int64, wholes: Int64, uniform: float) -> None:
    """One of two undecided rows takes from the other until one of them is in or out.

    What `a` gains on average is nothing: it gains `up` with the probability down / (up + down).
    """
    up = min(wholes[a] - masses[a], masses[b])
    down = min(masses[a], wholes[b] - masses[b])
    change = up if uniform * np.float64(up + down) < np.float64(down) else -down
    masses[a] += change
    masses[b] -= change


@inlined
def _settle(
    row: int, masses: Int64, wholes: Int64, undecided: UInt8, drawn: Int32, num_drawn: int
) -> int:
    """Note it where a row is in or out now; returns how many are in."""
    if masses[row] == 0:
        undecided[row] = 0
    elif masses[row] == wholes[row]:
        undecided[row] = 0
        drawn[num_drawn] = row
        num_drawn += 1
    return num_drawn


@inlined
def _nearest(row: int, keys: Int64, at: Int64, stop: Int64, undecided: UInt8, groups: Int32) -> int:
    """The key of the nearest undecided neighbour of the row's group; -1 where there is none."""
    while at[row] < stop[row]:
        other = keys[at[row]] & RANK_MASK
        if undecided[other] and groups[other] == groups[row]:
            return int(keys[at[row]])
        at[row] += 1
    return -1


@compiled(
    int32[::1](
        read_only(int64),
        read_only(int32),
        read_only(int32),
        read_only(int64),
        read_only(int32),
        int64[::1],
        read_only(int64),
        read_only(int32),
        int64,
        boolean,
        uint64,
    )
)
def _draw(
    indptr: Int64,
    indices: Int32,
    weight_bits: Int32,
    by_rank: Int64,
    rank: Int32,
    masses: Int64,
    wholes: Int64,
    groups: Int32,
    num_groups: int,
    across: bool,
    seed: int,
) -> Int32:
    """The loop; rows are ranks here, but for those of `indptr`. Uses up `masses`."""
    n = len(masses)
    keys = np.empty(len(indices), np.int64)
    at, stop = np.empty(n, np.int64), np.empty(n, np.int64)
    for row in range(n):
        first, last = indptr[by_rank[row]], indptr[by_rank[row] + 1]
        for edge in range(first, last):
            far = np.int64(WEIGHT_OF_INFINITY - weight_bits[edge])
            keys[edge] = (far << RANK_BITS) | np.int64(rank[indices[edge]])
        keys[first:last].sort()
        at[row], stop[row] = first, last

    undecided = np.ones(n, np.uint8)
    drawn = np.empty(n, np.int32)
    num_drawn, number = 0, 0
    looking = np.empty(n, np.int32)
    size = 0
    for row in range(n):
        num_drawn = _settle(row, masses, wholes, undecided, drawn, num_drawn)
        if undecided[row]:
            looking[size] = row
            size += 1
    while size > 0:
        place = np.int64(_uniform(seed, number) * size)
        number += 1
        row = np.int64(looking[place])
        key = np.int64(-1)
        if undecided[row]:
            key = _nearest(row, keys, at, stop, undecided, groups)
        if key < 0:
            size -= 1
            looking[place] = looking[size]
            continue
        other = key & RANK_MASK
        while True:
            further = _nearest(other, keys, at, stop, undecided, groups)
            if further < 0 or further >> RANK_BITS >= key >> RANK_BITS:
                break
            row, other, key = other, further & RANK_MASK, further
        _meet(row, other, masses, wholes, _uniform(seed, number))
        number += 1
        num_drawn = _settle(row, masses, wholes, undecided, drawn, num_drawn)
        num_drawn = _settle(other, masses, wholes, undecided, drawn, num_drawn)

    passed = np.full(num_groups, -1, np.int64)
    visited = np.zeros(n, np.uint8)
    path = looking
    for row in range(n):
        at[row] = indptr[by_rank[row]]
    for start in range(n):
        if visited[start]:
            continue
        row, depth = start, 0
        while True:
            if not visited[row]:
                visited[row] = 1
                path[depth] = row
                depth += 1
                if undecided[row]:
                    group = groups[row]
                    left = row
                    if passed[group] >= 0:
                        last = passed[group]
                        _meet(last, row, masses, wholes, _uniform(seed, number))
                        number += 1
                        num_drawn = _settle(last, masses, wholes, undecided, drawn, num_drawn)
                        num_drawn = _settle(row, masses, wholes, undecided, drawn, num_drawn)
                        left = last if undecided[last] else row
                    passed[group] = left if undecided[left] else -1
            top = np.int64(path[depth - 1])
            while at[top] < stop[top] and visited[keys[at[top]] & RANK_MASK]:
                at[top] += 1
            if at[top] < stop[top]:
                row = keys[at[top]] & RANK_MASK
            else:
                depth -= 1
                if depth == 0:
                    break

    left = np.int64(-1)
    for group in range(num_groups):
        row = passed[group]
        if not across or row < 0:
            continue
        if left < 0:
            left = row
            continue
        _meet(left, row, masses, wholes, _uniform(seed, number))
        number += 1
        num_drawn = _settle(left, masses, wholes, undecided, drawn, num_drawn)
        num_drawn = _settle(row, masses, wholes, undecided, drawn, num_drawn)
        if not undecided[left]:
            left = row if undecided[row] else np.int64(-1)
    return drawn[:num_drawn].copy()
