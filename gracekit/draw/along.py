"""A draw that spreads over an order of the rows: systematic sampling. NumPy only.

The rows' probabilities are laid end to end, and a row is drawn where a grid of step 1 with a random
start meets its piece. Each row has its probability; of any stretch of the order as many are drawn
as its probabilities add up to, to less than one. Along a walk through the graph, where neighbours
come soon after each other, that spreads over the graph.
"""

from __future__ import annotations

import numpy as np

from gracekit.types import Float64, Int32, Rows

_BITS = 36
"""A row is 2³⁶ units: whole numbers, so that totals are met exactly on any machine."""


def draw_along(
    probabilities: Float64, places: Int32, parts: Int32, rng: np.random.Generator
) -> Rows:
    """Draw rows, each with its probability.

    Args:
        probabilities: [n] in [0, 1].
        places: [n] distinct; rows of one part are together.
        parts: [n] zero or more. Of a part whose probabilities add up to a whole number exactly so
            many rows are drawn, else one more or less than that at most; in all likewise.
        rng: Gives the start.

    Returns:
        int64 [b] distinct, ascending.
    """
    is_open = np.flatnonzero((probabilities > 0) & (probabilities < 1))
    is_open = is_open[np.argsort(places[is_open])]
    start = int(rng.integers(1 << _BITS))
    drawn = [np.flatnonzero(probabilities >= 1)]
    pieces = np.split(is_open, np.flatnonzero(np.diff(parts[is_open])) + 1)
    lengths = [_units(_sum(probabilities[rows])) for rows in pieces]
    # The parts together have their total exactly, so that rounding of single ones loses no row.
    broken = [number for number, length in enumerate(lengths) if length % (1 << _BITS)]
    if broken:
        lengths[broken[-1]] += _units(_sum(probabilities[is_open])) - sum(lengths)
    begins = start
    for rows, length in zip(pieces, lengths, strict=True):
        ends = np.rint(np.cumsum(probabilities[rows]) * float(1 << _BITS)).astype(np.int64)
        ends = np.minimum(ends, length)
        ends[-1:] = length
        met = (begins + ends) >> _BITS
        drawn.append(rows[np.diff(met, prepend=begins >> _BITS) > 0])
        begins += length
    found: Rows = np.sort(np.concatenate(drawn))
    return found


def _sum(values: Float64) -> float:
    """Added up one after another, so that it is the same on every machine."""
    return float(np.cumsum(values)[-1]) if len(values) else 0.0


def _units(total: float) -> int:
    """A total in units; one that differs from a whole number by rounding only is that number."""
    whole = round(total)
    return whole << _BITS if abs(total - whole) < 1e-6 else round(total * (1 << _BITS))
