"""The map: samples in the plane by the two main directions of their features, coresets in it.

The projection is linear and fixed: a report that replaces an earlier one of the same store takes
over its projection, so that a sample stays where it is unless its features move. Where that one has
become much worse than the best possible, a new one is made and turned to fit the old picture.
"""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse.linalg import svds

from gracekit.graph import unit_features
from gracekit.store import StoreCache
from gracekit.types import Bool, Float32, Float64, Json, Rows

NUM_POINTS = 4000
"""Samples of the data that are drawn at most."""
NUM_CORESET_POINTS = 1000
"""Samples of each coreset that are drawn at most."""
NUM_CORESETS = 6
"""Versions whose coresets are drawn, the newest ones."""
_NUM_FITTED = 20_000
"""Samples that the directions are found from, at most."""
_FEW = 256
"""Width up to which all directions are found."""
STILL_GOOD = 0.7
"""Share of the best possible spread in the plane from which an earlier projection is kept."""
FORMAT = 1
_FARTHEST = 100.0
"""Beyond which no coordinate of a projection lies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """A linear map of directions [n, d] to the plane."""

    fingerprint: str
    """Of the store's first data: a projection serves one store."""
    axes: Float32
    """[d, 2]"""
    middle: Float32
    """[2] what is subtracted in the plane."""
    frame: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """Left, right, lower and upper end of what is shown, so that the picture keeps its scale."""

    def place(self, unit: Float32) -> Float32:
        """[n, 2] of directions [n, d]."""
        return np.asarray(unit @ self.axes - self.middle, np.float32)

    def to_json(self) -> Json:
        """As a JSON object; the inverse of `from_json`."""
        return {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "width": len(self.axes),
            "axes": base64.b64encode(self.axes.astype("<f4").tobytes()).decode(),
            "middle": [float(value) for value in self.middle],
            "frame": list(self.frame),
        }

    @classmethod
    def from_json(cls, content: Any) -> Projection | None:
        """That of an earlier report; None where it is none, or of another format."""
        try:
            if content["format"] != FORMAT:
                return None
            axes = np.frombuffer(base64.b64decode(content["axes"]), "<f4")
            left, right, lower, upper = (float(value) for value in content["frame"])
            found = cls(
                fingerprint=str(content["fingerprint"]),
                axes=axes.reshape(int(content["width"]), 2).astype(np.float32),
                middle=np.array(content["middle"], np.float32).reshape(2),
                frame=(left, right, lower, upper),
            )
        except (TypeError, KeyError, ValueError, OverflowError):  # a file that anybody may have cut
            return None
        numbers = np.concatenate([found.axes.ravel(), found.middle, found.frame])
        # Axes are of length 1, and so are the directions that they place.
        return found if found.axes.size and (np.abs(numbers) < _FARTHEST).all() else None

    def with_frame(self, points: Float32) -> Projection:
        """With a frame that has room for all points [p, 2], and for those of before."""
        low, high = points.min(axis=0), points.max(axis=0)
        left, right, lower, upper = self.frame
        if right > left:
            low = np.minimum(low, [left, lower])
            high = np.maximum(high, [right, upper])
        frame = (float(low[0]), float(high[0]), float(low[1]), float(high[1]))
        return dataclasses.replace(self, frame=frame)


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureMap:
    """What is drawn of the samples in the plane."""

    projection: Projection
    is_kept: bool
    """Whether the projection is that of the report before."""
    rows: Rows
    """[p] samples that are drawn: some of the data, and some of each coreset."""
    points: Float32
    """[p, 2]"""
    is_of_data: Bool
    """[p] whether it is one of those that were drawn from all of the data alike."""
    coresets: dict[int, Rows]
    """Version -> positions in `rows` of those of its coreset that are drawn, newest first."""
    num_samples: int
    """With features, in the data."""
    coreset_sizes: dict[int, int]
    spread: float
    """Share of the spread of all directions that the plane shows, 0 to 1."""

    def to_json(self) -> Json:
        """As a JSON object."""
        return {
            "rows": self.rows.tolist(),
            "x": np.round(self.points[:, 0], 4).tolist(),
            "y": np.round(self.points[:, 1], 4).tolist(),
            "coresets": {str(v): self.rows[at].tolist() for v, at in self.coresets.items()},
            "coreset_sizes": {str(v): size for v, size in self.coreset_sizes.items()},
            "num_samples": self.num_samples,
            "spread": self.spread,
            "is_kept": self.is_kept,
        }


def feature_map(
    cache: StoreCache,
    present: Bool,
    coresets: Mapping[int, Rows],
    *,
    fingerprint: str,
    earlier: Projection | None = None,
) -> FeatureMap | None:
    """Lay out the samples; None where fewer than three have features that differ.

    Args:
        cache: Features of [n] samples.
        present: [n or more] samples that are in the data.
        coresets: Version -> its rows.
        fingerprint: Of the store's first data.
        earlier: The projection of the report before.
    """
    valid = cache.valid & present[: len(cache.valid)]
    unit = unit_features(cache.features, valid)
    has_place = np.einsum("ij,ij->i", unit, unit) > 0
    known: Rows = np.flatnonzero(has_place)
    if len(known) < 3:
        return None
    fitted = unit[_some(known, _NUM_FITTED)]
    best = _principal(fitted, fingerprint)
    projection, is_kept = _kept_or_new(best, earlier, fitted)
    of_data = _some(known, NUM_POINTS)
    newest = sorted(coresets, reverse=True)[:NUM_CORESETS]
    drawn = {v: _some(_known(coresets[v], has_place), NUM_CORESET_POINTS) for v in newest}
    rows: Rows = np.unique(np.concatenate([of_data, *drawn.values()]))
    points = projection.place(unit[rows])
    everything = float(np.square(fitted - fitted.mean(axis=0)).sum())
    return FeatureMap(
        projection=projection.with_frame(points),
        is_kept=is_kept,
        rows=rows,
        points=points,
        is_of_data=np.isin(rows, of_data),
        coresets={v: np.searchsorted(rows, found) for v, found in drawn.items()},
        num_samples=len(known),
        coreset_sizes={v: len(coresets[v]) for v in newest},
        spread=_spread(fitted @ projection.axes) / everything if everything > 0 else 0.0,
    )


def _known(rows: Rows, has_place: Bool) -> Rows:
    rows = rows[rows < len(has_place)]
    return rows[has_place[rows]]


def _some(rows: Rows, number: int) -> Rows:
    """At most so many rows, ascending: always the same ones while they are there.

    A row's turn is a hash of it (SplitMix64's last step), so what joins displaces few.
    """
    if len(rows) <= number:
        return np.sort(rows)
    turn = rows.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    turn = (turn ^ (turn >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    turn = (turn ^ (turn >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    turn ^= turn >> np.uint64(31)
    return np.sort(rows[np.argsort(turn, kind="stable")[:number]])


def _principal(unit: Float32, fingerprint: str) -> Projection:
    """The two directions of largest spread, with signs that do not depend on the library."""
    middle = unit.mean(axis=0, dtype=np.float64)
    apart = unit - middle
    axes = np.zeros((unit.shape[1], 2))
    found = _largest_directions(apart)
    axes[:, : found.shape[1]] = found
    skew = np.sum((apart @ axes) ** 3, axis=0)
    axes *= np.where(skew < 0, -1.0, 1.0)
    return Projection(
        fingerprint=fingerprint,
        axes=axes.astype(np.float32),
        middle=(middle @ axes).astype(np.float32),
    )


def _largest_directions(apart: Float64) -> Float64:
    """[d, 2] at most, of centred [f, d]; for wide features by Lanczos's method."""
    width = apart.shape[1]
    if width <= _FEW:
        return np.asarray(np.linalg.eigh(apart.T @ apart)[1][:, ::-1][:, :2], np.float64)
    start = np.random.default_rng(0).normal(size=min(apart.shape))
    _, sizes, directions = svds(apart, k=2, v0=start)
    return np.asarray(directions[np.argsort(-sizes)].T, np.float64)


def _kept_or_new(
    best: Projection, earlier: Projection | None, unit: Float32
) -> tuple[Projection, bool]:
    fits = (
        earlier is not None
        and earlier.fingerprint == best.fingerprint
        and earlier.axes.shape == best.axes.shape
    )
    if earlier is None or not fits:
        return best, False
    old, new = earlier.place(unit), best.place(unit)
    if _spread(old) >= STILL_GOOD * _spread(new):
        return earlier, True
    # Orthogonal Procrustes: the turn (or reflection) of the new picture nearest to the old one.
    left, _, right = np.linalg.svd((new - new.mean(axis=0)).T @ (old - old.mean(axis=0)))
    turn = left @ right
    axes = (best.axes @ turn).astype(np.float32)
    return Projection(fingerprint=best.fingerprint, axes=axes, middle=best.middle @ turn), False


def _spread(points: Float32 | Float64) -> float:
    return float(np.square(points - points.mean(axis=0)).sum())
