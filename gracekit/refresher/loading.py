"""What a refresh or selection reads back from a store."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from gracekit.errors import RecipeError, StoreError, StoreFormatError, VersionNotFoundError
from gracekit.graph import Index, build_index, directions_to_index, load_index, symmetric
from gracekit.protocols import SelectionInputs
from gracekit.recipe import Recipe, ScoringSection
from gracekit.refresher.factors import read_reference, with_factors
from gracekit.refresher.last import LastRefresh
from gracekit.refresher.uses import last_probabilities, num_distinct_random, state_now
from gracekit.samples import Growth
from gracekit.scores.changes import COMPARED
from gracekit.scores.meaning import score_meaning
from gracekit.scores.working_values import changes_since, to_working
from gracekit.store import Store
from gracekit.types import Float32, Places, Rows, SampleTable
from gracekit.version.header import Header

logger = logging.getLogger(__name__)


def load_last(store: Store, recipe: Recipe, growth: Growth | None = None) -> LastRefresh | None:
    """The newest refresh, whatever was selected or rolled back to since, as it stands for the data
    now (default: that has not changed).

    None when there is none, when its features are lost, or when nothing of it is left.
    """
    version = store.newest_scores()
    if version is None:
        return None
    header = store.header(version)
    cache = store.load_cache(version)
    scores = store.scores(version)
    width = None if cache is None else cache.features.shape[1]
    obstacle = _obstacle(header, recipe.scoring, width)
    if cache is None or obstacle is not None:
        obstacle = obstacle or "its features are missing or damaged"
        logger.warning(
            "version %d cannot be built upon (%s): beginning anew, as a first version does",
            version,
            obstacle,
        )
        return None
    index = load_index(cache.index_directory, settings=recipe.graph, is_checked=True)
    if index is None:
        unit = directions_to_index(cache.features, recipe.graph, valid=cache.valid)
        index = build_index(unit, recipe.graph, valid=cache.valid, seed=recipe.seed, take=True)
    samples = store.samples(version)
    values = to_working(scores.scores, samples.num_response_tokens)
    last = LastRefresh(
        version=version,
        num_since_full=0 if header.refresh is None else header.refresh.num_since_full,
        next_budget=0 if header.refresh is None else header.refresh.next_budget,
        samples=samples,
        scores=scores,
        values=values,
        changes=_last_changes(store, version, values),
        features=cache.features,
        valid=cache.valid,
        index=index,
        graph=symmetric(index.graph),
        places=store.places(version),
        aim=header.aim,
    )
    if growth is not None:
        last = last.grown(growth, recipe.graph)
    if not last.scores.usable.any():
        logger.warning(
            "no sample of version %d has a score: beginning anew, as a first version does", version
        )
        return None
    return last


def _obstacle(header: Header, scoring: ScoringSection, width: int | None) -> str | None:
    """Why scores and features of a version do not compare with what would be measured now.

    Args:
        header: Of the version.
        scoring: As the recipe has it now.
        width: That of the features which are kept; None: none are.
    """
    before = header.settings.scoring
    if before is None or set(before.scores) != set(scoring.scores):
        return "the recipe asks for other scores"
    if width is None:
        return None
    differ = [
        f"{key} {_shown(before, key)} then, {_shown(scoring, key)} now"
        for key in _of_features(before, scoring, width)
        if getattr(before, key) != getattr(scoring, key)
    ]
    return f"the recipe asks for other features: {', '.join(differ)}" if differ else None


def _of_features(before: ScoringSection, now: ScoringSection, width: int) -> list[str]:
    """The settings that decide what features are, where those of `before` are so wide.

    How means are projected decides nothing where neither projects them.
    """
    keys = ["features", "hidden_block", "sketch_seed", "sketch_side"]
    if before.features == now.features == "gradient-sketch":
        return keys
    is_narrower = before.feature_projection == "orthogonal" and width < (before.feature_width or 0)
    is_whole = before.feature_width is None or is_narrower  # of the model's own width
    if is_whole and (
        now.feature_width is None
        or (now.feature_projection == "orthogonal" and width <= now.feature_width)
    ):
        return keys
    return [*keys, "feature_width", "feature_projection"]


def _shown(scoring: ScoringSection, key: str) -> str:
    value = getattr(scoring, key)
    return "null" if value is None else str(value)


def _last_changes(store: Store, version: int, values: dict[str, Float32]) -> dict[str, Float32]:
    """Change of the working values from the refresh before to `version`, 0 where unknown."""
    parent, samples = store.newest_scores(before=version), store.samples(version)
    before: dict[str, Float32] = {}
    if parent is not None:
        try:
            earlier = store.scores(parent)
            num_targets = samples.num_response_tokens[: len(earlier)]
            before = to_working(earlier.scores, num_targets)
        except StoreError:  # its scores are gone; nothing is known of the change
            pass
    return changes_since(before, values, samples, version=parent or 0)


def earlier_losses(store: Store, samples: SampleTable, scores: Iterable[str]) -> dict[str, Float32]:
    """Score with `against` -> [n] loss to compare with; NaN for rows never measured.

    Only measured losses of the content that a row has now count, never propagated ones. Reads what
    was measured at every version, and nothing when no score asks for it.
    """
    against = {name: score_meaning(name).against for name in scores}
    against = {name: which for name, which in against.items() if which is not None}
    if not against:
        return {}
    first = np.full(len(samples), np.nan, np.float32)
    previous = first.copy()
    for version in store.all_versions():
        try:
            table = store.measurement(version)
        except VersionNotFoundError:
            continue  # a reselect
        if COMPARED not in table.column_names:
            continue
        rows, losses = table["row"].to_numpy(), table[COMPARED].to_numpy()
        known = np.isfinite(losses) & (samples.content_versions[rows] <= version)
        rows, losses = rows[known], losses[known].astype(np.float32)
        previous[rows] = losses
        is_new = np.isnan(first[rows])
        first[rows[is_new]] = losses[is_new]
    return {name: first if which == "first" else previous for name, which in against.items()}


def last_coreset(store: Store) -> Rows | None:
    """The rows that the latest version selected; None when there is none."""
    version = store.latest()
    if version is None:
        return None
    rows: Rows = store.coreset(version)["row"].to_numpy()
    return rows


def selection_inputs(store: Store, recipe: Recipe) -> SelectionInputs:
    """All that a selection from the newest scores starts from; its parent is the latest version.

    Raises:
        VersionNotFoundError: There are no scores yet.
        StoreFormatError: Their graph is lost.
    """
    version, parent = store.newest_scores(), last_coreset(store)
    if version is None or parent is None:
        raise VersionNotFoundError(
            f"the store {store.paths.root} has no version to select from yet; "
            "make one with `gracekit watch` or `gracekit refresh`"
        )
    cache = store.load_cache(version)
    index = None if cache is None else _index_of(cache.index_directory, recipe)
    if cache is None or index is None:
        raise StoreFormatError(
            f"the graph of version {version} in {store.paths.cache} is missing or damaged, or "
            "the recipe's graph section changed; `gracekit refresh` on a checkpoint makes a "
            "new one"
        )
    samples, scores = store.samples(version), store.scores(version)
    state, graph = state_now(store, samples, parent), symmetric(index.graph)
    return SelectionInputs(
        scores=scores,
        samples=samples,
        graph=graph,
        places=with_factors(
            recipe,
            _places_again(store, recipe, version),
            samples=samples,
            scores=scores,
            graph=graph,
            state=state,
            reference=read_reference(recipe),
            share_of_run=_share_of_run(recipe, store.header(version)),
            store=store,
        ),
        features=cache.features,
        target_features=cache.target_features,
        parent=parent,
        parent_probabilities=last_probabilities(store, samples),
        state=state,
        num_distinct_random=num_distinct_random(store, samples),
        store=store,
        scoring=recipe.scoring,
    )


def _index_of(directory: Path, recipe: Recipe) -> Index | None:
    """The index as the recipe asks for it, or as earlier releases made it by default."""
    found = load_index(directory, settings=recipe.graph, is_checked=True)
    if found is None and recipe.graph.backend == "auto":
        earlier = recipe.graph.model_copy(update={"hnsw_below": 200_000})
        found = load_index(directory, settings=earlier, is_checked=True)
    return found


def _share_of_run(recipe: Recipe, header: Header) -> float:
    """How much of the training was done at a version; NaN: not known."""
    if recipe.training.steps is not None and header.checkpoint.step is not None:
        return header.checkpoint.step / recipe.training.steps
    cost = header.cost
    if cost is None or not cost.training_tokens > 0:
        return math.nan
    return cost.trained_tokens / cost.training_tokens


def _places_again(store: Store, recipe: Recipe, version: int) -> Places:
    """What the newest refresh found of the target and of copies, for a selection without a model.

    Raises `RecipeError` where the recipe asks for an aim that only a refresh can make.
    """
    places, before = store.places(version), store.header(version).settings.selection
    factors = {} if places is None else places.factors
    shared_none = before.duplicates == "keep" or before.selector != "balanced"
    asks = recipe.selection.duplicates == "share" and recipe.selection.selector == "balanced"
    if asks and shared_none:
        how = "duplicates: keep" if before.duplicates == "keep" else f"selector: {before.selector}"
        logger.warning(
            "version %d was made with selection.%s, so only samples of the same content share a "
            "place now; the next refresh finds those that nearly say the same",
            version,
            how,
        )
    kept = ("copies",) if recipe.target is None else ("allowed", "copies")
    if recipe.target is None or not recipe.follows_target:
        return Places(
            factors={name: f for name, f in factors.items() if name in kept},
            copy_of=None if places is None else places.copy_of,
        )
    asked = recipe.selection
    if "aim" not in factors:
        raise RecipeError(
            f"version {version} followed no target, and the recipe asks for one, which is measured "
            "with the model. Make a version by `gracekit refresh`, or set selection.aim to none"
        )
    keys = ("aim", "aim_width", "aim_uniform")
    changed = [key for key in keys if getattr(asked, key) != getattr(before, key)]
    if changed:
        raise RecipeError(
            f"selection.{changed[0]} is {getattr(asked, changed[0])!r}, and version {version} was "
            f"made with {getattr(before, changed[0])!r}: what follows the target is measured with "
            "the model. Drop the change, set selection.aim to none, or make a version with it by "
            "`gracekit refresh`"
        )
    return places or Places()
