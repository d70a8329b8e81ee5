"""`gracekit diff`: how two versions differ."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

import gracekit
from gracekit.cli import cells
from gracekit.cli.options import VERSION, answers_with_tables, clear_errors, takes_store
from gracekit.cli.output import Output, TableColumn
from gracekit.text_table import LEAST_ID

if TYPE_CHECKING:
    from gracekit.api.results import Diff

GROUPS = (
    TableColumn(key="group", title="group"),
    TableColumn(key="first", title="selected before", show=cells.count, is_number=True),
    TableColumn(key="second", title="now", show=cells.count, is_number=True),
    TableColumn(key="added", title="added", show=cells.count, is_number=True, priority=1),
    TableColumn(key="removed", title="removed", show=cells.count, is_number=True, priority=1),
)
MOVERS = (
    TableColumn(key="sample_id", title="sample", least=LEAST_ID),
    TableColumn(key="change", title="change", show=cells.signed, is_number=True),
    TableColumn(key="importance_first", title="before", show=cells.two_digits, is_number=True,
                priority=3),
    TableColumn(key="importance_second", title="now", show=cells.two_digits, is_number=True,
                priority=3),
    TableColumn(key="coreset", title="in coreset", priority=1),
    TableColumn(key="group", title="group", priority=4, least=8),
    TableColumn(key="preview", title="text", priority=2, least=20),
)  # fmt: skip
_PLACES = {
    (True, True): "stays in",
    (True, False): "left",
    (False, True): "joined",
    (False, False): "stays out",
}
"""Whether a sample is in the first and in the second coreset."""


@click.command(epilog="\b\nExamples:\n  gracekit diff 3 4\n  gracekit diff 3 latest")
@click.argument("first", type=VERSION)
@click.argument("second", type=VERSION)
@clear_errors
@takes_store
@answers_with_tables
def diff(
    first: int | Literal["latest"], second: int | Literal["latest"], store: Path, out: Output
) -> None:
    """Compare the coresets and scores of two versions."""
    found = gracekit.diff(store, first, second)
    out.show(found, lambda: _print_diff(out, found))


def _print_diff(out: Output, found: Diff) -> None:
    out.line(
        f"version {found.first.version} to {found.second.version}: {found.num_kept:,} kept, "
        f"{found.num_added:,} added, {found.num_removed:,} removed"
    )
    if found.data:
        out.line(
            f"the data: {found.data.num_added:,} samples joined, {found.data.num_removed:,} left, "
            f"{found.data.num_changed:,} changed"
        )
    if found.groups:
        out.line()
        out.line("groups")
        out.table(GROUPS, found.groups.to_json())
    if found.movers:
        out.line()
        out.line("samples whose importance changed most")
        places = [_PLACES[mover.in_first, mover.in_second] for mover in found.movers]
        records = zip(found.movers.to_json(), places, strict=True)
        out.table(MOVERS, [{**record, "coreset": place} for record, place in records])
