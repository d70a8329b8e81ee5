"""`scores.duckdb`: the store as a database, for readers.

It is never changed in place: a new file is built and swapped in, so that neither a reader nor a
writer ever meets the other's lock, and whoever has the old file open goes on with it.

Readers go through `connect`: a private in-memory database to which the file is attached
read-only, with the views over manifests and history pointing at the store wherever it lies now.
(Opened directly, DuckDB would hand out the same old instance again within a process, and the views
would point to where the store was when they were made.)
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import duckdb
from duckdb import DuckDBPyConnection

from gracekit.errors import QueryError, StoreWriteError
from gracekit.files import clear_write_errors, remove, write_atomic
from gracekit.leftovers import make_scratch_folder, remove_own_folders, temporary_directory
from gracekit.store.files.migrations import is_old
from gracekit.store.files.paths import StorePaths
from gracekit.store.reader import StoreReader
from gracekit.store.sql.connection import open_duckdb
from gracekit.store.sql.schema import as_pattern, describe, quote, view_select
from gracekit.store.sql.tables import fill
from gracekit.store.version_facts import VersionFacts
from gracekit.types import Json
from gracekit.version.columns import (
    CORESETS,
    DRAWS,
    MEASUREMENTS,
    PLACES,
    SCHEMA_VERSION,
    SCORE_HISTORY,
    TABLES,
    VIEWS,
)

_FILES = {
    DRAWS.name: "/draw.parquet",
    PLACES.name: "/places.parquet",
    MEASUREMENTS.name: "/measured.parquet",
    SCORE_HISTORY.name: "/scores.parquet",
}
"""View -> how the names of the files end that it shows, one a version."""
_WITH_SCORES = (MEASUREMENTS.name, SCORE_HISTORY.name)
"""Views with a column for each score, which differ from version to version."""
_PUBLISHED = "published"
"""Name of the attached file in a reader's connection."""


def publish(store: StoreReader) -> None:
    """Build the database anew from the files and swap it in; raises `StoreWriteError`."""

    def build(path: Path) -> None:
        # One thread: DuckDB's workers come and go with each database, and every one leaves memory
        # behind in the C library. A daemon of weeks would grow by 0.1 MiB a version.
        with open_duckdb(path, threads="1") as connection:
            before = _PUBLISHED if _attach(connection, store) else None
            connection.begin()  # one sync to disk, not one a statement
            fill(connection, store, before)
            _make_views(connection, store)
            connection.commit()

    database = store.paths.database
    try:
        write_atomic(database, build)
        with clear_write_errors(database):
            # Another program wrote into the old file; its log does not belong to the new one.
            remove(database.with_name(f"{database.name}.wal"))
    except duckdb.Error as error:
        raise StoreWriteError(
            f"cannot publish {database}: {_reason(error)}; the versions are safe in "
            "their files: free space or fix the disk, and the next start publishes it"
        ) from error


def is_current(store: StoreReader) -> bool:
    """Whether the published database has this schema and exactly the store's versions."""
    with open_duckdb() as connection:
        return _is_current(connection, store)


def _is_current(connection: DuckDBPyConnection, store: StoreReader) -> bool:
    removed = store.removed()
    expected = [(version, version in removed) for version in store.all_versions()]
    try:
        return _attach(connection, store) and _versions(connection) == expected
    except duckdb.Error:  # a damaged block
        return False


def damage(store: StoreReader) -> str | None:
    """What is wrong with the published database, of which every block in use is read.

    DuckDB keeps a checksum of each block, and compares it when the block is read.
    """
    with open_duckdb() as connection:
        if not _is_current(connection, store):
            return "is missing, damaged or behind the versions"
        try:
            for name in TABLES:
                connection.execute(f"SELECT bit_xor(hash(t)) FROM {_PUBLISHED}.{name} t").fetchall()
        except duckdb.Error as error:
            return f"is damaged ({_reason(error)})"
    return None


def differing_tables(store: StoreReader) -> list[str]:
    """Tables of the published database that are not as they would be made from the files now.

    Raises `duckdb.Error` where the database is damaged.
    """
    with open_duckdb() as connection:
        if not _attach(connection, store):
            return []
        fill(connection, store)
        differing = []
        for name in TABLES:
            sides = f"FROM {name}", f"FROM {_PUBLISHED}.{name}"
            query = " UNION ALL ".join(f"({a} EXCEPT ALL {b})" for a, b in (sides, sides[::-1]))
            if connection.execute(f"SELECT count(*) FROM ({query})").fetchone() != (0,):
                differing.append(name)
        return differing


def connect(
    root: Path | str | StoreReader, *, confined: bool = True, allow: Sequence[Path | str] = ()
) -> DuckDBPyConnection:
    """A connection to ask the store in SQL, from any directory, while versions are made.

    It shows the tables `samples`, `scores`, `versions`, `checkpoints`, `store` and the views
    `coresets`, `draws`, `score_history`, `measurements` as of now: connect again to see later
    versions. All of them that have `row` have `sample_id` and `group_name` too, so where two are
    joined a query says whose it means (`samples.sample_id`).

    The store's database is attached read-only; where it is missing, its tables are made in memory
    from the files. You may make tables of your own, which vanish with the connection.

    DuckDB installs and loads no extension by itself here. It cannot forbid writing to files that it
    may read, so it is up to you not to `COPY … TO` into the store. (`ask`, which is behind
    `gracekit sql`, refuses that.)

    Args:
        root: The store; an open one is shown as of the versions that it holds.
        confined: No file outside the store's manifests, scores and measurements can be read or
            written, and no setting changed. Pass False to join your own files; data frames can be
            joined in both cases with `register`.
        allow: Further files and directories that a confined connection may open.

    Raises:
        StoreNotFoundError: There is no store.
        StoreFormatError: It is damaged, or of a newer gracekit.
        QueryError: There is nothing at one of the paths to allow.
    """
    store = root if isinstance(root, StoreReader) else StoreReader.open(root)
    connection = open_duckdb(
        # Room to sort what memory cannot hold; DuckDB makes the directory only when it needs it.
        temp_directory=str(_own_directory(os.getpid()) / "spill"),
        python_enable_replacements=str(not confined).lower(),
    )
    try:
        if _attach(connection, store):
            for name, table in TABLES.items():
                connection.execute(f"CREATE VIEW {name} AS FROM {_PUBLISHED}.{name}")
                describe(connection, table, kind="VIEW")
        else:
            fill(connection, store)
        _make_views(connection, store)
        if confined:
            _confine(connection, [*_shown(store.paths), *map(Path, allow)])
    except BaseException:
        connection.close()
        raise
    return connection


def schema(root: Path | str) -> list[Json]:
    """Name, kind, meaning and columns (name, type, meaning) of every table and view of a store."""
    columns = (
        "SELECT column_name, data_type, comment FROM duckdb_columns() "
        "WHERE table_name = $name AND database_name = current_database() ORDER BY column_index"
    )
    keys = ("name", "type", "about")
    with connect(root) as connection:
        return [
            {
                "name": name,
                "kind": table.kind,
                "about": table.about,
                "columns": [
                    dict(zip(keys, column, strict=True))
                    for column in connection.execute(columns, {"name": name}).fetchall()
                ],
            }
            for name, table in (TABLES | VIEWS).items()
        ]


def _confine(connection: DuckDBPyConnection, paths: list[Path]) -> None:
    """Open nothing but these files and directories from now on, and change no setting."""
    for path in paths:
        if not path.exists():
            raise QueryError(f"there is no file or directory {path} to allow")
    for setting, is_kind in (("allowed_directories", Path.is_dir), ("allowed_paths", Path.is_file)):
        # DuckDB compares what a query names, links resolved, with the text that is allowed.
        found = [str(path.resolve()) for path in paths if is_kind(path)]
        names = ", ".join(map(quote, [*found, *map(as_pattern, found)]))
        if names:
            connection.execute(f"SET {setting} = [{names}]")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")


def _shown(paths: StorePaths) -> list[Path]:
    """The directories of a store that queries may read; those that an old one has, too."""
    found = (
        paths.manifests,
        paths.draws,
        paths.score_history,
        paths.measurements,
        paths.old_history,
    )
    return [path for path in found if path.is_dir()]


@cache
def _own_directory(pid: int) -> Path:
    """A directory that only this user can open, for as long as the process lives.

    Every connection may write into it, so its name must not be known beforehand.
    """
    # First, for a signal may end the process as soon as the directory is there.
    atexit.register(remove_own_folders, temporary_directory(), "sql")
    return make_scratch_folder("sql")


def _attach(connection: DuckDBPyConnection, store: StoreReader) -> bool:
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


def _make_views(connection: DuckDBPyConnection, store: StoreReader) -> None:
    """The views over the files of the versions in the table `versions` that (still) verify."""
    good = store.all_facts()
    rows = connection.execute("SELECT version FROM versions ORDER BY version").fetchall()
    versions = {int(version): good[version] for (version,) in rows if version in good}
    root = as_pattern(str(store.paths.root))
    for view in VIEWS:
        alike: dict[tuple[str, ...] | None, list[str]] = {}
        for version, facts in versions.items():
            name = _file_behind(view, version, facts)
            if name is None:
                continue
            if is_old(store.info):  # a file may lie in its old place, and move meanwhile
                name = store.paths.relative(store.paths.find(store.paths.root / name))
            if facts.removed_at is None or (store.paths.root / name).is_file():
                columns = facts.columns if view in _WITH_SCORES else ()
                alike.setdefault(columns, []).append(f"{root}/{name}")
        connection.execute(f"CREATE VIEW {view} AS {view_select(view, alike)}")
        describe(connection, VIEWS[view], kind="VIEW")


def _file_behind(view: str, version: int, facts: VersionFacts) -> str | None:
    """Where a view finds a version, relative to the store; None: it has nothing there.

    Text, because paths of thousands of versions would take most of a commit's time.
    """
    if view == CORESETS.name:
        return f"manifests/v{version:06d}.parquet"
    if view == SCORE_HISTORY.name and facts.scores_version != version:
        return None  # a reselect or rollback: another version has the file
    ending = _FILES[view]
    return next((name for name, _ in facts.sizes if name.endswith(ending)), None)


def _reason(error: duckdb.Error) -> str:
    return str(error).strip().partition("\n")[0]
