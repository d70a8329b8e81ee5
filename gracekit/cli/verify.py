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
@clear_errors
@takes_store
@answers
def verify(store: Path, out: Output) -> None:
    """Check every checksum and reference of the store; exit 1 and say what is wrong."""
    found = gracekit.verify(store)

    def print_text() -> None:
        number = len(found.versions)
        if found.ok:
            out.line(f"{number} version{' verifies' if number == 1 else 's verify'}")
        for problem in found.problems:
            out.line(f"{problem.path}: {problem.what}; {problem.advice}")

    out.show(found, print_text)
    if not found.ok:
        sys.exit(1)
