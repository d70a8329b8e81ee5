"""How results look: JSON for machines, plain aligned tables for people. Results go to stdout."""

from __future__ import annotations

import codecs
import csv
import io
import json
import logging
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

import click

_UNLIMITED = 10**9
"""Characters; wider than any table."""


_INVISIBLE = re.compile(
    "[\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff]"
)
"""Legal in JSON as they are, but they steer a terminal, turn the direction of text, or cannot be
written as UTF-8."""


def print_json(value: Any) -> None:
    """One JSON document; numbers that JSON lacks (NaN, infinities) become null."""
    click.echo(_json(value))


def print_json_records(records: Iterable[Mapping[str, Any]]) -> None:
    """The same as `print_json` of the list, one record after another."""
    count = 0
    for count, record in enumerate(records, start=1):
        click.echo(("[\n" if count == 1 else ",\n") + _indented(_json(record)), nl=False)
    click.echo("\n]" if count else "[]")


def print_csv(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """CSV; on a terminal control characters are shown as in a table, elsewhere it is exact."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    show = printable if sys.stdout.isatty() else str
    writer.writerow(columns)
    for row in rows:
        writer.writerow([show(value) if isinstance(value, str) else value for value in row])


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table: numbers to the right; piped plain, one line a row, whatever its width."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows = [list(row) for row in rows]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for position, name in enumerate(columns):
        numeric = bool(rows) and all(
            row[position] is None or isinstance(row[position], (int, float, Decimal))
            for row in rows
        )
        table.add_column(
            Text(printable(name)), justify="right" if numeric else "left", overflow="fold"
        )
    for row in rows:
        table.add_row(*(Text(format_cell(value)) for value in row))
    console = Console(highlight=False)
    if console.is_terminal:
        console.print(table)
        return
    width = Console(width=_UNLIMITED).measure(table).maximum
    plain = Console(file=io.StringIO(), width=width, highlight=False, color_system=None)
    with plain.capture() as captured:
        plain.print(table)
    for line in captured.get().splitlines():
        click.echo(line.rstrip())


def format_cell(value: Any) -> str:
    """Short text of one value; control characters are shown, never sent to the terminal."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        if not math.isfinite(value):
            return "-" if math.isnan(value) else str(value)
        return f"{value:.4g}" if abs(value) < 10_000 else f"{value:,.0f}"
    if isinstance(value, Decimal):
        return format_cell(_number(value))
    return printable(str(value))


def printable(text: str, *, keep: str = "") -> str:
    """Text for a terminal: what is no visible character is written as an escape.

    So neither data nor file names can move the cursor, change colours or titles, or turn the
    direction of what follows. The characters in `keep` stay.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else repr(c)[1:-1] for c in text)


def say(text: str, *, err: bool = False) -> None:
    """Lines for people in which names and data cannot steer the terminal."""
    click.echo(printable(text, keep="\n"), err=err)


class LogLines(logging.Formatter):
    """`12:00:00 message`, safe for a terminal; what follows in further lines is indented, so that
    no name can pretend to be a line of its own.
    """

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(message)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        """The lines."""
        return printable(super().format(record), keep="\n").replace("\n", "\n    ")


def format_bytes(num_bytes: int) -> str:
    """A size in the largest binary unit that keeps it above one."""
    size = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def _json(value: Any) -> str:
    is_utf8 = codecs.lookup(sys.stdout.encoding or "utf-8").name == "utf-8"
    text = json.dumps(_plain(value), indent=2, ensure_ascii=not is_utf8, default=str)
    return _INVISIBLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.split("\n"))


def _number(value: Decimal) -> int | float:
    return int(value) if value == value.to_integral_value() else float(value)


def _plain(value: Any) -> Any:
    if isinstance(value, Decimal) and value.is_finite():
        return _number(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value
