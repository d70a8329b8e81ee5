"""What a table of the store is: a name, a meaning, and columns that say where their values are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from gracekit.types import Int32, UInt8

Source = TypeVar("Source")

ColumnType = Literal["int32", "int64", "float32", "float64", "string", "timestamp[ms]", "json"]
"""Arrow's names of the types, and `json`, which is text in files and DuckDB's JSON in SQL."""

Packing = Literal["dictionary", "plain", "ascending"]
"""How Parquet stores the values of a column that holds no floats: by a dictionary of those that
repeat, as they are because hardly any repeats, or by the differences of ascending numbers."""


@dataclass(frozen=True, slots=True)
class Named:
    """Texts [n] of which there are few different ones."""

    codes: Int32 | UInt8
    """[n] index into `names`."""
    names: Sequence[str]


@dataclass(frozen=True, slots=True)
class Column(Generic[Source]):
    """One column of a table."""

    name: str
    """In SQL."""
    type: ColumnType
    about: str
    """The meaning: the comment in the database, and what docs/sql.md says."""
    get: Callable[[Source], Any] | None = None
    """Its value in the row that `Source` is, or its values [n] where `Source` is a whole table: an
    array, a masked array where some are NULL, or `Named`. None where only SQL has the column."""
    sql: str | None = None
    """An SQL expression that computes it, instead of `get`."""
    in_file: str | None = None
    """Its name in Parquet files, where that is another one."""
    packing: Packing = "dictionary"

    @property
    def file_name(self) -> str:
        """Its name in Parquet files."""
        return self.in_file or self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table or view, without the columns of the scores, which differ from recipe to recipe."""

    name: str
    about: str
    columns: tuple[Column[Any], ...]
    kind: Literal["table", "view", "file"]
    """`table`: whole in scores.duckdb. `view`: over Parquet files. `file`: a Parquet file that SQL
    shows under other names."""

    @property
    def names(self) -> list[str]:
        """Of the columns, in order."""
        return [column.name for column in self.columns]

    def about_column(self, name: str) -> str | None:
        """The meaning of a column; None for one that is not described: the column of a score."""
        return next((column.about for column in self.columns if column.name == name), None)
