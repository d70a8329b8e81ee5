"""`gracekit status`: what the store holds, how fresh it is, and what the daemon does."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

import gracekit
from gracekit.cli.options import answers, clear_errors, takes_store
from gracekit.cli.output import Output


@click.command(
    short_help="Say what the store holds and what to do next.",
    epilog="\b\nExamples:\n  gracekit status\n  gracekit status --check",
)
@click.option("--check", is_flag=True,
              help="Say in one line whether the daemon is well; exit 3 if not.")  # fmt: skip
@click.option("--max-age", "max_age_s", type=click.FloatRange(min=0, min_open=True),
              default=120.0, show_default=True, metavar="SECONDS",
              help="With --check: seconds without a sign of the daemon.")  # fmt: skip
@clear_errors
@takes_store
@answers
def status(store: Path, check: bool, max_age_s: float, out: Output) -> None:
    """Say what the store holds, how fresh it is, how far to trust it, and what to do next."""
    if not check:
        found = gracekit.status(store)
        here = f"{Path.cwd()}{os.sep}"
        out.show(
            found, lambda: out.paragraphs(text.replace(here, "") for text in found.sentences())
        )
        return
    health = gracekit.status(store, check=True, max_age=max_age_s)
    text = f"healthy: {health.daemon['state']}" if health.is_healthy else (
        f"unhealthy: {health.reason}"
    )  # fmt: skip
    out.show(health, lambda: out.line(text))
    if not health.is_healthy:
        sys.exit(3)
