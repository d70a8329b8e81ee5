"""The verb that comes first: `init`."""

from __future__ import annotations

from pathlib import Path

from gracekit.first_recipe import FirstRecipe, write_first_recipe


def init(
    data: str | Path,
    *,
    output: str | Path = "gracekit.yaml",
    store: str | Path = "gracekit-store",
    id_column: str | None = None,
    group_column: str | None = None,
    force: bool = False,
    strict: bool = False,
) -> FirstRecipe:
    """Look at training data and write a commented recipe for it.

    Args:
        data: A JSONL, JSON, Parquet or CSV file, a directory of them, a `save_to_disk` folder, or
            the name of a hub dataset.
        output: The recipe to write.
        store: The directory that the recipe names as the store.
        id_column: The column with unique sample ids; without it, an id is a hash of the content.
        group_column: The column with the group (source, task, category) of a sample.
        force: Replace an existing recipe.
        strict: Refuse data with rows that cannot be used.

    Raises:
        RecipeError: The recipe exists, and `force` is not given.
        DataError: The data cannot be read or used.

    Example:
        >>> gracekit.init("data/train.jsonl", group_column="source").num_samples
        12000
    """
    return write_first_recipe(
        str(data),
        output=Path(output),
        store=str(store),
        id_column=id_column,
        group_column=group_column,
        force=force,
        strict=strict,
    )
