"""`gracekit select --compare`: what several selectors would choose, side by side."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gracekit.errors import RecipeError
from gracekit.recipe import Recipe
from gracekit.refresher import selection_inputs
from gracekit.selection import select, selector_for
from gracekit.store import Store
from gracekit.tabular import Records
from gracekit.types import Json, Rows


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectorOutcome:
    """What one selector would choose."""

    selector: str
    num_selected: int
    num_tokens: int | None
    coverage: float | None
    """Mean similarity of the samples to the best selected one, 0 to 1."""
    importance: float | None
    """Mean over the coreset, 0 to 1."""
    num_kept: int | None
    """Samples of the newest version's coreset that stay."""
    seconds: float
    """CPU seconds of this process."""
    groups: dict[str, int]
    """Group -> selected samples."""
    overlaps: dict[str, float]
    """Selector -> intersection of the two coresets by their union, 0 to 1."""


class Comparison(Records[SelectorOutcome]):
    """One row a selector, in the order they were asked for."""

    __slots__ = ()
    row_type = SelectorOutcome

    def _columns(self) -> dict[str, Sequence[Any]]:
        nested = ("groups", "overlaps")
        return {name: v for name, v in super()._columns().items() if name not in nested}


def compare(recipe: Recipe, names: Sequence[str]) -> Comparison:
    """Select by each of the selectors from the newest scores; makes no version.

    Raises:
        RecipeError: A selector does not exist, or is named twice.
        SelectionError: One of them cannot meet what the recipe asks for.
    """
    if not names or len(set(names)) < len(names):
        raise RecipeError(f"name each selector to compare once; found {', '.join(names) or 'none'}")
    recipes = [recipe.override({"selection.selector": name}) for name in names]
    for name in names:
        selector_for(name)
    store = Store.open(recipe.store)
    inputs = selection_inputs(store, recipe)
    samples, version = inputs.samples, store.next_version()
    outcomes: list[SelectorOutcome] = []
    chosen: dict[str, Rows] = {}
    for name, one in zip(names, recipes, strict=True):
        started = time.process_time()
        selection = select(one.selection, inputs, seed=recipe.seed, version=version)
        seconds = time.process_time() - started
        chosen[name] = selection.rows
        counts = np.bincount(samples.groups[selection.rows], minlength=len(samples.group_names))
        numbers: Json = {
            key: selection.details[key]
            for key in ("num_tokens", "coverage", "importance", "num_kept")
        }
        outcomes.append(
            SelectorOutcome(
                selector=name,
                num_selected=len(selection.rows),
                seconds=round(seconds, 3),
                groups=dict(zip(samples.group_names, counts.tolist(), strict=True)),
                overlaps={},
                **numbers,
            )
        )
    return Comparison(
        dataclasses.replace(
            outcome,
            overlaps={
                other: _jaccard(chosen[outcome.selector], rows) for other, rows in chosen.items()
            },
        )
        for outcome in outcomes
    )


def _jaccard(first: Rows, second: Rows) -> float:
    both = len(np.intersect1d(first, second))
    return both / (len(first) + len(second) - both)
