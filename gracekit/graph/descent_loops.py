"""The compiled loops of neighbour descent: better neighbours are among those of the neighbours.

After Dong, Moses and Li, 2011. Neighbours are only ever replaced by nearer ones. A pair that was
compared before is not compared again: `news` marks the entries that are new since the last round,
and a path of two old edges leads to nothing new.

Lists are `neighbors` int32 [n, w], nearest first, -1 fills up; `cosines` float32 [n, w], -inf
there; `news` bool [n, w]. All loops change them in place. `unit` are directions int16 [n, d] as
`rounding.rounded` makes them, and `scales` what makes their length 1.
"""

from __future__ import annotations

import numpy as np
from numba import boolean, float32, int16, int32, int64, types, void

from gracekit.greedy.compiled import compiled, inlined, read_only, summing
from gracekit.types import Bool, Float32, Int16, Int32, Rows

_LISTS = int32[:, ::1], float32[:, ::1], boolean[:, ::1]
_MATRIX = types.Array(float32, 2, "C", readonly=True)
_UNIT = types.Array(int16, 2, "C", readonly=True)
_SCALES = read_only(float32)
_MASK = read_only(boolean)
_AROUND = types.Array(int32, 2, "C", readonly=True)


@inlined
def _product(a: Int16, b: Int16) -> np.float32:
    """Of two rounded directions [d]; in int32 throughout, as processors have it in one step."""
    total = np.int32(0)
    for i in range(len(a)):
        total = np.int32(total + np.int32(a[i]) * np.int32(b[i]))
    return np.float32(total)


@compiled(void(_UNIT, float32[::1]))
def fill_scales(unit: Int16, scales: Float32) -> None:
    """Fill [n] with 1 / length of each row of `unit`; 0 where that is 0."""
    for row in range(len(unit)):
        square = _product(unit[row], unit[row])
        scales[row] = 1 / np.sqrt(square) if square > 0 else 0


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


@compiled(void(_UNIT, _SCALES, _MASK, *_LISTS))
def rescore(
    unit: Int16, scales: Float32, fresh: Bool, neighbors: Int32, cosines: Float32, news: Bool
) -> None:
    """Compute anew what a fresh row [n] is part of, drop rows without a direction, and sort.

    Entries of or about fresh rows become news.
    """
    n, width = neighbors.shape
    for row in range(n):
        for at in range(width):
            other, cosine = neighbors[row, at], cosines[row, at]
            neighbors[row, at], cosines[row, at], news[row, at] = -1, -np.inf, False
            if other < 0 or scales[row] == 0 or scales[other] == 0:
                continue
            is_news = fresh[row] or fresh[other]
            if is_news:
                cosine = _product(unit[row], unit[other]) * (scales[row] * scales[other])
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


@compiled(int64(_AROUND, read_only(int64)))
def count_beyond(around: Int32, rows: Rows) -> int:
    """How many different rows are around those around each of the rows [q], added up."""
    seen = np.full(len(around), -1, np.int64)
    count = 0
    for place in range(len(rows)):
        for entry in around[rows[place]]:
            if entry < 0:
                break
            for beyond in around[entry >> 1]:
                if beyond >= 0 and seen[beyond >> 1] != place:
                    seen[beyond >> 1] = place
                    count += 1
    return count


@compiled(int64(_UNIT, _SCALES, _AROUND, read_only(int64), *_LISTS))
def explore(
    unit: Int16,
    scales: Float32,
    around: Int32,
    order: Rows,
    neighbors: Int32,
    cosines: Float32,
    news: Bool,
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
                cosine = _product(unit[row], unit[other]) * (scales[row] * scales[other])
                if cosine > cosines[row, width - 1]:
                    _insert(neighbors[row], cosines[row], news[row], other, cosine, width - 1)
                    num_entered += 1
    return num_entered


@summing
def _products_of_four(a: Float32, b: Float32, products: Float32) -> None:
    """Fill [4, 4] with the inner products of four rows [4, d] with four others."""
    a0, a1, a2, a3 = a[0], a[1], a[2], a[3]
    b0, b1, b2, b3 = b[0], b[1], b[2], b[3]
    s00 = s01 = s02 = s03 = s10 = s11 = s12 = s13 = np.float32(0)
    s20 = s21 = s22 = s23 = s30 = s31 = s32 = s33 = np.float32(0)
    for i in range(a.shape[1]):
        x0, x1, x2, x3 = a0[i], a1[i], a2[i], a3[i]
        y0, y1, y2, y3 = b0[i], b1[i], b2[i], b3[i]
        s00 += x0 * y0
        s01 += x0 * y1
        s02 += x0 * y2
        s03 += x0 * y3
        s10 += x1 * y0
        s11 += x1 * y1
        s12 += x1 * y2
        s13 += x1 * y3
        s20 += x2 * y0
        s21 += x2 * y1
        s22 += x2 * y2
        s23 += x2 * y3
        s30 += x3 * y0
        s31 += x3 * y1
        s32 += x3 * y2
        s33 += x3 * y3
    products[0, 0], products[0, 1], products[0, 2], products[0, 3] = s00, s01, s02, s03
    products[1, 0], products[1, 1], products[1, 2], products[1, 3] = s10, s11, s12, s13
    products[2, 0], products[2, 1], products[2, 2], products[2, 3] = s20, s21, s22, s23
    products[3, 0], products[3, 1], products[3, 2], products[3, 3] = s30, s31, s32, s33


@inlined
def _enter(
    row: int, other: int, cosine: np.float32, neighbors: Int32, cosines: Float32, news: Bool
) -> int:
    """Put `other` into the row's list unless it is there; 1 where it was not."""
    listed = neighbors[row]
    known = 0
    for at in range(len(listed)):  # all of them, without a branch: a vector at a time
        known += listed[at] == other
    if known:
        return 0
    _insert(listed, cosines[row], news[row], other, cosine, len(listed) - 1)
    return 1


@compiled(int64(_UNIT, _SCALES, _AROUND, read_only(int64), *_LISTS))
def explore_together(
    unit: Int16,
    scales: Float32,
    around: Int32,
    order: Rows,
    neighbors: Int32,
    cosines: Float32,
    news: Bool,
) -> int:
    """The same round as `explore` while there is room around rows: compare those around each row.

    With each other, and with the row. They are read once for all their pairs, where `explore` reads
    a row for each product; but two rows are compared again around every row that is near both.
    """
    last = neighbors.shape[1] - 1
    most = (around.shape[1] + 4) // 4 * 4
    members = np.empty(most, np.int64)
    at_hand = np.zeros((most, unit.shape[1]), np.float32)
    products = np.empty((most, most), np.float32)
    near, bars = np.empty(most, np.int64), np.empty(most, np.float32)
    least = cosines[:, last].copy()  # close together, so that asking for it reads less
    news[:] = False
    num_entered = 0
    for between in order:
        size = 0
        for wanted in (1, 0):
            for entry in around[between]:
                if entry >= 0 and entry & 1 == wanted:
                    members[size] = entry >> 1
                    size += 1
            if wanted == 1:
                num_news = size
                if size == 0:
                    break
        if num_news == 0:
            continue
        members[size] = between
        size += 1
        for place in range(size):
            for i in range(unit.shape[1]):
                at_hand[place, i] = scales[members[place]] * unit[members[place], i]
            bars[place] = least[members[place]]
        for i in range(0, num_news, 4):
            for j in range(i, size, 4):
                _products_of_four(
                    at_hand[i : i + 4], at_hand[j : j + 4], products[i : i + 4, j : j + 4]
                )
        for i in range(num_news):
            num_near = 0
            for j in range(i + 1, size):  # without a branch, which would be foretold badly
                near[num_near] = j
                num_near += (products[i, j] > bars[i]) | (products[i, j] > bars[j])
            for j in near[:num_near]:
                for at, beside in ((i, j), (j, i)):
                    if products[i, j] > bars[at]:
                        row = members[at]
                        num_entered += _enter(
                            row, members[beside], products[i, j], neighbors, cosines, news
                        )
                        least[row] = bars[at] = cosines[row, last]
    return num_entered
