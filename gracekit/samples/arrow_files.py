"""Rows of Parquet files and of `datasets`: values in plain Python.

Arrow fills the keys that a nested object lacks with null; such nulls are left out again. A column
that is null in a row stays in it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import groupby, pairwise
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gracekit.errors import DataError
from gracekit.samples.byte_files import is_compressed, unpack
from gracekit.samples.row_source import BATCH_ROWS, Source
from gracekit.types import Json

if TYPE_CHECKING:
    import datasets


class ParquetRows(Source):
    """The rows of Parquet files, decoded into a mapped file without a name when first needed."""

    def __init__(self, paths: Sequence[Path], columns: Sequence[str] | None = None) -> None:
        """Raises `DataError` for a file that is not Parquet."""
        self._paths = tuple(paths)
        self._selected = None if columns is None else tuple(columns)
        self._files = [_open(path) for path in self._paths]

    def __len__(self) -> int:
        return sum(file.metadata.num_rows for file in self._files)

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """See `Source.columns`."""
        return tuple(
            dict.fromkeys(name for file in self._files for name in file.schema_arrow.names)
        )

    @cached_property
    def all_columns(self) -> tuple[str, ...]:
        """See `Source.all_columns`."""
        return self.columns

    def select(self, columns: Sequence[str]) -> Source:
        """Only the given columns."""
        return ParquetRows(self._paths, columns)

    def files(self) -> list[tuple[str, int, int]]:
        """See `Source.files`."""
        bounds = np.cumsum([0] + [file.metadata.num_rows for file in self._files]).tolist()
        return [
            (str(path), *bound) for path, bound in zip(self._paths, pairwise(bounds), strict=True)
        ]

    def take(self, rows: Sequence[int]) -> list[Json]:
        """See `Source.take`."""
        batches, first_rows = self._batches
        wanted = np.asarray(rows, np.int64)
        numbers = np.searchsorted(first_rows, wanted, side="right") - 1
        found: list[Json] = []
        pairs = zip(numbers.tolist(), wanted.tolist(), strict=True)
        for number, group in groupby(pairs, key=lambda pair: pair[0]):
            local = [row - int(first_rows[number]) for _, row in group]
            try:
                batch = batches[number].take(pa.array(local, pa.int64()))
                _require_microseconds(", ".join(map(str, self._paths[:3])), batch)
                values = batch.to_pylist()
            except UnicodeDecodeError as error:
                raise _not_utf8(", ".join(map(str, self._paths[:3])), rows, error) from error
            except OverflowError as error:  # a date after the year 9999
                raise DataError(
                    f"{', '.join(map(str, self._paths[:3]))}: between rows {rows[0]} and "
                    f"{rows[-1]} there is a value that Python cannot hold ({error}). Correct it, "
                    "or save that column as text"
                ) from error
            found.extend(map(without_nested_nulls, values))
        return found

    @cached_property
    def _batches(self) -> tuple[list[pa.RecordBatch], np.ndarray]:
        """All rows as mapped record batches, and the first row of each."""
        try:
            batches = [batch for section in self._sections() for batch in section]
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(", ".join(map(str, self._paths[:3])), error) from error
        first_rows = np.cumsum([0] + [batch.num_rows for batch in batches])[:-1]
        return batches, first_rows

    def _sections(self) -> Iterator[list[pa.RecordBatch]]:
        """Files of one schema after the other; those with the same one share a section."""
        for schema, group in groupby(self._files, key=lambda file: file.schema_arrow):
            names = [n for n in schema.names if self._selected is None or n in self._selected]
            with tempfile.NamedTemporaryFile(prefix="gracekit-") as spool:
                kept = pa.schema([schema.field(name) for name in names])
                with pa.ipc.new_stream(pa.OSFile(spool.name, "wb"), kept) as writer:
                    for file in group:
                        for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=names):
                            writer.write_batch(batch)
                mapped = pa.memory_map(spool.name)
            yield list(pa.ipc.open_stream(mapped))


class DatasetRows(Source):
    """The rows of a `datasets.Dataset`."""

    def __init__(self, dataset: datasets.Dataset, name: str) -> None:
        self._dataset = dataset.with_format(None)
        self._has_times = any(map(_has_times, dataset.features.arrow_schema.types))
        self._name = name

    def __len__(self) -> int:
        return len(self._dataset)

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """See `Source.columns`."""
        return tuple(self._dataset.column_names)

    @cached_property
    def all_columns(self) -> tuple[str, ...]:
        """See `Source.all_columns`."""
        return self.columns

    def select(self, columns: Sequence[str]) -> Source:
        """Only the given columns."""
        known = [name for name in columns if name in self.columns]
        return DatasetRows(self._dataset.select_columns(known), self._name)

    def take(self, rows: Sequence[int]) -> list[Json]:
        """See `Source.take`."""
        if self._has_times:
            _require_microseconds(self._name, self._dataset.with_format("arrow")[list(rows)])
        try:
            batch = self._dataset[list(rows)]
        except UnicodeDecodeError as error:
            raise _not_utf8(self._name, rows, error) from error
        columns = [
            [_pruned_as(value, self._dataset.features[name]) for value in values]
            for name, values in batch.items()
        ]
        return [dict(zip(batch, values, strict=True)) for values in zip(*columns, strict=True)]


def without_nested_nulls(row: Json) -> Json:
    """The row without the keys of nested objects that are null."""
    return {key: _pruned(value) for key, value in row.items()}


def _pruned(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _pruned(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_pruned(item) if isinstance(item, dict | list) else item for item in value]
    return value


def _pruned_as(value: Any, feature: Any) -> Any:
    """As `_pruned`, but for what `datasets` holds as JSON, whose nulls are the user's."""
    if type(feature).__name__ == "Json":
        return value
    if isinstance(feature, dict) and isinstance(value, dict):
        kept = {key: item for key, item in value.items() if item is not None}
        return {key: _pruned_as(item, feature[key]) for key, item in kept.items()}
    inner = feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)
    if isinstance(value, list) and inner is not None and not isinstance(inner, str):
        return [_pruned_as(item, inner) for item in value]
    return _pruned(value)


def _has_times(kind: pa.DataType) -> bool:
    """Whether values of this type hold times of the day in nanoseconds."""
    if kind == pa.time64("ns"):
        return True
    return any(_has_times(kind.field(k).type) for k in range(kind.num_fields))


def _require_microseconds(name: str, rows: pa.RecordBatch | pa.Table) -> None:
    """`DataError` for a time of the day that Python would cut off; its times have microseconds."""
    for column, kind in zip(rows.schema.names, rows.schema.types, strict=True):
        if _has_times(kind) and any(map(_is_cut, _times_in(rows[column]))):
            raise DataError(
                f"{name}: the column {column!r} holds times with nanoseconds, which would be lost. "
                "Save it as text, or cut them off"
            )


def _times_in(values: pa.Array | pa.ChunkedArray) -> Iterator[pa.Array]:
    """Arrays of times of the day in nanoseconds, however deep they lie."""
    for chunk in values.chunks if isinstance(values, pa.ChunkedArray) else [values]:
        if chunk.type == pa.time64("ns"):
            yield chunk
        elif isinstance(chunk, pa.MapArray):
            yield from _times_in(chunk.keys)
            yield from _times_in(chunk.items)
        elif isinstance(chunk, pa.StructArray):
            for part in chunk.flatten():
                yield from _times_in(part)
        elif chunk.type.num_fields == 1:  # a list of any kind
            yield from _times_in(chunk.flatten())


def _is_cut(times: pa.Array) -> bool:
    found = times.cast(pa.int64()).drop_null().to_numpy()
    return bool((found % 1000).any())


def _open(path: Path) -> pq.ParquetFile:
    try:
        if not is_compressed(path):
            file = pq.ParquetFile(path)
        else:
            with tempfile.NamedTemporaryFile(prefix="gracekit-") as spool:
                unpack(path, cast("IO[bytes]", spool))
                file = pq.ParquetFile(spool.name)
        names = file.schema_arrow.names
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(str(path), error) from error
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(
            f"{path} has {names.count(twice)} columns named {twice!r}; expected each once. Rename "
            "or drop one of them"
        )
    return file


def _unreadable(name: str, error: Exception) -> DataError:
    text = " ".join(str(error).split()).rstrip(".")
    return DataError(
        f"cannot read {name} as parquet: {text}. Check the file, and the room in "
        f"{tempfile.gettempdir()}, where it is decoded"
    )


def _not_utf8(name: str, rows: Sequence[int], error: UnicodeDecodeError) -> DataError:
    return DataError(
        f"{name}: between rows {rows[0]} and {rows[-1]} there is text that is not UTF-8 "
        f"({error.reason}). Save the file as UTF-8"
    )
