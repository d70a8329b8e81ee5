"""What the command line and `import gracekit` call: one refresh, a selection."""

from __future__ import annotations

import hashlib
import threading
import time
from pathlib import Path

from gracekit.errors import RecipeError, VersionNotFoundError
from gracekit.recipe import Recipe
from gracekit.refresher.flow import Refresher, RefreshResult
from gracekit.refresher.state import selection_inputs
from gracekit.types import Json


def refresh(
    recipe: Recipe | str | Path,
    checkpoint: str | Path,
    *,
    strict: bool = False,
    stop: threading.Event | None = None,
) -> RefreshResult:
    """Make one version from one checkpoint directory.

    Args:
        recipe: A `Recipe`, or the path of one.
        checkpoint: A complete checkpoint; its layout is recognised.
        strict: Refuse data with rows that cannot be used.
        stop: Ends the refresh after the shard in progress with `RefreshStoppedError`.

    Raises:
        GracekitError: Says what is wrong and what to do; the last version stays valid.
    """
    from gracekit.checkpoints import check_checkpoint

    recipe = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    found = check_checkpoint(Path(checkpoint), recipe.checkpoints)
    refresher = Refresher.from_recipe(recipe, strict=strict)
    with refresher.locked():
        return refresher.refresh(found, stop=stop)


def reselect(recipe: Recipe | str | Path) -> RefreshResult:
    """Make a version from the stored scores with the recipe's selection; needs no model, no data.

    Raises:
        StoreNotFoundError, VersionNotFoundError: There are no scores to select from yet.
        StoreFormatError: The cached graph is lost; the next refresh makes a new one.
    """
    from gracekit.selection import select
    from gracekit.store import Store, VersionDraft

    recipe = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    store = Store.open(recipe.store)
    with store.lock():
        store.recover()
        latest = store.latest()
        if latest is None:
            raise VersionNotFoundError(
                f"the store {store.paths.root} has no version to select from yet; "
                "make one with `gracekit watch` or `gracekit refresh`"
            )
        started = time.perf_counter()
        header = store.header(latest)
        _require_same_importance(recipe, header.scoring)
        settings = f"{header.scores_version} {recipe.digest('selection', 'seed')}"
        refresh_id = hashlib.sha256(settings.encode()).hexdigest()[:20]
        if header.refresh_id == refresh_id:
            return RefreshResult(version=latest, is_new=False, header=header)
        selection = select(
            recipe.selection,
            **selection_inputs(store, recipe, latest),
            seed=recipe.seed,
            version=store.next_version(),
        )
        seconds = round(time.perf_counter() - started, 3)
        version = store.commit(
            VersionDraft(
                operation="reselect",
                refresh_id=refresh_id,
                recipe_digest=recipe.digest(),
                scores=None,
                selection=selection,
                checkpoint=header.checkpoint,
                scoring=header.scoring,
                refresh={},
                selection_settings=recipe.selection.model_dump(mode="json"),
                timings={"model_pass_s": 0.0, "other_s": seconds, "total_s": seconds},
            )
        )
        return RefreshResult(version=version, is_new=True, header=store.header(version))


def _require_same_importance(recipe: Recipe, stored: Json) -> None:
    """Raise `RecipeError` when the recipe asks for another importance than the stored one."""
    wanted = recipe.scoring.model_dump(mode="json")
    for key in ("importance", "length_correction", "normalise"):
        if stored.get(key) != wanted[key]:
            raise RecipeError(
                f"the stored importance was made with scoring.{key} {stored.get(key)!r}, the "
                f"recipe says {wanted[key]!r}: `select` uses stored importance. Drop the change, "
                "or make a version with it by `gracekit refresh`"
            )
