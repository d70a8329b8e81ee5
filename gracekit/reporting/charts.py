"""Findings as SVG: lines with bands, bars beside or on top of each other, horizontal bars."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from gracekit.reporting.finding import Bars, Finding, Lines, Rows, Series
from gracekit.reporting.frame import HEIGHT, LEFT, RIGHT, WIDTH, Frame, frame, picture
from gracekit.reporting.numbers import show, tick
from gracekit.reporting.texts import LONGEST_NAME, plain
from gracekit.text_table import shorten

MOST_ROWS = 12
"""Horizontal groups of bars; the rest is told in words."""
LONGEST_IN_LEGEND = 40
"""Characters of a name."""
WIDEST_NAME = 44
"""Columns of a name above bars, as wide as a digit; characters of some scripts take two."""
MOST_DOTS = 150
"""Dots of a line, at equal distances; the line goes through all of its values."""
MOST_BARS = 60
"""Bars of a chart over versions, the last ones."""


def line_chart(finding: Finding, chart: Lines) -> str:
    """Lines over a column, with legend."""
    lines = _lines(finding, chart)
    values = [v for _, _, ys in lines for triple in ys for v in triple if v is not None]
    if chart.level is not None:
        values.append(chart.level)
    if chart.from_zero:
        values.append(0.0)
    xs = [x for _, across, _ in lines for x in across]
    if not xs or not values:
        return ""
    is_count = all(float(x).is_integer() for x in xs) and chart.x == "version"
    low, high = min(xs), max(xs)
    whole = range(int(low), int(high) + 1)
    marks = [(float(x), f"{x:,}") for x in whole] if is_count else None
    if low == high:
        low, high = low - 1, high + 1
    axes = frame(
        (low, high), (min(values), max(values)), x_name=chart.x_name, y_name=chart.y_name,
        y_format=chart.y_format, marks=marks,
    )  # fmt: skip
    parts = [*axes.parts]
    if chart.level is not None:
        y = axes.y(chart.level)
        parts.append(f'<line class="level" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" '
                     f'y2="{y:.1f}"/>')  # fmt: skip
    for place, (_, across, ys) in enumerate(lines):
        parts.append(_band(axes, across, ys, place))
    for place, (called, across, ys) in enumerate(lines):
        parts.append(_line(axes, across, ys, place))
        parts += _dots(axes, across, ys, place, called, chart)
    names = [(f"{place} line", called) for place, (called, _, _) in enumerate(lines)]
    if chart.level is not None:
        names.append(("level line", chart.level_name))
    return _legend(names) + picture(finding.title, parts)


_Triple = tuple[float | None, float | None, float | None]


def _lines(finding: Finding, chart: Lines) -> list[tuple[str, list[float], list[_Triple]]]:
    """Name, places and (value, low, high) of each line; values that are not known are left out."""
    if chart.by:
        names = list(dict.fromkeys(finding.columns[chart.by]))
        wanted = [
            (plain(name or "(no name)", LONGEST_IN_LEGEND), chart.series[0], name) for name in names
        ]
    else:
        wanted = [(series.name, series, None) for series in chart.series]
    found = []
    for called, series, only in wanted:
        across: list[float] = []
        ys: list[_Triple] = []
        for row in finding.rows():
            value = _known(row[series.column])
            if value is None or (chart.by and row[chart.by] != only):
                continue
            low = _known(row[series.low]) if series.low else None
            high = _known(row[series.high]) if series.high else None
            across.append(float(row[chart.x]))
            ys.append((value, low, high))
        if across:
            found.append((called, across, ys))
    return found


def _known(value: Any) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _band(axes: Frame, across: Sequence[float], ys: Sequence[_Triple], place: int) -> str:
    ends = [(x, low, high) for x, (_, low, high) in zip(across, ys, strict=True)
            if low is not None and high is not None]  # fmt: skip
    if not ends:
        return ""
    if len(ends) == 1:
        x, low, high = ends[0]
        return (f'<line class="stem s{place % 8}" x1="{axes.x(x):.1f}" x2="{axes.x(x):.1f}" '
                f'y1="{axes.y(low):.1f}" y2="{axes.y(high):.1f}"/>')  # fmt: skip
    upper = [f"{axes.x(x):.1f},{axes.y(high):.1f}" for x, _, high in ends]
    lower = [f"{axes.x(x):.1f},{axes.y(low):.1f}" for x, low, _ in reversed(ends)]
    return f'<polygon class="band s{place % 8}" points="{" ".join(upper + lower)}"/>'


def _line(axes: Frame, across: Sequence[float], ys: Sequence[_Triple], place: int) -> str:
    points = " ".join(
        f"{axes.x(x):.1f},{axes.y(y):.1f}"
        for x, (y, _, _) in zip(across, ys, strict=True)
        if y is not None
    )
    return f'<polyline class="curve s{place % 8} dash{_dash(place)}" points="{points}"/>'


def _dash(place: int) -> int:
    """Of eight lines each has its colour; the next eight have other dashes than these."""
    return (place + place // 8) % 4


def _dots(
    axes: Frame, across: Sequence[float], ys: Sequence[_Triple], place: int, called: str,
    chart: Lines,
) -> list[str]:  # fmt: skip
    parts: list[str] = []
    radius = 3 if len(across) <= 30 else 2
    every = -(-len(across) // MOST_DOTS)
    first = (len(across) - 1) % every  # the last one has a dot
    for x, (y, low, high) in zip(across[first::every], ys[first::every], strict=True):
        if y is None:
            continue
        told = f"{called}, {chart.x} {show(int(x) if x.is_integer() else x)}: " + show(
            y, chart.y_format
        )
        if low is not None and high is not None:
            told += f" ({show(low, chart.y_format)} to {show(high, chart.y_format)})"
        parts.append(
            f'<circle class="dot s{place % 8}" cx="{axes.x(x):.1f}" cy="{axes.y(y):.1f}" '
            f'r="{radius}">'
            f"<title>{escape(told)}</title></circle>"
        )
    return parts


def bar_chart(finding: Finding, chart: Bars) -> str:
    """Vertical bars over a column, with legend."""
    rows = list(finding.rows())[-MOST_BARS:]
    tops: list[float] = []
    for row in rows:
        values = [_known(row[series.column]) or 0.0 for series in chart.series]
        tops += [sum(values)] if chart.is_stacked else values
        if chart.level:
            tops.append(_known(row[chart.level]) or 0.0)
    marks = [(k + 0.5, _below(row[chart.x])) for k, row in enumerate(rows)]
    axes = frame(
        (0.0, float(len(rows))), (0.0, max([*tops, 0.0]) or 1.0), x_name=chart.x_name,
        y_name=chart.y_name, y_format=chart.y_format, marks=marks,
    )  # fmt: skip
    parts = [*axes.parts]
    slot = axes.x(1) - axes.x(0)
    gap = min(0.2 * slot, 24) if slot > 3 else 0.0
    width = min(slot - gap, 60.0)
    for k, row in enumerate(rows):  # the middle of the bars stands above their mark
        parts += _bars_of(axes, chart, row, axes.x(k + 0.5) - width / 2, width)
        level = _known(row[chart.level]) if chart.level else None
        if level is not None:
            y = axes.y(level)
            parts.append(f'<line class="level" x1="{axes.x(k):.1f}" x2="{axes.x(k + 1):.1f}" '
                         f'y1="{y:.1f}" y2="{y:.1f}"/>')  # fmt: skip
    names = [(_class(chart.series, place), series.name)
             for place, series in enumerate(chart.series)]  # fmt: skip
    if chart.level:
        names.append(("level line", chart.level_name))
    return _legend(names) + picture(finding.title, parts)


def _below(value: float) -> str:
    """What stands below a bar."""
    return tick(value, "number") if float(value).is_integer() else f"{value:.2g}"


def _bars_of(axes: Frame, chart: Bars, row: dict[str, Any], left: float, width: float) -> (
    list[str]
):  # fmt: skip
    parts, below = [], 0.0
    each = width if chart.is_stacked else width / len(chart.series)
    for place, series in enumerate(chart.series):
        value = _known(row[series.column])
        if value is None:
            continue
        bottom = below if chart.is_stacked else 0.0
        top, foot = axes.y(bottom + value), axes.y(bottom)
        x = left if chart.is_stacked else left + place * each
        told = f"{series.name}, {chart.x.replace('_', ' ')} {show(row[chart.x])}: " + show(
            value, chart.y_format
        )
        parts.append(
            f'<rect class="bar {_class(chart.series, place)}" x="{x:.1f}" y="{top:.1f}" '
            f'width="{max(each - 0.6, 0.4):.1f}" height="{max(foot - top, 0):.1f}">'
            f"<title>{escape(told)}</title></rect>"
        )
        below += value
    return parts


def _class(series: Sequence[Series], place: int) -> str:
    """Data is drawn hollow and the coreset full, so that they differ without colours."""
    if series[place].name == "data":
        return "of-data"
    if series[place].name == "coreset" or len(series) == 1:
        return "of-coreset"
    return f"level{place % 4}"


def row_chart(finding: Finding, chart: Rows) -> str:
    """Horizontal bars, a name above each group of them."""
    rows = list(finding.rows())[:MOST_ROWS]
    most = max([_known(row[s.column]) or 0.0 for row in rows for s in chart.series] or [0.0]) or 1.0
    line, thick = 20, 15
    height_of_one = line + thick * len(chart.series) + 10
    height = height_of_one * len(rows) + 24
    room = WIDTH - 74
    parts = []
    for k, row in enumerate(rows):
        top = k * height_of_one
        called = shorten(plain(row[chart.label] or "(no name)", LONGEST_NAME), WIDEST_NAME)
        parts.append(f'<text class="name" x="2" y="{top + 15}">{escape(called)}</text>')
        for place, series in enumerate(chart.series):
            value = _known(row[series.column])
            if value is None:
                continue
            y, long = top + line + place * thick, room * value / most
            told = f"{called}, {series.name}: {show(value, chart.x_format)}"
            parts.append(
                f'<rect class="bar {_class(chart.series, place)}" x="2" y="{y}" '
                f'width="{long:.1f}" height="{thick - 2}"><title>{escape(told)}</title></rect>'
                f'<text class="tick" x="{long + 8:.1f}" y="{y + 11}">'
                f"{escape(show(value, chart.x_format))}</text>"
            )
    parts.append(f'<text class="axis" x="2" y="{height - 6}">{escape(chart.x_name)}</text>')
    names = [(_class(chart.series, p), series.name) for p, series in enumerate(chart.series)]
    more = len(finding) - len(rows)
    rest = f'<p class="note">{more:,} smaller groups are in the numbers below.</p>' if more else ""
    return _legend(names) + picture(finding.title, parts, height=max(height, HEIGHT // 4)) + rest


def _legend(names: Sequence[tuple[str, str]]) -> str:
    items = "".join(
        f'<li><svg class="key" viewBox="0 0 26 12" aria-hidden="true">{_key(kind)}</svg>'
        f"{escape(name)}</li>"
        for kind, name in names
    )
    return f'<ul class="legend">{items}</ul>' if len(names) > 1 else ""


def _key(kind: str) -> str:
    if kind == "level line":
        return '<line class="level" x1="0" x2="26" y1="6" y2="6"/>'
    if kind.endswith(" line"):
        place = int(kind.removesuffix(" line"))
        return (f'<line class="curve s{place % 8} dash{_dash(place)}" x1="0" x2="26" '
                'y1="6" y2="6"/>'
                f'<circle class="dot s{place % 8}" cx="13" cy="6" r="3"/>')  # fmt: skip
    return f'<rect class="bar {kind}" x="4" y="1" width="18" height="10"/>'
