"""`gracekit sql`: questions to the score history; a table, JSON, CSV or Parquet in answer."""

from __future__ import annotations

import itertools
import sys
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gracekit.cli.options import (
    clear_errors,
    json_option,
    recipe_option,
    resolve_store,
    store_option,
)
from gracekit.cli.render import (
    format_cell,
    print_csv,
    print_json,
    print_json_records,
    print_table,
)
from gracekit.errors import RecipeError

if TYPE_CHECKING:
    from gracekit.store import Answer, NamedQuery

TABLE_ROWS, CELL_CHARACTERS = 200, 200
"""What a table shows at most, unless all is asked for."""
GROUP_BATCHES = 12
"""Batches of an answer that make a row group of Parquet."""


@click.command(
    epilog="\b\nExamples:\n"
    "  gracekit sql 'SELECT * FROM versions'\n"
    "  gracekit sql --list\n"
    "  gracekit sql --named movers --param count=50 --csv > movers.csv\n"
    "  gracekit sql --named trajectory --param sample_id=gsm8k-17\n"
    "  gracekit sql --named movers --show > mine.sql\n"
    "  gracekit sql -f mine.sql --param count=9 --parquet mine.parquet\n"
    "  gracekit sql 'FROM samples JOIN \"labels.csv\" USING (sample_id)' --allow labels.csv\n"
    "  echo 'SELECT count(*) FROM score_history' | gracekit sql -"
)
@click.argument("query", required=False)
@click.option("--named", default=None, help="A ready-made query, see --list.")
@click.option("-p", "--param", "params", multiple=True, metavar="NAME=VALUE",
              help="A value for $NAME in the query. May be repeated.")  # fmt: skip
@click.option("--list", "list_named", is_flag=True, help="List the ready-made queries.")
@click.option("--show", is_flag=True, help="Print the SQL of --named, to start from.")
@click.option("--schema", "show_schema", is_flag=True,
              help="Print what the tables and columns mean.")  # fmt: skip
@click.option("-f", "--file", "file", type=click.Path(path_type=Path, allow_dash=True),
              default=None, help="Read the query from a file.")  # fmt: skip
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV on stdout.")
@click.option("--parquet", type=click.Path(path_type=Path), default=None, metavar="FILE",
              help="Write a Parquet file.")  # fmt: skip
@click.option("--all", "whole", is_flag=True,
              help=f"Print a table whole, not its first {TABLE_ROWS} rows.")  # fmt: skip
@click.option("--allow", type=click.Path(path_type=Path), multiple=True, metavar="PATH",
              help="Let the query read this file or directory too. May be repeated.")  # fmt: skip
@click.option("--unconfined", is_flag=True, help="Let the query read any file.")
@recipe_option
@store_option
@json_option
@clear_errors
def sql(
    query: str | None,
    named: str | None,
    params: tuple[str, ...],
    list_named: bool,
    show: bool,
    show_schema: bool,
    file: Path | None,
    as_csv: bool,
    parquet: Path | None,
    whole: bool,
    allow: tuple[Path, ...],
    unconfined: bool,
    recipe_path: Path,
    store_path: Path | None,
    as_json: bool,
) -> None:
    """Ask the score history in SQL: read-only, at any moment, while the daemon runs.

    Present state: samples, scores, versions, checkpoints. Of every version: coresets,
    score_history, measurements. QUERY `-` is read from stdin, and so is none in a pipe. The query
    sees the store only, unless more is allowed. docs/sql.md tells more.
    """
    from gracekit.store import NAMED_QUERIES, ask, named_query, schema

    if list_named:
        _print_list(list(NAMED_QUERIES.values()), as_json)
        return
    if show_schema:
        _print_schema(schema(resolve_store(store_path, recipe_path)), as_json)
        return
    if as_csv + as_json + (parquet is not None) > 1:
        raise RecipeError("give one of --json, --csv and --parquet")
    ready = None if named is None else named_query(named)
    if show:
        if ready is None:
            raise RecipeError("--show needs --named; --list lists the ready-made queries")
        click.echo(_as_text(ready))
        return
    text = _query_text(query, ready, file)
    given = _parameters(params)
    parameters = given if ready is None else ready.bind(given)
    store = resolve_store(store_path, recipe_path)
    with ask(store, text, parameters=parameters, confined=not unconfined, allow=allow) as answer:
        if parquet is not None:
            _write_parquet(answer, parquet)
        elif as_json:
            columns = answer.columns
            print_json_records(dict(zip(columns, row, strict=True)) for row in answer.rows())
        elif as_csv:
            print_csv(answer.columns, answer.rows())
        else:
            _print_answer(answer, whole)


def _print_answer(answer: Answer, whole: bool) -> None:
    rows = list(itertools.islice(answer.rows(), None if whole else TABLE_ROWS + 1))
    shown = rows if whole else [tuple(map(_cut, row)) for row in rows[:TABLE_ROWS]]
    print_table(answer.columns, shown)
    if len(rows) > len(shown):
        click.echo(f"the first {TABLE_ROWS} rows; --all prints the others, --csv, --json or "
                   "--parquet FILE takes them", err=True)  # fmt: skip
    if shown != rows[: len(shown)]:
        click.echo("long values are cut; --all prints them whole", err=True)
    if not rows:
        click.echo("no rows", err=True)


def _cut(value: Any) -> Any:
    if isinstance(value, (int, float, Decimal)) or len(text := str(value)) <= CELL_CHARACTERS:
        return value
    return text[: CELL_CHARACTERS - 1] + "…"


def _write_parquet(answer: Answer, path: Path) -> None:
    """Batch by batch, and under its name only when it is whole."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from gracekit.errors import QueryError
    from gracekit.files import write_atomic

    num_rows = 0

    def write(target: Path) -> None:
        nonlocal num_rows
        try:
            with pq.ParquetWriter(str(target), answer.schema, compression="zstd") as writer:
                while held := list(itertools.islice(answer.batches, GROUP_BATCHES)):
                    group = pa.Table.from_batches(held, answer.schema)
                    writer.write_table(group)
                    num_rows += group.num_rows
        except pa.ArrowNotImplementedError as error:
            raise QueryError(
                f"Parquet cannot hold a column of this answer ({error}); cast it, such as "
                "column::VARCHAR"
            ) from None

    write_atomic(path, write)
    click.echo(f"wrote {num_rows:,} rows to {format_cell(path)}", err=True)


def _print_list(queries: list[NamedQuery], as_json: bool) -> None:
    if as_json:
        print_json([
            {
                "name": query.name,
                "about": query.about,
                "parameters": {
                    name: {"about": p.about, "default": p.default, "is_required": p.is_required}
                    for name, p in query.parameters.items()
                },
                "sql": query.sql,
            }
            for query in queries
        ])  # fmt: skip
        return
    print_table(
        ["name", "what it tells", "parameters"],
        [[q.name, q.about, ", ".join(map(str, q.parameters)) or None] for q in queries],
    )


def _as_text(query: NamedQuery) -> str:
    """The SQL, with its parameters as comments: a file that `--file` takes."""
    lines = [f"-- {query.about}"]
    for name, parameter in query.parameters.items():
        default = parameter.default if parameter.default is not None else "NULL"
        rest = "required" if parameter.is_required else f"--named takes {default} when left out"
        lines.append(f"-- --param {name}=…  {parameter.about}; {rest}")
    return "\n".join([*lines, query.sql])


def _print_schema(tables: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json(tables)
        return
    for table in tables:
        click.echo(f"{table['name']} ({table['kind']}): {table['about']}")
        rows = [[f"  {c['name']}", c["type"], c["about"]] for c in table["columns"]]
        print_table(["  column", "type", "meaning"], rows)
        click.echo()


def _parameters(params: tuple[str, ...]) -> dict[str, str]:
    given: dict[str, str] = {}
    for param in params:
        name, equals, value = param.partition("=")
        if not equals or not name:
            raise RecipeError(f"--param takes NAME=VALUE, found {param!r}")
        if name in given:
            raise RecipeError(f"--param {name} is given twice")
        given[name] = value
    return given


def _query_text(query: str | None, named: NamedQuery | None, file: Path | None) -> str:
    stdin = Path("-")
    if query is None and named is None and file is None and not sys.stdin.isatty():
        file = stdin
    given = [text for text in (query, named, file) if text is not None]
    if len(given) != 1:
        raise RecipeError("give one query: as an argument, with --named, with --file, or - (stdin)")
    if named is not None:
        return named.sql
    if query is not None and query != "-":
        return query
    try:
        if file is None or file == stdin:
            return sys.stdin.read()
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        source = "stdin" if file in (None, stdin) else file
        raise RecipeError(f"cannot read the query from {source}: {error}") from None
