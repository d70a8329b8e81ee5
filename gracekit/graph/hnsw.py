"""Approximate neighbour lists by hnswlib, for many samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from gracekit.errors import RecipeError
from gracekit.files import write_atomic
from gracekit.graph.directions import (
    exact_neighbors,
    has_direction,
    nearest_first,
)
from gracekit.graph.lists import NeighborLists
from gracekit.recipe import GraphSection
from gracekit.rounding import unrounded
from gracekit.types import Directions, Float32, Int32, Rows

LINKS_FILE = "hnsw.bin"

_BLUR = 1e-4
"""Length of the noise added to every direction. Identical vectors link to each other only, and a
search that meets hundreds of them does not find its way out; with the noise it does. Cosines
change by less than this."""

_REACH = 5
"""A moved row looks at so many times k others to find those that should list it."""
_QUERY_BLOCK = 4096


class HnswIndex(NeighborLists):
    """hnswlib's graph and the lists that it answers.

    Rows are inserted by one thread, so that a seed gives one result. Rows without a direction are
    never inserted, and deleted when they lose theirs.
    """

    backend = "hnsw"
    file_name = "hnsw.npz"
    keeps_directions = False

    def __init__(self, unit: Directions, *, settings: GraphSection, seed: int) -> None:
        super().__init__(_blurred(unrounded(unit), seed), settings=settings, seed=seed)
        self._build()

    def _build(self) -> None:
        self._links = _new_links(self.unit.shape[1])
        self._links.init_index(
            max_elements=max(len(self.unit), 1),
            M=self.settings.hnsw_m,
            ef_construction=self.settings.ef_construction,
            random_seed=self.seed,
        )
        self._forget_lists(self.settings.num_neighbors)
        rows = np.flatnonzero(has_direction(self.unit))
        self._insert(rows)
        self._query(rows)
        self._publish()

    def grow(self, num_rows: int) -> None:
        """Make room for more rows; they have no direction yet."""
        self._links.resize_index(max(num_rows, 1))
        super().grow(num_rows)

    def update(self, features: Directions, moved: Rows) -> bool:
        """Take the new unit features [n, d] of the moved rows and repair the lists.

        Asked again are the moved rows, the rows that listed one, and those near enough to one to
        list it now, as far as `_REACH` times k neighbours of the moved row tell. Returns whether
        all was built anew instead, which is cheaper when many moved, or burden the links deleted.
        """
        num_deleted = self._links.get_current_count() - int(has_direction(self.unit).sum())
        if len(moved) + num_deleted > self.settings.rebuild_above * len(self.unit):
            self.unit[moved] = _blurred(unrounded(features[moved]), self.seed)
            self._build()
            return True
        had = has_direction(self.unit[moved])
        self.unit[moved] = _blurred(unrounded(features[moved]), self.seed)
        has = has_direction(self.unit[moved])
        for row in moved[had & ~has]:
            self._links.mark_deleted(int(row))
        arrived = moved[has]
        self._insert(arrived)

        is_moved = np.zeros(len(self.unit), bool)
        is_moved[moved] = True
        lists_moved = is_moved[self._neighbors] & (self._neighbors >= 0)
        again = np.asarray(lists_moved.any(axis=1))
        near, cosines = self._search(arrived, _REACH * self.settings.num_neighbors)
        enters = (near >= 0) & (cosines > self._cosines[near, -1])
        again[near[enters]] = True
        again[moved] = False
        self._neighbors[moved], self._cosines[moved] = -1, -np.inf
        self._query(np.concatenate([arrived, np.flatnonzero(again)]))
        self._publish()
        return False

    def _insert(self, rows: Rows) -> None:
        if len(rows):
            # A label that is already there is updated in place; `replace_deleted` would lose it.
            self._links.add_items(self.unit[rows], rows, num_threads=1)

    def _query(self, rows: Rows) -> None:
        lists = self._search(rows, self.settings.num_neighbors)
        self._neighbors[rows], self._cosines[rows] = lists

    def _search(self, rows: Rows, width: int) -> tuple[Int32, Float32]:
        """Lists [q, width] of rows that have a direction, as from `exact_neighbors`."""
        neighbors = np.full((len(rows), width), -1, np.int32)
        cosines = np.full((len(rows), width), -np.inf, np.float32)
        present = np.flatnonzero(has_direction(self.unit))
        num_answers = min(width + 1, len(present))
        self._links.set_ef(max(self.settings.ef_search, num_answers))
        for start in range(0, len(rows), _QUERY_BLOCK):
            block = slice(start, start + _QUERY_BLOCK)
            asked = rows[block]
            try:
                labels, distances = self._links.knn_query(self.unit[asked], k=num_answers)
            except RuntimeError:  # a row of the block reaches too few others through the links
                neighbors[block], cosines[block] = exact_neighbors(self.unit, asked, present, width)
                continue
            lists, near = labels.astype(np.int32), 1 - distances
            # A row among its duplicates may miss itself; then the last answer goes instead.
            itself = lists == asked[:, None]
            lists[itself], near[itself] = -1, -np.inf
            lists, near = nearest_first(lists, near, width)
            neighbors[block, : lists.shape[1]], cosines[block, : lists.shape[1]] = lists, near
        return neighbors, cosines

    def _save_more(self, directory: Path) -> list[Path]:
        # hnswlib writes plainly to the name it is given.
        write_atomic(directory / LINKS_FILE, lambda path: self._links.save_index(str(path)))
        return [directory / LINKS_FILE]

    def _load_more(self, directory: Path, arrays: Any) -> None:
        # hnswlib's file holds the directions too, but is slow to give them back.
        n, d = self.unit.shape
        self._links = _new_links(d)
        self._links.load_index(str(directory / LINKS_FILE), max_elements=max(n, 1))


def _blurred(unit: Float32, seed: int) -> Float32:
    rng = np.random.default_rng(seed)
    blurred = unit.copy()
    size = np.float32(_BLUR / np.sqrt(max(unit.shape[1], 1)))
    for start in range(0, len(unit), _QUERY_BLOCK):
        block = blurred[start : start + _QUERY_BLOCK]
        present = has_direction(block)[:, None]
        block += present * size * rng.standard_normal(block.shape, dtype=np.float32)
        block /= np.where(present, np.linalg.norm(block, axis=1, keepdims=True), 1)
    return blurred


def _new_links(num_features: int) -> Any:
    # Imported here: it is an extra, built from source, and the other backends do without it.
    try:
        import hnswlib
    except ImportError as error:
        raise RecipeError(
            f"graph.backend hnsw needs hnswlib, which cannot be imported ({error}); install "
            "`gracekit[hnsw]` (it is compiled, by a C++ compiler), or set graph.backend: auto and "
            "make a version by `gracekit refresh`, which then has another index"
        ) from None

    return hnswlib.Index(space="ip", dim=num_features)
