"""Commands over the versions that were made: `rollback`, `pin`, `unpin`, `gc`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import click

from gracekit.cli.options import (
    clear_errors,
    json_option,
    load_recipe,
    recipe_option,
    resolve_store,
    store_option,
)
from gracekit.cli.render import format_bytes, format_cell, print_json
from gracekit.errors import RecipeError


@click.command(epilog="\b\nExample:\n  gracekit rollback 12")
@click.argument("version", type=click.IntRange(min=1))
@recipe_option
@store_option
@json_option
@clear_errors
def rollback(version: int, recipe_path: Path, store_path: Path | None, as_json: bool) -> None:
    """Make a new version with the coreset and the scores of VERSION.

    Trainers take it next, until a checkpoint is refreshed or `gracekit select` makes a newer one:
    both go on from the newest refresh.
    """
    from gracekit.refresher import rollback as go_back

    result = go_back(resolve_store(store_path, recipe_path), version)
    header = result.header
    if as_json:
        print_json({"is_new": result.is_new, **header.to_json()})
    elif not result.is_new:
        click.echo(f"the latest version, {result.version}, has that coreset: nothing to do")
    else:
        click.echo(
            f"version {result.version} is version {version} again: step "
            f"{header.checkpoint.step}, coreset {header.stats.num_selected:,}"
        )


@click.command(epilog="\b\nExample:\n  gracekit pin 12 --note 'the run that we publish'")
@click.argument("version", type=click.IntRange(min=1))
@click.option("--note", default="", help="Why, for `gracekit versions`.")
@recipe_option
@store_option
@json_option
@clear_errors
def pin(version: int, note: str, recipe_path: Path, store_path: Path | None, as_json: bool) -> None:
    """Keep VERSION whatever `gracekit gc` and the recipe's retention remove.

    Works at any moment, while the daemon runs.
    """
    from gracekit.store import Store

    store = Store.open(resolve_store(store_path, recipe_path))
    pinned = store.pin(version, note)
    if as_json:
        print_json({"version": version, "note": pinned.note, "pinned_at": pinned.pinned_at})
    else:
        click.echo(f"version {version} is pinned")


@click.command(epilog="\b\nExample:\n  gracekit unpin 12")
@click.argument("version", type=click.IntRange(min=1))
@recipe_option
@store_option
@json_option
@clear_errors
def unpin(version: int, recipe_path: Path, store_path: Path | None, as_json: bool) -> None:
    """Leave VERSION to `gracekit gc` and the recipe's retention again."""
    from gracekit.store import Store

    was_pinned = Store.open(resolve_store(store_path, recipe_path)).unpin(version)
    if as_json:
        print_json({"version": version, "was_pinned": was_pinned})
    else:
        click.echo(f"version {version} {'is no longer' if was_pinned else 'was not'} pinned")


@click.command(epilog="\b\nExamples:\n  gracekit gc --keep 20 --dry-run\n  gracekit gc --keep 20")
@click.option("--keep", type=click.IntRange(min=1), default=None,
              help="Newest versions to keep; default: retention.keep of the recipe.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Say what would be removed, and exit.")
@recipe_option
@store_option
@json_option
@clear_errors
def gc(
    keep: int | None, dry_run: bool, recipe_path: Path, store_path: Path | None, as_json: bool
) -> None:
    """Remove the coresets and scores of old versions.

    What was measured stays, and so do pinned versions, those that a running trainer draws from,
    and all that the next refresh needs. `retention.keep` in the recipe does the same after each
    new version.
    """
    from gracekit.store import Store

    if keep is None and store_path is None and recipe_path.exists():
        keep = load_recipe(recipe_path).retention.keep
    if keep is None:
        raise RecipeError("how many versions? Give --keep N, or set retention.keep in the recipe")
    report = Store.open(resolve_store(store_path, recipe_path)).gc(keep, dry_run=dry_run)
    if as_json:
        print_json({
            "is_dry_run": dry_run,
            "removed": report.removed,
            "freed_bytes": report.freed_bytes,
            "kept": [{"version": v, "why": why} for v, why in report.kept.items()],
        })  # fmt: skip
        return
    did = ("would remove", "would free") if dry_run else ("removed", "freed")
    size = format_bytes(report.freed_bytes)
    click.echo(f"{did[0]} {_ranges(report.removed)}, {did[1]} {size}")
    click.echo(f"keeps {_ranges(report.kept)}")
    for version, why in report.kept.items():
        if why is not None:
            click.echo(f"  version {version}: {format_cell(why)}")


def _ranges(versions: Iterable[int]) -> str:
    """Ascending numbers in words: 1 to 7, 9."""
    runs: list[list[int]] = []
    for version in versions:
        if runs and version == runs[-1][1] + 1:
            runs[-1][1] = version
        else:
            runs.append([version, version])
    parts = [str(first) if first == last else f"{first} to {last}" for first, last in runs]
    if not parts:
        return "no version"
    is_one = len(runs) == 1 and runs[0][0] == runs[0][1]
    return f"version{'' if is_one else 's'} {', '.join(parts)}"
