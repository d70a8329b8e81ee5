"""What each version was to be trained on: `draws/version=000012/places.parquet`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from gracekit.files import write_atomic
from gracekit.store.files.parquet import damaged, numbers, read_table, write_table
from gracekit.store.files.tables import arrays, file_schema
from gracekit.types import Places
from gracekit.version.columns import COPY_OF, FACTORS, PLACES_FILE, SIGNALS


def write_places(path: Path, places: Places) -> None:
    """Write the factors and signals of all rows."""
    columns = PLACES_FILE.columns
    table = pa.Table.from_arrays(arrays(columns, places), schema=file_schema(columns))
    write_atomic(path, lambda p: write_table(p, table, columns))


def read_places(path: Path) -> Places:
    """The inverse of `write_places`; raises `StoreFormatError` when the file is damaged.

    Columns that came later are not there in an older file.
    """
    table = read_table(path)
    try:
        factors = {
            name: numbers(table[column])
            for name, column in FACTORS.items()
            if column in table.column_names and not table[column].null_count
        }
        signals = {
            name: numbers(table[column], missing=np.nan)
            for name, column in SIGNALS.items()
            if column in table.column_names and table[column].null_count < table.num_rows
        }
        copy_of = None
        if COPY_OF in table.column_names and table[COPY_OF].null_count < table.num_rows:
            copy_of = numbers(table[COPY_OF], missing=-1)
    except (KeyError, ValueError) as error:
        raise damaged(path, error) from error
    return Places(factors=factors, signals=signals, copy_of=copy_of)
