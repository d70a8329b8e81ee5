"""A scatter of several series as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from gracekit.axes import number, ticks
from gracekit.comparing.curves import COLOURS

WIDTH, HEIGHT = 760, 420
LEFT, RIGHT, TOP, BOTTOM = 70, 150, 34, 52


class Spot(NamedTuple):
    """One point."""

    series: str
    x: float
    y: float


def scatter(
    spots: Sequence[Spot],
    *,
    title: str,
    across: str,
    up: str,
    origin: tuple[float, float] = (0.0, 0.0),
) -> str:
    """The picture, with a colour for each series.

    Args:
        spots: At least one point.
        title: Above it.
        across: What x is.
        up: What y is.
        origin: Values of x and y that are in the picture, each with a darker line.
    """
    x_ticks, y_ticks = (
        ticks(min(zero, *values), max(zero, *values))
        for zero, values in zip(origin, ([s.x for s in spots], [s.y for s in spots]), strict=True)
    )

    def at(x: float, y: float) -> tuple[float, float]:
        right = (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        high = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return LEFT + right * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - high * (
            HEIGHT - TOP - BOTTOM
        )

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="18" font-size="14">{escape(title)}</text>',
    ]
    for tick in x_ticks:
        (x, low), (_, high) = at(tick, y_ticks[0]), at(tick, y_ticks[-1])
        parts += [
            f'<path d="M{x:.1f} {low:.1f}V{high:.1f}" stroke="#e4e4e4"/>',
            f'<text x="{x:.1f}" y="{low + 18:.1f}" text-anchor="middle">{number(tick)}</text>',
        ]
    for tick in y_ticks:
        (left, y), (right, _) = at(x_ticks[0], tick), at(x_ticks[-1], tick)
        parts += [
            f'<path d="M{left:.1f} {y:.1f}H{right:.1f}" stroke="#e4e4e4"/>',
            f'<text x="{left - 8:.1f}" y="{y + 4:.1f}" text-anchor="end">{number(tick)}</text>',
        ]
    (left, zero), (right, _) = at(x_ticks[0], origin[1]), at(x_ticks[-1], origin[1])
    (middle, low), (_, high) = at(origin[0], y_ticks[0]), at(origin[0], y_ticks[-1])
    parts.append(
        f'<path d="M{left:.1f} {zero:.1f}H{right:.1f}M{middle:.1f} {low:.1f}V{high:.1f}" '
        'stroke="#888"/>'
    )
    for place, series in enumerate(sorted({spot.series for spot in spots})):
        colour, y = COLOURS[place % len(COLOURS)], TOP + 14 + 18 * place
        points = [at(spot.x, spot.y) for spot in spots if spot.series == series]
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}" fill-opacity="0.6"/>'
                  for x, y in points]  # fmt: skip
        legend = WIDTH - RIGHT + 16
        parts += [
            f'<circle cx="{legend}" cy="{y - 4}" r="4" fill="{colour}"/>',
            f'<text x="{legend + 10}" y="{y}">{escape(series)}</text>',
        ]
    half_up, half_across = (TOP + HEIGHT - BOTTOM) / 2, (LEFT + WIDTH - RIGHT) / 2
    return "\n".join([
        *parts,
        f'<text x="{half_across}" y="{HEIGHT - 12}" text-anchor="middle">{escape(across)}</text>',
        f'<text transform="translate(16 {half_up}) rotate(-90)" text-anchor="middle">'
        f"{escape(up)}</text>",
        "</svg>",
        "",
    ])  # fmt: skip
