"""What values that hold rows or many fields have in common: short reprs, tables for notebooks,
Arrow, pandas and polars, and arrays that nobody changes by accident.
"""

from __future__ import annotations

import dataclasses
import html
import importlib
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, overload

import numpy as np

from gracekit.arrow import arrow
from gracekit.errors import GracekitError
from gracekit.text_table import Column, lay_out

if TYPE_CHECKING:
    import pyarrow as pa

Row = TypeVar("Row")
Value = TypeVar("Value")

MOST_LINES = 10
"""Lines of a repr."""
MOST_CHARACTERS = 100
"""Characters of a line of a repr, and of a cell in a notebook."""


class MissingLibraryError(GracekitError):
    """An optional library that is not installed."""


class ShortRepr:
    """A dataclass whose repr has at most ten lines; declare it with `repr=False`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return short_repr(type(self).__name__, _fields_of(self))


class Tabular:
    """Something with rows; a subclass gives its columns in `_columns`."""

    __slots__ = ()

    def _columns(self) -> Mapping[str, Sequence[Any] | np.ndarray[Any, Any]]:
        """Name -> the values of a column, one a row."""
        raise NotImplementedError

    def to_arrow(self) -> pa.Table:
        """The rows as a `pyarrow.Table`."""
        pa = arrow()
        return pa.table({name: pa.array(values) for name, values in self._columns().items()})

    def to_pandas(self) -> Any:
        """The rows as a `pandas.DataFrame`; raises `MissingLibraryError` without pandas."""
        _library("pandas", "to_pandas")
        return self.to_arrow().to_pandas()

    def to_polars(self) -> Any:
        """The rows as a `polars.DataFrame`; raises `MissingLibraryError` without polars."""
        return _library("polars", "to_polars").from_arrow(self.to_arrow())

    def _repr_html_(self) -> str:
        columns = {name: list(values[:MOST_LINES]) for name, values in self._columns().items()}
        num_rows = max((len(values) for values in self._columns().values()), default=0)
        rows = zip(*columns.values(), strict=True)
        return html_table(list(columns), rows, num_rows=num_rows)


class Records(Tabular, Sequence[Row]):
    """Rows that are dataclasses of one kind; a subclass names it in `row_type`."""

    __slots__ = ("_rows",)
    row_type: ClassVar[type[Any]]

    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows = tuple(rows)

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | Sequence[Row]:
        return self._rows[index]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and self._rows == other._rows

    def __hash__(self) -> int:
        return hash(self._rows)

    def to_json(self) -> list[dict[str, Any]]:
        """One JSON object a row."""
        return [_fields_of(row) for row in self._rows]

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        records = self.to_json()
        names = records[0] if records else [f.name for f in dataclasses.fields(self.row_type)]
        return {name: [record[name] for record in records] for name in names}

    def __repr__(self) -> str:
        return table_repr(type(self).__name__, len(self), self._columns())


def table_repr(
    name: str, num_rows: int, columns: Mapping[str, Sequence[Any] | np.ndarray[Any, Any]]
) -> str:
    """A name, and the first rows as a table: at most ten lines of at most a hundred characters."""
    head = f"{name}: {num_rows:,} row{'' if num_rows == 1 else 's'}"
    if not num_rows or not columns:
        return head
    most = MOST_LINES - 4 if num_rows > MOST_LINES - 3 else MOST_LINES - 3
    shown = [
        Column(
            title=title,
            cells=[_text_cell(value) for value in values[:most]],
            is_number=all(isinstance(v, (int, float, np.number)) for v in values[:most]),
            priority=position,
        )
        for position, (title, values) in enumerate(columns.items())
    ]
    table = lay_out(shown, width=MOST_CHARACTERS)
    lines = [head, *table.lines]
    if num_rows > most:
        lines.append(f"… and {num_rows - most:,} more rows")
    return "\n".join(lines)


def _text_cell(value: Any) -> str:
    if isinstance(value, (float, np.floating)):
        return f"{float(value):.4g}"
    return cut("-" if value is None else str(value))


def _library(name: str, method: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise MissingLibraryError(
            f"{method}() needs the library {name}, which is not installed: pip install {name}. "
            "to_arrow() works without it"
        ) from None


def html_table(
    titles: Sequence[str], rows: Iterable[Sequence[Any]], *, num_rows: int | None = None
) -> str:
    """A small table for a notebook; all text is escaped.

    Args:
        titles: One per column.
        rows: The rows to show.
        num_rows: How many there are in all, told below when some are not shown.
    """
    shown = [[_html_cell(value) for value in row] for row in rows]
    head = "".join(f"<th>{html.escape(title)}</th>" for title in titles)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in shown)
    more = ""
    if num_rows is not None and num_rows > len(shown):
        more = f"<p>the first {len(shown):,} of {num_rows:,} rows</p>"
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"


def _html_cell(value: Any) -> str:
    if isinstance(value, (float, np.floating)):
        return f"{float(value):.4g}"
    text = "–" if value is None else str(value)
    return html.escape(text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 1] + "…")


def short_repr(name: str, fields: Mapping[str, Any]) -> str:
    """`Name(field=value, …)` in one line where it fits, else one line a field, at most ten lines.

    Arrays are told by type and shape, long texts and collections are shortened.
    """
    parts = [f"{key}={brief(value)}" for key, value in fields.items()]
    line = f"{name}({', '.join(parts)})"
    if len(line) <= MOST_CHARACTERS:
        return line
    most = MOST_LINES - 2
    if len(parts) > most:
        parts = [*parts[: most - 1], f"… and {len(parts) - most + 1} more fields"]
    return "\n".join([f"{name}(", *(f"  {part}" for part in parts), ")"])


_BRIEF = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = 70
_BRIEF.maxdict = _BRIEF.maxlist = _BRIEF.maxtuple = 4


def brief(value: Any) -> str:
    """A value in at most about a hundred characters, on one line."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype}[{', '.join(map(str, value.shape))}]"
    if isinstance(value, PurePath):
        value = str(value)
    if isinstance(value, Mapping):
        shown = ", ".join(f"{k!r}: {brief(v)}" for k, v in list(value.items())[:4])
        return cut(f"{{{shown}{', …' if len(value) > 4 else ''}}}")
    if isinstance(value, (str, int, float, type(None), list, tuple, set, frozenset)):
        return cut(_BRIEF.repr(value))
    return cut(repr(value))


def cut(text: str) -> str:
    """The same on one line of at most a hundred characters."""
    text = " ".join(text.split())
    return text if len(text) <= MOST_CHARACTERS - 20 else text[: MOST_CHARACTERS - 21] + "…"


def _fields_of(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def read_only(value: Value) -> Value:
    """Make the arrays of a dataclass (also those in its dicts) unwritable; returns the same."""
    for content in _fields_of(value).values():
        for array in content.values() if isinstance(content, dict) else (content,):
            if isinstance(array, np.ndarray):
                array.flags.writeable = False
    return value
