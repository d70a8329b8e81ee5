"""Plain text tables that fit a width, and texts cut to one; a cell never runs over two lines."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

GAP = 2
"""Spaces between two columns."""
LEAST_TEXT = 12
"""Characters of a text that are shown at least; with fewer the column had better be left out."""
LEAST_ID = 40
"""The same of what a reader copies, such as an id: the beginning of one is of no use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column of text, and what may be done to it where room is short."""

    title: str
    cells: Sequence[str]
    is_number: bool = False
    """Numbers stand to the right, and are never shortened."""
    priority: int = 0
    """Columns with the highest number are left out first; among equals the last one."""
    least: int = LEAST_TEXT
    """Characters that a text is shortened to at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextTable:
    """The lines of a table: titles, a rule, and one line a row."""

    lines: list[str]
    left_out: list[str]
    """Titles of the columns that had no room, in their order."""
    is_shortened: bool
    """Whether a text was cut."""


def lay_out(columns: Sequence[Column], *, width: int | None = None, ascii_only: bool = False) -> (
    TextTable
):  # fmt: skip
    """Arrange columns of equal length.

    Args:
        columns: At least one.
        width: Characters that no line exceeds, at least 1; None: as wide as it takes.
        ascii_only: Use no character that an ASCII terminal lacks for rule and ellipsis.
    """
    rule, ellipsis = ("-", "...") if ascii_only else ("─", "…")
    natural = [max(map(display_width, (c.title, *c.cells))) for c in columns]
    least = [
        whole if c.is_number else min(whole, max(c.least, display_width(c.title)))
        for c, whole in zip(columns, natural, strict=True)
    ]
    shown = list(range(len(columns)))
    widths = natural
    if width is not None:
        while len(shown) > 1 and _line_width(shown, least) > width:
            shown.remove(max(shown, key=lambda i: (columns[i].priority, i)))
        widths = _shared_out(shown, least, natural, width)
    texts = [
        [shorten(text, widths[i], ellipsis) for text in (columns[i].title, *columns[i].cells)]
        for i in shown
    ]
    aligned = [
        [_aligned(text, widths[i], columns[i].is_number) for text in column]
        for i, column in zip(shown, texts, strict=True)
    ]
    title, *rows = [(" " * GAP).join(cells).rstrip() for cells in zip(*aligned, strict=True)]
    return TextTable(
        lines=[title, rule * _line_width(shown, widths), *rows],
        left_out=[column.title for i, column in enumerate(columns) if i not in shown],
        is_shortened=any(widths[i] < natural[i] for i in shown),
    )


def _line_width(shown: Sequence[int], widths: Sequence[int]) -> int:
    return sum(widths[i] for i in shown) + GAP * (len(shown) - 1)


def _shared_out(
    shown: Sequence[int], least: Sequence[int], natural: Sequence[int], width: int
) -> list[int]:
    """Widths of all columns: what is left over goes to the texts, in equal parts."""
    widths = list(least)
    if len(shown) == 1:
        widths[shown[0]] = min(natural[shown[0]], width)
        return widths
    free = width - _line_width(shown, widths)
    growing = [i for i in shown if widths[i] < natural[i]]
    while free > 0 and growing:
        part = max(free // len(growing), 1)
        for i in growing:
            more = min(part, natural[i] - widths[i], free)
            widths[i] += more
            free -= more
        growing = [i for i in growing if widths[i] < natural[i]]
    return widths


def _aligned(text: str, width: int, is_number: bool) -> str:
    space = " " * (width - display_width(text))
    return space + text if is_number else text + space


def display_width(text: str) -> int:
    """Columns of a terminal that a text takes: 2 for a wide character, 0 for a combining one."""
    if text.isascii():
        return len(text)
    return sum(map(_character_width, text))


def _character_width(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def shorten(text: str, width: int, ellipsis: str = "…") -> str:
    """A text of at most `width` columns; one that is longer ends in an ellipsis."""
    if display_width(text) <= width:
        return text
    room = width - len(ellipsis)
    if room <= 0:
        return ellipsis[:width]
    taken, used = 0, 0
    for character in text:
        used += _character_width(character)
        if used > room:
            break
        taken += 1
    return text[:taken].rstrip() + ellipsis
