"""JSON and CSV on stdout, safe for a terminal."""

from __future__ import annotations

import codecs
import csv
import json
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

import click

from gracekit.cli.terminal import printable

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


def plain_number(value: Decimal) -> int | float:
    """The number that JSON has for a decimal."""
    return int(value) if value == value.to_integral_value() else float(value)


def _json(value: Any) -> str:
    is_utf8 = codecs.lookup(sys.stdout.encoding or "utf-8").name == "utf-8"
    text = json.dumps(_plain(value), indent=2, ensure_ascii=not is_utf8, default=str)
    return _INVISIBLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.split("\n"))


def _plain(value: Any) -> Any:
    if isinstance(value, Decimal) and value.is_finite():
        return plain_number(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value
