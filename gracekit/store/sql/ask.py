"""One question to a store in SQL: queries only, confined, and answered in batches.

DuckDB can confine which files are opened, but not what is done to them. So everything that is not a
plain query is refused before it runs, judged by the syntax tree that DuckDB's own parser makes:
other statements, a `WITH` with a part that writes (`WITH x AS (COPY … TO …)`), and functions that
run SQL from a value, in which such a statement could hide.
"""

from __future__ import annotations

import itertools
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import pyarrow as pa
from duckdb import DuckDBPyConnection, DuckDBPyRelation, StatementType

from gracekit.errors import QueryError
from gracekit.store.sql.connection import open_duckdb
from gracekit.store.sql.database import connect
from gracekit.store.sql.values import as_arrow_has_them, python_values
from gracekit.version.columns import IDENTITY, SAMPLES, TABLES, VIEWS

_Result = TypeVar("_Result")

BATCH_ROWS = 10_000
"""About how many rows of an answer are in memory at once."""

_TRIES = 8
"""How often a question is started anew because a version was removed after its files were found and
before they were read; on a busy machine that can happen several times in a row."""

_SHARED = [column.name for column in IDENTITY]
"""Columns that tables with `row` share with `samples`."""
_AMBIGUOUS = re.compile(
    rf'Ambiguous reference to column name "({"|".join(_SHARED)})"', re.IGNORECASE
)

_QUERY_NODES = {"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"}
"""Nodes of DuckDB's syntax tree that only read."""
_TABLE_FUNCTIONS = re.compile(
    "range|generate_series|unnest|repeat|repeat_row|summary|glob|query_table|"
    "json_each|json_tree|sniff_csv|read_(csv|json|ndjson|parquet|text|blob|duckdb)(_auto)?|"
    r"read_(nd)?json_objects(_auto)?|parquet_\w+|duckdb_\w+|pragma_\w+|pg_timezone_names|"
    "icu_calendar_names"
)
"""Table functions that only read what the connection may open, or make rows. Not among them:
`query` and `json_execute_serialized_sql`, which run SQL from a value, and those that change the
database's state."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The rows of a query. They are computed while they are taken, and can be taken once."""

    schema: pa.Schema
    """Names and types; no two columns have the same name."""
    batches: Iterator[pa.RecordBatch]

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return list(self.schema.names)

    def rows(self) -> Iterator[tuple[Any, ...]]:
        """The rows as Python values; what Python cannot hold is text (`python_values`)."""
        for batch in self.batches:
            if batch.num_columns:
                yield from zip(*map(python_values, batch.columns), strict=True)


@contextmanager
def ask(
    root: Path | str,
    sql: str,
    *,
    parameters: Mapping[str, Any] | None = None,
    confined: bool = True,
    allow: Sequence[Path | str] = (),
) -> Iterator[Answer]:
    """Run a query against a store. Of several queries only the last one runs.

    Args:
        root: The store.
        sql: One or more queries (SELECT, FROM, VALUES, WITH, DESCRIBE, SHOW, SUMMARIZE, EXPLAIN).
        parameters: Values for `$name` in the queries.
        confined: Read only the store, and what `allow` names.
        allow: Further files and directories to read.

    Raises:
        QueryError: The SQL is wrong, or it tries to write, or to read where it may not; also
            while rows are taken.
        StoreError: The store cannot be read.
    """
    statements = parse_queries(sql)
    values = _check_parameters(statements, parameters or {})
    with query_errors():
        for tries_left in reversed(range(_TRIES)):
            try:
                connection = connect(root, confined=confined, allow=allow)
                answer = _run(connection, statements[-1], values)
                break
            except duckdb.IOException:
                if not tries_left:
                    raise
        with connection:
            yield answer


def run_sql(root: Path | str, sql: str, **options: Any) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Columns and all rows of `ask`, with the same options and errors."""
    with ask(root, sql, **options) as answer:
        return answer.columns, list(answer.rows())


def parse_queries(sql: str) -> list[duckdb.Statement]:
    """The statements of a text; raises `QueryError` unless there is one, and all only read."""
    with query_errors():
        try:
            sql.encode()
        except UnicodeEncodeError:
            raise QueryError("the query is not valid UTF-8; save it as UTF-8") from None
        statements = duckdb.extract_statements(sql)
        if not statements:
            raise QueryError("the query is empty; `SELECT * FROM versions` is one")
        for statement in statements:
            if not _only_reads(statement):
                raise QueryError(
                    f"only queries are allowed here, not {_shorten(statement.query.strip())!r}: "
                    "the store is read-only, and SQL is not run from values (query() and the "
                    "like). A PIVOT needs its values: PIVOT … ON column IN (…)"
                )
    return statements


@contextmanager
def query_errors() -> Iterator[None]:
    """Turn what DuckDB and Arrow raise about a query into a `QueryError` that helps."""
    try:
        yield
    except duckdb.InterruptException:
        raise KeyboardInterrupt from None
    except RuntimeError as error:  # as which DuckDB tells the main thread of a Ctrl-C
        if "interrupted" in str(error).lower():
            raise KeyboardInterrupt from None
        raise
    except (duckdb.Error, pa.ArrowException) as error:
        raise QueryError(_explain(error)) from error


def bind(
    connection: DuckDBPyConnection, query: str, parameters: Mapping[str, Any] | None = None
) -> DuckDBPyRelation:
    """The query, ready to run.

    Earlier releases had `sample_id` and `group_name` in the table `samples` only, so queries join
    it to have them and do not say whose `sample_id` they mean, which is ambiguous now. For such a
    query the other tables are shown without the two columns, as they were.

    Raises `duckdb.Error` for a query that cannot be run.
    """
    try:
        return connection.sql(query, params=parameters or None)
    except duckdb.BinderException as error:
        if not _AMBIGUOUS.search(str(error)):
            raise
        _hide_identity(connection)
        try:
            return connection.sql(query, params=parameters or None)
        except duckdb.Error:
            raise error from None


def _hide_identity(connection: DuckDBPyConnection) -> None:
    """Show the tables without what they share with `samples` beside `row`."""
    hidden = ", ".join(_SHARED)
    for name in _with_identity():
        shown = f"SELECT * EXCLUDE ({hidden}) FROM memory.main.{name}"
        connection.execute(f"CREATE TEMP VIEW {name} AS {shown}")


def _run(
    connection: DuckDBPyConnection, statement: duckdb.Statement, values: Mapping[str, Any]
) -> Answer:
    try:
        own = {name: values[name] for name in statement.named_parameters}
        relation = as_arrow_has_them(bind(connection, statement.query, own))
        kind = type(relation)  # relations of DuckDB 1.2 have it under its first name alone
        read = getattr(kind, "to_arrow_reader", None) or kind.fetch_arrow_reader
        reader = _interruptibly(connection, lambda: read(relation, BATCH_ROWS))
        schema, found = _unique(reader.schema), _taken(connection, reader)
        first = list(itertools.islice(found, 1))  # so that most errors come now
        batches = (
            pa.RecordBatch.from_arrays(batch.columns, schema=schema)
            for batch in itertools.chain(first, found)
        )
        return Answer(schema, batches)
    except BaseException:
        connection.close()
        raise


def _taken(
    connection: DuckDBPyConnection, reader: pa.RecordBatchReader
) -> Iterator[pa.RecordBatch]:
    try:
        while (batch := _interruptibly(connection, lambda: next(reader, None))) is not None:
            yield batch
    except OSError as error:  # as which Arrow passes on whatever DuckDB says
        raise duckdb.IOException(str(error)) from error


def _interruptibly(connection: DuckDBPyConnection, work: Callable[[], _Result]) -> _Result:
    """Run `work`, which does not notice signals itself, so that Ctrl-C ends the query."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work)
        try:
            return future.result()
        except KeyboardInterrupt:
            while not future.done():  # an interruption of what does not run yet is lost
                connection.interrupt()
                wait([future], timeout=0.1)
            raise


def _unique(schema: pa.Schema) -> pa.Schema:
    """The second column of a name is called `name_1`, as in DuckDB's own tables, and so on."""
    fields: list[pa.Field] = []
    taken: set[str] = set(schema.names)
    seen: set[str] = set()
    for field in schema:
        name, k = field.name, 0
        while name in seen or (k and name in taken):
            k += 1
            name = f"{field.name}_{k}"
        seen.add(name)
        fields.append(field.with_name(name))
    return pa.schema(fields)


def _check_parameters(
    statements: list[duckdb.Statement], given: Mapping[str, Any]
) -> Mapping[str, Any]:
    wanted = {name for statement in statements for name in statement.named_parameters}
    missing, unknown = sorted(wanted - given.keys()), sorted(given.keys() - wanted)
    if missing:
        raise QueryError(
            f"the query has a parameter ${missing[0]} without a value; give --param "
            f"{missing[0]}=VALUE"
        )
    if unknown:
        names = ", ".join(f"${name}" for name in sorted(wanted)) or "none"
        raise QueryError(f"the query has no parameter ${unknown[0]}; it has {names}")
    return given


def _only_reads(statement: duckdb.Statement) -> bool:
    text = statement.query
    if statement.type == StatementType.EXPLAIN:
        # EXPLAIN ANALYZE runs what it explains: look at what follows it. No comment or string may
        # stand before that, for what looks like its beginning might be in there.
        before = r"^\s*explain(\s+analyze|\s*\([\w\s,]*\))?\s"
        inner = re.sub(before, "", text, count=1, flags=re.IGNORECASE)
        try:
            statements = duckdb.extract_statements(inner)
        except duckdb.Error:
            return False
        if len(statements) != 1 or statements[0].type != StatementType.SELECT:
            return False
        text = inner
    elif statement.type != StatementType.SELECT:
        return False
    with open_duckdb() as connection:
        found = connection.execute("SELECT json_serialize_sql($sql)", {"sql": text}).fetchone()
    tree = str(found and found[0])
    # Quotes within a string of the query are escaped there, so these cannot be forged.
    if not tree.startswith('{"error":false'):
        return False
    nodes = set(re.findall(r'"type":"(\w+_NODE)"', tree))
    functions = {name.lower() for name in re.findall(r'"function_name":"([^"]*)"', tree)}
    return nodes <= _QUERY_NODES and not functions & _refused_functions()


@cache
def _refused_functions() -> frozenset[str]:
    """Table functions of this DuckDB that are not known to be harmless."""
    sql = "SELECT DISTINCT function_name FROM duckdb_functions() WHERE function_type = 'table'"
    with open_duckdb() as connection:
        names = [name for (name,) in connection.execute(sql).fetchall()]
    return frozenset(name for name in names if not _TABLE_FUNCTIONS.fullmatch(name))


def _explain(error: Exception) -> str:
    reason = str(error).strip()
    if reason.startswith("Permission Error"):
        return (
            f"{reason.partition(chr(10))[0]}. Queries see the store only (`--allow PATH` shows "
            f"them more): its tables are {', '.join(TABLES)}, its views {', '.join(VIEWS)}"
        )
    if isinstance(error, duckdb.OutOfMemoryException):
        return (
            f"the query needs more memory, and more room for temporary files in "
            f"{tempfile.gettempdir()}, than there is ({reason.partition(chr(10))[0]}). Ask for "
            "less, as with LIMIT or fewer columns, or set TMPDIR to a directory with more room"
        )
    if isinstance(error, duckdb.CatalogException):
        return f"{reason}\nTables: {', '.join(TABLES)}. Views: {', '.join(VIEWS)}"
    if _AMBIGUOUS.search(reason):
        return (
            f"{reason}\n{', '.join(_with_identity())} have {' and '.join(_SHARED)} themselves: say "
            "which table's is meant, or leave out the join with samples"
        )
    return reason


def _with_identity() -> list[str]:
    """Tables that show which sample a row is, `samples` apart."""
    all_of_them = (TABLES | VIEWS).items()
    return [
        name
        for name, table in all_of_them
        if name != SAMPLES.name and set(_SHARED) <= set(table.names)
    ]


def _shorten(text: str) -> str:
    return text if len(text) <= 60 else text[:59] + "…"
