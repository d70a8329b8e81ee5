"""Versions from stored scores: a selection with other settings, and a rollback. No model."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gracekit.errors import RecipeError, StoreDataMismatchError, VersionNotFoundError
from gracekit.recipe import Recipe, ScoringSection
from gracekit.refresher.loading import last_coreset, selection_inputs
from gracekit.refresher.publishing import publish_again
from gracekit.refresher.result import RefreshResult
from gracekit.refresher.uses import num_distinct_random, state_now
from gracekit.selection import repetition, select
from gracekit.store import Store, VersionDraft
from gracekit.types import Draw, Selection
from gracekit.version.header import Header, Settings, Timings

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)


def reselect(recipe: Recipe | str | Path) -> RefreshResult:
    """Make a version from the stored scores with the recipe's selection; needs no model, no data.

    Raises:
        StoreNotFoundError, VersionNotFoundError: There are no scores to select from yet.
        StoreFormatError: The cached graph is lost; the next refresh makes a new one.
    """
    recipe = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    return reselect_in(Store.open(recipe.store), lambda store: recipe)


def reselect_in(store: Store, recipe_for: Callable[[Store], Recipe]) -> RefreshResult:
    """`reselect` in an open store, by the recipe that is made of it once nobody else writes."""
    result = _reselect_in(store, recipe_for)
    publish_again(store.paths.root)
    return result


def _reselect_in(store: Store, recipe_for: Callable[[Store], Recipe]) -> RefreshResult:
    with store.writing():
        recipe = recipe_for(store)
        started = time.perf_counter()
        latest, base = store.latest(), store.newest_scores()
        if latest is None or base is None:
            raise VersionNotFoundError(
                f"the store {store.paths.root} has no version to select from yet; "
                "make one with `gracekit watch` or `gracekit refresh`"
            )
        header = store.header(base)
        _require_same_importance(recipe, header.settings.scoring)
        scoring = _with_loss_of(recipe, header.settings.scoring)
        loss = "" if scoring is None else scoring.loss
        refresh_id = _short_hash(f"{base} {recipe.digest('selection', 'seed')} {loss}")
        made = store.header(latest)
        # A default is part of no digest, and in an earlier release it was another one.
        is_same = made.settings.selection.duplicates == recipe.selection.duplicates
        if made.refresh_id == refresh_id and is_same:
            return RefreshResult(version=latest, is_new=False, header=store.header(latest))
        inputs = selection_inputs(store, recipe)
        selection = select(
            recipe.selection,
            inputs,
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
                state=inputs.state,
                places=inputs.places,
                aim=header.aim if recipe.follows_target else None,
                checkpoint=header.checkpoint,
                settings=Settings(scoring=scoring, selection=recipe.selection),
                timings=Timings(model_pass_s=0.0, other_s=seconds, total_s=seconds),
            ),
            keep=recipe.retention.keep,
        )
        return RefreshResult(version=version, is_new=True, header=store.header(version))


def rollback(root: str | Path, version: int) -> RefreshResult:
    """Make a version whose coreset and scores are those of an old one.

    Trainers take it as they take any newest version. The next refresh builds on the newest refresh
    all the same, so it measures no more than without the rollback. Nothing is added when the latest
    version is that one, or a rollback to it. Samples that have left the data are left out.

    Raises:
        VersionNotFoundError: There is no such version, or gc removed it.
        StoreFormatError: It is damaged.
        StoreDataMismatchError: None of its samples is in the data any more.
    """
    result = _rollback(Store.open(root), version)
    publish_again(Path(root))
    return result


def _rollback(store: Store, version: int) -> RefreshResult:
    with store.writing():
        started = time.perf_counter()
        coreset = store.coreset(version)
        old, latest = store.header(version), store.latest()
        if latest is not None and version in (latest, store.header(latest).rollback_of):
            return RefreshResult(version=latest, is_new=False, header=store.header(latest))
        samples = store.samples()
        state = state_now(store, samples, last_coreset(store))
        selection = _selection_again(store, coreset, old)
        selection.details.update(
            repetition(
                selection.rows,
                samples=samples,
                state=state,
                num_distinct_random=num_distinct_random(store, samples),
                num_usable=max(old.selection.num_usable or 0, len(selection.rows)),
            )
        )
        seconds = round(time.perf_counter() - started, 3)
        made = store.commit(
            VersionDraft(
                operation="rollback",
                refresh_id=_short_hash(f"rollback {version} {latest}"),
                recipe_digest=old.recipe_digest,
                scores=None,
                rollback_of=version,
                selection=selection,
                state=state,
                checkpoint=old.checkpoint,
                settings=Settings(scoring=old.settings.scoring, selection=old.settings.selection),
                timings=Timings(model_pass_s=0.0, other_s=seconds, total_s=seconds),
            )
        )
        return RefreshResult(version=made, is_new=True, header=store.header(made))


def _selection_again(store: Store, coreset: pa.Table, header: Header) -> Selection:
    """The selection that a manifest holds, without samples that have left the data."""
    picked = coreset.sort_by("rank")
    rows, weights = picked["row"].to_numpy(), picked["weight"].to_numpy()
    stays = store.samples().present[rows]
    num_gone = int((~stays).sum())
    if num_gone == len(rows) > 0:
        raise StoreDataMismatchError(
            f"none of the {len(rows)} samples of version {header.version} is in the data of "
            f"{store.paths.root} any more; name a newer version"
        )
    if num_gone:
        logger.warning(
            "%d of the %d samples of version %d are no longer in the data and are left out",
            num_gone,
            len(rows),
            header.version,
        )
        weights = weights / weights[stays].mean(dtype=np.float64)
    return Selection(
        rows=rows[stays],
        draw=_draw_again(store, header),
        gains=picked["gain"].to_numpy()[stays],
        weights=weights[stays].astype(np.float32),
        objective=header.stats.objective or 0.0,
        details=header.selection.model_copy(update={"num_left_out": num_gone}).model_dump(
            exclude_unset=True
        ),
    )


def _draw_again(store: Store, header: Header) -> Draw | None:
    """How likely the rows of an old version were; None where the samples are no longer the same."""
    drawn, samples = store.drawn(header.version), store.samples()
    if drawn is None or drawn.draw is None or len(drawn) != len(samples):
        return None
    return drawn.draw if samples.present[drawn.draw.probabilities > 0].all() else None


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def _with_loss_of(recipe: Recipe, stored: ScoringSection | None) -> ScoringSection | None:
    """How the stored scores were made, with the recipe's `loss`, by which they are selected."""
    return stored and stored.model_copy(update={"loss": recipe.scoring.loss})


def _require_same_importance(recipe: Recipe, stored: ScoringSection | None) -> None:
    """Raise `RecipeError` when the recipe asks for another importance than the stored one.

    `scoring.loss` may differ: nothing that is stored depends on it.
    """
    for key in ("importance", "length_correction", "normalise"):
        was, wanted = getattr(stored, key, None), getattr(recipe.scoring, key)
        if was != wanted:
            raise RecipeError(
                f"the stored importance was made with scoring.{key} {was!r}, the "
                f"recipe says {wanted!r}: `select` uses stored importance. Drop the change, "
                "or make a version with it by `gracekit refresh`"
            )
