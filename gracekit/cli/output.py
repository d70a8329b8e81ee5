"""Where the answer of a command goes: as text and tables for people, or as JSON for machines."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import click

from gracekit.cli import cells, terminal
from gracekit.cli.json_text import print_json
from gracekit.text_table import LEAST_ID, LEAST_TEXT, Column, lay_out, shorten


@dataclass(frozen=True, slots=True, kw_only=True)
class TableColumn:
    """A column of a command's table."""

    key: str
    """Of the record."""
    title: str
    show: Callable[[Any], str] = cells.plain
    is_number: bool = False
    priority: int = 0
    """Where room is short, columns with the highest number are left out first."""
    least: int = LEAST_TEXT
    """Characters that a text is shortened to at most."""


@dataclass(frozen=True, slots=True)
class Output:
    """The answer of one command, on stdout; remarks about it go to stderr."""

    as_json: bool = False
    all_columns: bool = False
    """Show tables whole, whatever the width of the terminal."""

    def show(self, found: Any, print_text: Callable[[], None]) -> None:
        """The value as a JSON document, or what `print_text` prints.

        Args:
            found: Plain values, or something with `to_json`.
            print_text: Prints the same for people.
        """
        if self.as_json:
            print_json(found.to_json() if hasattr(found, "to_json") else found)
        else:
            print_text()

    def line(self, text: str = "") -> None:
        """One sentence or title, on as many lines as the terminal needs; piped, on one."""
        click.echo(_wrapped(text))

    def remark(self, text: str) -> None:
        """Something about the answer, on stderr."""
        click.echo(_wrapped(text), err=True)

    def paragraphs(self, texts: Iterable[str]) -> None:
        """Sentences, each entry on lines of its own."""
        for text in texts:
            self.line(text)

    def pairs(self, values: Mapping[str, str]) -> None:
        """Names and values below each other; long values are shortened to the terminal's width."""
        width, widest = terminal.width(), max(map(len, values), default=0)
        for name, value in values.items():
            text = f"{name:<{widest}}  {terminal.printable(value)}"
            if width is not None and not self.all_columns:
                text = shorten(text, width, "..." if terminal.is_ascii() else "…")
            click.echo(text)

    def table(self, columns: Sequence[TableColumn], records: Sequence[Mapping[str, Any]]) -> None:
        """A table of the records, in lines that fit the terminal; piped it is whole."""
        self._print([
            Column(
                title=terminal.printable(column.title),
                cells=[column.show(record[column.key]) for record in records],
                is_number=column.is_number,
                priority=column.priority,
                least=column.least,
            )
            for column in columns
        ])  # fmt: skip

    def rows(self, names: Sequence[str], rows: Sequence[Sequence[Any]], *, whole: bool = False) -> (
        None
    ):  # fmt: skip
        """The same of any rows: the last columns are the first to be left out."""
        columns = list(zip(*rows, strict=True)) if rows else [()] * len(names)
        self._print(
            [
                Column(
                    title=terminal.printable(name),
                    cells=[cells.plain(value) for value in values],
                    is_number=bool(rows) and all(map(_is_number, values)),
                    priority=position,
                    least=LEAST_ID if not position or name == "sample_id" else LEAST_TEXT,
                )
                for position, (name, values) in enumerate(zip(names, columns, strict=True))
            ],
            whole=whole,
        )

    def _print(self, columns: Sequence[Column], *, whole: bool = False) -> None:
        width = None if self.all_columns or whole else terminal.width()
        table = lay_out(columns, width=width, ascii_only=terminal.is_ascii())
        for line in table.lines:
            click.echo(line)
        if table.left_out:
            number = len(table.left_out)
            self.remark(
                f"{number} more column{'' if number == 1 else 's'} (--all-columns or --json): "
                + ", ".join(table.left_out)
            )


def _wrapped(text: str) -> str:
    """Broken between words where the terminal ends; what follows is indented."""
    text, width = terminal.printable(text), terminal.width()
    if width is None or len(text) <= width:
        return text
    indent = text[: len(text) - len(text.lstrip())] or "  "
    return textwrap.fill(text, width, subsequent_indent=indent, break_on_hyphens=False)


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, (int, float, Decimal))
