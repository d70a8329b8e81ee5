"""Classes of the user's own, named as `package.module:Class` in a recipe."""

from __future__ import annotations

import pkgutil
from typing import Any

from gracekit.errors import RecipeError


def load_class(name: str, what: str) -> type[Any]:
    """The class behind `package.module:Class`.

    Args:
        name: As the recipe has it.
        what: What it should be, for messages: `the scorer`.

    Raises:
        RecipeError: The module cannot be imported, has no such name, or that is no class.
    """
    module_name, _, class_name = name.partition(":")
    try:
        found = pkgutil.resolve_name(name)
    except AttributeError:
        raise RecipeError(f"{module_name} has no {class_name!r}, which {name!r} asks for") from None
    except Exception as error:  # whatever the user's module raises
        raise RecipeError(
            f"cannot import {what} {name!r}: {type(error).__name__}: {error}; install "
            f"{module_name!r} or put its folder on PYTHONPATH"
        ) from error
    if not isinstance(found, type):
        raise RecipeError(
            f"{name!r} is not a class; {what} is named as package.module:Class and made without "
            "arguments"
        )
    return found
