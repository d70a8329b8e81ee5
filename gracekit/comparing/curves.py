"""Curves as SVG, without a library: losses of all arms over steps, or over compute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from gracekit.axes import number, ticks

WIDTH, HEIGHT = 760, 400
LEFT, RIGHT, TOP, BOTTOM = 64, 190, 34, 52
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c564b")
"""Of Okabe and Ito, which people who see few colours can tell apart; then dashes change."""
DASHES = ("", "6 3", "2 3", "8 3 2 3")


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One line."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


def draw(curves: Sequence[Curve], *, title: str, x_name: str, y_name: str) -> str:
    """The figure as one SVG element.

    Args:
        curves: Finite values, x ascending; the legend is in their order.
        title: Above the figure.
        x_name: Below the axis.
        y_name: Beside the axis.
    """
    xs = [x for curve in curves for x in curve.x] or [0.0]
    ys = [y for curve in curves for y in _shown(curve)] or [0.0]
    x_ticks, y_ticks = ticks(min(xs), max(xs)), ticks(min(ys), max(ys))
    low, high = y_ticks[0], y_ticks[-1]
    first, last = x_ticks[0], max(x_ticks[-1], max(xs))

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - first) / ((last - first) or 1)
        up = (y - low) / ((high - low) or 1)
        return (
            LEFT + across * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM),
        )

    frame = "frame-" + "".join(c for c in title if c.isalnum())
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<clipPath id="{frame}"><rect x="{LEFT}" y="{TOP - 4}" width="{WIDTH - LEFT - RIGHT + 4}" '
        f'height="{HEIGHT - TOP - BOTTOM + 8}"/></clipPath>',
        f'<text x="{LEFT}" y="18" font-size="14">{escape(title)}</text>',
    ]
    for tick in y_ticks:
        x, y = at(first, tick)
        parts.append(f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" '
                     'stroke="#ddd"/>')  # fmt: skip
        parts.append(f'<text x="{x - 8:.1f}" y="{y + 4:.1f}" text-anchor="end">'
                     f"{number(tick)}</text>")  # fmt: skip
    for tick in x_ticks:
        x, y = at(tick, low)
        parts.append(f'<text x="{x:.1f}" y="{y + 18:.1f}" text-anchor="middle">'
                     f"{number(tick)}</text>")  # fmt: skip
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 10}" text-anchor="middle">'
                 f"{escape(x_name)}</text>")  # fmt: skip
    parts.append(f'<text transform="translate(14 {HEIGHT / 2}) rotate(-90)" '
                 f'text-anchor="middle">{escape(y_name)}</text>')  # fmt: skip
    above = max((y for curve in curves for y in curve.y), default=high)
    if above > high:
        parts.append(
            f'<text x="{WIDTH - RIGHT - 8}" y="{TOP + 14}" text-anchor="end" fill="#555">'
            f"{above:.3f} at the start</text>"
        )
    for place, curve in enumerate(curves):
        parts.extend(_line(curve, place, at, frame))
    return "\n".join([*parts, "</svg>", ""])


def _line(curve: Curve, place: int, at: object, frame: str) -> list[str]:
    assert callable(at)
    colour = COLOURS[place % len(COLOURS)]
    dashes = DASHES[place // len(COLOURS) % len(DASHES)]
    style = f'stroke="{colour}" stroke-width="2" fill="none"'
    style += f' stroke-dasharray="{dashes}"' if dashes else ""
    points = [at(x, y) for x, y in zip(curve.x, curve.y, strict=True)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    y = TOP + 8 + 18 * place
    x = WIDTH - RIGHT + 14
    dots = [f'<circle cx="{px:.1f}" cy="{py:.1f}" r="2.5" fill="{colour}"/>' for px, py in points]
    line = f'<polyline points="{path}" {style}/>'
    parts = [f'<g clip-path="url(#{frame})">{line}{"".join(dots)}</g>']
    parts.append(f'<line x1="{x}" y1="{y}" x2="{x + 26}" y2="{y}" {style}/>')
    parts.append(f'<text x="{x + 32}" y="{y + 4}">{escape(curve.name)}</text>')
    return parts


def _shown(curve: Curve) -> Sequence[float]:
    """The values that the axis is made for: the first, before training, would flatten the rest."""
    return curve.y[1:] if len(curve.y) > 2 else curve.y
