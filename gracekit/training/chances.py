"""Drawing anew from a version: probabilities of the trainer's rows, given what it trained on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from gracekit.draw.along import draw_along
from gracekit.draw.capped import capped_probabilities
from gracekit.draw.over_time import next_shares
from gracekit.types import Bool, Draw, DrawState, Float32, Float64, Int32, Int64, Rows

_SAME = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Chances:
    """How likely each of the n rows of the trainer's dataset is to be in a draw of a version."""

    probabilities: Float64
    """[n]; 0 for rows that the version does not know."""
    weights: Float32
    """[n] in a draw with these probabilities."""
    places: Int32
    """[n] distinct among rows that may be drawn: the order along which a draw is spread."""
    parts: Int32
    """[n] index into `totals`."""
    totals: Float64
    """[parts] rows of each part in a draw; more than the probabilities add up to where the
    trainer's dataset lacks rows."""
    max_uses: int | None = None
    """Rows that were used so often are not drawn again."""

    @classmethod
    def of(cls, draw: Draw, rows: Int64, max_uses: int | None, *, weighs: bool = True) -> Chances:
        """Of a version's draw.

        Args:
            draw: Of all rows of the store.
            rows: [n] the store's row of each row of the trainer's dataset; -1: it has none.
            max_uses: Most uses of a row.
            weighs: Whether the trainer multiplies a row's loss by its weight. Where it does not,
                rows are drawn in proportion to what is to be trained on, which is weight times
                probability, and count alike.
        """
        known = rows >= 0
        if not weighs:
            draw = _alike(draw)
        return cls(
            probabilities=np.where(known, draw.probabilities[rows], 0),
            weights=np.where(known, draw.weights[rows], 0).astype(np.float32),
            places=np.where(known, draw.places[rows], -1).astype(np.int32),
            parts=np.where(known, draw.parts[rows], 0).astype(np.int32),
            totals=np.bincount(draw.parts, draw.probabilities).astype(np.float64),
            max_uses=max_uses,
        )

    @property
    def size(self) -> int:
        """Rows of a draw."""
        return round(float(self.totals.sum()))

    def among(self, allowed: Bool) -> tuple[Float64, Float32]:
        """Probabilities and weights [n] where only some rows [n] may be drawn.

        Those of each part are scaled up to its total; what would be above 1 is 1. Weights stay in
        inverse proportion to the probabilities, with the mean that they had in each part.
        """
        before = np.where(allowed, self.probabilities, 0)
        count = len(self.totals)
        if np.abs(np.bincount(self.parts, before, count) - self.totals).max() < _SAME * len(before):
            return before, self.weights
        now = before.copy()
        for part in np.unique(self.parts[before > 0]):
            rows = np.flatnonzero((self.parts == part) & (before > 0))
            now[rows] = _in_proportion(before[rows], float(self.totals[part]))
        ratio = np.divide(before, now, out=np.zeros_like(before), where=now > 0)
        weights = self.weights * ratio
        was = np.bincount(self.parts, self.weights * self.probabilities, count)
        expected = np.bincount(self.parts, self.probabilities, count)
        found, drawn = (np.bincount(self.parts, v, count) for v in (weights * now, now))
        scale = np.divide(
            was * drawn, expected * found, out=np.ones(count), where=expected * found > 0
        )
        return now, (weights * scale[self.parts]).astype(np.float32)

    def allowed(self, uses: Int32) -> Bool:
        """[n] rows that may be drawn after so many uses [n]; all of them where none is left."""
        drawable = self.probabilities > 0
        if self.max_uses is None:
            return drawable
        return drawable if self.is_used_up(uses) else drawable & (uses < self.max_uses)

    def is_used_up(self, uses: Int32) -> bool:
        """Whether no row is left that was used less often than it may be."""
        if self.max_uses is None:
            return False
        return not ((self.probabilities > 0) & (uses < self.max_uses)).any()

    def draw(self, state: DrawState, rng: np.random.Generator) -> tuple[Rows, Float64, Float32]:
        """Draw rows given what was trained on before.

        Returns:
            int64 [b] drawn, ascending; [n] how likely each was, whatever came before; [n] weights.
        """
        probabilities, weights = self.among(self.allowed(state.uses))
        shares = next_shares(state, probabilities, self.parts)
        rows = draw_along(shares, self.places, self.parts, rng)
        if not len(rows):  # less than a row was to be drawn
            rows = np.array([np.argmax(shares)])
        return rows, probabilities, weights


def _alike(draw: Draw) -> Draw:
    """The draw with the same totals whose rows all have the weight 1."""
    wanted = draw.weights.astype(np.float64) * draw.probabilities
    probabilities = np.zeros(len(wanted))
    for part in np.unique(draw.parts[wanted > 0]):
        rows = np.flatnonzero((draw.parts == part) & (wanted > 0))
        total = float(draw.probabilities[rows].sum())
        probabilities[rows] = _in_proportion(wanted[rows], total)
    weights = (probabilities > 0).astype(np.float32)
    return replace(draw, probabilities=probabilities, weights=weights)


def _in_proportion(sizes: Float64, total: float) -> Float64:
    """[m] probabilities of rows with the given sum; all 1 where there are hardly more rows."""
    if total >= len(sizes) - _SAME:
        return np.ones(len(sizes))
    return capped_probabilities(sizes, np.ones(len(sizes)), total)
