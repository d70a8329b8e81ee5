"""`gracekit export`: a version as training data."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

import gracekit
from gracekit.cli.options import (
    answers,
    clear_errors,
    recipe_option,
    resolve_store,
    store_option,
    version_option,
)
from gracekit.cli.output import Output


@click.command(
    short_help="Write a version's coreset as training data.",
    epilog="\b\nExamples:\n"
    "  gracekit export -o subset\n"
    "  gracekit export --version 3 --format parquet -o subset-v3\n"
    "  gracekit export --format ids -o ids",
)
@click.option("-o", "--out", "directory", type=click.Path(path_type=Path), required=True,
              help="The directory to write.")  # fmt: skip
@version_option
@click.option("-f", "--format", "format_name", default="jsonl", show_default=True,
              help="jsonl, parquet, hf-dataset, ids, indices-npy, llamafactory or "
              "axolotl.")  # fmt: skip
@click.option("--weights", type=click.Choice(["column", "repeat", "none"]), default="column",
              show_default=True,
              help="A weight column, rows repeated by weight, or neither.")  # fmt: skip
@click.option("--data", "data_path", default=None,
              help="Where the data is now, when it moved.")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace an existing directory.")
@recipe_option
@store_option
@clear_errors
@answers
def export(
    directory: Path,
    version: int | Literal["latest"],
    format_name: str,
    weights: Literal["column", "repeat", "none"],
    data_path: str | None,
    force: bool,
    recipe_path: Path,
    store_path: Path | None,
    out: Output,
) -> None:
    """Write the coreset of a version as training data for any framework."""
    store = resolve_store(store_path, recipe_path)
    written = gracekit.export(
        store,
        directory,
        version=version,
        format=format_name,
        weights=weights,
        data=data_path or _data_of(recipe_path, store),
        force=force,
    )
    out.show(
        written,
        lambda: out.line(
            f"version {written.version}: {written.num_rows:,} rows ({format_name}) in {directory}"
        ),
    )


def _data_of(recipe_path: Path, store: Path) -> str | tuple[str, ...] | None:
    """Where the recipe of this store says that the data is; the two may have moved together."""
    if not recipe_path.exists():
        return None
    recipe = gracekit.Recipe.load(recipe_path)
    is_its_store = Path(recipe.store).resolve() == store.resolve()
    return recipe.data.path if is_its_store and recipe.data.is_there else None
