"""The compiled loops of neighbour descent: better neighbours are among those of the neighbours.

After Dong, Moses and Li, 2011. Neighbours are only ever replaced by nearer ones. A pair that was
compared before is not compared again: `news` marks the entries that are new since the last round,
and a path of two old edges leads to nothing new.

Lists are `neighbors` int32 [n, w], nearest first, -1 fills up; `cosines` float32 [n, w], -inf
there; `news` bool [n, w]. All loops change them in place.
"""

from __future__ import annotations

import numpy as np
from numba import boolean, float32, int32, int64, types, void

from gracekit.greedy.compiled import compiled, inlined, read_only, summing
from gracekit.types import Bool, Float32, Int32, Rows

_LISTS = int32[:, ::1], float32[:, ::1], boolean[:, ::1]
_MATRIX = types.Array(float32, 2, "C", readonly=True)
_MASK = read_only(boolean)


@summing
def _dot(a: Float32, b: Float32) -> np.float32:
    total = np.float32(0)
    for i in range(len(a)):
        total += a[i] * b[i]
    return total


@inlined
def _insert(
    neighbors: Int32, cosines: Float32, news: Bool, row: int, cosine: np.float32, from_: int
) -> None:
    """Put a row into a list [w] that it is near enough for, sorting from position `from_` up."""
    at = from_
    while at > 0 and cosines[at - 1] < cosine:
        neighbors[at], cosines[at] = neighbors[at - 1], cosines[at - 1]
        news[at] = news[at - 1]
        at -= 1
    neighbors[at], cosines[at], news[at] = row, cosine, True


@compiled(void(_MATRIX, _MASK, _MASK, *_LISTS))
def rescore(
    unit: Float32, present: Bool, fresh: Bool, neighbors: Int32, cosines: Float32, news: Bool
) -> None:
    """Compute anew what a fresh row [n] is part of, drop absent rows, and sort.

    Entries of or about fresh rows become news.
    """
    n, width = neighbors.shape
    for row in range(n):
        for at in range(width):
            other, cosine = neighbors[row, at], cosines[row, at]
            neighbors[row, at], cosines[row, at], news[row, at] = -1, -np.inf, False
            if other < 0 or not (present[row] and present[other]):
                continue
            is_news = fresh[row] or fresh[other]
            if is_news:
                cosine = _dot(unit[row], unit[other])
            to = at
            while to > 0 and cosines[row, to - 1] < cosine:
                neighbors[row, to], cosines[row, to] = neighbors[row, to - 1], cosines[row, to - 1]
                news[row, to] = news[row, to - 1]
                to -= 1
            neighbors[row, to], cosines[row, to], news[row, to] = other, cosine, is_news


@compiled(void(read_only(int64), _MATRIX, _MASK, *_LISTS))
def offer(
    rows: Rows, among: Float32, fresh: Bool, neighbors: Int32, cosines: Float32, news: Bool
) -> None:
    """Put the rows [m] into each other's lists, by their cosines [m, m], where one is fresh."""
    last = neighbors.shape[1] - 1
    for at in range(len(rows)):
        row = rows[at]
        for beside in range(len(rows)):
            if among[at, beside] <= cosines[row, last] or beside == at:
                continue
            other = rows[beside]
            if (fresh[row] or fresh[other]) and not np.any(neighbors[row] == other):
                _insert(neighbors[row], cosines[row], news[row], other, among[at, beside], last)


@compiled(void(int32[:, ::1], boolean[:, ::1], int64, int32[:, ::1]))
def join(neighbors: Int32, news: Bool, most: int, around: Int32) -> None:
    """Fill `around` int32 [n, a]: a row's first `most` neighbours, then rows that list it.

    Those that list it nearest come first, as far as there is room. An entry is 2 · row + (1 if it
    is news), -1 fills up.
    """
    n, width = neighbors.shape
    size = np.zeros(n, np.int32)
    around[:] = -1
    most = min(most, width)
    for row in range(n):
        while size[row] < most and neighbors[row, size[row]] >= 0:
            at = size[row]
            around[row, at] = 2 * neighbors[row, at] + news[row, at]
            size[row] += 1
    for at in range(width):
        for row in range(n):
            other = neighbors[row, at]
            if other < 0 or size[other] == around.shape[1]:
                continue
            known = False
            for place in range(most):
                if neighbors[other, place] == row:
                    known = True
                    if news[row, at]:
                        around[other, place] |= 1
            if not known:
                around[other, size[other]] = 2 * row + news[row, at]
                size[other] += 1


@compiled(int64(_MATRIX, types.Array(int32, 2, "C", readonly=True), read_only(int64), *_LISTS))
def explore(
    unit: Float32, around: Int32, order: Rows, neighbors: Int32, cosines: Float32, news: Bool
) -> int:
    """One round: compare each row with those around the rows around it.

    Reads `around` only, so that the result does not depend on the order [m] of the rows. Afterwards
    `news` marks what entered a list. Returns how much that was.
    """
    n, width = neighbors.shape
    seen = np.full(n, -1, np.int32)
    has_news = np.zeros(n, np.bool_)
    for row in range(n):
        for entry in around[row]:
            if entry >= 0 and entry & 1:
                has_news[row] = True
    news[:] = False
    num_entered = 0
    for row in order:
        seen[row] = row
        for other in neighbors[row]:
            if other >= 0:
                seen[other] = row
        for entry in around[row]:
            if entry < 0:
                break
            between, is_news = entry >> 1, entry & 1
            if not (is_news or has_news[between]):
                continue
            for step in range(-1, around.shape[1]):
                # The row between itself first: it may list this row without being listed.
                beyond = entry if step < 0 else around[between, step]
                if beyond < 0:
                    break
                other = beyond >> 1
                if seen[other] == row or not (is_news or beyond & 1):
                    continue
                seen[other] = row
                cosine = _dot(unit[row], unit[other])
                if cosine > cosines[row, width - 1]:
                    _insert(neighbors[row], cosines[row], news[row], other, cosine, width - 1)
                    num_entered += 1
    return num_entered
