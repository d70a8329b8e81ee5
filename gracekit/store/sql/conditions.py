"""SQL conditions of a recipe: which samples meet one, with scores that are not in the store yet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from gracekit.errors import QueryError
from gracekit.store.files.history import score_arrays
from gracekit.store.files.tables import arrays
from gracekit.store.reader import StoreReader
from gracekit.store.sql.ask import bind, parse_queries, query_errors
from gracekit.store.sql.connection import open_duckdb
from gracekit.store.sql.database import connect
from gracekit.types import Rows, SampleTable, ScoreTable
from gracekit.version.columns import OF_SCORES, SAMPLES


def rows_where(
    condition: str, *, scores: ScoreTable, samples: SampleTable, store: StoreReader | Path | None
) -> Rows:
    """Rows for which a condition holds.

    Args:
        condition: An SQL expression on the columns of the tables `samples` and `scores`.
        scores: [n] what those columns hold.
        samples: [n]
        store: The store, open or its path, whose tables subqueries see; None: there is none. No
            file outside of it can be read.

    Raises:
        QueryError: It is no condition, or it tries to write, or to read where it may not.
        StoreError: The store cannot be read.
    """
    query = f"SELECT row FROM present WHERE (\n{condition}\n)"
    if len(parse_queries(query)) != 1:
        raise QueryError("give one condition")
    with (
        open_duckdb(enable_external_access="false")
        if store is None
        else connect(store) as connection
    ):
        connection.register("present", _side_by_side(scores, samples))
        with query_errors():
            rows = bind(connection, query).fetchnumpy()["row"]
    return np.asarray(rows, np.int64)


def _side_by_side(scores: ScoreTable, samples: SampleTable) -> pa.Table:
    """The columns of the tables `samples` and `scores`."""
    columns = (*SAMPLES.columns, *OF_SCORES)
    values = [*arrays(SAMPLES.columns, samples), *map(_known, arrays(OF_SCORES, scores))]
    of_scores = score_arrays(scores.scores)
    return pa.Table.from_arrays(
        [*values, *(array for _, array in of_scores)],
        names=[*(column.name for column in columns), *(field.name for field, _ in of_scores)],
    )


def _known(values: pa.Array) -> pa.Array:
    """NULL for NaN, which SQL would sort on top."""
    if not pa.types.is_floating(values.type):
        return values
    return pa.array(values.to_numpy(zero_copy_only=False), values.type, from_pandas=True)
