"""Numbers in words of a chart or a table."""

from __future__ import annotations

import math
import re
from typing import Any

from gracekit import axes
from gracekit.reporting.finding import Format

NOTHING = "–"
"""What stands where nothing is known."""
_SHARES = re.compile(
    r"(.*_|^)(share|fraction)(_.*|$)|value_kept.*|churn.*|mean_place|share_.*", re.ASCII
)


def format_of(column: str) -> Format:
    """How the values of a column are shown, by its name."""
    return "percent" if _SHARES.fullmatch(column) else "number"


def show(value: Any, kind: Format = "number", digits: int = 4) -> str:
    """A value as text, as exact as one reads it: in so many digits, if it is no whole number."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return NOTHING
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if kind == "percent":
        return _percent(100 * value)
    if isinstance(value, int) or kind == "count":
        return f"{value:,.0f}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{digits}g}"


def tick(value: float, kind: Format) -> str:
    """A value beside an axis."""
    if kind == "percent":
        return f"{round(100 * value, 6):g} %"
    return axes.number(value) if abs(value) >= 1e4 or kind != "count" else f"{value:,.0f}"


def _percent(value: float) -> str:
    digits = 0 if abs(value) >= 10 or value == 0 else 1 if abs(value) >= 1 else 2
    return f"{value:.{digits}f} %"
