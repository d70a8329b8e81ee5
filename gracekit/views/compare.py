"""`gracekit select --compare`: what several selectors would choose, side by side."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gracekit.errors import RecipeError
from gracekit.recipe import Recipe
from gracekit.refresher import selection_inputs
from gracekit.types import Json, Rows


def compare(recipe: Recipe | str | Path, names: Sequence[str]) -> list[Json]:
    """Select by each of the selectors from the newest scores; makes no version.

    Returns a record per selector: selector, num_selected, num_tokens, coverage (mean similarity to
    the best selected sample), importance (mean), num_kept (of the newest version's coreset),
    seconds (CPU, of this process), groups (name -> selected), overlaps (other selector ->
    intersection by union).

    Raises:
        RecipeError: A selector does not exist, or is named twice.
        SelectionError: One of them cannot meet what the recipe asks for.
    """
    from gracekit.selection import select, selector_for
    from gracekit.store import Store

    recipe = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    if not names or len(set(names)) < len(names):
        raise RecipeError(f"name each selector to compare once; found {', '.join(names) or 'none'}")
    recipes = [recipe.override({"selection.selector": name}) for name in names]
    for name in names:
        selector_for(name)
    store = Store.open(recipe.store)
    inputs = selection_inputs(store, recipe)
    samples, version = inputs.samples, store.next_version()
    records: list[Json] = []
    chosen: dict[str, Rows] = {}
    for name, one in zip(names, recipes, strict=True):
        started = time.process_time()
        selection = select(one.selection, inputs, seed=recipe.seed, version=version)
        seconds = time.process_time() - started
        chosen[name] = selection.rows
        counts = np.bincount(samples.groups[selection.rows], minlength=len(samples.group_names))
        records.append(
            {
                "selector": name,
                "num_selected": len(selection.rows),
                **{
                    key: selection.details[key]
                    for key in ("num_tokens", "coverage", "importance", "num_kept")
                },
                "seconds": round(seconds, 3),
                "groups": dict(zip(samples.group_names, counts.tolist(), strict=True)),
            }
        )
    for record in records:
        record["overlaps"] = {
            other: _jaccard(chosen[record["selector"]], rows) for other, rows in chosen.items()
        }
    return records


def _jaccard(first: Rows, second: Rows) -> float:
    both = len(np.intersect1d(first, second))
    return both / (len(first) + len(second) - both)
