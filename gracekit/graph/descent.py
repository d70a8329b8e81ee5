"""Neighbour lists by neighbour descent, for many samples: found once, then improved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from gracekit.graph.cells import cells
from gracekit.graph.descent_loops import (
    count_beyond,
    explore,
    explore_together,
    fill_scales,
    join,
    offer,
    rescore,
)
from gracekit.graph.directions import TrueNeighbors, has_direction
from gracekit.graph.lists import NeighborLists
from gracekit.recipe import GraphSection
from gracekit.rounding import rounded, unrounded
from gracekit.types import Bool, Directions, Rows

_BLOCK = 65_536
"""Rows of which a copy is made at a time."""
_LEAST_PASSES, _ENOUGH, _MOST_PASSES = 3, 0.3, 20
"""Rows without neighbours are divided into cells, each time around other pivots, until a sample of
them lists so many of its true neighbours: with fewer, some rows know none at all, and descent leads
to nobody. The more rows there are the more passes it takes: two random rows that are alike fall
into one of c cells with a probability of about c to the power of -1/3 where cosines are .5. Three
at least: of one pass no list leads out of its cell. Where it takes more, neighbours are hardly more
alike than others, and as many meet in cells of projected rows, which take half as long to find; of
100,000 texts, two thirds as many did."""
_MOST_ROUNDS = 8
_SETTLED = 0.02
"""Share of the lists' entries that a round changes when it is the last one."""
_MOST_AROUND = 20
"""Neighbours by which a round goes on, and at most twice as many rows that list a row: a round
costs at most n · (3 · 20)² / 2 cosines, however long the lists are. With room for no more rows that
list a row than neighbours, rows that many others list found 1 % fewer."""
_NUM_ASKED, _CROWDED = 200, 200
"""A round that leads each row to more others than this, by a sample, compares those around a row
together, as reading them is what costs then; else each row with them."""
_WORSE = 0.03
"""Improved lists whose recall is so much lower than when lists were found from nothing are
dropped, and found from nothing."""


class DescentIndex(NeighborLists):
    """Lists that begin with the nearest in cells of similar rows, and get better by descent.

    Nothing but the lists is kept. When rows move, the search goes on from their old neighbours:
    cells once, which bring rows together that were far apart, and a round or two.

    Made by one thread from a seed, so that a seed gives one result.
    """

    backend = "descent"
    dtype = np.int16
    file_name = "descent.npz"

    def __init__(self, unit: Directions, *, settings: GraphSection, seed: int) -> None:
        super().__init__(unit, settings=settings, seed=seed)
        self._forget_lists(settings.num_neighbors + settings.num_spare)
        present = np.flatnonzero(has_direction(unit))
        truth = self._truth(present)
        self._search(present, truth)
        self._least_recall = self._share(truth) - _WORSE
        self._publish()

    def update(self, features: Directions, moved: Rows) -> bool:
        """Take the new unit features [n, d] of the moved rows and improve the lists.

        Returns whether the moved rows' lists were found from nothing, as a sample of them held too
        few of the true neighbours.
        """
        features = self.as_kept(features)
        if self.unit is not features:
            for some in np.array_split(moved, len(moved) // _BLOCK + 1):
                self.unit[some] = features[some]
        has = has_direction(self.unit)
        present, here = np.flatnonzero(has), has[moved]
        has_list = self._neighbors[moved, 0] >= 0
        arrived, turned = moved[here & ~has_list], moved[here & has_list]
        self._search(turned)
        is_lost = len(turned) > 0 and self._share(self._truth(turned)) < self._least_recall
        if is_lost:
            self._neighbors[turned], self._cosines[turned] = -1, -np.inf
            arrived = moved[here]
        if len(arrived):
            self._search(arrived, self._truth(arrived))
        if is_lost or 2 * len(arrived) > len(present):  # how many can be found has changed
            self._least_recall = self._share(self._truth(present)) - _WORSE
        self._publish()
        return is_lost

    def _search(self, rows: Rows, truth: TrueNeighbors | None = None) -> None:
        """Look for better neighbours of the rows, and for lists that they should be in.

        `truth` is that of rows which have no lists: they are divided into cells until enough of it
        is found, the others once.
        """
        unit = rounded(self.unit)  # as it is
        scales = np.empty(len(unit), np.float32)
        fill_scales(unit, scales)
        present: Bool = scales > 0
        fresh: Bool = np.zeros(len(present), bool)
        fresh[rows] = True
        lists = self._neighbors, self._cosines, np.zeros(self._neighbors.shape, bool)
        floor = self._cosines[:, -1].copy()
        rescore(unit, scales, fresh, *lists)
        # A list knows no row that was farther than its last entry. Where entries have moved beyond
        # that, others may be nearer than they are: such rows are searched again as well.
        short = present & (self._cosines[:, self.settings.num_neighbors - 1] < floor)
        fresh |= short
        lists[2][short] = True
        rng = np.random.default_rng(self.seed)
        for number in range(1, _MOST_PASSES + 1):
            met = []
            is_spread = number > _LEAST_PASSES
            for cell in cells(unit, np.flatnonzero(present), rng, projected=is_spread):
                at = unrounded(unit[cell])  # once: a product with itself takes half as long
                offer(cell, at @ at.T, fresh, *lists)
                met.append(cell)
            if truth is None or (number >= _LEAST_PASSES and self._share(truth) >= _ENOUGH):
                break
        order = np.concatenate(met)  # similar rows in a row: what one reads the next reads again
        most = min(self._neighbors.shape[1], _MOST_AROUND)
        around = np.empty((len(present), 3 * most), np.int32)
        for _ in range(_MOST_ROUNDS):
            join(self._neighbors, lists[2], most, around)
            asked = rng.choice(order, min(len(order), _NUM_ASKED), replace=False)
            is_crowded = count_beyond(around, asked) > _CROWDED * len(asked)
            walk = explore_together if is_crowded else explore
            num_entered = walk(unit, scales, around, order, *lists)
            if num_entered <= _SETTLED * fresh.sum() * self._neighbors.shape[1]:
                break

    def _truth(self, rows: Rows) -> TrueNeighbors:
        """Of a sample of the rows."""
        return TrueNeighbors.of(self.unit, rows, self.settings.num_neighbors, seed=self.seed)

    def _share(self, truth: TrueNeighbors) -> float:
        """Of the true neighbours in the lists."""
        return truth.share_in(self._neighbors[:, : self.settings.num_neighbors], self.unit)

    def _more_arrays(self) -> dict[str, Any]:
        return {"least_recall": self._least_recall}

    def _load_more(self, directory: Path, arrays: Any) -> None:
        self._least_recall = float(arrays["least_recall"])
