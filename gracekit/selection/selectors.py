"""The selectors that a recipe can name.

To add one, write a class with `select(task) -> Selection` and put it into `SELECTORS`. A recipe
may also name a class of the user's own as `package.module:Class`; it is made without arguments.
"""

from __future__ import annotations

from gracekit.errors import RecipeError
from gracekit.plugins import load_class
from gracekit.protocols import Selector
from gracekit.selection.balanced import Balanced
from gracekit.selection.by_features import Clusters, KCenter, Matching
from gracekit.selection.coverage import Coverage
from gracekit.selection.simple import (
    Bottom,
    Craig,
    FreshRandom,
    MessagePassing,
    Random,
    Stratified,
    Top,
    TopScore,
)
from gracekit.selection.target import TargetCoverage

SELECTORS: dict[str, type[Selector]] = {
    "coverage": Coverage,
    "balanced": Balanced,
    "target-coverage": TargetCoverage,
    "random": Random,
    "random-fresh": FreshRandom,
    "top": Top,
    "bottom": Bottom,
    "stratified": Stratified,
    "d2": MessagePassing,
    "k-center": KCenter,
    "cluster": Clusters,
    "craig": Craig,
    "gradient-matching": Matching,
}
"""Name in the recipe -> class. `top-` and a score's name is `TopScore` besides."""
TOP = "top-"


def selector_for(name: str) -> Selector:
    """The selector of that name, or the user's own class; `RecipeError` where there is none."""
    if name in SELECTORS:
        return SELECTORS[name]()
    if name.startswith(TOP):
        return TopScore(name.removeprefix(TOP))
    if ":" not in name:
        raise RecipeError(
            f"selection.selector: there is no selector {name!r}; known: {', '.join(SELECTORS)}, "
            f"{TOP} and the name of a score, or a class of your own as package.module:Class"
        )
    try:
        selector = load_class(name, "the selector")()
    except RecipeError as error:
        raise RecipeError(f"selection.selector: {error}") from error.__cause__
    except Exception as error:  # whatever the user's class raises
        raise RecipeError(
            f"selection.selector: cannot make {name!r}: {type(error).__name__}: {error}. Expected "
            "a class that is made without arguments"
        ) from error
    if not isinstance(selector, Selector):
        raise RecipeError(
            f"selection.selector: {name!r} is not a selector; it needs a method select(task), see "
            "gracekit.protocols.Selector"
        )
    return selector
