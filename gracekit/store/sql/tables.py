"""The tables of `scores.duckdb`, filled from the store's files."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import pyarrow as pa
from duckdb import DuckDBPyConnection

from gracekit.store.files.history import scores_table
from gracekit.store.files.samples import samples_table
from gracekit.store.reader import StoreReader
from gracekit.store.sql.schema import SCHEMA_VERSION, TABLES, describe
from gracekit.store.summary import version_row
from gracekit.store.version_facts import VersionFacts
from gracekit.types import Json
from gracekit.version import __version__
from gracekit.version.header import Header

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
WITH facts AS (
    SELECT version, step, json_extract_string(
        header, ['$.checkpoint.path', '$.checkpoint.layout', '$.checkpoint.digest']
    ) AS of_header
    FROM versions
)
SELECT step,
       arg_max(of_header[1], version) AS path,
       arg_max(of_header[2], version) AS layout,
       of_header[3] AS digest,
       min(version) AS first_version,
       max(version) AS last_version
FROM facts GROUP BY step, digest ORDER BY first_version
"""


def fill(connection: DuckDBPyConnection, store: StoreReader, before: str | None = None) -> None:
    """Make all tables of `schema.TABLES` in the connection's own database, with comments.

    Args:
        connection: With a database of its own, without these tables.
        store: Where they come from.
        before: An attached database of the same schema that was published before: what it knows of
            a version is taken from there, so that a commit need not read all headers again.
    """
    versions = store.all_facts()
    _create(connection, "samples", _samples(store))
    _create(connection, "scores", _scores(store, versions))
    _create_versions(connection, store, versions, before)
    connection.execute(f"CREATE TABLE checkpoints AS {_CHECKPOINTS}")
    _create(connection, "store", _store(store, versions))
    for name, described in TABLES.items():
        describe(connection, name, described, kind="TABLE")


def _create(connection: DuckDBPyConnection, name: str, table: pa.Table) -> None:
    connection.register("incoming", table)
    connection.execute(f'CREATE TABLE "{name}" AS FROM incoming')
    connection.unregister("incoming")


def _create_versions(
    connection: DuckDBPyConnection,
    store: StoreReader,
    versions: Mapping[int, VersionFacts],
    before: str | None,
) -> None:
    known = _known(connection, versions, before)
    rows = [_version(store.header(v), f) for v, f in versions.items() if v not in known]
    connection.register("incoming", pa.Table.from_pylist(rows, schema=_VERSIONS))
    source = "SELECT * REPLACE (header::JSON AS header) FROM incoming"
    if known:
        connection.register("known", pa.table({"version": pa.array(sorted(known), pa.int32())}))
        source += f" UNION ALL SELECT * FROM {before}.versions SEMI JOIN known USING (version)"
    connection.execute(f"CREATE TABLE versions AS FROM ({source}) ORDER BY version")
    connection.unregister("incoming")
    connection.unregister("known")


def _known(
    connection: DuckDBPyConnection, versions: Mapping[int, VersionFacts], before: str | None
) -> set[int]:
    """The versions whose row in the database before is of the very same version."""
    if before is None:
        return set()
    sql = f"SELECT version, refresh_id, created_at, removed_at FROM {before}.versions"
    there = {version: tuple(facts) for version, *facts in connection.execute(sql).fetchall()}
    return {
        version
        for version, facts in versions.items()
        if there.get(version)
        == (facts.refresh_id, _time(facts.created_at), facts.removed_at and _time(facts.removed_at))
    }


def _samples(store: StoreReader) -> pa.Table:
    # GROUP is a word of SQL: a column of that name would need quotes everywhere.
    table = samples_table(store.samples())
    names = ["group_name" if name == "group" else name for name in table.column_names]
    return table.rename_columns(names)


def _scores(store: StoreReader, versions: Mapping[int, VersionFacts]) -> pa.Table:
    if not versions:
        return _NO_SCORES.empty_table()
    return scores_table(store.scores(max(versions)))


def _version(header: Header, facts: VersionFacts) -> Json:
    return {
        **version_row(header),
        "created_at": _time(header.created_at),
        "removed_at": facts.removed_at and _time(facts.removed_at),
        "header": header.to_text(),
    }


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=None)


def _store(store: StoreReader, versions: Mapping[int, VersionFacts]) -> pa.Table:
    dataset = store.dataset()
    return pa.table(
        {
            "schema_version": pa.array([SCHEMA_VERSION], pa.int32()),
            "gracekit_version": [__version__],
            "fingerprint": [dataset.fingerprint],
            "num_samples": pa.array([dataset.num_samples], pa.int64()),
            "latest_version": pa.array([max(versions, default=None)], pa.int32()),
        }
    )
