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
    begins = 0
    for rows in np.split(is_open, np.flatnonzero(np.diff(parts[is_open])) + 1):
        if not len(rows):
            continue
        ends = np.cumsum(probabilities[rows])
        length = _units(float(ends[-1]))
        # The last end is the total exactly, so that rounding loses no row.
        places_of_ends = np.minimum(np.rint(ends * float(1 << _BITS)).astype(np.int64), length)
        places_of_ends[-1] = length
        met = (places_of_ends + begins + start) >> _BITS
        before = np.concatenate([[(begins + start) >> _BITS], met[:-1]])
        drawn.append(rows[met > before])
        begins += length
    found: Rows = np.sort(np.concatenate(drawn))
    return found


def _units(total: float) -> int:
    """A total in units; one that differs from a whole number by rounding only is that number."""
    whole = round(total)
    return whole << _BITS if abs(total - whole) < 1e-6 else round(total * (1 << _BITS))
