"""`gracekit select`: a version from stored scores, or a comparison of selectors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

import gracekit
from gracekit.cli import cells
from gracekit.cli.options import answers_with_tables, clear_errors, takes_recipe
from gracekit.cli.output import Output, TableColumn
from gracekit.cli.results import show_result

if TYPE_CHECKING:
    from gracekit.api.results import Comparison

COLUMNS = (
    TableColumn(key="selector", title="selector"),
    TableColumn(key="num_selected", title="selected", show=cells.count, is_number=True),
    TableColumn(key="coverage", title="coverage", show=cells.two_digits, is_number=True,
                priority=1),
    TableColumn(key="importance", title="importance", show=cells.two_digits, is_number=True,
                priority=2),
    TableColumn(key="num_kept", title="kept", show=cells.count, is_number=True, priority=3),
    TableColumn(key="num_tokens", title="tokens", show=cells.count, is_number=True, priority=4),
    TableColumn(key="seconds", title="CPU time", show=cells.seconds, is_number=True, priority=5),
)  # fmt: skip


@click.command(
    short_help="Make a version with other selection settings; no model.",
    epilog="\b\nExamples:\n"
    "  gracekit select --set selection.fraction=0.1\n"
    "  gracekit select --set selection.selector=top --set selection.count=2000\n"
    "  gracekit select --compare coverage,random,top",
)
@click.option("--compare", "names", default=None, metavar="A,B,…",
              help="Print what these selectors would choose; makes no version.")  # fmt: skip
@takes_recipe
@clear_errors
@answers_with_tables
def select(
    recipe_path: Path,
    store_path: Path | None,
    changes: tuple[str, ...],
    names: str | None,
    out: Output,
) -> None:
    """Make a new version from the stored scores with other selection settings; needs no model."""
    if names is None:
        show_result(out, gracekit.select(recipe_path, store=store_path, set=changes))
        return
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    found = gracekit.select(recipe_path, store=store_path, set=changes, compare=wanted)
    out.show(found, lambda: _print_comparison(out, found))


def _print_comparison(out: Output, found: Comparison) -> None:
    out.table(COLUMNS, found.to_json())
    names = [outcome.selector for outcome in found]
    out.line()
    out.line("overlap of the coresets (intersection by union)")
    out.table(
        [
            TableColumn(key="selector", title=""),
            *(
                TableColumn(key=name, title=name, show=cells.two_digits, is_number=True, priority=i)
                for i, name in enumerate(names, start=1)
            ),
        ],
        [{"selector": outcome.selector, **outcome.overlaps} for outcome in found],
    )
    out.line()
    out.line("selected by group")
    out.table(
        [
            TableColumn(key="group", title=""),
            *(
                TableColumn(key=name, title=name, show=cells.count, is_number=True, priority=i)
                for i, name in enumerate(names, start=1)
            ),
        ],
        [
            {"group": group, **{outcome.selector: outcome.groups[group] for outcome in found}}
            for group in found[0].groups
        ],
    )
