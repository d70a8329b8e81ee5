"""The recipe of a selection that is compared, and what is wrong with it before any training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gracekit.comparing.arms import Arm
from gracekit.comparing.bed import Bed
from gracekit.comparing.controls import num_kept
from gracekit.errors import RecipeError
from gracekit.recipe import Recipe, SelectionSection
from gracekit.refresher.model import rows_of_target
from gracekit.samples import load_samples, tokenize
from gracekit.samples.reference import ReferenceLosses
from gracekit.selection import selector_for

BUDGETS = {"selection.count", "selection.fraction", "selection.tokens"}
"""Keys by which an arm of a user's own has versions of another size than a draw."""


def recipe_of(bed: Bed, arm: Arm, seed: int, store: Path) -> Recipe:
    """The recipe of a selection: the arm's changes, this run's store, seed, budget and length."""
    assert arm.overlay is not None
    budget = max(num_kept(bed), bed.num_drawn) if arm.overlay.from_kept else bed.num_drawn
    changes = {
        **({} if BUDGETS & arm.overlay.changes.keys() else {"selection.count": budget}),
        "training.steps": bed.num_steps,
        "training.samples_a_step": bed.recipe.compare.batch_size,
        # Arms are compared at equal steps, but for those that show what an earlier end brings.
        "training.stop": "stop" if arm.overlay.ends_early else "never",
        "checkpoints.tokenizer": bed.recipe.checkpoints.tokenizer or str(bed.start),
        "seed": seed,
        **arm.overlay.changes,
        "store": str(store),
    }
    if bed.recipe.compare.lora_rank is not None:
        changes.setdefault("checkpoints.base_model", str(bed.start))
    recipe = bed.recipe.override(changes)
    return recipe.override(_without_held_out(recipe.selection, bed.held_out_ids))


def check_target(bed: Bed, recipe: Recipe, cache: Path) -> None:
    """Read the target set of an arm as it will be read.

    Args:
        bed: The data and the tokenizer.
        recipe: Names the target; without one there is nothing to check.
        cache: Directory for tokens.

    Raises:
        DataError: It cannot be read, or nothing of it can be used.
    """
    target = recipe.target
    if target is None:
        return
    if target.group is not None:
        rows_of_target(bed.raw, target.group, target.group_count)
    else:
        tokenize(load_samples(target), bed.tokenizer, target, cache / "target-tokens")


def check_selection(bed: Bed, arm: Arm, cache: Path) -> None:
    """What can be said of a selection before anything is trained.

    Args:
        bed: What all arms have in common.
        arm: A selection.
        cache: Directory for tokens.

    Raises:
        RecipeError: Its selector does not exist, or it lists samples that the data does not have.
        DataError: Its reference losses or its target cannot be read.
    """
    recipe = recipe_of(bed, arm, 0, Path("store"))
    settings = recipe.selection
    selector_for(settings.selector)
    known = set(bed.raw.sample_ids.tolist())
    for key, ids in (("always_in", settings.always_in), ("never_in", settings.never_in)):
        unknown = [name for name in ids if name not in known]
        if unknown:
            raise RecipeError(
                f"the arm {arm.name!r}: selection.{key} names {len(unknown)} samples that "
                f"{bed.recipe.data.name} does not have, the first {unknown[0]!r}"
            )
    if settings.reads_reference and settings.reference is not None:
        ReferenceLosses.read(settings.reference)
    check_target(bed, recipe, cache)


def _without_held_out(settings: SelectionSection, held_out: tuple[str, ...]) -> dict[str, Any]:
    """Changes by which held-out rows are never selected, whatever the lists say."""
    if not held_out:
        return {}
    changes: dict[str, Any] = {
        "selection.never_in": list(dict.fromkeys([*settings.never_in, *held_out])),
        "selection.always_in": [name for name in settings.always_in if name not in set(held_out)],
    }
    if settings.always_in_where is not None:
        ids = ", ".join("'" + name.replace("'", "''") + "'" for name in held_out)
        changes["selection.always_in_where"] = (
            f"({settings.always_in_where}) AND sample_id NOT IN ({ids})"
        )
    return changes
