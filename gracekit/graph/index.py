"""Building, loading and refreshing an index."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gracekit.graph.descent import DescentIndex
from gracekit.graph.directions import (
    cosines_between,
    grown,
    has_direction,
    recall,
    unit_features,
)
from gracekit.graph.exact import NUM_SPARE, ExactIndex
from gracekit.graph.hnsw import HnswIndex
from gracekit.graph.lists import NeighborLists
from gracekit.graph.seal import backend_for, purpose, unbroken_seal
from gracekit.recipe import GraphSection
from gracekit.types import Bool, Directions, Float32, KnnGraph, Rows

Index = NeighborLists

_BLOCK = 65_536
"""Rows of which a copy is made at a time."""

_BACKENDS: dict[str, type[NeighborLists]] = {
    backend.backend: backend for backend in (ExactIndex, HnswIndex, DescentIndex)
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphReport:
    """What bringing an index up to date did."""

    num_moved: int
    rebuilt: bool
    """Whether the lists were found from nothing."""
    recall: float
    """Share of the true k nearest that the lists hold, on a random sample of rows."""


def directions_to_index(
    features: NDArray[np.float16] | Float32, settings: GraphSection, *, valid: Bool
) -> Directions:
    """`unit_features` in the type in which an index of these settings keeps directions."""
    dtype = _BACKENDS[backend_for(len(features), settings)].dtype
    return unit_features(features, valid, dtype)


def bytes_of_row(num_rows: int, width: int, settings: GraphSection) -> int:
    """What an index of so many rows of this width takes on disk for each: directions and lists."""
    backend = backend_for(num_rows, settings)
    of_directions = np.dtype(_BACKENDS[backend].dtype).itemsize * width
    if backend == "hnsw":  # hnswlib keeps its own, and links
        return 2 * of_directions + 8 * (settings.num_neighbors + settings.hnsw_m)
    num_spare = settings.num_spare if backend == "descent" else NUM_SPARE
    return of_directions + 8 * (settings.num_neighbors + num_spare)


def build_index(
    unit: Directions, settings: GraphSection, *, valid: Bool, seed: int, take: bool = False
) -> Index:
    """Index the rows that are valid and have a direction.

    Args:
        unit: [n, d] from `directions_to_index` or `unit_features`; finite.
        settings: backend, number of neighbours and effort.
        valid: [n] rows that may be neighbours.
        seed: of what is random in an approximate index.
        take: The index may keep `unit` itself, and change it later; else it keeps a copy.
    """
    backend = _BACKENDS[backend_for(len(unit), settings)]
    given, unit = unit, backend.as_kept(_valid_only(unit, valid))
    if unit is given and not take:
        unit = unit.copy()
    return backend(unit, settings=settings, seed=seed)


def load_index(
    directory: Path, *, settings: GraphSection, is_checked: bool = False
) -> Index | None:
    """The index saved in `directory`; None when it must be built anew.

    That is when a file is missing or damaged, or when the settings ask for another index. With
    `is_checked` its files were compared with checksums already.
    """
    content = unbroken_seal(directory, is_checked=is_checked)
    if content is None:
        return None
    shape, seed = tuple(content["made_for"]["shape"]), content["seed"]
    if content["made_for"] != purpose(shape, settings):
        return None
    backend = _BACKENDS[backend_for(shape[0], settings)]
    return backend.load(directory, settings=settings, seed=seed)


def load_graph(
    directory: Path, *, settings: GraphSection, is_checked: bool = False
) -> KnnGraph | None:
    """The graph of the index saved in `directory`, without its directions; None as `load_index`.

    For who only looks: of a large index it takes a fraction of the memory and the time.
    """
    content = unbroken_seal(directory, is_checked=is_checked)
    if content is None:
        return None
    shape = tuple(content["made_for"]["shape"])
    if content["made_for"] != purpose(shape, settings):
        return None
    return _BACKENDS[backend_for(shape[0], settings)].load_graph(directory, settings=settings)


def moved_rows(index: Index, unit: Directions, *, above: float) -> Rows:
    """Rows for which 1 - cosine of the indexed with the new direction exceeds `above`.

    Gaining or losing the direction is a move as well.
    """
    before, after = has_direction(index.unit), has_direction(unit)
    turned = 1 - cosines_between(index.unit, unit) > above
    moved: Rows = np.flatnonzero((before != after) | (before & after & turned))
    return moved


def refresh_index(
    index: Index, unit: Directions, settings: GraphSection, *, valid: Bool, take: bool = False
) -> tuple[Index, GraphReport]:
    """Bring the lists up to date with new directions.

    The lists are repaired in place, each backend in its way. A new index is built
    when the old one was made for other data or settings. Rows that did not move keep the direction
    that they were indexed with, so that slow drift adds up until it is noticed.

    Args:
        index: repaired in place, or left alone when a new one is built.
        unit: [n, d] new directions.
        settings: as for `build_index`.
        valid: [n] rows that may be neighbours.
        take: The index may keep `unit` itself, and change it, so that no second one is in memory.

    Returns:
        The index to use from now on, and what was done.
    """
    unit = _valid_only(unit, valid)
    fits = purpose(index.unit.shape, index.settings) == purpose(unit.shape, settings)
    if fits:
        unit = index.as_kept(unit)
    moved = moved_rows(index, unit, above=settings.moved_above) if fits else np.arange(len(unit))
    rebuilt = not fits
    if not fits:
        index = build_index(unit, settings, valid=valid, seed=index.seed, take=take)
    elif len(moved):
        if take and index.keeps_directions:
            stay = np.ones(len(unit), bool)
            stay[moved] = False
            rows = np.flatnonzero(stay)
            for some in np.array_split(rows, len(rows) // _BLOCK + 1):
                unit[some] = index.unit[some]
            index.unit = unit
        rebuilt = index.update(unit, moved)
    present = np.flatnonzero(has_direction(index.unit))
    found = recall(index.unit, index.graph.neighbors, present, seed=index.seed)
    return index, GraphReport(num_moved=len(moved), rebuilt=rebuilt, recall=found)


def grow_index(index: Index, num_rows: int, gone: Rows, settings: GraphSection) -> Index:
    """Make room for more rows at the end, and take out those that are gone.

    Neither has a direction, so they are in no list until `refresh_index` gives them one.

    Args:
        index: changed in place, or left alone when growth asks for another backend.
        num_rows: n from now on, at least what the index has.
        gone: rows that it has.
        settings: as for `build_index`.
    """
    if backend_for(num_rows, settings) != index.backend:
        unit = grown(index.unit, num_rows, 0)
        unit[gone] = 0
        return build_index(unit, settings, valid=has_direction(unit), seed=index.seed, take=True)
    index.grow(num_rows)
    if len(gone):
        unit = index.unit.copy()
        unit[gone] = 0
        index.update(unit, gone)
    return index


def _valid_only(unit: Directions, valid: Bool) -> Directions:
    if unit.dtype != np.int16:
        assert np.isfinite(np.vdot(unit, unit)), "directions must be finite"
    return np.where(valid[:, None], unit, unit.dtype.type(0)) if unit[~valid].any() else unit
