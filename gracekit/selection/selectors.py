"""The selectors that a recipe can name.

To add one, write a class with `select(task) -> Selection` and put it into `SELECTORS`. A recipe
may also name a class of the user's own as `package.module:Class`; it is made without arguments.
"""

from __future__ import annotations

import importlib
import math

import numpy as np

from gracekit.errors import RecipeError
from gracekit.protocols import SelectionTask, Selector
from gracekit.selection.coverage import Coverage
from gracekit.selection.ranking import best_rows, random_rows
from gracekit.types import Float32, Rows, Selection


class Random:
    """A uniform draw, the same for every version of a store: the baseline to beat."""

    def select(self, task: SelectionTask) -> Selection:
        """Rows that become unusable are replaced; the others stay."""
        return _plain(random_rows(task, task.seed))


class FreshRandom:
    """A uniform draw, a new one for every version: the stronger baseline of the two."""

    def select(self, task: SelectionTask) -> Selection:
        """The same again for the same seed and version."""
        return _plain(random_rows(task, task.seed, task.version))


class Top:
    """The most important samples; objective: the sum of their importance."""

    def select(self, task: SelectionTask) -> Selection:
        """Most important first; gains are the importance."""
        rows = best_rows(task.scores.importance, task)
        return _plain(rows, task.scores.importance[rows])


SELECTORS: dict[str, type[Selector]] = {
    "coverage": Coverage,
    "random": Random,
    "random-fresh": FreshRandom,
    "top": Top,
}
"""Name in the recipe -> class."""


def selector_for(name: str) -> Selector:
    """The selector of that name, or the user's own class; `RecipeError` where there is none."""
    if name in SELECTORS:
        return SELECTORS[name]()
    if ":" not in name:
        raise RecipeError(
            f"selection.selector: there is no selector {name!r}; known: {', '.join(SELECTORS)}, "
            "or a class of your own as package.module:Class"
        )
    module_name, _, class_name = name.partition(":")
    try:
        selector = getattr(importlib.import_module(module_name), class_name)()
    except Exception as error:  # whatever the user's module raises
        raise RecipeError(
            f"selection.selector: cannot make {name!r}: {type(error).__name__}: {error}. Expected "
            "package.module:Class, importable here and made without arguments"
        ) from error
    if not isinstance(selector, Selector):
        raise RecipeError(
            f"selection.selector: {name!r} is not a selector; it needs a method select(task), see "
            "gracekit.protocols.Selector"
        )
    return selector


def _plain(rows: Rows, gains: Float32 | None = None) -> Selection:
    """A selection without an objective, or with the sum of the gains as its objective."""
    if gains is None:
        gains = np.zeros(len(rows), np.float32)
    return Selection(
        rows=rows,
        gains=gains,
        weights=np.ones(len(rows), np.float32),
        objective=math.fsum(gains.tolist()),
    )
