"""How each version was drawn: `draws/version=000012/draw.parquet`."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from gracekit.files import write_atomic
from gracekit.store.files.draw_reading import read_draw_columns
from gracekit.store.files.parquet import write_table
from gracekit.store.files.tables import arrays, file_schema
from gracekit.version.columns import DRAW_FILE
from gracekit.version.sources import DrawnRows


def write_draw(path: Path, drawn: DrawnRows) -> None:
    """Write the state of all rows before a version's draw, and how likely each row was."""
    columns = DRAW_FILE.columns
    table = pa.Table.from_arrays(arrays(columns, drawn), schema=file_schema(columns))
    write_atomic(path, lambda p: write_table(p, table, columns))


def read_draw(path: Path) -> DrawnRows:
    """The inverse of `write_draw`; raises `StoreFormatError` when the file is damaged."""
    return DrawnRows(*read_draw_columns(path))
