"""The compiled loop that keeps the nearest of what is seen, block by block."""

from __future__ import annotations

from numba import float32, int32, void

from gracekit.greedy.compiled import compiled, read_only
from gracekit.types import Float32, Int32


@compiled(void(float32[:, ::1], read_only(int32), int32[:, ::1], float32[:, ::1]))
def keep_nearest(among: Float32, columns: Int32, neighbors: Int32, cosines: Float32) -> None:
    """Put those of the `columns` [m] into the lists of q queries that are near enough, in place.

    Args:
        among: [q, m] cosine of each query with each column; -inf and NaN enter no list.
        columns: [m] rows.
        neighbors: [q, w] rows, nearest first, -1 fills up. Of rows that are equally near the one
            that was seen first comes first.
        cosines: [q, w], -inf where the neighbour is -1.
    """
    last = neighbors.shape[1] - 1
    for query in range(len(among)):
        bar = cosines[query, last]
        for column in range(len(columns)):
            cosine = among[query, column]
            if not cosine > bar:
                continue
            at = last
            while at > 0 and cosines[query, at - 1] < cosine:
                neighbors[query, at] = neighbors[query, at - 1]
                cosines[query, at] = cosines[query, at - 1]
                at -= 1
            neighbors[query, at], cosines[query, at] = columns[column], cosine
            bar = cosines[query, last]
