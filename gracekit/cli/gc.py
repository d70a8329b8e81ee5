"""`gracekit gc`: remove the coresets and scores of old versions."""

from __future__ import annotations

from pathlib import Path

import click

import gracekit
from gracekit.cli.options import (
    answers,
    clear_errors,
    recipe_option,
    store_option,
)
from gracekit.cli.output import Output
from gracekit.cli.resolving import resolve_store
from gracekit.errors import RecipeError
from gracekit.words import size, version_ranges


@click.command(epilog="\b\nExamples:\n  gracekit gc --keep 20 --dry-run\n  gracekit gc --keep 20")
@click.option("--keep", type=click.IntRange(min=1), default=None,
              help="Newest versions to keep; default: retention.keep of the recipe.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Say what would be removed, and exit.")
@recipe_option
@store_option
@clear_errors
@answers
def gc(
    keep: int | None, dry_run: bool, recipe_path: Path, store_path: Path | None, out: Output
) -> None:
    """Remove the coresets and scores of old versions.

    What was measured stays, and so do pinned versions, those that a running trainer draws from,
    and all that the next refresh needs. `retention.keep` in the recipe does the same after each
    new version.
    """
    if keep is None and store_path is None and recipe_path.exists():
        keep = gracekit.Recipe.load(recipe_path).retention.keep
    if keep is None:
        raise RecipeError("how many versions? Give --keep N, or set retention.keep in the recipe")
    report = gracekit.gc(resolve_store(store_path, recipe_path), keep=keep, dry_run=dry_run)

    def print_text() -> None:
        did = ("would remove", "would free") if dry_run else ("removed", "freed")
        freed = size(report.freed_bytes)
        out.line(f"{did[0]} {version_ranges(report.removed)}, {did[1]} {freed}")
        out.line(f"keeps {version_ranges(report.kept)}")
        for version, why in report.kept.items():
            if why is not None:
                out.line(f"  version {version}: {why}")

    out.show(
        {
            "is_dry_run": dry_run,
            "removed": report.removed,
            "freed_bytes": report.freed_bytes,
            "kept": [{"version": v, "why": why} for v, why in report.kept.items()],
        },
        print_text,
    )
