"""`gracekit export`: a version as training data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from gracekit.cli.options import (
    clear_errors,
    json_option,
    load_recipe,
    recipe_option,
    resolve_store,
    store_option,
)
from gracekit.cli.render import print_json, say
from gracekit.errors import RecipeError, VersionNotFoundError

if TYPE_CHECKING:
    from gracekit.exports.exported_rows import Weighting
    from gracekit.store import Store


@click.command(
    epilog="\b\nExamples:\n"
    "  gracekit export -o subset\n"
    "  gracekit export --version 3 --format parquet -o subset-v3\n"
    "  gracekit export --format ids -o ids"
)
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True,
              help="The directory to write.")  # fmt: skip
@click.option("--version", "version", default="latest", show_default=True,
              help="A version's number, or `latest`.")  # fmt: skip
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
@json_option
@clear_errors
def export(
    out: Path,
    version: str,
    format_name: str,
    weights: Weighting,
    data_path: str | None,
    force: bool,
    recipe_path: Path,
    store_path: Path | None,
    as_json: bool,
) -> None:
    """Write the coreset of a version as training data for any framework."""
    from gracekit.exports import export as write_export
    from gracekit.exports import open_content
    from gracekit.store import Store

    store = Store.open(resolve_store(store_path, recipe_path))
    data_path = data_path or _data_of(recipe_path, store)
    content = open_content(store, _number(store, version), data_path=data_path)
    written = write_export(content, format_name, out, weights=weights, overwrite=force)
    if as_json:
        print_json(written)
    else:
        say(f"version {written['version']}: {written['num_rows']:,} rows ({format_name}) in {out}")


def _number(store: Store, version: str) -> int:
    """The version that was named."""
    if version == "latest":
        latest = store.latest()
        if latest is None:
            raise VersionNotFoundError(
                f"the store {store.paths.root} has no version to export yet; make one with "
                "`gracekit watch` or `gracekit refresh`"
            )
        return latest
    if not version.isdecimal():
        raise RecipeError(f"--version takes a number or `latest`, found {version!r}")
    return int(version)


def _data_of(recipe_path: Path, store: Store) -> str | None:
    """Where the recipe of this store says that the data is; the two may have moved together."""
    if not recipe_path.exists():
        return None
    recipe = load_recipe(recipe_path)
    is_its_store = Path(recipe.store).resolve() == store.paths.root
    return recipe.data.path if is_its_store and Path(recipe.data.path).exists() else None
