"""How results look: JSON for machines, plain aligned tables for people. Results go to stdout."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

import click

_UNLIMITED = 10**9
"""Characters; wider than any table."""


def print_json(value: Any) -> None:
    """One JSON document; numbers that JSON lacks (NaN, infinities) become null."""
    click.echo(json.dumps(_plain(value), indent=2, ensure_ascii=False, default=str))


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
            row[position] is None or isinstance(row[position], (int, float)) for row in rows
        )
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
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
    text = str(value)
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def format_bytes(num_bytes: int) -> str:
    """A size in the largest binary unit that keeps it above one."""
    size = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value
