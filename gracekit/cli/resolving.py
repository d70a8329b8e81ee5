"""Which store a command means: the one that is named, else the recipe's."""

from __future__ import annotations

from pathlib import Path

import gracekit
from gracekit.errors import RecipeError


def resolve_store(store: Path | None, recipe_path: Path) -> Path:
    """The store that was named, else the recipe's."""
    if store is not None:
        return store
    if not recipe_path.exists():
        raise RecipeError(
            f"which store? There is no recipe at {recipe_path}; name the store with --store, "
            "or the recipe with --recipe"
        )
    return Path(gracekit.Recipe.load(recipe_path).store)
