"""The tables of `scores.duckdb`, filled from the store's files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pyarrow as pa
from duckdb import DuckDBPyConnection

from gracekit.errors import StoreFormatError
from gracekit.store.files.history import score_arrays
from gracekit.store.files.tables import arrays, arrow_type, records, utc_time
from gracekit.store.reader import StoreReader
from gracekit.store.sql.schema import describe, quote_name
from gracekit.store.version_facts import VersionFacts
from gracekit.version.columns import (
    CHECKPOINT_PATHS,
    CHECKPOINTS,
    OF_SCORES,
    SAMPLES,
    SCORES,
    STORE,
    VERSIONS,
)
from gracekit.version.sources import ListedVersion, PublishedStore
from gracekit.version.table import Table

_OF_SCORES = "scores."
"""In front of the names of columns that only `scores` shows: a score may be called `preview`."""
_BEHIND = Table(
    name="sample_rows",
    kind="table",
    about="What samples and scores show: ask those",
    columns=(*SAMPLES.columns, *(replace(c, name=_OF_SCORES + c.name) for c in OF_SCORES)),
)
"""The table behind `samples` and `scores`: one row per sample, with the columns of both, so that
ids and groups are there once, and `scores` has them without a join."""


def fill(connection: DuckDBPyConnection, store: StoreReader, before: str | None = None) -> None:
    """Make all tables of `version.columns` in the connection's own database, with comments.

    Args:
        connection: With a database of its own, without these tables.
        store: Where they come from.
        before: An attached database of the same schema that was published before: what it knows of
            a version is taken from there, so that a commit need not read all headers again.
    """
    versions = store.all_facts()
    latest = max(versions, default=None)
    _create_rows(connection, store, latest)
    _create_versions(connection, store, versions, before)
    connection.execute(f"CREATE TABLE {CHECKPOINTS.name} AS {_checkpoints()}")
    published = PublishedStore(store.dataset(latest), latest)
    _create(connection, STORE.name, records(STORE.columns, [published]))
    for table in (SAMPLES, SCORES):
        describe(connection, table, kind="VIEW")
    for table in (_BEHIND, VERSIONS, CHECKPOINTS, STORE):
        describe(connection, table, kind="TABLE")


def _create(connection: DuckDBPyConnection, name: str, table: pa.Table) -> None:
    connection.register("incoming", table)
    connection.execute(f"CREATE TABLE {name} AS FROM incoming")
    connection.unregister("incoming")


def _create_rows(connection: DuckDBPyConnection, store: StoreReader, latest: int | None) -> None:
    """The table behind, and `samples` and `scores` as views of it."""
    samples = store.samples(latest)
    values = arrays(SAMPLES.columns, samples)
    shown = [column.name for column in OF_SCORES]
    if latest is None:
        values += [pa.nulls(len(samples), arrow_type(column.type)) for column in OF_SCORES]
    else:
        scores = store.scores(latest)
        if len(scores) != len(samples):
            raise StoreFormatError(
                f"version {latest} of {store.paths.root} has scores of {len(scores)} samples, but "
                f"its data has {len(samples)}; run `gracekit verify`"
            )
        of_scores = score_arrays(scores.scores)
        values += [*arrays(OF_SCORES, scores), *(array for _, array in of_scores)]
        shown += [field.name for field, _ in of_scores]
    names = [*SAMPLES.names, *(_OF_SCORES + name for name in shown)]
    _create(connection, _BEHIND.name, pa.Table.from_arrays(values, names=names))
    identity = [name for name in SCORES.names if name in SAMPLES.names]
    own = [f"{quote_name(_OF_SCORES + name)} AS {quote_name(name)}" for name in shown]
    none = " LIMIT 0" if latest is None else ""
    for table, columns in ((SAMPLES, SAMPLES.names), (SCORES, [*identity, *own])):
        shows = f"SELECT {', '.join(columns)} FROM {_BEHIND.name}"
        connection.execute(f"CREATE VIEW {table.name} AS {shows}{none if table is SCORES else ''}")


def _create_versions(
    connection: DuckDBPyConnection,
    store: StoreReader,
    versions: Mapping[int, VersionFacts],
    before: str | None,
) -> None:
    known = _known(connection, versions, before)
    new = (
        ListedVersion(store.header(version), facts.removed_at)
        for version, facts in versions.items()
        if version not in known
    )
    connection.register("incoming", records(VERSIONS.columns, new))
    as_json = ", ".join(f"{c.name}::JSON AS {c.name}" for c in VERSIONS.columns if c.type == "json")
    source = f"SELECT * REPLACE ({as_json}) FROM incoming"
    if known:
        connection.register("known", pa.table({"version": pa.array(sorted(known), pa.int32())}))
        source += f" UNION ALL SELECT * FROM {before}.versions SEMI JOIN known USING (version)"
    connection.execute(f"CREATE TABLE {VERSIONS.name} AS FROM ({source}) ORDER BY version")
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
        == (
            facts.refresh_id,
            utc_time(facts.created_at),
            facts.removed_at and utc_time(facts.removed_at),
        )
    }


def _checkpoints() -> str:
    """The query of the table `checkpoints`; one look into each header finds all that it takes."""
    columns = ", ".join(f"{column.sql} AS {column.name}" for column in CHECKPOINTS.columns)
    found = f"json_extract_string(header, {list(CHECKPOINT_PATHS)})"
    return (
        f"SELECT {columns} FROM (SELECT version, step, {found} AS found FROM versions) "
        "GROUP BY step, found[3] ORDER BY min(version)"
    )
