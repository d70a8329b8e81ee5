"""The tables of `scores.duckdb`, filled from the store's files."""

from __future__ import annotations

from datetime import datetime

import pyarrow as pa
from duckdb import DuckDBPyConnection

from gracekit.store.manifests import header_text
from gracekit.store.parquet import read_table
from gracekit.store.removals import Removal
from gracekit.store.samples import samples_table
from gracekit.store.schema import SCHEMA_VERSION, TABLES, describe
from gracekit.store.store import Store
from gracekit.store.summary import version_row
from gracekit.types import Json, ManifestHeader
from gracekit.version import __version__

_NO_SCORES = pa.schema(
    {
        "row": pa.int64(),
        "origin": pa.string(),
        "measured_step": pa.int64(),
        "measured_version": pa.int64(),
        "confidence": pa.float32(),
        "importance": pa.float32(),
    }
)
_VERSIONS = pa.schema(
    {
        "version": pa.int32(),
        "parent_version": pa.int32(),
        "created_at": pa.timestamp("ms"),
        "operation": pa.string(),
        "step": pa.int64(),
        "scores_version": pa.int32(),
        "rollback_of": pa.int32(),
        "num_measured": pa.int64(),
        "measured_fraction": pa.float64(),
        "num_probe": pa.int64(),
        "rank_correlation": pa.float64(),
        "rank_correlation_stale": pa.float64(),
        "rank_correlation_all": pa.float64(),
        "mean_abs_error": pa.float64(),
        "mean_abs_error_stale": pa.float64(),
        "feature_cosine": pa.float64(),
        "feature_cosine_stale": pa.float64(),
        "calibration": pa.float64(),
        "num_samples": pa.int64(),
        "num_added": pa.int64(),
        "num_removed": pa.int64(),
        "num_changed": pa.int64(),
        "num_selected": pa.int64(),
        "churn": pa.float64(),
        "jaccard": pa.float64(),
        "model_pass_s": pa.float64(),
        "other_s": pa.float64(),
        "total_s": pa.float64(),
        "refresh_id": pa.string(),
        "recipe_digest": pa.string(),
        "removed_at": pa.timestamp("ms"),
        "header": pa.string(),
    }
)
_CHECKPOINTS = """
SELECT step,
       arg_max(header->>'$.checkpoint.path', version) AS path,
       arg_max(header->>'$.checkpoint.layout', version) AS layout,
       header->>'$.checkpoint.digest' AS digest,
       min(version) AS first_version,
       max(version) AS last_version
FROM versions GROUP BY step, digest ORDER BY first_version
"""


def fill(connection: DuckDBPyConnection, store: Store) -> None:
    """Make all tables of `schema.TABLES` in the connection's own database, with comments."""
    headers = [store.header(version) for version in store.all_versions()]
    removed = store.removed()
    _create(connection, "samples", _samples(store))
    _create(connection, "scores", _scores(store, headers))
    rows = [_version(header, removed.get(header.version)) for header in headers]
    columns = "* REPLACE (header::JSON AS header)"
    _create(connection, "versions", pa.Table.from_pylist(rows, schema=_VERSIONS), columns)
    connection.execute(f"CREATE TABLE checkpoints AS {_CHECKPOINTS}")
    _create(connection, "store", _store(store, headers))
    for name, described in TABLES.items():
        describe(connection, name, described, kind="TABLE")


def _create(connection: DuckDBPyConnection, name: str, table: pa.Table, columns: str = "*") -> None:
    connection.register("incoming", table)
    connection.execute(f'CREATE TABLE "{name}" AS SELECT {columns} FROM incoming')
    connection.unregister("incoming")


def _samples(store: Store) -> pa.Table:
    # GROUP is a word of SQL: a column of that name would need quotes everywhere.
    table = samples_table(store.samples())
    names = ["group_name" if name == "group" else name for name in table.column_names]
    return table.rename_columns(names)


def _scores(store: Store, headers: list[ManifestHeader]) -> pa.Table:
    if not headers:
        return _NO_SCORES.empty_table()
    return read_table(store.paths.scores(headers[-1].scores_version))


def _version(header: ManifestHeader, removal: Removal | None) -> Json:
    return {
        **version_row(header),
        "created_at": _time(header.created_at),
        "removed_at": removal and _time(removal.removed_at),
        "header": header_text(header),
    }


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=None)


def _store(store: Store, headers: list[ManifestHeader]) -> pa.Table:
    dataset = store.dataset()
    return pa.table(
        {
            "schema_version": pa.array([SCHEMA_VERSION], pa.int32()),
            "gracekit_version": [__version__],
            "fingerprint": [dataset["fingerprint"]],
            "num_samples": pa.array([dataset["num_samples"]], pa.int64()),
            "latest_version": pa.array([headers[-1].version if headers else None], pa.int32()),
        }
    )
