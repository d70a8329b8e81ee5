"""`gracekit verify`: check the whole store."""

from __future__ import annotations

import sys
from pathlib import Path

import click

import gracekit
from gracekit.cli.options import answers, clear_errors, takes_store
from gracekit.cli.output import Output


@click.command(
    short_help="Check every checksum and reference of the store.",
    epilog="\b\nExample:\n  gracekit verify && echo fine",
)
@click.option("--deep", is_flag=True,
              help="Also make again what follows from other files, and compare.")  # fmt: skip
@clear_errors
@takes_store
@answers
def verify(store: Path, deep: bool, out: Output) -> None:
    """Check every checksum and reference of the store; exit 1 and say what is wrong."""
    found = gracekit.verify(store, deep=deep)

    def print_text() -> None:
        number = len(found.versions)
        if found.ok:
            out.line(f"{number} version{' verifies' if number == 1 else 's verify'}")
        for problem in found.problems:
            out.line(f"{problem.path}: {problem.what}; {problem.advice}")

    out.show(found, print_text)
    if not found.ok:
        sys.exit(1)
