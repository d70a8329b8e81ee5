"""DuckDB connections as gracekit makes them: silent, and without extensions."""

from __future__ import annotations

from pathlib import Path

import duckdb
from duckdb import DuckDBPyConnection

from gracekit.memory import require_room

LEAST_ROOM_BYTES = 128 * 2**20
"""Of address space: with 27 and with 60 MiB left DuckDB 2.0 ended the process by a null pointer."""
_NO_EXTENSIONS = {
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "allow_community_extensions": "false",
}


def open_duckdb(path: Path | None = None, **config: str) -> DuckDBPyConnection:
    """A connection to a database file, or by default to a database of its own in memory.

    Args:
        path: The file, which is made where it does not exist.
        config: Further settings of DuckDB.

    Raises `MemoryError` where a limit of the address space leaves too little.
    """
    require_room(LEAST_ROOM_BYTES, "DuckDB")
    name = ":memory:" if path is None else str(path)
    connection = duckdb.connect(name, config={**_NO_EXTENSIONS, **config})
    # Where Python runs no script file, DuckDB takes standard output for a person's terminal, and
    # draws a bar among the rows that a program reads there.
    connection.execute("SET enable_progress_bar = false")
    return connection
