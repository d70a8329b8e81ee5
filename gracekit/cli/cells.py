"""How one value looks in a table or a sentence."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

from gracekit.cli.json_text import plain_number
from gracekit.cli.terminal import printable
from gracekit.words import duration as duration_in_words

NOTHING = "-"


def plain(value: Any) -> str:
    """Any value: whole numbers exactly, others in four digits, text without control characters."""
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        if not math.isfinite(value):
            return NOTHING if math.isnan(value) else str(value)
        return f"{value:.4g}" if abs(value) < 10_000 else f"{value:,.0f}"
    if isinstance(value, Decimal):
        return plain(plain_number(value) if value.is_finite() else str(value))
    return printable(str(value))


def count(value: int | None) -> str:
    """A number of things, with separators: 12,000."""
    return NOTHING if value is None else f"{value:,}"


def percent(value: float | None) -> str:
    """A share that is given in percent, with one decimal."""
    return NOTHING if value is None else f"{value:.1f}"


def two_digits(value: float | None) -> str:
    """A correlation, a similarity, an importance."""
    return NOTHING if value is None or math.isnan(value) else f"{value:.2f}"


def signed(value: float | None) -> str:
    """A change, with its sign and two digits."""
    return NOTHING if value is None or math.isnan(value) else f"{value:+.2f}"


def seconds(value: float | None) -> str:
    """A duration in the unit that fits it."""
    return NOTHING if value is None else duration_in_words(value)
