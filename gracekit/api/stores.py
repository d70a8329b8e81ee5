"""What a verb is given: a store, a version, a recipe."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gracekit.errors import RecipeError, UsageError
from gracekit.recipe import Recipe, read_yaml
from gracekit.remote import require_path
from gracekit.store import Store, StoreReader, versions_in_words

StoreLike = Store | Path | str
"""A store: open, or its directory."""
RecipeLike = Recipe | Path | str
"""A recipe, or the path of one."""
VersionLike = int | Literal["latest"]
"""A version: its number, or `"latest"`."""
Changes = Mapping[str, Any] | Sequence[str]
"""Changes to a recipe: `{"selection.fraction": 0.2}`, or as on the command line
`["selection.fraction=0.2"]`, where values are read as YAML."""


def open_store(store: StoreLike) -> Store:
    """The store as it is now, opened where it is a path.

    Raises:
        StoreNotFoundError: There is none.
        StoreFormatError: It is damaged, or of a newer gracekit.
        UsageError: It is neither a path nor a `Store`.
    """
    return store.renew() if isinstance(store, Store) else Store.open(root_of(store))


def root_of(store: StoreLike) -> Path:
    """The directory of a store, which need not exist; raises `UsageError` for what is none."""
    if isinstance(store, Store):
        return store.paths.root
    if not isinstance(store, (str, os.PathLike)):
        raise UsageError(f"a store is its directory or an open gracekit.Store, found {store!r}")
    return path(store, "a store")


def resolve(store: StoreReader, version: VersionLike) -> int:
    """The number of a version.

    Raises:
        UsageError: It is neither a whole number nor `"latest"`.
        VersionNotFoundError: There is no such version, none yet, or gc removed it. Either message
            says which versions there are.
    """
    try:
        return store.resolve(version)
    except UsageError as error:
        existing = versions_in_words(store.manifests(), store.removed())
        raise UsageError(f"{error}; the store {store.paths.root} has {existing}") from None


def load_recipe(
    recipe: RecipeLike, changes: Changes | None = None, store: StoreLike | None = None
) -> Recipe:
    """The recipe, with changes applied, for another store where one is given.

    Raises:
        RecipeError: The recipe or a change is wrong.
        UsageError: It is neither a path nor a `Recipe`.
    """
    if not isinstance(recipe, (Recipe, str, os.PathLike)):
        raise UsageError(f"a recipe is its path or a gracekit.Recipe, found {recipe!r}")
    loaded = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    values = values_of(changes or {})
    if store is not None:
        values["store"] = str(root_of(store))
    return loaded.override(values) if values else loaded


def whole_number(value: object, name: str, *, least: int) -> int:
    """An argument that counts something; raises `UsageError` for what does not."""
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool) and value >= least:
        return int(value)
    raise UsageError(f"{name} is a whole number of {least} or more, found {value!r}")


def text(value: object, name: str) -> str:
    """An argument that is a text; raises `UsageError` for what is none."""
    if not isinstance(value, str):
        raise UsageError(f"{name} is a text, found {value!r}")
    return value


def path(value: object, name: str) -> Path:
    """An argument that names a file or directory; raises `UsageError` for what does not."""
    if not isinstance(value, (str, os.PathLike)):
        raise UsageError(f"{name} is a path, found {value!r}")
    if "\0" in str(value):
        raise UsageError(f"{name} is a path, which has no null byte, found {value!r}")
    require_path(value, name)
    return Path(value)


def list_of_names(value: object, name: str) -> list[str]:
    """An argument that lists names; raises `UsageError` for what does not."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        names = list(value)
        if all(isinstance(one, str) for one in names):
            return names
    raise UsageError(f"{name} is a list of names, found {value!r}")


def values_of(changes: Changes) -> dict[str, Any]:
    """Changes to a recipe as values by their dotted keys; raises `RecipeError` for what is none."""
    if isinstance(changes, Mapping):
        return {text(key, "a key of the changes"): value for key, value in changes.items()}
    if isinstance(changes, str):
        changes = [changes]
    changes = list_of_names(changes, "the list of changes")
    values: dict[str, Any] = {}
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals:
            raise RecipeError(f"--set takes KEY=VALUE, found {change!r}")
        values[key.strip()] = read_yaml(value, f"--set {key}: {value!r}")
    return values
