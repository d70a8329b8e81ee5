"""Axes of charts: round values to mark, and numbers as short as an axis needs them."""

from __future__ import annotations

import math

TICKS = 6
"""Marks of an axis, about."""


def ticks(low: float, high: float, number: int = TICKS) -> list[float]:
    """Round values at equal distances, from at most `low` to at least `high`.

    Args:
        low: The least value that is drawn.
        high: The largest; where it is not above `low`, half a unit is added on both sides.
        number: About how many, at least 2.
    """
    if not high > low:
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / (number - 1)
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= rough)
    start, end = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, 12) for k in range(start, end + 1)]


def number(value: float) -> str:
    """As short as an axis needs: 1.25, 400, 12k, 3M."""
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= unit and (unit == 1e6 or abs(value) >= 1e4):
            return f"{value / unit:g}{name}"
    return f"{value:g}"
