"""`gracekit verify`: check the whole store."""

from __future__ import annotations

import sys
from pathlib import Path

import click

import gracekit
from gracekit.cli.options import answers, clear_errors, recipe_option, store_option
from gracekit.cli.output import Output
from gracekit.cli.resolving import resolve_store
from gracekit.errors import UsageError


@click.command(
    short_help="Check every checksum of the store, or of its copy at a URL.",
    epilog="\b\nExamples:\n  gracekit verify && echo fine\n  gracekit verify s3://bucket/run",
)
@click.argument("store", required=False, type=click.Path(path_type=Path))
@click.option("--deep", is_flag=True,
              help="Also make again what follows from other files, and compare.")  # fmt: skip
@recipe_option
@store_option
@clear_errors
@answers
def verify(
    store: Path | None, deep: bool, recipe_path: Path, store_path: Path | None, out: Output
) -> None:
    """Check every checksum and reference of STORE; exit 1 and say what is wrong.

    STORE may be the URL where it is published: then every object there is downloaded, a version at
    a time, into TMPDIR. Without STORE it is that of --store or of the recipe.
    """
    if store is not None and store_path is not None and store != store_path:
        raise UsageError(f"name one store: found {store} and --store {store_path}")
    found = gracekit.verify(resolve_store(store or store_path, recipe_path), deep=deep)

    def print_text() -> None:
        number = len(found.versions)
        if found.ok:
            out.line(f"{number} version{' verifies' if number == 1 else 's verify'}")
        for problem in found.problems:
            out.line(f"{problem.path}: {problem.what}; {problem.advice}")

    out.show(found, print_text)
    if not found.ok:
        sys.exit(1)
