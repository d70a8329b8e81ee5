"""`history/version=000012/`: what was measured, and the scores of all rows, append-only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gracekit.errors import StoreFormatError
from gracekit.files import write_atomic
from gracekit.recipe.score_columns import column_name
from gracekit.store.files.parquet import damaged, read_table, write_table
from gracekit.types import (
    Int64,
    Measurement,
    Origin,
    Reason,
    RefreshPlan,
    ScoreTable,
    UInt8,
)

ORIGIN_NAMES = [origin.name.lower() for origin in Origin]
"""`origin` in files and SQL: never, propagated, measured, invalid, stale, removed."""
REASON_NAMES = [reason.name.lower() for reason in Reason]
"""`reason` in files and SQL: first, never_measured, priority, probe."""

SCORE_KEY = b"score"
"""Field metadata of a score column: the score's own name."""


def write_measured(
    path: Path, measurement: Measurement, plan: RefreshPlan | None, step: int
) -> None:
    """Write the measured rows, sorted by row: row, reason, the scores, step."""
    order = np.argsort(measurement.rows)
    reasons = _reasons(measurement, plan)[order]
    columns = {
        "row": measurement.rows[order],
        "reason": named(reasons, REASON_NAMES),
        "step": np.full(len(order), step, np.int64),
    }
    scores = {name: values[order] for name, values in measurement.scores.items()}
    table = _with_scores(columns, scores)
    write_atomic(path, lambda p: write_table(p, table))


def write_scores(path: Path, scores: ScoreTable) -> None:
    """Write the scores of all rows."""
    write_atomic(path, lambda p: write_table(p, scores_table(scores)))


def scores_table(scores: ScoreTable) -> pa.Table:
    """The columns [n] as files and SQL have them."""
    columns = {
        "row": np.arange(len(scores), dtype=np.int64),
        "origin": named(scores.origin, ORIGIN_NAMES),
        "measured_step": scores.measured_step,
        "measured_version": scores.measured_version,
        "confidence": scores.confidence,
        # Unknown like its scores, where a row that was never measured has the least.
        "importance": pa.array(scores.importance, mask=scores.origin == Origin.REMOVED),
    }
    return _with_scores(columns, scores.scores)


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


def named(values: UInt8, names: list[str]) -> pa.Array:
    """Codes as text; small in Parquet, readable in SQL."""
    indices = pa.array(values.astype(np.int8))
    return pa.DictionaryArray.from_arrays(indices, pa.array(names)).cast(pa.string())


def codes(column: pa.ChunkedArray, names: list[str]) -> UInt8:
    """The inverse of `named`."""
    found = pc.index_in(column, value_set=pa.array(names))
    if found.null_count:
        unknown = sorted(set(column.to_pylist()) - set(names), key=str)
        raise StoreFormatError(f"unknown values {unknown}, expected {names}; update gracekit")
    return np.asarray(found.to_numpy(), np.uint8)


def _with_scores(columns: dict[str, object], scores: dict[str, np.ndarray]) -> pa.Table:
    table = pa.table(columns)
    for name, values in scores.items():
        field = pa.field(column_name(name), pa.float32(), metadata={SCORE_KEY: name.encode()})
        assert field.name not in table.column_names, f"two scores share the column {field.name}"
        # Unknown is NULL in files and SQL, whose aggregates skip it, and NaN in arrays.
        known = pa.array(values.astype(np.float32, copy=False), from_pandas=True)
        table = table.append_column(field, known)
    return table


def _reasons(measurement: Measurement, plan: RefreshPlan | None) -> UInt8:
    """The plan's reason for each measured row; without a plan, everything was measured."""
    if plan is None:
        return np.full(len(measurement.rows), Reason.FIRST, np.uint8)
    order: Int64 = np.argsort(plan.rows)
    where = np.searchsorted(plan.rows, measurement.rows, sorter=order)
    index = order[np.minimum(where, len(order) - 1)]
    assert (plan.rows[index] == measurement.rows).all(), "a measured row is not in the plan"
    reasons: UInt8 = plan.reasons[index]
    return reasons
