"""`gracekit explain` and `gracekit similar`: one sample and its surroundings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gracekit.errors import QueryError, StoreFormatError, VersionNotFoundError
from gracekit.recipe import GraphSection
from gracekit.types import Bool, Float32, Json, Origin, SampleTable, ScoreTable

if TYPE_CHECKING:
    from gracekit.store import Store, StoreCache

NUM_NEAREST = 5


def explain(root: Path | str, sample_id: str, *, version: int | None = None) -> Json:
    """Why a sample is in or out of a version (default: the newest).

    Returns:
        sample_id, row, group, preview, version, step, is_selected, reason, importance, percentile
        (share of the scored samples with less importance), origin, measured_step, scores, tokens;
        graph_version (the refresh whose features and graph tell what is similar: its own, or after
        a rollback the newest, for the old ones are not kept); rank, gain, weight, num_covered (of
        a selected one; else None); covered_by (a record of the selected sample that it is most
        similar to), gain_if_added; and nearest_selected: records of sample_id, similarity, group,
        importance, rank, preview.

    Raises:
        VersionNotFoundError: There is no such version.
        QueryError: There is no such sample.
        StoreFormatError: The graph of that version is no longer kept, or damaged.
    """
    from gracekit.graph import load_index, symmetric, unit_features
    from gracekit.selection.explain import Chosen, percentile
    from gracekit.selection.explain import explain as explain_row
    from gracekit.store import Store

    store = Store.open(root)
    version = _version(store, version)
    row = _row(store, version, sample_id)
    header, samples, scores = store.header(version), store.samples(version), store.scores(version)
    graph_version, cache = _kept(store, version)
    graph_settings = store.header(graph_version).settings.graph or GraphSection()
    index = load_index(cache.index_directory, settings=graph_settings)
    if index is None:
        raise _lost(store, version)
    coreset = store.coreset(version).sort_by("rank")
    parent = None
    if header.parent_version in store.versions():
        parent = store.coreset(header.parent_version)["row"].to_numpy()
    chosen = Chosen(
        settings=header.settings.selection,
        details=header.selection,
        rows=coreset["row"].to_numpy(),
        gains=coreset["gain"].to_numpy(),
        scores=scores,
        samples=samples,
        graph=symmetric(index.graph),
        parent=parent,
        store=store.paths.root,
    )
    found = explain_row(row, chosen)
    is_selected = row in chosen.rows
    rank = int(np.flatnonzero(chosen.rows == row)[0]) if is_selected else None
    unit = unit_features(cache.features.astype(np.float32), cache.valid)
    nearest = _nearest(unit, row, _mask(chosen.rows, len(samples)), NUM_NEAREST)
    coverer = found.covered_by
    return {
        **_facts(samples, scores, row),
        "version": version,
        "step": header.checkpoint.step,
        "graph_version": graph_version,
        "is_selected": is_selected,
        "reason": found.reason,
        "percentile": percentile(row, scores),
        "origin": Origin(int(scores.origin[row])).name.lower(),
        "measured_step": int(scores.measured_step[row]),
        "scores": {name: float(values[row]) for name, values in scores.scores.items()},
        "tokens": int(samples.num_prompt_tokens[row] + samples.num_response_tokens[row]),
        "rank": rank,
        "gain": None if rank is None else float(chosen.gains[rank]),
        "weight": None if rank is None else float(coreset["weight"][rank].as_py()),
        "num_covered": found.num_covered if is_selected else None,
        "covered_by": None if coverer is None or is_selected else {
            **_facts(samples, scores, coverer), "similarity": found.similarity,
        },
        "gain_if_added": found.gain_if_added,
        "nearest_selected": [
            {**_facts(samples, scores, r), "similarity": similarity,
             "rank": int(np.flatnonzero(chosen.rows == r)[0])}
            for r, similarity in nearest
        ],
    }  # fmt: skip


def similar(
    root: Path | str, sample_id: str, *, version: int | None = None, count: int = 10
) -> list[Json]:
    """The samples most similar to one, by the cosine of their centred features, exactly.

    Returns records of sample_id, row, group, importance, preview, similarity, is_selected.
    Raises as `explain`.
    """
    from gracekit.graph import unit_features
    from gracekit.store import Store

    store = Store.open(root)
    version = _version(store, version)
    row = _row(store, version, sample_id)
    _, cache = _kept(store, version)
    unit = unit_features(cache.features.astype(np.float32), cache.valid)
    samples, scores = store.samples(version), store.scores(version)
    selected = _mask(store.coreset(version)["row"].to_numpy(), len(cache.valid))
    return [
        {
            **_facts(samples, scores, r),
            "similarity": similarity,
            "is_selected": bool(selected[r]),
        }
        for r, similarity in _nearest(unit, row, cache.valid, count)
    ]


def _nearest(unit: Float32, row: int, among: Bool, count: int) -> list[tuple[int, float]]:
    """The rows nearest to one, itself left out; those without a direction are nobody's."""
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


def _version(store: Store, version: int | None) -> int:
    version = store.latest() if version is None else version
    if version is None:
        raise VersionNotFoundError(
            f"the store {store.paths.root} has no version yet; make one with `gracekit watch`"
        )
    store.header(version)
    return version


def _row(store: Store, version: int, sample_id: str) -> int:
    import difflib

    ids = store.samples(version).sample_ids.tolist()
    try:
        return int(ids.index(sample_id))
    except ValueError:
        later = store.samples()
        if sample_id in later.sample_ids:
            row = later.sample_ids.tolist().index(sample_id)
            raise QueryError(
                f"version {version} of {store.paths.root} does not know the sample {sample_id!r}: "
                f"it joined the data at version {later.added_versions[row]}"
            ) from None
        near = difflib.get_close_matches(sample_id, ids[:20_000], n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise QueryError(
            f"the store {store.paths.root} has no sample {sample_id!r}{hint}; "
            "`gracekit sql 'SELECT sample_id, preview FROM samples'` lists them"
        ) from None


def _kept(store: Store, version: int) -> tuple[int, StoreCache]:
    """The features and the graph for a version, and the refresh that they are of.

    Only those of the newest refresh are kept. Versions made since are of the same data, so a
    rollback is looked at by them too.
    """
    newest = store.newest_scores()
    own = store.header(version).scores_version
    source = own if newest is None or version < newest else newest
    cache = store.load_cache(source)
    if cache is None:
        raise _lost(store, version)
    return source, cache


def _lost(store: Store, version: int) -> StoreFormatError:
    return StoreFormatError(
        f"the features and the graph of version {version} in {store.paths.cache} are no longer "
        "kept or damaged; those of the newest refresh are kept: ask for version "
        f"{store.newest_scores()}"
    )
