"""The verb that trains: `compare`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gracekit.api.stores import (
    Changes,
    RecipeLike,
    StoreLike,
    list_of_names,
    load_recipe,
    path,
    whole_number,
)
from gracekit.comparing import ArmOutcome, Comparison
from gracekit.comparing import compare as run_comparison

__all__ = ["ArmOutcome", "Comparison", "compare"]


def compare(
    recipe: RecipeLike,
    *,
    arms: Sequence[str] | None = None,
    seeds: int | None = None,
    output: str | Path | None = None,
    set: Changes | None = None,
    train: str | None = None,
    report_only: bool = False,
    mix_code: bool = False,
    store: StoreLike | None = None,
) -> Comparison:
    """Train the same model on what several arms choose, and say which is better, if any.

    Runs that are done are kept as a file each in `output`; a comparison that was stopped goes on
    with those that are missing.

    Args:
        recipe: A `Recipe`, or the path of one; its section `compare` says what is compared.
        arms: What is compared; default: `compare.arms` of the recipe.
        seeds: Runs of each arm; default: `compare.seeds` of the recipe.
        output: Directory of the results; default: beside the store, its name with `-compare`.
        set: Changes to the recipe, such as `{"compare.seeds": 5}`.
        train: A training command with `{subset}`, `{output}` and `{seed}`; default: the built-in
            trainer.
        report_only: Train nothing, and put together what is there.
        mix_code: Go on although other code than this, such as an earlier release, made runs that
            are there; the remarks tell which. Otherwise that is refused.
        store: Instead of the recipe's, for the default of `output`; no store is written to.

    Raises:
        RecipeError: Arms, start, metric or command do not exist, or results are of other settings
            or, with runs missing, of other code.
        DataError: The data or the held-out rows cannot be used.
        MeasureError: A training failed.

    Example:
        >>> found = gracekit.compare("gracekit.yaml", set={"compare.start": "models/base"})
        >>> found.verdict
        ['`recipe`: no difference from `once` found: -0.0031 [-0.0122, +0.0060].']
    """
    loaded = load_recipe(recipe, set, store)
    if arms is not None:
        loaded = loaded.override({"compare.arms": list_of_names(arms, "arms")})
    if seeds is not None:
        loaded = loaded.override({"compare.seeds": whole_number(seeds, "seeds", least=1)})
    place = Path(f"{loaded.store}-compare") if output is None else path(output, "output")
    return run_comparison(loaded, place, train=train, report_only=report_only, mix_code=mix_code)
