"""Tables of `version.columns` as Arrow has them: schemas, and columns filled from their sources."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa

from gracekit.store.files.parquet import text_column
from gracekit.version.table import Column, ColumnType, Named


def arrow_type(kind: ColumnType) -> pa.DataType:
    """Arrow's type of a column; JSON is text there."""
    if kind == "timestamp[ms]":
        return pa.timestamp("ms")
    return pa.string() if kind == "json" else pa.type_for_alias(kind)


def file_schema(columns: Iterable[Column[Any]]) -> pa.Schema:
    """Of Parquet files."""
    return pa.schema([(column.file_name, arrow_type(column.type)) for column in columns])


def sql_schema(columns: Iterable[Column[Any]]) -> pa.Schema:
    """Of the tables in SQL."""
    return pa.schema([(column.name, arrow_type(column.type)) for column in columns])


def arrays(columns: Iterable[Column[Any]], source: Any) -> list[pa.Array]:
    """Values [n] of each column for a source that is a whole table."""
    return [_array(column, source) for column in columns]


def records(columns: Iterable[Column[Any]], sources: Iterable[Any]) -> pa.Table:
    """A table with one row for each source."""
    columns = list(columns)
    rows = [{column.name: _value(column, source) for column in columns} for source in sources]
    return pa.Table.from_pylist(rows, schema=sql_schema(columns))


def named(values: Named) -> pa.Array:
    """Codes as text; small in Parquet, readable in SQL."""
    names = text_column(values.names)
    indices = pa.array(values.codes.astype(np.int32, copy=False))
    return pa.DictionaryArray.from_arrays(indices, names).cast(pa.string())


def _array(column: Column[Any], source: Any) -> pa.Array:
    assert column.get is not None, f"{column.name} is not made from arrays"
    values = column.get(source)
    if isinstance(values, Named):
        return named(values)
    kind = arrow_type(column.type)
    if column.type == "string":
        return text_column(values)
    if isinstance(values, np.ma.MaskedArray):
        return pa.array(values.data, kind, mask=np.ma.getmaskarray(values))
    return pa.array(values, kind)


def _value(column: Column[Any], source: Any) -> Any:
    assert column.get is not None, f"{column.name} is not made from a record"
    value = column.get(source)
    if column.type == "timestamp[ms]" and value is not None:
        return utc_time(value)
    return value


def utc_time(text: str) -> datetime:
    """The time that a header tells, without its zone, which is always UTC."""
    return datetime.fromisoformat(text).replace(tzinfo=None)
