"""What SQL makes of `version.columns`: the views over Parquet files, and the comments.

The comments are in the database itself; in DuckDB, `FROM duckdb_columns()` shows them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from duckdb import DuckDBPyConnection

from gracekit.version.columns import (
    CORESETS,
    DRAWS,
    IDENTITY,
    PLACES,
    SCORE_ABOUT,
    SCORE_HISTORY,
    VIEWS,
)
from gracekit.version.table import Column, ColumnType, Table

_SQL_TYPES: dict[ColumnType, str] = {
    "int32": "INTEGER",
    "int64": "BIGINT",
    "float32": "FLOAT",
    "float64": "DOUBLE",
    "string": "VARCHAR",
    "timestamp[ms]": "TIMESTAMP_MS",
    "json": "JSON",
}


def view_select(view: str, alike: Mapping[tuple[str, ...] | None, list[str]]) -> str:
    """The query behind a view over Parquet files: one per version, of the manifests or the history.

    Exactly the files of committed versions are named: one that is being written is not seen.

    Args:
        view: Its name.
        alike: Files that are known to have the same columns; None: not known. Of those with the
            same columns DuckDB opens one to make the view, of the others each.
    """
    if not alike:
        return _without_files(VIEWS[view])
    # Hive partitioning would take every key=value directory above the store for a column as well.
    options = "filename = true, hive_partitioning = false"
    if view == CORESETS.name:
        # Not the column `version`, which old manifests do not have: DuckDB also knows by the name
        # of a file that it need not open it.
        others = (column for column in CORESETS.columns if column.name != "version")
        columns = ", ".join(f'"{column.file_name}" AS {column.name}' for column in others)
        version = r"regexp_extract(filename, 'v(\d+)\.parquet$', 1)::INTEGER"
        return f"SELECT {version} AS version, {columns} FROM {_parquet(alike[()], options)}"
    version = r"regexp_extract(filename, 'version=(\d+)/[^/]*$', 1)::INTEGER"
    # Scores differ between versions when the recipe changes: missing ones are NULL.
    history = " UNION ALL BY NAME ".join(
        f"SELECT {version} AS version, * EXCLUDE (filename) FROM "
        + _parquet(files, options if columns else f"{options}, union_by_name = true")
        for columns, files in alike.items()
    )
    if view == PLACES.name:  # columns that came later are in none of the files, perhaps
        known = [c for c in PLACES.columns if c.name not in {i.name for i in IDENTITY}]
        history = f"SELECT {_nulls(known)} WHERE false UNION ALL BY NAME {history}"
    # The files do not repeat ids and groups, which would be most of what they weigh. `samples` has
    # every row that there ever was, so no row is lost here; an inner join takes half the time of
    # an outer one.
    step = "v.step, " if view == SCORE_HISTORY.name else ""
    identity = ", ".join(f"s.{column.name}" for column in IDENTITY)
    own = "h.* EXCLUDE (version, row)"
    if view == DRAWS.name:  # not what only the next draw needs
        behind = {"version", "row", *(column.name for column in IDENTITY)}
        own = ", ".join(f"h.{name}" for name in DRAWS.names if name not in behind)
    found = f"FROM ({history}) h JOIN samples s ON s.row = h.row"
    if step:
        found += " JOIN versions v ON v.version = h.version"
    return f"SELECT h.version, {step}h.row, {identity}, {own} {found}"


def _without_files(view: Table) -> str:
    """The view where no version has a file for it."""
    if view.name == SCORE_HISTORY.name:  # its scores are those of the table `scores`
        own = [column for column in view.columns if column.name in {"version", "step"}]
        return f"SELECT {_nulls(own)}, s.* FROM scores s LIMIT 0"
    return f"SELECT {_nulls(view.columns)} LIMIT 0"


def _nulls(columns: Iterable[Column[Any]]) -> str:
    return ", ".join(f"NULL::{_SQL_TYPES[column.type]} AS {column.name}" for column in columns)


def _parquet(files: list[str], options: str) -> str:
    return f"read_parquet([{', '.join(map(quote, files))}], {options})"


def quote(text: str) -> str:
    """An SQL string."""
    return "'" + text.replace("'", "''") + "'"


def quote_name(name: str) -> str:
    """The name of a table or column as SQL takes any."""
    return '"' + name.replace('"', '""') + '"'


def as_pattern(path: str) -> str:
    """A path for DuckDB's file functions, which take * ? [ for wildcards."""
    return "".join(f"[{sign}]" if sign in "*?[" else sign for sign in path)


def describe(connection: DuckDBPyConnection, table: Table, *, kind: str) -> None:
    """Comment a table or view (`kind`) and its columns; those not described are scores."""
    connection.execute(f"COMMENT ON {kind} {table.name} IS {quote(table.about)}")
    # Unlike DESCRIBE, the catalog does not open every file of a view again.
    sql = f"SELECT column_name FROM duckdb_columns() WHERE table_name = {quote(table.name)}"
    own = f"{sql} AND database_name = current_database()"
    for (column,) in connection.execute(own).fetchall():
        meaning = quote(table.about_column(column) or SCORE_ABOUT)
        connection.execute(f"COMMENT ON COLUMN {table.name}.{quote_name(column)} IS {meaning}")
