"""How each version was drawn: `draws/version=000012/draw.parquet`. Needs NumPy and PyArrow only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from gracekit.files import write_atomic
from gracekit.store.files.parquet import damaged, read_table, write_table
from gracekit.store.files.tables import arrays, file_schema
from gracekit.types import Draw, DrawState
from gracekit.version.columns import DRAW_FILE
from gracekit.version.sources import DrawnRows


def write_draw(path: Path, drawn: DrawnRows) -> None:
    """Write the state of all rows before a version's draw, and how likely each row was."""
    columns = DRAW_FILE.columns
    table = pa.Table.from_arrays(arrays(columns, drawn), schema=file_schema(columns))
    write_atomic(path, lambda p: write_table(p, table, columns))


def read_draw(path: Path) -> DrawnRows:
    """The inverse of `write_draw`; raises `StoreFormatError` when the file is damaged."""
    table = read_table(path)
    try:
        arrays = {name: np.asarray(table[name].to_numpy()) for name in table.column_names}
        state = DrawState(
            uses=arrays["uses"],
            owed=arrays["owed"],
            start_low=arrays["start_low"],
            start_high=arrays["start_high"],
        )
        draw = None
        if not table["inclusion_probability"].null_count:
            draw = Draw(
                probabilities=arrays["inclusion_probability"],
                weights=arrays["draw_weight"],
                places=arrays["place"],
                parts=arrays["part"],
            )
        return DrawnRows(draw, state)
    except (KeyError, ValueError) as error:
        raise damaged(path, error) from error
