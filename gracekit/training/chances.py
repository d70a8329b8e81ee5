"""Drawing anew from a version: probabilities of the trainer's rows, given what it trained on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gracekit.draw.along import draw_along
from gracekit.draw.over_time import conditional, to_totals
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
    def of(cls, draw: Draw, rows: Int64, max_uses: int | None) -> Chances:
        """Of a version's draw.

        Args:
            draw: Of all rows of the store.
            rows: [n] the store's row of each row of the trainer's dataset; -1: it has none.
            max_uses: Most uses of a row.
        """
        known = rows >= 0
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
            now[rows] = _scaled(before[rows], float(self.totals[part]))
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
        shares = to_totals(conditional(state, probabilities), probabilities, self.parts)
        rows = draw_along(shares, self.places, self.parts, rng)
        if not len(rows):  # less than a row was to be drawn
            rows = np.array([np.argmax(shares)])
        return rows, probabilities, weights


def _scaled(sizes: Float64, total: float) -> Float64:
    """[m] min(1, c · size) with the given sum, or 1 where there are fewer."""
    found = np.ones(len(sizes))
    if total >= len(sizes) - _SAME:
        return found
    if abs(float(sizes.sum()) - total) < _SAME * len(sizes) and sizes.max() <= 1:
        return sizes
    order = np.argsort(sizes, kind="stable")
    below = np.cumsum(sizes[order])
    left = total - np.arange(len(sizes) - 1, -1, -1)  # for the first k, if all later ones have 1
    is_certain = (left * sizes[order] >= below) & (left > 0)
    num_open = int(np.argmax(is_certain)) if is_certain.any() else len(sizes)
    is_open = order[:num_open]
    if num_open:
        found[is_open] = np.clip(sizes[is_open] * (left[num_open - 1] / below[num_open - 1]), 0, 1)
    return found
