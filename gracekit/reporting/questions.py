"""Questions in SQL to one store, over one connection; the text of each is shown in the report."""

from __future__ import annotations

from collections.abc import Iterable
from textwrap import dedent
from types import TracebackType
from typing import Any, Self

import duckdb

from gracekit.errors import QueryError
from gracekit.store import StoreReader, connect, python_values

_TRIES = 3
"""How often a question is asked: gc may remove a version's files after they were found."""


class Questions:
    """An open store that is asked in SQL; close it after use (`with`)."""

    def __init__(self, store: StoreReader) -> None:
        self.store = store
        self._connection: duckdb.DuckDBPyConnection | None = self._open()

    def _open(self) -> duckdb.DuckDBPyConnection:
        try:
            return connect(self.store)
        except duckdb.IOException as error:  # a view looks at the first of its files
            raise _unreadable(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def _close(self) -> None:
        """Close the connection; the next question opens another one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def ask(self, sql: str) -> dict[str, list[Any]]:
        """The columns of an answer, all rows of it; raises `QueryError`."""
        for tries_left in reversed(range(_TRIES)):
            if self._connection is None:
                self._connection = self._open()
            try:
                table = self._connection.sql(sql).to_arrow_table()
                names = table.column_names
                return {
                    name: list(python_values(column))
                    for name, column in zip(names, table.columns, strict=True)
                }
            except duckdb.IOException as error:
                if not tries_left:
                    raise _unreadable(error) from error
                self._close()
                self.store.renew()
            except duckdb.Error as error:
                raise QueryError(f"the store cannot be asked: {_reason(error)}") from error
        raise AssertionError("a try has returned or raised")

    def one(self, sql: str) -> dict[str, Any]:
        """The first row of an answer; empty where there is none."""
        found = self.ask(sql)
        return {name: values[0] for name, values in found.items() if values}

    def columns_of(self, table: str) -> set[str]:
        """Names of the columns of a table or view."""
        return {str(name) for name in self.ask(f"DESCRIBE {table}")["column_name"]}


def query(sql: str) -> str:
    """A query as it is shown: without the indentation of the code around it."""
    return dedent(sql).strip()


def in_list(values: Iterable[int]) -> str:
    """Whole numbers for `IN (…)`."""
    return ", ".join(str(int(value)) for value in values) or "NULL"


def _unreadable(error: duckdb.Error) -> QueryError:
    return QueryError(f"a file of the store cannot be read: {_reason(error)}")


def _reason(error: duckdb.Error) -> str:
    return str(error).strip().partition("\n")[0]
