"""Parquet as the store writes it: zstd, floats by byte planes, ascending rows by differences.

Each file carries a seal (`sealing`), which is checked whenever all of it, or its footer, is read.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from gracekit.errors import StoreFormatError
from gracekit.store.files.formats import unreadable
from gracekit.store.files.sealing import check_parquet, read_footer, sealed_parquet
from gracekit.texts import Texts
from gracekit.version.json_text import clean_text as clean
from gracekit.version.table import Column


def write_table(path: Path, table: pa.Table, columns: Iterable[Column[Any]]) -> None:
    """Write one sealed file, each column packed as it says; scores are floats.

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
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        compression="zstd",
        use_dictionary=dictionaries,
        column_encoding=encodings,
    )
    with path.open("wb") as file:
        for part in sealed_parquet(memoryview(sink.getvalue())):
            file.write(part)


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read one file as it is (no hive columns from its path), or of it the named columns.

    Raises `StoreFormatError` when it is missing, damaged, or not as it was sealed.
    """
    try:
        content = _content(path)
        check_parquet(memoryview(content).cast("B"))
        with pq.ParquetFile(pa.BufferReader(content)) as file:
            return file.read(columns=columns)
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise damaged(path, error) from error


def _content(path: Path) -> pa.Buffer:
    """The bytes of a file, in memory of Arrow's own.

    Threads of Arrow's pool may let go of what they read after `read` has returned. Of a Python
    object that needs the interpreter's lock, and where the interpreter ends at that moment, the
    whole process aborts ("terminate called without an active exception").
    """
    with path.open("rb") as file:
        content = pa.allocate_buffer(os.fstat(file.fileno()).st_size)
        return content.slice(0, file.readinto(memoryview(content)))


def is_sealed(path: Path) -> bool:
    """Whether a file has a seal; raises as `read_table` where it does not fit."""
    try:
        return check_parquet(memoryview(path.read_bytes()))
    except (OSError, ValueError) as error:
        raise damaged(path, error) from error


def count_rows(path: Path) -> int:
    """Rows of a file, by its footer; raises as `read_table`."""
    try:
        return int(pq.read_metadata(pa.BufferReader(read_footer(path))).num_rows)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise damaged(path, error) from error


def numbers(column: pa.ChunkedArray, missing: float | None = None) -> NDArray[Any]:
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
        return pq.read_schema(pa.BufferReader(read_footer(path)))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> StoreFormatError:
    """The error for a file of the store that cannot be read.

    A `MemoryError` (of Arrow too), which tells nothing of the file, is raised again as it is.
    """
    if isinstance(error, MemoryError):
        raise error
    if (without_access := unreadable(path, error)) is not None:
        return without_access
    reason = str(error).partition("\n")[0] or type(error).__name__
    return StoreFormatError(
        f"cannot read {path}: {reason}; run `gracekit verify` to see what else is damaged, and "
        "restore the file from a backup"
    )


def text_column(values: Iterable[str]) -> pa.Array | pa.ChunkedArray:
    """As Arrow's strings, and so in UTF-8: a lone surrogate becomes U+FFFD."""
    texts = values if isinstance(values, Texts) else Texts.of(values)
    try:
        return pa.array(texts)
    except ValueError:
        return pa.array(Texts.of(clean(text) for text in texts))
