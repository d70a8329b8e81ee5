"""Values of an answer that Arrow or Python cannot hold as DuckDB has them: these become text.

Python's dates end at the year 9999 and know no infinity, its times end before 24:00. Arrow has no
128-bit integers without a sign, no times with an offset, no bits and no integers of any length.
"""

from __future__ import annotations

import re
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from duckdb import DuckDBPyRelation

from gracekit.store.sql.connection import open_duckdb

_WITHOUT_ARROW = re.compile(r"\b(UHUGEINT|TIME WITH TIME ZONE|BIT|BIGNUM|VARINT)\b")
_DAY_US = 24 * 3600 * 1_000_000


def as_arrow_has_them(relation: DuckDBPyRelation) -> DuckDBPyRelation:
    """The relation with columns as text where Arrow would change what they say."""
    types = [str(kind) for kind in relation.types]
    casts = [_WITHOUT_ARROW.sub("VARCHAR", kind) if '"' not in kind else kind for kind in types]
    if casts == types:
        return relation
    quoted = ['"' + name.replace('"', '""') + '"' for name in relation.columns]
    return relation.project(
        ", ".join(
            f"#{i} AS {name}" if cast == kind else f"CAST(#{i} AS {cast}) AS {name}"
            for i, (name, kind, cast) in enumerate(zip(quoted, types, casts, strict=True), 1)
        )
    )


def python_values(column: pa.Array | pa.ChunkedArray) -> list[Any]:
    """The values [n] of a column for Python; one that Python cannot hold is DuckDB's text of it."""
    if not _ends_a_day(column):
        try:
            return column.to_pylist()  # type: ignore[no-any-return]
        except (OverflowError, ValueError):
            pass
    table = pa.table({"value": column})
    with open_duckdb() as connection:
        connection.register("answer", table)
        texts = connection.sql("SELECT value::VARCHAR FROM answer").fetchall()
    return [_value(scalar, text) for scalar, (text,) in zip(column, texts, strict=True)]


def _ends_a_day(column: pa.Array | pa.ChunkedArray) -> bool:
    """Whether a column of times has 24:00, which Python's would show as 00:00."""
    if not pa.types.is_time64(column.type) or column.type.unit != "us":
        return False
    return (pc.max(column.cast(pa.int64())).as_py() or 0) >= _DAY_US


def _value(scalar: pa.Scalar, text: str | None) -> Any:
    if pa.types.is_time64(scalar.type) and scalar.is_valid and scalar.value >= _DAY_US:
        return text
    try:
        return scalar.as_py()
    except (OverflowError, ValueError):
        return text
