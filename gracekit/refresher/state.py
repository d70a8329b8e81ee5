"""What the last version knows, and what a refresh makes of it."""

from __future__ import annotations

import dataclasses
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import numpy as np
from numpy.typing import NDArray

from gracekit.errors import StoreError, StoreFormatError, VersionNotFoundError
from gracekit.recipe import Recipe, ScoringSection
from gracekit.refresher.growing import grown
from gracekit.types import (
    Bool,
    Float32,
    Json,
    Measurement,
    Origin,
    Rows,
    SampleTable,
    ScoreTable,
    SparseGraph,
)
from gracekit.version.header import Header, Timings

if TYPE_CHECKING:
    from gracekit.graph.index import Index
    from gracekit.propagation import CarriedFeatures, Propagated
    from gracekit.samples import Growth
    from gracekit.store import Store

logger = logging.getLogger(__name__)

MOST_GROUP_COVARIATES = 30
"""Largest groups that get a covariate of their own in the regression."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """The newest refresh as the next one starts from it."""

    version: int
    num_since_full: int
    """Refreshes since everything was measured."""
    next_budget: int = 0
    """Rows that the refresh before advised to start with; 0: no advice."""
    samples: SampleTable
    scores: ScoreTable
    values: dict[str, Float32]
    """score name -> [n] working values (see `scores.working_values`)."""
    changes: dict[str, Float32]
    """score name -> [n] change of the working values in the last refresh; 0 where none is known."""
    features: Float32
    """[n, d]"""
    valid: Bool
    """[n] rows that have features."""
    index: Index
    graph: SparseGraph

    @property
    def num_never(self) -> int:
        """Rows that were never measured."""
        return int((self.scores.origin == Origin.NEVER).sum())

    def to_working(self, scores: dict[str, Float32], rows: Rows) -> dict[str, Float32]:
        """Scores of some rows as working values."""
        from gracekit.scores.working_values import to_working

        return to_working(scores, self.samples.num_response_tokens[rows])

    def importance_of(self, values: Float32, scoring: ScoringSection) -> Float32:
        """[n] importance from working values [n] of the recipe's importance score."""
        from gracekit.scores.importance import corrected_score, importance
        from gracekit.scores.working_values import from_working

        num_targets = self.samples.num_response_tokens
        scores = from_working({scoring.importance: values}, num_targets)
        groups = self.samples.groups if scoring.normalise == "group" else None
        return importance(corrected_score(scores, num_targets, scoring), groups=groups)

    def covariates(self, step: int) -> Float32:
        """[n, c] what is known of every row besides its scores: length, age, change, group."""
        samples = self.samples
        present = samples.groups[samples.present]
        counts = np.bincount(present, minlength=len(samples.group_names))
        largest = np.argsort(-counts, kind="stable")[:MOST_GROUP_COVARIATES]
        columns = [
            np.log1p(samples.num_response_tokens),
            np.log1p(samples.num_prompt_tokens),
            np.maximum(step - self.scores.measured_step, 0),
            *self.changes.values(),
            *((samples.groups == group) for group in largest if 0 < counts[group] < len(present)),
        ]
        return np.stack([np.asarray(c, np.float32) for c in columns], axis=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """All rows after a refresh."""

    scores: ScoreTable
    features: Float32
    """[n, d]"""
    valid: Bool
    """[n]"""
    facts: Json
    """What was used to propagate, for the manifest header."""


def load_known(store: Store, recipe: Recipe, growth: Growth | None = None) -> Known | None:
    """The newest refresh, whatever was selected or rolled back to since, as it stands for the data
    now (default: that has not changed).

    None when there is none, when its features are lost, or when nothing of it is left.
    """
    from gracekit.graph import build_index, load_index, symmetric, unit_features
    from gracekit.scores.working_values import to_working

    version = store.newest_scores()
    if version is None:
        return None
    header = store.header(version)
    cache = store.load_cache(version)
    scores = store.scores(version)
    what = _obstacle(header, recipe.scoring)
    if cache is None or what is not None:
        what = what or "its features are missing or damaged"
        logger.warning("version %d cannot be built upon (%s): measuring everything", version, what)
        return None
    features = cache.features.astype(np.float32)
    index = load_index(cache.index_directory, settings=recipe.graph)
    if index is None:
        unit = unit_features(features, cache.valid)
        index = build_index(unit, recipe.graph, valid=cache.valid, seed=recipe.seed)
    samples = store.samples(version)
    values = to_working(scores.scores, samples.num_response_tokens)
    known = Known(
        version=version,
        num_since_full=0 if header.refresh is None else header.refresh.num_since_full,
        next_budget=0 if header.refresh is None else header.refresh.next_budget,
        samples=samples,
        scores=scores,
        values=values,
        changes=_last_changes(store, version, values),
        features=features,
        valid=cache.valid,
        index=index,
        graph=symmetric(index.graph),
    )
    if growth is not None:
        known = grown(known, growth, recipe.graph)
    if not known.scores.usable.any():
        logger.warning("no sample of version %d has a score still: measuring everything", version)
        return None
    return known


def _obstacle(header: Header, scoring: ScoringSection) -> str | None:
    """Why scores and features of a version do not compare with what would be measured now."""
    before = header.settings.scoring
    if before is None or set(before.scores) != set(scoring.scores):
        return "other scores are asked"
    space = ("features", "hidden_block", "feature_width", "sketch_seed", "sketch_side")
    if any(getattr(before, key) != getattr(scoring, key) for key in space):
        return "other features are asked"
    return None


def last_coreset(store: Store) -> Rows | None:
    """The rows that the latest version selected; None when there is none."""
    version = store.latest()
    if version is None:
        return None
    rows: Rows = store.coreset(version)["row"].to_numpy()
    return rows


class SelectionInputs(TypedDict):
    """What `gracekit.selection.select` takes of a store."""

    scores: ScoreTable
    samples: SampleTable
    graph: SparseGraph
    features: NDArray[np.float16]
    target_features: NDArray[np.float16] | None
    parent: Rows
    store: Path


def selection_inputs(store: Store, recipe: Recipe) -> SelectionInputs:
    """All that a selection from the newest scores starts from; its parent is the latest version.

    Raises:
        VersionNotFoundError: There are no scores yet.
        StoreFormatError: Their graph is lost.
    """
    from gracekit.graph import load_index, symmetric

    version, parent = store.newest_scores(), last_coreset(store)
    if version is None or parent is None:
        raise VersionNotFoundError(
            f"the store {store.paths.root} has no version to select from yet; "
            "make one with `gracekit watch` or `gracekit refresh`"
        )
    cache = store.load_cache(version)
    index = load_index(cache.index_directory, settings=recipe.graph) if cache else None
    if cache is None or index is None:
        raise StoreFormatError(
            f"the graph of version {version} in {store.paths.cache} is missing or damaged, or "
            "the recipe's graph section changed; `gracekit refresh` on a checkpoint makes a "
            "new one"
        )
    return SelectionInputs(
        scores=store.scores(version),
        samples=store.samples(version),
        graph=symmetric(index.graph),
        features=cache.features,
        target_features=cache.target_features,
        parent=parent,
        store=store.paths.root,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What the measured rows tell of all."""

    scores: Propagated
    """In working values."""
    features: CarriedFeatures


def predict(recipe: Recipe, known: Known, measurement: Measurement, *, step: int) -> Prediction:
    """Scores and features of all rows, given those of the measured ones."""
    from gracekit.propagation import propagate_features, propagate_scores

    settings, valid = recipe.propagation, measurement.valid
    scores = propagate_scores(
        settings.rule,
        old=known.values,
        measured_rows=measurement.rows,
        new=known.to_working(measurement.scores, measurement.rows),
        covariates=known.covariates(step),
        directions=known.index.unit,
        graph=known.graph,
        usable=known.scores.usable,
        settings=settings,
        seed=recipe.seed,
    )
    features = propagate_features(
        old=known.features,
        measured_rows=measurement.rows[valid],
        new=measurement.features[valid],
        graph=known.graph,
        usable=known.valid,
        settings=settings,
        seed=recipe.seed,
    )
    return Prediction(scores=scores, features=features)


def propagate(
    recipe: Recipe,
    samples: SampleTable,
    known: Known | None,
    measurement: Measurement,
    prediction: Prediction | None,
    *,
    step: int,
    version: int,
) -> Update:
    """Scores and features of every row after the model pass; all measured without a prediction.

    The prediction's features become the update's: they are not copied.

    A row whose measurement is not finite becomes invalid: it has no scores and no features until a
    later measurement succeeds.
    """
    from gracekit.scores.importance import corrected_score, importance
    from gracekit.scores.working_values import from_working

    n = len(samples)
    rows, good = measurement.rows, measurement.valid
    facts: Json = {}
    if known is None or prediction is None:
        features = np.zeros((n, measurement.features.shape[1]), np.float32)
        scores = {name: np.full(n, np.nan, np.float32) for name in measurement.scores}
        valid, origin = np.zeros(n, bool), np.full(n, Origin.NEVER, np.uint8)
        confidence = np.zeros(n, np.float32)
        measured_step, measured_version = np.full(n, -1, np.int64), np.zeros(n, np.int64)
    else:
        propagated, features = prediction.scores, prediction.features.features
        facts = {"scores": propagated.gates, "features": prediction.features.gates}
        gate = propagated.gates["scores"][recipe.scoring.importance]
        how = Origin.STALE if gate["used"] == "stale" else Origin.PROPAGATED
        usable = known.scores.usable
        scores = from_working(propagated.values, samples.num_response_tokens)
        for name, used in propagated.gates["scores"].items():
            if used["used"] == "stale":  # kept to the bit, not by way of the working values
                scores[name] = known.scores.scores[name].copy()
        valid, origin = known.valid.copy(), known.scores.origin.copy()
        origin[usable] = how
        confidence = propagated.confidence[recipe.scoring.importance].copy()
        measured_step = known.scores.measured_step.copy()
        measured_version = known.scores.measured_version.copy()

    features[rows[good]] = measurement.features[good]
    valid[rows] = good
    features[~valid] = 0
    for name, score in measurement.scores.items():
        scores[name][rows] = np.where(good, score, np.nan)
    origin[~samples.present] = Origin.REMOVED
    origin[rows] = np.where(good, Origin.MEASURED, Origin.INVALID)
    confidence[rows] = good
    measured_step[rows], measured_version[rows] = step, version
    corrected = corrected_score(scores, samples.num_response_tokens, recipe.scoring)
    groups = samples.groups if recipe.scoring.normalise == "group" else None
    table = ScoreTable(
        scores=scores,
        importance=importance(corrected, groups=groups),
        origin=origin,
        measured_step=measured_step,
        measured_version=measured_version,
        confidence=confidence,
    )
    return Update(scores=table, features=features, valid=valid, facts=facts)


def update_graph(
    recipe: Recipe, known: Known | None, update: Update
) -> tuple[Index, SparseGraph, Json]:
    """The graph over the new features: repaired where it is there already, else built."""
    from gracekit.graph import (
        build_index,
        effective_rank,
        refresh_index,
        symmetric,
        unit_features,
    )

    unit = unit_features(update.features, update.valid)
    if known is None:
        index = build_index(unit, recipe.graph, valid=update.valid, seed=recipe.seed)
        facts: Json = {"backend": index.backend, "rebuilt": True}
    else:
        index, report = refresh_index(known.index, unit, recipe.graph, valid=update.valid)
        facts = {"backend": index.backend, **dataclasses.asdict(report)}
    facts["effective_rank"] = round(effective_rank(unit), 2)
    return index, symmetric(index.graph), facts


class StageClock:
    """Wall seconds of each stage; the model pass is kept apart from everything else."""

    def __init__(self) -> None:
        self._started = self._last = time.perf_counter()
        self._model_pass_s = 0.0
        self._laps: dict[str, float] = {}

    def lap(self, stage: str, *, model_pass_s: float = 0.0) -> None:
        """End a stage; `model_pass_s` of it was spent in the model pass."""
        now = time.perf_counter()
        self._laps[stage] = now - self._last - model_pass_s
        self._model_pass_s += model_pass_s
        self._last = now

    def timings(self) -> Timings:
        """Seconds by stage, up to the commit."""
        total = time.perf_counter() - self._started
        return Timings(
            model_pass_s=round(self._model_pass_s, 3),
            other_s=round(total - self._model_pass_s, 3),
            total_s=round(total, 3),
            stages={stage: round(seconds, 3) for stage, seconds in self._laps.items()},
        )


def _last_changes(store: Store, version: int, values: dict[str, Float32]) -> dict[str, Float32]:
    """Change of the working values from the refresh before to `version`, 0 where unknown."""
    from gracekit.scores.working_values import to_working

    changes = {name: np.zeros_like(value) for name, value in values.items()}
    parent = store.newest_scores(before=version)
    if parent is None:
        return changes
    try:
        earlier = store.scores(parent)
    except StoreError:
        return changes
    samples = store.samples(version)
    m = len(earlier)  # rows that joined later have no score before
    before = to_working(earlier.scores, samples.num_response_tokens[:m])
    is_same = samples.content_versions[:m] <= parent
    for name, change in changes.items():
        if name in before:
            found = np.nan_to_num(values[name][:m] - before[name], posinf=0, neginf=0)
            np.copyto(change[:m], found, where=is_same)
    return changes
