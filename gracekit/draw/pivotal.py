"""A draw with given inclusion probabilities that spreads over a graph: the local pivotal method.

Two rows that are not decided meet, and one takes from the other as much probability as it can:
afterwards at least one of them is in or out. Who takes is drawn so that each keeps its probability
on average. Neighbours meet first, so that where one is drawn, those like it are drawn less often.
(Deville and Tillé 1998; Grafström, Lundström and Schelin 2012.)

1. An undecided row looks for its nearest undecided neighbour of its group, that one for its own,
   and so on as long as they are nearer; the last two meet, and the one before them looks again.
2. Rows that have met form a cluster, with one undecided row at most. An undecided row whose
   neighbours are all decided meets that of the first cluster which an edge leads to: one of its own
   edges, nearest first, then those of the other rows of its cluster. All do so in turn, so that
   clusters grow alike.
3. Rows of a group that no path within the group joins meet along a walk through the whole graph,
   depth first and nearest first.
4. Of each group one undecided row is left at most. They meet each other where `across` allows it.

Edges are sorted once and then only passed through, and clusters are found by compressed links, so
all takes n log n steps for a bounded mean number of neighbours. In units (`probabilities`) nothing
is lost: group totals that are whole numbers are met exactly.
"""

from __future__ import annotations

import numpy as np
from numba import boolean, int32, int64, uint64

from gracekit.draw.probabilities import Inclusion
from gracekit.draw.walk import RANK_BITS, RANK_MASK, RankedGraph, walk_through
from gracekit.greedy.compiled import compiled, inlined, read_only
from gracekit.types import Int32, Int64, Rows, UInt8

MASS, WHOLE, AT, STOP = 0, 1, 2, 3
"""Columns of `state`, side by side because they are read together: the row's units, those it needs
to be in, the edge that is looked at next, and the end of its edges."""
FIRST, LAST, AFTER = 0, 1, 2
"""Columns of `lists`, the rows of each cluster as a linked list."""


def draw_spread(
    graph: RankedGraph,
    chances: Inclusion,
    *,
    seed: int,
    groups: Int32 | None = None,
    across: bool = True,
) -> Rows:
    """Draw rows, each with its probability, spread over the graph.

    The result depends on the order and the seed only: not on the machine, nor on how the rows are
    numbered.

    Args:
        graph: Symmetric, no self loops; of equal neighbours the smaller rank meets first.
        chances: Of n rows.
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
    by_rank, n = graph.by_rank, len(graph)
    assert len(chances.masses) == n
    of_row = np.zeros(n, np.int32) if groups is None else groups.astype(np.int32)[by_rank]
    state = np.empty((n, 4), np.int64)
    state[:, MASS], state[:, WHOLE] = chances.masses[by_rank], chances.wholes[by_rank]
    state[:, AT], state[:, STOP] = graph.indptr[:-1][by_rank], graph.indptr[1:][by_rank]
    drawn = _draw(
        graph.indptr,
        by_rank,
        graph.keys,
        state,
        of_row,
        int(np.max(of_row, initial=0)) + 1,
        across,
        np.uint64(seed),
    )
    rows: Rows = by_rank[drawn]
    return rows


@inlined
def _uniform(seed: np.uint64, number: int) -> float:
    """The `number`th random number of a seed, uniform in [0, 1): SplitMix64."""
    z = seed + np.uint64(number) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return float(np.float64(z >> np.uint64(11)) * 2.0**-53)


@inlined
def _meet(a: int, b: int, state: Int64, uniform: float) -> None:
    """One of two undecided rows takes from the other until one of them is in or out.

    What `a` gains on average is nothing: it gains `up` with the probability down / (up + down).
    """
    up = min(state[a, WHOLE] - state[a, MASS], state[b, MASS])
    down = min(state[a, MASS], state[b, WHOLE] - state[b, MASS])
    change = up if uniform * np.float64(up + down) < np.float64(down) else -down
    state[a, MASS] += change
    state[b, MASS] -= change


@inlined
def _settle(row: int, state: Int64, undecided: UInt8, drawn: Int32, num_drawn: int) -> int:
    """Note it where a row is in or out now; returns how many are in."""
    if state[row, MASS] == 0:
        undecided[row] = 0
    elif state[row, MASS] == state[row, WHOLE]:
        undecided[row] = 0
        drawn[num_drawn] = row
        num_drawn += 1
    return num_drawn


@inlined
def _nearest(row: int, keys: Int64, state: Int64, undecided: UInt8, groups: Int32) -> int:
    """The key of the nearest undecided neighbour of the row's group; -1 where there is none."""
    while state[row, AT] < state[row, STOP]:
        other = keys[state[row, AT]] & RANK_MASK
        if undecided[other] and groups[other] == groups[row] and other != row:
            return int(keys[state[row, AT]])
        state[row, AT] += 1
    return -1


@inlined
def _find(row: int, parent: Int32) -> int:
    """The row that stands for the cluster of `row`; the links on the way are halved."""
    while parent[row] != row:
        parent[row] = parent[parent[row]]
        row = int(np.int64(parent[row]))
    return row


@inlined
def _join(a: int, b: int, undecided: UInt8, parent: Int32, lists: Int32) -> int:
    """Make one cluster of two; the row that is undecided stands for it, and its rows come first.

    `lists` has for each row the first and the last row of its cluster that may have edges to
    others (-1: none), where the row stands for one, and the row after it.
    """
    if undecided[b]:
        a, b = b, a
    parent[b] = a
    if lists[b, FIRST] >= 0:
        if lists[a, FIRST] >= 0:
            lists[lists[a, LAST], AFTER] = lists[b, FIRST]
        else:
            lists[a, FIRST] = lists[b, FIRST]
        lists[a, LAST] = lists[b, LAST]
    return a


@inlined
def _reach(
    row: int, keys: Int64, state: Int64, undecided: UInt8, groups: Int32, parent: Int32,
    lists: Int32,
) -> int:  # fmt: skip
    """The undecided row of the first cluster of its group that the cluster of `row` has an edge to.

    -1 where there is none. Clusters on the way without an undecided row are joined.
    """
    while lists[row, FIRST] >= 0:
        member = int(np.int64(lists[row, FIRST]))
        while state[member, AT] < state[member, STOP]:
            other = keys[state[member, AT]] & RANK_MASK
            if groups[other] == groups[row]:
                found = _find(other, parent)
                if undecided[found] and found != row:
                    return found
                if found != row:
                    _join(row, found, undecided, parent, lists)
            state[member, AT] += 1
        lists[row, FIRST] = -1 if member == lists[row, LAST] else lists[member, AFTER]
    return -1


@compiled(
    int32[::1](
        read_only(int64),
        read_only(int64),
        read_only(int64),
        int64[:, ::1],
        read_only(int32),
        int64,
        boolean,
        uint64,
    )
)
def _draw(
    indptr: Int64,
    by_rank: Int64,
    keys: Int64,
    state: Int64,
    groups: Int32,
    num_groups: int,
    across: bool,
    seed: np.uint64,
) -> Int32:
    """The loop; rows are ranks here, but for those of `indptr`. Uses up `state`."""
    n = len(state)
    undecided = np.ones(n, np.uint8)
    parent = np.arange(n).astype(np.int32)
    lists = np.empty((n, 3), np.int32)
    lists[:, FIRST], lists[:, LAST], lists[:, AFTER] = parent, parent, -1
    drawn = np.empty(n, np.int32)
    num_drawn, number = 0, 0
    for row in range(n):
        num_drawn = _settle(row, state, undecided, drawn, num_drawn)
    looking = np.empty(n, np.int32)
    size = 0
    for start in range(n):
        looking[0], size = start, 1
        while size > 0:
            row, key = int(np.int64(looking[size - 1])), -1
            if undecided[row]:
                key = _nearest(row, keys, state, undecided, groups)
            if key < 0:
                size -= 1
                continue
            other = key & RANK_MASK
            further = _nearest(other, keys, state, undecided, groups)
            if further >= 0 and further >> RANK_BITS < key >> RANK_BITS and size < n:
                looking[size] = other
                size += 1
                continue
            _meet(row, other, state, _uniform(seed, number))
            number += 1
            num_drawn = _settle(row, state, undecided, drawn, num_drawn)
            num_drawn = _settle(other, state, undecided, drawn, num_drawn)
            _join(row, other, undecided, parent, lists)

    size = 0
    for row in range(n):
        state[row, AT] = indptr[by_rank[row]]
        if undecided[row]:
            looking[size] = row
            size += 1
    while size > 0:
        num_looking, size = size, 0
        for place in range(num_looking):
            row, other = int(np.int64(looking[place])), -1
            if undecided[row]:
                other = _reach(row, keys, state, undecided, groups, parent, lists)
            if other < 0:
                continue
            _meet(row, other, state, _uniform(seed, number))
            number += 1
            num_drawn = _settle(row, state, undecided, drawn, num_drawn)
            num_drawn = _settle(other, state, undecided, drawn, num_drawn)
            _join(row, other, undecided, parent, lists)
            if undecided[row]:
                looking[size] = row
                size += 1

    num_left = 0
    for row in range(n):
        num_left += undecided[row]
    if num_left == 0:
        return drawn[:num_drawn].copy()

    passed = np.full(num_groups, -1, np.int64)
    walk = walk_through(indptr, by_rank, keys)
    for place in range(n):
        row = int(np.int64(walk[place]))
        if not undecided[row]:
            continue
        group = groups[row]
        left = row
        if passed[group] >= 0:
            last = passed[group]
            _meet(last, row, state, _uniform(seed, number))
            number += 1
            num_drawn = _settle(last, state, undecided, drawn, num_drawn)
            num_drawn = _settle(row, state, undecided, drawn, num_drawn)
            left = last if undecided[last] else row
        passed[group] = left if undecided[left] else -1

    held = -1
    for group in range(num_groups):
        row = passed[group]
        if not across or row < 0:
            continue
        if held < 0:
            held = row
            continue
        _meet(held, row, state, _uniform(seed, number))
        number += 1
        num_drawn = _settle(held, state, undecided, drawn, num_drawn)
        num_drawn = _settle(row, state, undecided, drawn, num_drawn)
        if not undecided[held]:
            held = row if undecided[row] else -1
    return drawn[:num_drawn].copy()
