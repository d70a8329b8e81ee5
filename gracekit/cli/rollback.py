"""`gracekit rollback`: an old version again."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

import gracekit
from gracekit.cli.options import VERSION, answers, clear_errors, takes_store
from gracekit.cli.output import Output


@click.command(epilog="\b\nExample:\n  gracekit rollback 12")
@click.argument("version", type=VERSION)
@clear_errors
@takes_store
@answers
def rollback(version: int | Literal["latest"], store: Path, out: Output) -> None:
    """Make a new version with the coreset and the scores of VERSION.

    Trainers take it next, until a checkpoint is refreshed or `gracekit select` makes a newer one:
    both go on from the newest refresh.
    """
    result = gracekit.rollback(store, version)
    header = result.header
    text = (
        f"version {result.version} is version {version} again: step "
        f"{header.checkpoint.step}, coreset {header.stats.num_selected:,}"
        if result.is_new
        else f"the latest version, {result.version}, has that coreset: nothing to do"
    )
    out.show({"is_new": result.is_new, **header.to_json()}, lambda: out.line(text))
