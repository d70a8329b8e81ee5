"""The verb that selects anew: `select`; needs no model, and loads no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import overload

from gracekit import refresher
from gracekit.api.stores import Changes, RecipeLike, StoreLike, load_recipe, open_store, resolve
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
    if isinstance(recipe_or_store, Store):
        recipe = _settings_of(recipe_or_store)
    elif isinstance(recipe_or_store, (str, Path)) and Store.exists(recipe_or_store):
        recipe = _settings_of(open_store(recipe_or_store))
    else:
        recipe = load_recipe(recipe_or_store)
    recipe = load_recipe(recipe, set, store)
    return refresher.reselect(recipe) if compare is None else compare_selectors(recipe, compare)


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
