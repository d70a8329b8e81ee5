"""`gracekit export`: a version as training data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import click

import gracekit
from gracekit.cli.options import (
    answers,
    clear_errors,
    recipe_option,
    store_option,
    version_option,
)
from gracekit.cli.output import Output
from gracekit.cli.resolving import resolve_store
from gracekit.remote import is_url


@click.command(
    short_help="Write a version's coreset as training data.",
    epilog="\b\nExamples:\n"
    "  gracekit export -o subset\n"
    "  gracekit export --version 3 --format parquet --with-scores -o subset-v3\n"
    "  gracekit export --format trl --versions-in data/coresets   # data/coresets/latest\n"
    "  gracekit export --format atlas -o atlas\n"
    "  gracekit export --versions-in s3://bucket/coresets         # needs gracekit[s3]\n"
    "  gracekit export --format ids -o ids",
)
@click.option("-o", "--out", "directory", type=click.Path(), default=None,
              help="The directory to write, or a URL such as s3://bucket/subset.")  # fmt: skip
@click.option("--versions-in", "versions_in", type=click.Path(), default=None,
              help="Instead of --out: a directory in which each version gets its own (v000012), "
              "and the link `latest` names the newest (at a URL the object LATEST).")  # fmt: skip
@version_option
@click.option("-f", "--format", "format_name", default="jsonl", show_default=True,
              help="Rows: jsonl, parquet, hf-dataset. Lists: ids, indices-npy. For trainers: "
              "llamafactory, axolotl, trl, ms-swift, torchtune. Shards: webdataset, mds. To look "
              "at: atlas. To mix: domain-weights.")  # fmt: skip
@click.option("--weights", type=click.Choice(["column", "repeat", "none"]), default="column",
              show_default=True,
              help="A weight column, rows repeated by weight, or neither.")  # fmt: skip
@click.option("--with-scores", is_flag=True,
              help="Join to each row its scores, importance, origin and probability.")  # fmt: skip
@click.option("--data", "data_path", default=None,
              help="Where the data is now, when it moved.")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace an existing directory.")
@recipe_option
@store_option
@clear_errors
@answers
def export(
    directory: str | None,
    versions_in: str | None,
    version: int | Literal["latest"],
    format_name: str,
    weights: Literal["column", "repeat", "none"],
    with_scores: bool,
    data_path: str | None,
    force: bool,
    recipe_path: Path,
    store_path: Path | None,
    out: Output,
) -> None:
    """Write the coreset of a version as training data for any framework.

    Exactly one of --out and --versions-in is needed. Either is complete or as it was before; at a
    URL an export is complete once its manifest.json is there.
    """
    if (directory is None) == (versions_in is None):
        raise click.UsageError("give either --out or --versions-in")
    store = resolve_store(store_path, recipe_path)
    written = gracekit.export(
        store,
        directory,
        version=version,
        format=format_name,
        weights=weights,
        with_scores=with_scores,
        versions_in=versions_in,
        data=data_path or _data_of(recipe_path, store),
        force=force,
    )
    place = directory if versions_in is None else Path(versions_in) / Path(written.path).name
    told = written.path if is_url(written.path) else place
    out.show(
        written,
        lambda: out.line(
            f"version {written.version}: {written.num_rows:,} rows ({format_name}) in {told}"
        ),
    )
    for text in _remarks(written.details, format_name):
        out.remark(text)


def _remarks(details: dict[str, Any], format_name: str) -> Iterator[str]:
    """What was changed so that the trainer keeps every row, and what it will not know."""
    if details.get("was_there"):
        yield "this version was there already; it is left as it is, and latest names the newest"
    changed = details.get("changed")
    if changed:
        parts = {
            "joined": "turns joined to the one before",
            "empty_turns": "empty turns of the user put before an answer",
            "cut_off": "turns without an answer left out at the end",
            "later_system": "later system messages made turns of the user",
        }
        done = ", ".join(f"{changed[key]} {text}" for key, text in parts.items() if changed[key])
        yield (
            f"{changed['rows']:,} rows were changed, since {format_name} takes only chats whose "
            f"turns alternate: {done}"
        )
    silent = details.get("silent_turns")
    if silent:
        yield (
            f"{silent:,} turns of the assistant carry no loss in the data (weight 0, or the like), "
            f"and {format_name} knows no such mark, so the trainer learns them. Export as "
            "ms-swift, or leave such rows out with selection.never_in in the recipe"
        )


def _data_of(recipe_path: Path, store: Path) -> str | tuple[str, ...] | None:
    """Where the recipe of this store says that the data is; the two may have moved together."""
    if not recipe_path.exists():
        return None
    recipe = gracekit.Recipe.load(recipe_path)
    is_its_store = Path(recipe.store).resolve() == store.resolve()
    return recipe.data.path if is_its_store and recipe.data.is_there else None
