"""`scores.duckdb`: the store as a database, for readers.

It is never changed in place: a new file is built and swapped in, so that neither a reader nor a
writer ever meets the other's lock, and whoever has the old file open goes on with it.

Readers go through `connect`: a private in-memory database to which the file is attached
read-only, with the views over manifests and history pointing at the store wherever it lies now.
(Opened directly, DuckDB would hand out the same old instance again within a process, and the views
would point to where the store was when they were made.)
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import Any

import duckdb
from duckdb import DuckDBPyConnection, StatementType

from gracekit.errors import QueryError, StoreWriteError
from gracekit.files import write_atomic
from gracekit.store.schema import (
    SCHEMA_VERSION,
    TABLES,
    VIEWS,
    as_pattern,
    describe,
    quote,
    view_select,
)
from gracekit.store.store import Store
from gracekit.store.tables import fill

_PUBLISHED = "published"
"""Name of the attached file in a reader's connection."""


def publish(store: Store) -> None:
    """Build the database anew from the files and swap it in; raises `StoreWriteError`."""

    def build(path: Path) -> None:
        with duckdb.connect(str(path)) as connection:
            connection.begin()  # one sync to disk, not one a statement
            fill(connection, store)
            _make_views(connection, store)
            connection.commit()

    try:
        write_atomic(store.paths.database, build)
    except duckdb.Error as error:
        raise StoreWriteError(
            f"cannot publish {store.paths.database}: {_reason(error)}; the versions are safe in "
            "their files: free space or fix the disk, and the next start publishes it"
        ) from error


def is_current(store: Store) -> bool:
    """Whether the published database has this schema and exactly the store's versions."""
    removed = store.removed()
    expected = [(version, version in removed) for version in store.all_versions()]
    with duckdb.connect(":memory:") as connection:
        return _attach(connection, store) and _versions(connection) == expected


def connect(root: Path | str, *, confined: bool = True) -> DuckDBPyConnection:
    """A connection to ask the store in SQL, from any directory, while versions are made.

    It shows the tables `samples`, `scores`, `versions`, `checkpoints`, `store` and the views
    `coresets`, `score_history`, `measurements` as of now: connect again to see later versions.
    The store's database is attached read-only; where it is missing, its tables are made in memory
    from the files. Own scratch tables are possible and vanish with the connection.

    Args:
        root: The store.
        confined: No file outside the store's manifests and history can be read or written. Pass
            False to join your own files; data frames can be joined in both cases with `register`.

    Raises:
        StoreNotFoundError: There is no store.
        StoreFormatError: It is damaged, or of a newer gracekit.
    """
    store = Store.open(root)
    # Room to sort what memory cannot hold; DuckDB makes the directory only when it needs it.
    spill = Path(tempfile.gettempdir()) / f"gracekit-sql-{os.getpid()}"
    connection = duckdb.connect(":memory:", config={"temp_directory": str(spill)})
    try:
        if _attach(connection, store):
            for name, described in TABLES.items():
                connection.execute(f"CREATE VIEW {name} AS FROM {_PUBLISHED}.{name}")
                describe(connection, name, described, kind="VIEW")
        else:
            fill(connection, store)
        _make_views(connection, store)
        if confined:
            directories = map(str, (store.paths.manifests, store.paths.history))
            allowed = ", ".join(f"{quote(d)}, {quote(as_pattern(d))}" for d in directories)
            connection.execute(f"SET allowed_directories = [{allowed}]")
            connection.execute("SET enable_external_access = false")
            connection.execute("SET lock_configuration = true")
    except BaseException:
        connection.close()
        raise
    return connection


def run_sql(root: Path | str, sql: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Run queries against a store; returns columns and rows of the last one.

    Args:
        root: The store.
        sql: One or more queries (SELECT, FROM, VALUES, WITH, DESCRIBE, SHOW, SUMMARIZE, EXPLAIN).

    Raises:
        QueryError: The SQL is wrong, or it tries to write, or to read outside the store.
        StoreError: The store cannot be read.
    """
    with connect(root) as connection:
        try:
            statements = duckdb.extract_statements(sql)
            if not statements:
                raise QueryError("the query is empty; `SELECT * FROM versions` is one")
            _refuse_writing(statements)
            for statement in statements:
                connection.execute(statement.query)
            columns = [name for name, *_ in connection.description or []]
            rows = connection.fetchall()
        except duckdb.Error as error:
            raise QueryError(_explain(error)) from error
        except RuntimeError as error:
            # DuckDB says so of a Ctrl-C that reached it within a query.
            if "interrupted" in str(error).lower():
                raise KeyboardInterrupt from None
            raise
    return columns, rows


def _attach(connection: DuckDBPyConnection, store: Store) -> bool:
    """Attach the published file; False when it is missing, damaged or of another schema."""
    path = store.paths.database
    try:
        connection.execute(f"ATTACH {quote(str(path))} AS {_PUBLISHED} (READ_ONLY)")
        found = connection.execute(f"SELECT schema_version FROM {_PUBLISHED}.store").fetchall()
    except duckdb.Error:
        found = []
    return found == [(SCHEMA_VERSION,)]


def _versions(connection: DuckDBPyConnection) -> list[tuple[int, bool]]:
    """Each version, and whether it was removed."""
    columns = "version, removed_at IS NOT NULL"
    rows = connection.execute(f"SELECT {columns} FROM {_PUBLISHED}.versions ORDER BY version")
    return [(int(version), bool(is_removed)) for version, is_removed in rows.fetchall()]


def _make_views(connection: DuckDBPyConnection, store: Store) -> None:
    """The views over the files of the versions in the table `versions` that (still) verify."""
    paths, good = store.paths, set(store.all_versions())
    rows = connection.execute("SELECT version FROM versions ORDER BY version").fetchall()
    versions = [int(version) for (version,) in rows if version in good]
    for view, file_of in (
        ("coresets", paths.manifest),
        ("score_history", paths.scores),
        ("measurements", paths.measured),
    ):
        found = [file_of(version) for version in versions if file_of(version).is_file()]
        select = view_select(view, [as_pattern(str(path)) for path in found])
        connection.execute(f"CREATE VIEW {view} AS {select}")
        describe(connection, view, VIEWS[view], kind="VIEW")


def _refuse_writing(statements: list[duckdb.Statement]) -> None:
    for statement in statements:
        if not _is_query(statement.type, statement.query):
            raise QueryError(
                f"only queries are allowed here, not {_shorten(statement.query.strip())!r}: the "
                "store is read-only. A PIVOT needs its values: PIVOT … ON column IN (…)"
            )


def _is_query(kind: StatementType, text: str) -> bool:
    if kind == StatementType.SELECT:
        return True
    if kind != StatementType.EXPLAIN:
        return False
    # EXPLAIN ANALYZE runs what it explains, also a COPY that writes: look at what follows it.
    inner = re.sub(r"^\s*explain(\s+analyze|\s*\([^)]*\))?\s", "", text, count=1, flags=re.I)
    try:
        statements = duckdb.extract_statements(inner)
    except duckdb.Error:
        return False
    return len(statements) == 1 and statements[0].type == StatementType.SELECT


def _explain(error: duckdb.Error) -> str:
    reason = str(error).strip()
    if isinstance(error, duckdb.PermissionException):
        return (
            f"{_reason(error)}. Queries see the store only: its tables are {', '.join(TABLES)}, "
            f"its views {', '.join(VIEWS)}"
        )
    if isinstance(error, duckdb.CatalogException):
        return f"{reason}\nTables: {', '.join(TABLES)}. Views: {', '.join(VIEWS)}"
    return reason


def _reason(error: duckdb.Error) -> str:
    return str(error).strip().partition("\n")[0]


def _shorten(text: str) -> str:
    return text if len(text) <= 60 else text[:59] + "…"
