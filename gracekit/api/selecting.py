"""The verb that selects anew: `select`; needs no model, and loads no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import overload

from gracekit import refresher
from gracekit.api.stores import (
    Changes,
    RecipeLike,
    StoreLike,
    list_of_names,
    load_recipe,
    open_store,
    resolve,
)
from gracekit.recipe import Recipe
from gracekit.refresher import RefreshResult
from gracekit.store import Store
from gracekit.views.compare import Comparison
from gracekit.views.compare import compare as compare_selectors


@overload
def select(
    recipe_or_store: RecipeLike | Store,
    *,
    compare: Sequence[str],
    store: StoreLike | None = None,
    set: Changes | None = None,
) -> Comparison: ...
@overload
def select(
    recipe_or_store: RecipeLike | Store,
    *,
    compare: None = None,
    store: StoreLike | None = None,
    set: Changes | None = None,
) -> RefreshResult: ...
def select(
    recipe_or_store: RecipeLike | Store,
    *,
    compare: Sequence[str] | None = None,
    store: StoreLike | None = None,
    set: Changes | None = None,
) -> RefreshResult | Comparison:
    """Make a version from the stored scores with other selection settings; needs no model, no data.

    Args:
        recipe_or_store: A `Recipe`, the path of one, or a store, which stands for the settings of
            its latest version.
        compare: Only say what these selectors would choose, and make no version.
        store: A store to use instead of the recipe's.
        set: Changes to the settings, such as `{"selection.selector": "top"}`.

    Raises:
        StoreNotFoundError, VersionNotFoundError: There are no scores to select from yet.
        RecipeError: A setting is wrong, or asks for an importance that is not stored.
        SelectionError: The selection cannot be met.
        StoreFormatError: The stored graph is lost; the next refresh makes a new one.

    Example:
        >>> gracekit.select("gracekit-store", set={"selection.fraction": 0.1}).version
        5
        >>> gracekit.select("gracekit.yaml", compare=["coverage", "random"]).to_pandas()
    """
    is_path = isinstance(recipe_or_store, (str, Path))
    if isinstance(recipe_or_store, Store) or (is_path and Store.exists(str(recipe_or_store))):
        source = open_store(recipe_or_store)  # type: ignore[arg-type]
        if compare is None and store is None:
            return refresher.reselect_in(source, lambda held: load_recipe(_settings_of(held), set))
        recipe = load_recipe(_settings_of(source), set, store)
    else:
        recipe = load_recipe(recipe_or_store, set, store)
    if compare is None:
        return refresher.reselect(recipe)
    return compare_selectors(recipe, list_of_names(compare, "compare"))


def _settings_of(store: Store) -> Recipe:
    """A recipe with what the latest version was scored and selected by."""
    header = store.header(resolve(store, "latest"))
    settings = header.settings
    sections = {"scoring": settings.scoring, "graph": settings.graph,
                "selection": settings.selection}  # fmt: skip
    return Recipe.from_dict(
        {
            "data": header.dataset.settings.model_dump(mode="json"),
            "store": str(store.paths.root),
            **{name: s.model_dump(mode="json") for name, s in sections.items() if s is not None},
        },
        name=f"the settings of version {header.version} of {store.paths.root}",
    )
