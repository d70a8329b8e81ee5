"""Parquet as the store writes it: zstd, floats by byte planes, ascending rows by differences."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gracekit.errors import StoreFormatError
from gracekit.types import Strings
from gracekit.version.json_text import clean_text as clean
from gracekit.version.table import Column


def write_table(path: Path, table: pa.Table, columns: Iterable[Column[Any]]) -> None:
    """Write one file, each column packed as it says; scores, which are no columns, are floats.

    Floats compress best split by byte, rows by differences, the rest by a dictionary; but one of
    ids, hashes and previews, which hardly repeat, only costs time.
    """
    packing = {column.file_name: column.packing for column in columns}
    encodings: dict[str, str] = {}
    dictionaries: list[str] = []
    for field in table.schema:
        if pa.types.is_floating(field.type):
            encodings[field.name] = "BYTE_STREAM_SPLIT"
        elif packing[field.name] == "ascending":
            encodings[field.name] = "DELTA_BINARY_PACKED"
        elif packing[field.name] == "dictionary":
            dictionaries.append(field.name)
    pq.write_table(
        table,
        str(path),
        compression="zstd",
        use_dictionary=dictionaries,
        column_encoding=encodings,
    )


def read_table(path: Path) -> pa.Table:
    """Read one file as it is (no hive columns from its path).

    Raises `StoreFormatError` when it is missing or damaged.
    """
    try:
        with pq.ParquetFile(str(path)) as file:
            return file.read()
    except (OSError, pa.ArrowException) as error:
        raise damaged(path, error) from error


def numbers(column: pa.ChunkedArray, missing: int | None = None) -> NDArray[Any]:
    """The values [n] of a column of numbers, read-only, without loading pandas as `to_numpy` does.

    Args:
        column: Of whole numbers or floats.
        missing: What stands for NULL; None: there must be none (`ValueError`).
    """
    array = column.combine_chunks()
    kind = array.type.to_pandas_dtype()
    if array.type not in _NUMBERS or (missing is None and array.null_count):
        raise ValueError(
            f"expected a column of numbers, found {array.null_count} NULL in {array.type}"
        )
    values = np.frombuffer(array.buffers()[1] or b"", kind)[array.offset :][: len(array)]
    if missing is not None and array.null_count:
        is_null = np.frombuffer(pc.is_null(array).cast(pa.uint8()).buffers()[1], np.uint8)
        values = np.where(is_null[: len(array)] > 0, missing, values)
    return values


_NUMBERS = (pa.int32(), pa.int64(), pa.float32(), pa.float64())


def read_schema(path: Path) -> pa.Schema:
    """Names, types and metadata of a file; raises as `read_table`."""
    try:
        return pq.read_schema(str(path))
    except (OSError, pa.ArrowException) as error:
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> StoreFormatError:
    """The error for a file of the store that cannot be read."""
    reason = str(error).partition("\n")[0] or type(error).__name__
    return StoreFormatError(
        f"cannot read {path}: {reason}; run `gracekit verify` to see what else is damaged, and "
        "restore the file from a backup"
    )


def clean_text(values: Strings) -> list[str]:
    """Strings that UTF-8 can hold: a lone surrogate becomes U+FFFD, all else stays as it is."""
    return [clean(str(value)) for value in values]
