"""`gracekit report`: what a store has come to, as one HTML file."""

from __future__ import annotations

from pathlib import Path

import click

import gracekit
from gracekit.cli.options import answers, clear_errors, recipe_option, store_option
from gracekit.cli.output import Output
from gracekit.cli.resolving import resolve_store
from gracekit.errors import UsageError

DEFAULT_PAGE = "report.html"


@click.command(
    short_help="Show what a store has come to, as one HTML file.",
    epilog="\b\nExamples:\n"
    "  gracekit report gracekit-store\n"
    "  gracekit report gracekit-store -o runs/today.html --comparison gracekit-store-compare\n"
    "  gracekit report gracekit-store --json",
)
@click.argument("store", required=False, type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), default=None,
              help=f"The file to write, over an earlier report; default: {DEFAULT_PAGE}, and with "
              "--json none.")  # fmt: skip
@click.option("--comparison", type=click.Path(path_type=Path), default=None, metavar="PATH",
              help="Results of `gracekit compare` to show too: their directory, or a file with "
              "what it printed with --json.")  # fmt: skip
@recipe_option
@store_option
@clear_errors
@answers
def report(
    store: Path | None,
    output: Path | None,
    comparison: Path | None,
    recipe_path: Path,
    store_path: Path | None,
    out: Output,
) -> None:
    """Show what STORE has come to, as one HTML file without links to anything outside of it.

    It says what the coreset is worth, what it cost and what to do, and shows the versions, the
    newest coreset, single samples over time, copies, and a map of all samples; each picture with
    its numbers and its SQL. Without STORE it is that of --store or of the recipe.
    """
    if store is not None and store_path is not None and store != store_path:
        raise UsageError(f"name one store: found {store} and --store {store_path}")
    if output is None and not out.as_json:
        output = Path(DEFAULT_PAGE)
    place = resolve_store(store or store_path, recipe_path)
    found = gracekit.report(place, output, comparison=comparison)

    def print_text() -> None:
        out.paragraphs([found.answer.worth, found.answer.cost, found.answer.advice])
        out.line(f"The report is in {output}")

    out.show(found, print_text)
