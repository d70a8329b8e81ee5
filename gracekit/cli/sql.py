"""`gracekit sql`: questions to the score history; a table, JSON, CSV or Parquet in answer."""

from __future__ import annotations

import itertools
import sys
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import gracekit
from gracekit.cli.completion import query_names, query_parameters
from gracekit.cli.json_text import print_csv, print_json_records
from gracekit.cli.options import (
    answers_with_tables,
    clear_errors,
    recipe_option,
    store_option,
)
from gracekit.cli.output import Output, TableColumn
from gracekit.cli.resolving import resolve_store
from gracekit.documents import read_named_text
from gracekit.errors import RecipeError
from gracekit.foreign import reason_of

if TYPE_CHECKING:
    from gracekit.api.results import AnswerBatches, NamedQuery

TABLE_ROWS, CELL_CHARACTERS = 200, 200
"""What a table shows at most, unless all is asked for."""
COLUMNS_OF_TABLE = (
    TableColumn(key="name", title="column"),
    TableColumn(key="about", title="meaning", priority=1, least=30),
    TableColumn(key="type", title="type", priority=2),
)


@click.command(
    short_help="Ask the score history in SQL, or a ready-made question.",
    epilog="\b\nExamples:\n"
    "  gracekit sql 'SELECT * FROM versions'\n"
    "  gracekit sql --list\n"
    "  gracekit sql movers\n"
    "  gracekit sql movers --param count=50 --csv > movers.csv\n"
    "  gracekit sql trajectory --param sample_id=gsm8k-17\n"
    "  gracekit sql movers --show > mine.sql\n"
    "  gracekit sql -f mine.sql --param count=9 --parquet mine.parquet\n"
    "  gracekit sql 'FROM samples JOIN \"labels.csv\" USING (sample_id)' --allow labels.csv\n"
    "  echo 'SELECT count(*) FROM score_history' | gracekit sql -",
)
@click.argument("query", required=False, shell_complete=query_names)
@click.option("--named", default=None, shell_complete=query_names,
              help="A ready-made query by its name, as QUERY takes it.")  # fmt: skip
@click.option("-p", "--param", "params", multiple=True, metavar="NAME=VALUE",
              shell_complete=query_parameters,
              help="A value for $NAME in the query. May be repeated.")  # fmt: skip
@click.option("--list", "list_named", is_flag=True, help="List the ready-made queries.")
@click.option("--show", is_flag=True, help="Print the SQL of a ready-made query, to start from.")
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
@clear_errors
@answers_with_tables
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
    out: Output,
) -> None:
    """Ask the score history in SQL: read-only, at any moment, while the daemon runs.

    QUERY is SQL, or the name of a ready-made query such as `movers`. The tables samples, scores,
    versions and checkpoints hold the present state; coresets, score_history and measurements that
    of every version. With `-` as QUERY, or in a pipe without one, the query is read from stdin. A
    query can read nothing but the store unless --allow or --unconfined is given. docs/sql.md tells
    more.
    """
    if list_named:
        _print_list(out)
        return
    if show_schema:
        _print_schema(out, resolve_store(store_path, recipe_path))
        return
    if as_csv + out.as_json + (parquet is not None) > 1:
        raise RecipeError("give one of --json, --csv and --parquet")
    if show:
        wanted = named or query
        if wanted is None:
            raise RecipeError("--show needs --named or a name; --list lists the ready-made queries")
        click.echo(_as_text(gracekit.find_query(wanted)))
        return
    text = _query_text(query, named and gracekit.find_query(named).name, file)
    parameters = _parameters(params)
    store = resolve_store(store_path, recipe_path)
    with gracekit.sql_batches(
        store, text, parameters=parameters, allow=allow, unconfined=unconfined
    ) as answer:
        if parquet is not None:
            num_rows = answer.write_parquet(parquet)
            out.remark(f"wrote {num_rows:,} rows to {parquet}")
        elif out.as_json:
            columns = answer.columns
            print_json_records(dict(zip(columns, row, strict=True)) for row in answer.rows())
        elif as_csv:
            print_csv(answer.columns, answer.rows())
        else:
            _print_answer(out, answer, whole)


def _print_answer(out: Output, answer: AnswerBatches, whole: bool) -> None:
    rows = list(itertools.islice(answer.rows(), None if whole else TABLE_ROWS + 1))
    shown = rows if whole else [tuple(map(_cut, row)) for row in rows[:TABLE_ROWS]]
    out.rows(answer.columns, shown, whole=whole)
    if len(rows) > len(shown):
        out.remark(
            f"the first {TABLE_ROWS} rows; --all prints the others, --csv, --json or "
            "--parquet FILE takes them"
        )
    if shown != rows[: len(shown)]:
        out.remark("long values are cut; --all prints them whole")
    if not rows:
        out.remark("no rows")


def _cut(value: Any) -> Any:
    if isinstance(value, (int, float, Decimal)) or len(text := str(value)) <= CELL_CHARACTERS:
        return value
    return text[: CELL_CHARACTERS - 1] + "…"


def _print_list(out: Output) -> None:
    queries = [
        {
            "name": query.name,
            "about": query.about,
            "parameters": {
                name: {"about": p.about, "default": p.default, "is_required": p.is_required}
                for name, p in query.parameters.items()
            },
            "sql": query.sql,
        }
        for query in gracekit.named_queries()
    ]

    def print_text() -> None:
        for query in queries:
            takes = "".join(f" --param {name}=…" for name in query["parameters"])
            out.paragraphs([f"{query['name']}{takes}", f"  {query['about']}"])
        out.line()
        out.line("`gracekit sql NAME` runs one of them, `--show` prints its SQL.")

    out.show(queries, print_text)


def _as_text(query: NamedQuery) -> str:
    """The SQL, with its parameters as comments: a file that `--file` takes."""
    lines = [f"-- {query.about}"]
    for name, parameter in query.parameters.items():
        default = parameter.default if parameter.default is not None else "NULL"
        rest = "required" if parameter.is_required else f"{default} when left out"
        lines.append(f"-- --param {name}=…  {parameter.about}; {rest}")
    return "\n".join([*lines, query.sql])


def _print_schema(out: Output, store: Path) -> None:
    tables = gracekit.schema(store)

    def print_text() -> None:
        for table in tables:
            out.paragraphs([f"{table['name']} ({table['kind']}): {table['about']}"])
            out.table(COLUMNS_OF_TABLE, table["columns"])
            out.line()

    out.show(tables, print_text)


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


def _query_text(query: str | None, named: str | None, file: Path | None) -> str:
    stdin = Path("-")
    if query is None and named is None and file is None and not sys.stdin.isatty():
        file = stdin
    given = [text for text in (query, named, file) if text is not None]
    if len(given) != 1:
        raise RecipeError("give one query: as an argument, with --named, with --file, or - (stdin)")
    if named is not None:
        return named
    if query is not None and query != "-":
        return query
    try:
        if file is None or file == stdin:
            return sys.stdin.read()
        return read_named_text(file)
    except (OSError, ValueError) as error:
        source = "stdin" if file in (None, stdin) else file
        raise RecipeError(f"cannot read the query from {source}: {reason_of(error)}") from None
