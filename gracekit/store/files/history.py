"""The history: the scores of all rows at every version, and what was measured; append-only.

`score_history/version=000012/scores.parquet` and `measurements/version=000012/measured.parquet`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gracekit.errors import StoreFormatError
from gracekit.files import write_atomic
from gracekit.recipe.score_columns import column_name
from gracekit.store.files.parquet import damaged, read_table, write_table
from gracekit.store.files.tables import arrays, file_schema
from gracekit.types import (
    Float32,
    Measurement,
    RefreshPlan,
    ScoreTable,
    UInt8,
)
from gracekit.version.columns import MEASURED_FILE, ORIGIN_NAMES, SCORES_FILE
from gracekit.version.sources import MeasuredRows
from gracekit.version.table import Table

SCORE_KEY = b"score"
"""Field metadata of a score column: the score's own name."""


def write_measured(
    path: Path, measurement: Measurement, plan: RefreshPlan | None, step: int
) -> None:
    """Write the measured rows, sorted by row: row, reason, the scores, step."""
    measured = MeasuredRows.of(measurement, plan, step)
    scores = {name: values[measured.order] for name, values in measurement.scores.items()}
    table = _with_scores(MEASURED_FILE, measured, scores)
    write_atomic(path, lambda p: write_table(p, table, MEASURED_FILE.columns))


def write_scores(path: Path, scores: ScoreTable) -> None:
    """Write the scores of all rows."""
    table = _with_scores(SCORES_FILE, scores, scores.scores)
    write_atomic(path, lambda p: write_table(p, table, SCORES_FILE.columns))


def read_scores(path: Path) -> ScoreTable:
    """The inverse of `write_scores`; raises `StoreFormatError` when the file is damaged."""
    table = read_table(path)
    try:
        return ScoreTable(
            scores={
                name: table[column].to_numpy() for name, column in score_columns(table).items()
            },
            importance=pc.fill_null(table["importance"], 0).to_numpy(),
            origin=codes(table["origin"], ORIGIN_NAMES),
            measured_step=table["measured_step"].to_numpy(),
            measured_version=table["measured_version"].to_numpy(),
            confidence=table["confidence"].to_numpy(),
        )
    except (KeyError, ValueError) as error:
        raise damaged(path, error) from error


def score_columns(table: pa.Table) -> dict[str, str]:
    """Columns of a history table: the score's own name -> the column's name."""
    return {
        field.metadata[SCORE_KEY].decode(): field.name
        for field in table.schema
        if SCORE_KEY in (field.metadata or {})
    }


def codes(column: pa.ChunkedArray, names: list[str]) -> UInt8:
    """The inverse of `named`."""
    found = pc.index_in(column, value_set=pa.array(names))
    if found.null_count:
        unknown = sorted(set(column.to_pylist()) - set(names), key=str)
        raise StoreFormatError(f"unknown values {unknown}, expected {names}; update gracekit")
    return np.asarray(found.to_numpy(), np.uint8)


def score_arrays(scores: Mapping[str, Float32]) -> list[tuple[pa.Field, pa.Array]]:
    """A column for each score; unknown is NaN in arrays, and NULL in files and SQL."""
    return [
        (
            pa.field(column_name(name), pa.float32(), metadata={SCORE_KEY: name.encode()}),
            pa.array(values.astype(np.float32, copy=False), from_pandas=True),
        )
        for name, values in scores.items()
    ]


def _with_scores(table: Table, source: object, scores: Mapping[str, Float32]) -> pa.Table:
    """The columns of a file, and the scores behind them."""
    own = file_schema(table.columns)
    of_scores = score_arrays(scores)
    fields = [*own, *(field for field, _ in of_scores)]
    names = [field.name for field in fields]
    assert len(set(names)) == len(names), f"two columns share a name: {names}"
    values = [*arrays(table.columns, source), *(array for _, array in of_scores)]
    return pa.Table.from_arrays(values, schema=pa.schema(fields))
