"""The verbs that answer SQL: `sql`, `connect`, and what is behind `gracekit sql --list`."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from duckdb import DuckDBPyConnection

from gracekit.api.stores import StoreLike, root_of, text
from gracekit.errors import QueryError
from gracekit.files import write_atomic
from gracekit.store import (
    NAMED_QUERIES,
    Answer,
    NamedQuery,
    ask,
    named_query,
    output_file,
    python_values,
)
from gracekit.store import connect as connect_to
from gracekit.store import schema as read_schema
from gracekit.tabular import Tabular, table_repr
from gracekit.types import Json

_GROUP_BATCHES = 12
"""Batches of an answer that make a row group of Parquet."""
_WORD = re.compile(r"[\w-]+")
_STATEMENTS = ("describe", "show")
"""Words that are a whole query in DuckDB."""


class SqlAnswer(Tabular):
    """The rows of a query, all in memory."""

    __slots__ = ("_table",)

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @property
    def columns(self) -> list[str]:
        """Names of the columns; none occurs twice."""
        return list(self._table.column_names)

    def rows(self) -> Iterator[tuple[Any, ...]]:
        """The rows as Python values; what Python cannot hold, as dates after 9999, is text."""
        yield from zip(*map(python_values, self._table.columns), strict=True)

    def to_arrow(self) -> pa.Table:
        """The rows as a `pyarrow.Table`."""
        return self._table

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        shown = self._table.slice(0, 50)
        return {name: python_values(shown.column(name)) for name in self.columns}

    def _repr_html_(self) -> str:
        return super()._repr_html_()

    def __repr__(self) -> str:
        return table_repr(type(self).__name__, len(self), self._columns())


class AnswerBatches(Answer):
    """The rows of a query, which are computed while they are taken; to be taken once."""

    __slots__ = ()

    def write_parquet(self, path: Path) -> int:
        """Write the rows batch by batch; the file has its name only when it is whole.

        Returns:
            How many rows were written.

        Raises:
            QueryError: Parquet cannot hold a column of the answer.
            ExportError: It lies in a store, or is a directory or a device.
            StoreWriteError: The file cannot be written.
        """
        num_rows, place = 0, output_file(path)

        def write(target: Path) -> None:
            nonlocal num_rows
            try:
                with pq.ParquetWriter(str(target), self.schema, compression="zstd") as writer:
                    while held := list(itertools.islice(self.batches, _GROUP_BATCHES)):
                        group = pa.Table.from_batches(held, self.schema)
                        writer.write_table(group)
                        num_rows += group.num_rows
            except pa.ArrowNotImplementedError as error:
                raise QueryError(
                    f"Parquet cannot hold a column of this answer ({error}); cast it, such as "
                    "column::VARCHAR"
                ) from None

        write_atomic(place, write)
        return num_rows


def sql(
    store: StoreLike,
    query: str,
    *,
    allow: Sequence[str | Path] = (),
    unconfined: bool = False,
    **parameters: Any,
) -> SqlAnswer:
    """Ask the score history in SQL, read-only, while the daemon runs.

    Args:
        store: Path of the store, or an open `Store`.
        query: SQL, or the name of a ready-made query such as `movers` (see `named_queries`).
        allow: Further files and directories that the query may read.
        unconfined: Let the query read any file.
        parameters: Values for `$name` in the query.

    Returns:
        The rows, all of them; `sql_batches` is for more than memory holds.

    Raises:
        QueryError: The SQL is wrong, or it tries to write, or to read where it may not.
        StoreError: The store cannot be read.

    Example:
        >>> gracekit.sql("gracekit-store", "SELECT count(*) AS n FROM samples").to_pandas()
        >>> gracekit.sql("gracekit-store", "movers", count=5).to_arrow()
    """
    with sql_batches(
        store, query, parameters=parameters, allow=allow, unconfined=unconfined
    ) as answer:
        return SqlAnswer(pa.Table.from_batches(list(answer.batches), schema=answer.schema))


@contextmanager
def sql_batches(
    store: StoreLike,
    query: str,
    *,
    parameters: Mapping[str, Any] | None = None,
    allow: Sequence[str | Path] = (),
    unconfined: bool = False,
) -> Iterator[AnswerBatches]:
    """As `sql`, in batches that are computed while they are taken.

    Example:
        >>> with gracekit.sql_batches("gracekit-store", "FROM score_history") as answer:
        ...     for batch in answer.batches:
        ...         print(batch.num_rows)
    """
    root = root_of(store)
    sql_text, values = _query(root, text(query, "query"), parameters or {})
    with ask(root, sql_text, parameters=values, confined=not unconfined, allow=allow) as answer:
        yield AnswerBatches(answer.schema, answer.batches)


def connect(
    store: StoreLike, *, confined: bool = True, allow: Sequence[str | Path] = ()
) -> DuckDBPyConnection:
    """A DuckDB connection to ask the store in SQL, while versions are made.

    It shows the tables and views of `schema` as of now: connect again to see later versions.

    Args:
        store: Path of the store, or an open `Store`.
        confined: No file outside the store's manifests and history can be read or written, and no
            setting changed. Pass False to join your own files.
        allow: Further files and directories that a confined connection may open.

    Raises:
        StoreNotFoundError: There is no store.
        StoreFormatError: It is damaged, or of a newer gracekit.
        QueryError: There is nothing at one of the paths to allow.

    Example:
        >>> gracekit.connect("gracekit-store").sql("FROM versions").show()
    """
    return connect_to(root_of(store), confined=confined, allow=allow)


def named_queries() -> tuple[NamedQuery, ...]:
    """The ready-made queries: name, what they tell, parameters, SQL.

    Example:
        >>> [query.name for query in gracekit.named_queries()][:2]
        ['movers', 'forgotten']
    """
    return tuple(NAMED_QUERIES.values())


def find_query(name: str) -> NamedQuery:
    """The ready-made query of a name; raises `QueryError` with the nearest one where there is none.

    Example:
        >>> print(gracekit.find_query("movers").sql)
    """
    return named_query(text(name, "the name of a query"))


def schema(store: StoreLike) -> list[Json]:
    """Name, kind, meaning and columns (name, type, meaning) of every table and view of a store.

    Example:
        >>> [table["name"] for table in gracekit.schema("gracekit-store")]
    """
    return read_schema(root_of(store))


def _query(root: Path, query: str, parameters: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """The SQL, and the values of its parameters; a single word is the name of a ready-made query.

    No single word but `_STATEMENTS` is SQL, so a ready-made query hides nothing.
    """
    word = query.strip()
    if not _WORD.fullmatch(word) or word.lower() in _STATEMENTS:
        return query, parameters
    if word not in NAMED_QUERIES and word in {table["name"] for table in read_schema(root)}:
        raise QueryError(f"{word} is a table: `FROM {word}` shows its rows, `DESCRIBE {word}` its "
                         "columns")  # fmt: skip
    ready = named_query(word)
    return ready.sql, ready.bind({k: str(v) for k, v in parameters.items() if v is not None})
