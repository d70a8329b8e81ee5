"""Exact neighbour lists by blocked products: the oracle, and the default for small n."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from gracekit.graph.directions import (
    exact_neighbors,
    grown,
    has_direction,
    nearest_first,
)
from gracekit.graph.lists import NeighborLists
from gracekit.recipe import GraphSection
from gracekit.types import Directions, Rows

NUM_SPARE = 16
"""Neighbours remembered beyond k, so that a list survives losing some of its members."""


class ExactIndex(NeighborLists):
    """Exact lists, repaired exactly for the rows that moved.

    A row remembers its floor besides its list: it knows every row at least that similar. While k
    members lie at or above the floor, the list is right although others were lost.
    """

    backend = "exact"
    file_name = "exact.npz"

    def __init__(self, unit: Directions, *, settings: GraphSection, seed: int) -> None:
        super().__init__(unit, settings=settings, seed=seed)
        self._forget_lists(settings.num_neighbors + NUM_SPARE)
        self._floor = np.full(len(unit), -np.inf, np.float32)
        self._recompute(np.flatnonzero(has_direction(unit)))
        self._publish()

    def grow(self, num_rows: int) -> None:
        """Make room for more rows; they have no direction yet."""
        super().grow(num_rows)
        self._floor = grown(self._floor, num_rows, -np.inf)

    def update(self, features: Directions, moved: Rows) -> bool:
        """Take the new unit features [n, d] of the moved rows; the lists are exact again.

        Returns whether they were found from nothing: where all rows moved.
        """
        self.unit[moved] = features[moved]
        present = has_direction(self.unit)
        is_moved = np.zeros(len(present), bool)
        is_moved[moved] = True
        lost = is_moved[self._neighbors] | is_moved[:, None]
        self._neighbors[lost], self._cosines[lost] = -1, -np.inf

        still = np.flatnonzero(present & ~is_moved)
        moved_now = np.flatnonzero(present & is_moved)
        width = self._neighbors.shape[1]
        arrived, near = exact_neighbors(self.unit, still, moved_now, width)
        neighbors, cosines = nearest_first(
            np.hstack([self._neighbors[still], arrived]),
            np.hstack([self._cosines[still], near]),
            width,
        )
        self._neighbors[still], self._cosines[still] = neighbors, cosines
        uncertain = cosines[:, self.settings.num_neighbors - 1] < self._floor[still]
        # What a full list pushed out is no longer known, so the floor rises to its last member.
        self._floor[still] = np.maximum(self._floor[still], cosines[:, -1])
        self._recompute(np.concatenate([still[uncertain], moved_now]))
        self._publish()
        return len(still) == 0

    def _recompute(self, rows: Rows) -> None:
        columns = np.flatnonzero(has_direction(self.unit))
        neighbors, cosines = exact_neighbors(self.unit, rows, columns, self._neighbors.shape[1])
        self._neighbors[rows], self._cosines[rows] = neighbors, cosines
        self._floor[rows] = cosines[:, -1]

    def _more_arrays(self) -> dict[str, Any]:
        return {"floor": self._floor}

    def _load_more(self, directory: Path, arrays: Any) -> None:
        self._floor = arrays["floor"]
