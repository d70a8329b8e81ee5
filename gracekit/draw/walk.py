"""A walk through a graph, depth first and nearest first: neighbours come soon after each other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import int32, int64

from gracekit.greedy.compiled import compiled, inlined, read_only
from gracekit.types import Int32, Int64, SparseGraph

WEIGHT_OF_INFINITY = 0x7F800000
"""Bits of the float32 above all others: a key that starts with these less those of the weight sorts
the largest weight first."""
RANK_BITS = 32
RANK_MASK = (1 << RANK_BITS) - 1
FEW = 64
"""Up to so many edges are sorted one by one."""


@dataclass(frozen=True, slots=True)
class RankedGraph:
    """A graph whose rows are known by their rank in an order, and whose edges are sorted."""

    by_rank: Int64
    """[n] the row of each rank."""
    indptr: Int64
    """[n + 1] by row, not by rank."""
    keys: Int64
    """[e] of each row the edges, nearest first, of equals the smaller rank: the lower 32 bits are
    the rank of the neighbour, and the smaller the bits above them, the nearer it is."""

    @classmethod
    def of(cls, graph: SparseGraph, order: Int64) -> RankedGraph:
        """Sort the edges of a graph.

        Args:
            graph: Weights in [0, 1].
            order: [n] distinct; of equally near neighbours the smaller comes first.
        """
        n = graph.num_nodes
        assert len(order) == n <= RANK_MASK >> 1
        by_rank = np.argsort(order)
        rank = np.empty(n, np.int32)
        rank[by_rank] = np.arange(n, dtype=np.int32)
        indptr = np.ascontiguousarray(graph.indptr, np.int64)
        keys = _sorted_keys(
            indptr,
            np.ascontiguousarray(graph.indices, np.int32),
            np.ascontiguousarray(graph.weights, np.float32).view(np.int32),
            rank,
        )
        return cls(by_rank, indptr, keys)

    def __len__(self) -> int:
        return len(self.by_rank)


def places_along(graph: RankedGraph, parts: Int32) -> Int32:
    """The place of each row on a walk through the whole graph, those of each part in turn.

    The walk is not kept within the part: where a part is scattered over the graph, a walk along
    its own edges only would jump from one small piece of it to the next.

    Args:
        graph: Symmetric.
        parts: [n] zero or more.

    Returns:
        [n] 0 to n - 1, distinct; smaller in smaller parts.
    """
    walk = walk_through(graph.indptr, graph.by_rank, graph.keys)
    if parts.any():
        of_rank = parts.astype(np.int32)[graph.by_rank]
        walk = walk[np.argsort(of_rank[walk], kind="stable")]
    places = np.empty(len(graph), np.int32)
    places[graph.by_rank[walk]] = np.arange(len(graph), dtype=np.int32)
    return places


@inlined
def _sort_edges(
    first: int, last: int, indices: Int32, weight_bits: Int32, rank: Int32, keys: Int64
) -> None:
    """The edges of a row as keys, nearest first: by weight, of equals the smaller rank."""
    for edge in range(first, last):
        far = np.int64(WEIGHT_OF_INFINITY - weight_bits[edge])
        key = (far << RANK_BITS) | np.int64(rank[indices[edge]])
        place = edge
        if last - first <= FEW:
            while place > first and keys[place - 1] > key:
                keys[place] = keys[place - 1]
                place -= 1
        keys[place] = key
    if last - first > FEW:
        keys[first:last].sort()


@compiled(int64[::1](read_only(int64), read_only(int32), read_only(int32), read_only(int32)))
def _sorted_keys(indptr: Int64, indices: Int32, weight_bits: Int32, rank: Int32) -> Int64:
    keys = np.empty(len(indices), np.int64)
    for row in range(len(rank)):
        _sort_edges(indptr[row], indptr[row + 1], indices, weight_bits, rank, keys)
    return keys


@compiled(int32[::1](read_only(int64), read_only(int64), read_only(int64)))
def walk_through(indptr: Int64, by_rank: Int64, keys: Int64) -> Int32:
    """All rows of a `RankedGraph` in the order of a walk along its edges.

    From each row it goes on to the nearest one that was not visited, and back where there is none.
    Where nothing is left to go to, it starts again at the row of the smallest rank. Rows are ranks
    here, but for those of `indptr`.
    """
    n = len(by_rank)
    at = np.empty(n, np.int64)
    for row in range(n):
        at[row] = indptr[by_rank[row]]
    visited = np.zeros(n, np.uint8)
    path, found = np.empty(n, np.int32), np.empty(n, np.int32)
    num_found = 0
    for start in range(n):
        if visited[start]:
            continue
        row, depth = start, 0
        while True:
            if not visited[row]:
                visited[row] = 1
                path[depth] = row
                depth += 1
                found[num_found] = row
                num_found += 1
            top = int(np.int64(path[depth - 1]))
            stop = indptr[by_rank[top] + 1]
            while at[top] < stop:
                row = int(np.int64(keys[at[top]] & RANK_MASK))
                if not visited[row]:
                    break
                at[top] += 1
            if at[top] == stop:
                depth -= 1
                if depth == 0:
                    break
    return found
