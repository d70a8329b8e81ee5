"""Formats with the user's rows in full. They stream: memory holds a thousand rows at a time.

The files are contiguous: rows in the order of the dataset, no index map.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gracekit import files
from gracekit.errors import ExportError
from gracekit.exports.arrow_rows import arrow_errors, batch_of, row_type
from gracekit.exports.json_columns import JsonColumns
from gracekit.protocols import ExportContent
from gracekit.types import Json

CHUNK_ROWS = 1000

LINE_BREAKS = str.maketrans(
    {mark: f"\\u{ord(mark):04x}" for mark in "\x85\N{LINE SEPARATOR}\N{PARAGRAPH SEPARATOR}"}
)
"""Legal in JSON strings, but lines end there for some readers of JSONL."""


_SPACES = str.maketrans("\r\n", "  ")


class Jsonl:
    """`coreset.jsonl`: one JSON object a line, UTF-8."""

    file_name = "coreset.jsonl"

    def write(self, content: ExportContent, directory: Path, out: Path) -> Json:
        """Rows of JSON files as they stand there, to the digit and the space.

        Of other rows, numbers that JSON lacks (NaN, infinities) become null, dates become text.
        """
        write_rows(content.records(), content, directory)
        return {"files": [self.file_name]}


def write_rows(rows: Iterable[Json], content: ExportContent, directory: Path) -> None:
    """Rows as the file of `Jsonl`, with its card."""
    with (directory / Jsonl.file_name).open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json_line(row))
    _write_card(content, directory, Jsonl.file_name)


class Parquet:
    """`coreset.parquet`, zstd."""

    file_name = "coreset.parquet"

    def write(self, content: ExportContent, directory: Path, out: Path) -> Json:
        """`ExportError` where the rows would not be read back as they are (`arrow_rows.py`)."""
        with arrow_errors():
            kind = row_type(content.records())
            schema = pa.schema(list(kind))
            with pq.ParquetWriter(directory / self.file_name, schema, compression="zstd") as writer:
                for chunk in _chunks(content.records()):
                    writer.write_batch(batch_of(chunk, kind))
        _write_card(content, directory, self.file_name)
        return {"files": [self.file_name]}


class HfDataset:
    """A `datasets` folder, for `datasets.load_from_disk`."""

    def write(self, content: ExportContent, directory: Path, out: Path) -> Json:
        """Made of an Arrow file that is mapped, not loaded.

        Columns whose values are no one Arrow type are of the type `Json` of `datasets`.
        `ExportError` where the rows would not be read back as they are (`arrow_rows.py`).
        """
        import datasets

        json_type: Any = getattr(datasets, "Json", None)  # since 4.7
        stream = directory / "stream" / "rows.arrow"
        stream.parent.mkdir()  # a dataset is never saved where its own files are
        with arrow_errors():
            rows = JsonColumns(
                content.records(), None if json_type is None else json_type().decode_example
            )
            schema = pa.schema(list(rows.type))
            if rows.is_list:
                features = datasets.Features.from_arrow_schema(schema)
                for name, is_list in rows.is_list.items():
                    features[name] = datasets.List(json_type()) if is_list else json_type()
                schema = features.arrow_schema
            with pa.OSFile(str(stream), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
                for chunk in _chunks(content.records()):
                    batch = pa.Table.from_batches([rows.batch_of(chunk)])  # batches cast since 16
                    writer.write_table(batch.cast(schema))
        with _no_progress_bars(datasets.utils):
            datasets.Dataset.from_file(str(stream)).save_to_disk(str(directory))
        files.remove(stream.parent)
        return {"files": sorted(path.name for path in directory.iterdir())}


def json_line(record: Json) -> str:
    """One line of JSON that every reader takes for one line, and for valid UTF-8."""
    text: str | None = getattr(record, "text", None)
    if text is not None:  # line ends stand between values only, in strings they are escaped
        return text.strip().translate(_SPACES).translate(LINE_BREAKS) + "\n"
    try:
        line = json.dumps(record, ensure_ascii=False, allow_nan=False, default=_as_text)
        line.encode()
    except ValueError:  # NaN, or half a surrogate pair
        line = json.dumps(_finite(record), default=_as_text)
    return line.translate(LINE_BREAKS) + "\n"


def _as_text(value: Any) -> str:
    if isinstance(value, bytes):
        raise ExportError(
            f"JSON cannot hold binary values, and the data has one ({value[:10]!r}…); "
            "export as parquet or hf-dataset"
        )
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return value


def _chunks(records: Iterable[Json]) -> Iterator[list[Json]]:
    iterator = iter(records)
    while chunk := list(islice(iterator, CHUNK_ROWS)):
        yield chunk


def _write_card(content: ExportContent, directory: Path, file_name: str) -> None:
    """`README.md`: what this is, for people, and for `datasets.load_dataset(directory)`, which
    would take `manifest.json` for data.
    """
    version = content.header.version
    (directory / "README.md").write_text(
        f"---\nconfigs:\n- config_name: default\n  data_files: {file_name}\n---\n"
        f"{len(content.rows):,} rows of the coreset, version {version}, selected by gracekit.\n"
        "`manifest.json` says how.\n",
        encoding="utf-8",
    )


@contextmanager
def _no_progress_bars(settings: ModuleType) -> Iterator[None]:
    """Without the progress bars of `datasets`, whose settings (`datasets.utils`) are given."""
    if settings.are_progress_bars_disabled():
        yield
        return
    settings.disable_progress_bars()
    try:
        yield
    finally:
        settings.enable_progress_bars()
