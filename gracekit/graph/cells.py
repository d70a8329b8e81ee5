"""Cells of similar rows, found by blocked products."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from gracekit.rounding import unrounded
from gracekit.types import Directions, Float32, Rows

MOST = 512
"""Rows of a cell."""
_MOST_PIVOTS = 256
_WIDTH = 64
"""Dimensions of a projection."""
_BLOCK = 16_384


def cells(
    unit: Directions, rows: Rows, rng: np.random.Generator, *, projected: bool = False
) -> Iterator[Rows]:
    """Part the rows into cells of at most `MOST`; cells that come one after another are similar.

    Each row goes with the nearest of some random rows, and again while too many go together. It
    takes n · log n products: of n / 256 random rows, but at most 256, at every level. `projected`
    takes those of the directions [n, d] along 64 random ones.
    """
    if projected and len(rows) > MOST and unit.shape[1] > _WIDTH:
        unit = _projected(unit, rng)
    waiting = [rows]
    while waiting:
        rows = waiting.pop()
        if len(rows) <= MOST:
            yield rows
            continue
        num_pivots = min(math.ceil(2 * len(rows) / MOST), _MOST_PIVOTS)
        pivots = unrounded(unit[rng.choice(rows, num_pivots, replace=False)]).T
        blocks = range(0, len(rows), _BLOCK)
        nearest = [(unrounded(unit[rows[i : i + _BLOCK]]) @ pivots).argmax(axis=1) for i in blocks]
        of_row = np.concatenate(nearest)
        ends = np.cumsum(np.bincount(of_row, minlength=num_pivots))
        for part in np.split(rows[np.argsort(of_row, kind="stable")], ends[:-1])[::-1]:
            # Duplicates all go together, however often they are asked.
            waiting += np.array_split(part, 2) if 2 * len(part) > len(rows) else [part]


def _projected(unit: Directions, rng: np.random.Generator) -> Float32:
    """[n, 64] along random directions."""
    directions = rng.standard_normal((unit.shape[1], _WIDTH), np.float32)
    projected = np.empty((len(unit), _WIDTH), np.float32)
    for start in range(0, len(unit), _BLOCK):
        block = slice(start, start + _BLOCK)
        np.matmul(unrounded(unit[block]), directions, out=projected[block])
    return projected
