"""`gracekit pin` and `gracekit unpin`: keep a version, or leave it to gc again."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

import gracekit
from gracekit.cli.options import VERSION, answers, clear_errors, takes_store
from gracekit.cli.output import Output


@click.command(
    short_help="Keep VERSION whatever `gracekit gc` removes.",
    epilog="\b\nExample:\n  gracekit pin 12 --note 'the run that we publish'",
)
@click.argument("version", type=VERSION)
@click.option("--note", default="", help="Why, for `gracekit versions`.")
@clear_errors
@takes_store
@answers
def pin(version: int | Literal["latest"], note: str, store: Path, out: Output) -> None:
    """Keep VERSION whatever `gracekit gc` and the recipe's retention remove.

    Works at any moment, while the daemon runs.
    """
    pinned = gracekit.pin(store, version, note=note)
    out.show(
        {"version": pinned.version, "note": pinned.note, "pinned_at": pinned.pinned_at},
        lambda: out.line(f"version {pinned.version} is pinned"),
    )


@click.command(epilog="\b\nExample:\n  gracekit unpin 12")
@click.argument("version", type=VERSION)
@clear_errors
@takes_store
@answers
def unpin(version: int | Literal["latest"], store: Path, out: Output) -> None:
    """Leave VERSION to `gracekit gc` and the recipe's retention again."""
    was_pinned = gracekit.unpin(store, version)
    which = "the latest version" if version == "latest" else f"version {version}"
    out.show(
        {"version": version, "was_pinned": was_pinned},
        lambda: out.line(f"{which} {'is no longer' if was_pinned else 'was not'} pinned"),
    )
