"""The frame of a chart: axes in SVG, sized so that its letters can be read on a phone."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from html import escape

from gracekit.axes import ticks
from gracekit.reporting.finding import Format
from gracekit.reporting.numbers import tick

WIDTH, HEIGHT = 380, 240
"""Of every chart, in its own units: on a screen of 360 pixels a unit is about 0.85 of one."""
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 28, 44
_LETTER = 6.8
"""Width of a character, in the same units."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """Where values lie in the picture."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float
    parts: tuple[str, ...]
    """SVG of the axes."""

    def x(self, value: float) -> float:
        """Across."""
        share = (value - self.x_low) / ((self.x_high - self.x_low) or 1)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        """From the top."""
        share = (value - self.y_low) / ((self.y_high - self.y_low) or 1)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def frame(
    xs: tuple[float, float],
    ys: tuple[float, float],
    *,
    x_name: str,
    y_name: str,
    y_format: Format,
    marks: list[tuple[float, str]] | None = None,
) -> Frame:
    """Axes for values between the given ends.

    Args:
        xs: Least and largest value across.
        ys: The same upwards; the axis ends there or at the round values around them.
        x_name: With the unit.
        y_name: With the unit.
        y_format: Of the numbers beside the axis.
        marks: Places across and what stands below them; None: round numbers.
    """
    up = ticks(*ys, number=5)
    if marks is None:
        across = ticks(*xs, number=5)
        across = [value for value in across if xs[0] - 1e-9 <= value <= xs[1] + 1e-9] or [xs[0]]
        marks = [(value, tick(value, "number")) for value in across]
    low, high = _ends(ys, up)
    up = [value for value in up if low - 1e-9 <= value <= high + 1e-9]
    made = Frame(x_low=xs[0], x_high=xs[1], y_low=low, y_high=high, parts=())
    bottom = HEIGHT - BOTTOM
    parts = [f'<text class="axis" x="4" y="14">{escape(y_name)}</text>']
    for value in up:
        y = made.y(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" '
                     f'y1="{y:.1f}" y2="{y:.1f}"/>')  # fmt: skip
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">'
                     f"{escape(tick(value, y_format))}</text>")  # fmt: skip
    for value, label in _readable(marks, made.x):
        parts.append(f'<text class="tick" x="{_inside(made.x(value), label):.1f}" '
                     f'y="{bottom + 16}" text-anchor="middle">{escape(label)}</text>')  # fmt: skip
    parts.append(f'<text class="axis" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" '
                 f'text-anchor="middle">{escape(x_name)}</text>')  # fmt: skip
    return Frame(
        x_low=made.x_low, x_high=made.x_high, y_low=made.y_low, y_high=made.y_high,
        parts=tuple(parts),
    )  # fmt: skip


def _ends(ys: tuple[float, float], up: list[float]) -> tuple[float, float]:
    """Of the axis upwards: round values, unless that leaves much of the picture empty."""
    step, room = up[1] - up[0], 0.04 * (ys[1] - ys[0])
    low = up[0] if ys[0] - up[0] <= 0.4 * step else ys[0] - room
    high = up[-1] if up[-1] - ys[1] <= 0.4 * step else ys[1] + room
    return low, high


def _inside(x: float, label: str) -> float:
    """The middle of a label, moved so that it is not cut off at the edge."""
    half = _LETTER * len(label) / 2
    return min(max(x, half + 2), WIDTH - half - 2)


def _readable(
    marks: list[tuple[float, str]], at: Callable[[float], float]
) -> list[tuple[float, str]]:
    """Every first, second, third … mark, so that none runs into the next."""
    widest = max((len(label) for _, label in marks), default=0) * _LETTER + 8
    for every in range(1, len(marks) + 1):
        kept = marks[::every]
        places = [at(value) for value, _ in kept]
        if all(b - a >= widest for a, b in itertools.pairwise(places)):
            return kept
    return marks[:1]


def picture(title: str, parts: list[str], *, width: int = WIDTH, height: int = HEIGHT) -> str:
    """An SVG element that a screen reader calls by its title."""
    return (
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(title)}">{"".join(parts)}</svg>'
    )
