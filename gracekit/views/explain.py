"""`gracekit explain` and `gracekit similar`: one sample and its surroundings."""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gracekit.errors import QueryError, StoreFormatError
from gracekit.graph import load_graph, symmetric, unit_features
from gracekit.protocols import SelectionInputs
from gracekit.recipe import GraphSection
from gracekit.selection.explain import Chosen, percentile
from gracekit.selection.explain import explain as explain_row
from gracekit.store import StoreCache, StoreReader
from gracekit.tabular import Records, ShortRepr
from gracekit.types import Bool, Float32, Json, Origin, SampleTable, ScoreTable
from gracekit.views.aim_words import place_in_words, places_behind

NUM_NEAREST = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectedNeighbor:
    """A selected sample, seen from another one."""

    sample_id: str
    row: int
    group: str
    importance: float
    preview: str
    similarity: float
    """Cosine of the centred features, -1 to 1."""
    rank: int
    """Position in the order in which the coreset was picked, 0 the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimilarSample:
    """A sample that is similar to another one."""

    sample_id: str
    row: int
    group: str
    importance: float
    preview: str
    similarity: float
    """Cosine of the centred features, -1 to 1."""
    is_selected: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CoveringSample:
    """The selected sample that represents one which is not selected."""

    sample_id: str
    row: int
    group: str
    importance: float
    preview: str
    similarity: float
    """In the neighbour graph, 0 to 1."""


class SelectedNeighbors(Records[SelectedNeighbor]):
    """The nearest selected samples, nearest first."""

    __slots__ = ()
    row_type = SelectedNeighbor


class SimilarSamples(Records[SimilarSample]):
    """The most similar samples, nearest first."""

    __slots__ = ()
    row_type = SimilarSample


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class SampleExplanation(ShortRepr):
    """Why a sample is in a version's coreset, or why it is not."""

    sample_id: str
    is_selected: bool
    reason: str
    version: int
    step: int | None
    row: int
    group: str
    preview: str
    importance: float
    """0 to 1, the higher the more important."""
    percentile: float | None
    """Percent of the scored samples with less importance; None without a score."""
    origin: str
    """Where its scores come from: measured, propagated, stale, never, invalid or removed."""
    measured_step: int
    """Training step of its last measurement; -1: never measured."""
    scores: dict[str, float]
    tokens: int
    graph_version: int
    """The refresh whose features and graph tell what is similar: its own, or after a rollback the
    newest, for older ones are not kept."""
    rank: int | None
    """Position in the order in which the coreset was picked, 0 the first; None: not selected."""
    inclusion_probability: float | None
    """How likely it was to be selected; None where the selector does not draw with known ones."""
    uses: int | None
    """Times it was trained on before this version, or handed out where no trainer logs its uses;
    None: not known, as for versions of older releases."""
    owed: float | None
    """Sum of its inclusion probabilities over the draws before, less its uses."""
    place: float | None
    """How often it is wanted beside a plain sample; None: all samples are alike."""
    factors: dict[str, float]
    """What its place is the product of, by name; empty where all samples are alike."""
    gain: float | None
    """What it added to the objective when it was picked."""
    weight: float | None
    """How many samples it stands for, relative to the mean of 1."""
    num_covered: int | None
    """Samples that no other selected one is more similar to, itself included."""
    covered_by: CoveringSample | None
    gain_if_added: float | None
    nearest_selected: SelectedNeighbors

    def to_json(self) -> Json:
        """As a JSON object."""
        content = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {
            **content,
            "covered_by": self.covered_by and dataclasses.asdict(self.covered_by),
            "nearest_selected": self.nearest_selected.to_json(),
        }

    def sentences(self) -> list[str]:
        """The same for people, a paragraph an entry."""
        place = "in" if self.is_selected else "not in"
        at = "" if self.step is None else f", made at step {self.step:,}"
        found = [
            f"{self.sample_id} is {place} the coreset of version {self.version}{at}: {self.reason}."
        ]
        found.append(self._importance_in_words())
        if self.uses is not None:
            found.append(self._draws_in_words())
        if self.place is not None:
            found.append(place_in_words(self.place, self.factors))
        if self.is_selected:
            covered = (self.num_covered or 1) - 1
            stands = (
                f"the most similar selected sample of {covered:,} other "
                f"sample{'' if covered == 1 else 's'}"
                if covered
                else "not the most similar selected sample of any other"
            )
            found.append(f"It is {stands}; its weight is {self.weight:.2f} (the mean is 1).")
        elif self.covered_by is not None:
            found.append(
                f"The selected sample that stands for it is {self.covered_by.sample_id}, with a "
                f"similarity of {self.covered_by.similarity:.2f}."
            )
        else:
            found.append("No selected sample is among its neighbours in the graph.")
        return found

    def _draws_in_words(self) -> str:
        times = {0: "had not been used", 1: "had been used once"}
        used = times.get(self.uses or 0, f"had been used {self.uses} times")
        if self.inclusion_probability is None or self.owed is None:
            return f"It {used} before."
        if self.owed > 0:
            balance = f"it was owed {self.owed:.2f} uses more, which made it more likely"
        elif self.owed < 0:
            balance = (
                f"that was {-self.owed:.2f} uses more than it was due, and made it less likely"
            )
        else:
            balance = "it was owed nothing"
        return (
            f"Its probability was {self.inclusion_probability:.1%}; it {used} before, and by the "
            f"draws so far {balance}."
        )

    def _importance_in_words(self) -> str:
        if self.percentile is None:
            return "Nothing is known of its importance."
        known = {
            "measured": f"measured at step {self.measured_step:,}",
            "propagated": "estimated from measured samples that are similar",
            "stale": f"kept as it was measured at step {self.measured_step:,}",
        }.get(self.origin, self.origin)
        return (
            f"Its importance is {self.importance:.2f}, higher than that of {self.percentile:.1f} % "
            f"of the scored samples; it was {known}."
        )

    def __str__(self) -> str:
        return "\n".join(self.sentences())


def explain(store: StoreReader, sample_id: str, version: int) -> SampleExplanation:
    """Why a sample is in or out of a version.

    Raises:
        VersionNotFoundError: There is no such version.
        QueryError: There is no such sample.
        StoreFormatError: The graph of that version is no longer kept, or damaged.
    """
    row = _row(store, version, sample_id)
    header, samples, scores = store.header(version), store.samples(version), store.scores(version)
    graph_version, cache = kept_cache(store, version)
    graph_settings = store.header(graph_version).settings.graph or GraphSection()
    graph = load_graph(cache.index_directory, settings=graph_settings, is_checked=True)
    if graph is None:
        raise lost_cache(store, version)
    coreset = store.coreset(version).sort_by("rank")
    parent = None
    drawn, places = store.drawn(version), places_behind(store, header)
    probabilities = None if drawn is None or drawn.draw is None else drawn.draw.probabilities
    if header.parent_version in store.versions():
        parent = store.coreset(header.parent_version)["row"].to_numpy()
    chosen = Chosen(
        settings=header.settings.selection,
        details=header.selection,
        rows=coreset["row"].to_numpy(),
        gains=coreset["gain"].to_numpy(),
        inputs=SelectionInputs(
            scores=scores,
            samples=samples,
            graph=symmetric(graph),
            parent=parent,
            places=places,
            state=None if drawn is None else drawn.state,
            store=store,
        ),
    )
    found = explain_row(row, chosen)
    is_selected = row in chosen.rows
    rank = int(np.flatnonzero(chosen.rows == row)[0]) if is_selected else None
    unit = unit_features(cache.features.astype(np.float32), cache.valid)
    nearest = _nearest(unit, row, _mask(chosen.rows, len(samples)), NUM_NEAREST)
    covered_by = None
    if found.covered_by is not None and not is_selected:
        covered_by = CoveringSample(
            **_facts(samples, scores, found.covered_by), similarity=found.similarity
        )
    return SampleExplanation(
        **_facts(samples, scores, row),
        version=version,
        step=header.checkpoint.step,
        graph_version=graph_version,
        is_selected=is_selected,
        reason=found.reason,
        percentile=percentile(row, scores),
        origin=Origin(int(scores.origin[row])).name.lower(),
        measured_step=int(scores.measured_step[row]),
        scores={name: float(values[row]) for name, values in scores.scores.items()},
        tokens=int(samples.num_prompt_tokens[row] + samples.num_response_tokens[row]),
        rank=rank,
        inclusion_probability=None if probabilities is None else float(probabilities[row]),
        uses=None if drawn is None else int(drawn.state.uses[row]),
        owed=None if drawn is None else float(drawn.state.owed[row]),
        place=None if places is None else float(places.total(len(samples))[row]),
        factors={}
        if places is None
        else {name: float(factor[row]) for name, factor in places.factors.items()},
        gain=None if rank is None else float(chosen.gains[rank]),
        weight=None if rank is None else float(coreset["weight"][rank].as_py()),
        num_covered=found.num_covered if is_selected else None,
        covered_by=covered_by,
        gain_if_added=found.gain_if_added,
        nearest_selected=SelectedNeighbors(
            SelectedNeighbor(
                **_facts(samples, scores, r),
                similarity=similarity,
                rank=int(np.flatnonzero(chosen.rows == r)[0]),
            )
            for r, similarity in nearest
        ),
    )


def similar(store: StoreReader, sample_id: str, version: int, *, count: int = 10) -> SimilarSamples:
    """The samples most similar to one, by the cosine of their centred features, exactly.

    Raises as `explain`.
    """
    row = _row(store, version, sample_id)
    _, cache = kept_cache(store, version)
    unit = unit_features(cache.features.astype(np.float32), cache.valid)
    samples, scores = store.samples(version), store.scores(version)
    selected = _mask(store.coreset(version)["row"].to_numpy(), len(cache.valid))
    return SimilarSamples(
        SimilarSample(
            **_facts(samples, scores, r), similarity=similarity, is_selected=bool(selected[r])
        )
        for r, similarity in _nearest(unit, row, cache.valid, count)
    )


def _nearest(unit: Float32, row: int, among: Bool, count: int) -> list[tuple[int, float]]:
    """The rows nearest to one, without itself; a row without a direction is near to none."""
    has_direction = np.einsum("ij,ij->i", unit, unit) > 0
    if not has_direction[row]:
        return []
    cosines = np.where(among & has_direction, unit @ unit[row], -np.inf)
    cosines[row] = -np.inf
    best = np.argsort(-cosines, kind="stable")[:count]
    return [(int(r), float(cosines[r])) for r in best if np.isfinite(cosines[r])]


def _facts(samples: SampleTable, scores: ScoreTable, row: int) -> Json:
    return {
        "sample_id": samples.sample_ids[row],
        "row": row,
        "group": samples.group_names[samples.groups[row]],
        "importance": float(scores.importance[row]),
        "preview": samples.previews[row],
    }


def _mask(rows: NDArray[np.int64], n: int) -> Bool:
    mask = np.zeros(n, bool)
    mask[rows] = True
    return mask


def _row(store: StoreReader, version: int, sample_id: str) -> int:
    ids = store.samples(version).sample_ids
    row = ids.place_of(sample_id)
    if row >= 0:
        return row
    later = store.samples()
    row = later.sample_ids.place_of(sample_id)
    if row >= 0:
        raise QueryError(
            f"version {version} of {store.paths.root} does not know the sample {sample_id!r}: "
            f"it joined the data at version {later.added_versions[row]}"
        )
    near = difflib.get_close_matches(sample_id, ids[:20_000], n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise QueryError(
        f"the store {store.paths.root} has no sample {sample_id!r}{hint}; "
        "`gracekit sql 'SELECT sample_id, preview FROM samples'` lists them"
    )


def kept_cache(store: StoreReader, version: int) -> tuple[int, StoreCache]:
    """The features and the graph for a version, and the refresh that they are of.

    Only those of the newest refresh are kept. Versions made since are of the same data, so a
    rollback is looked at by them too.
    """
    newest = store.newest_scores()
    own = store.header(version).scores_version
    source = own if newest is None or version < newest else newest
    cache = store.load_cache(source)
    if cache is None:
        raise lost_cache(store, version)
    return source, cache


def lost_cache(store: StoreReader, version: int) -> StoreFormatError:
    """That what is kept of the features is gone, and what to ask for."""
    return StoreFormatError(
        f"the features and the graph of version {version} in {store.paths.cache} are no longer "
        "kept or damaged; those of the newest refresh are kept: ask for version "
        f"{store.newest_scores()}"
    )
