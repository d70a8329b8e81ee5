"""Features of the rows that were not measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gracekit.propagation.diffusion import Paths, Smoothed, transition
from gracekit.propagation.gates import share_that_helps, simplest_good
from gracekit.propagation.levels import LEAST_SCALED_ROWS, common_shift
from gracekit.recipe import PropagationSection
from gracekit.rounding import to_float16
from gracekit.types import Bool, Float32, Float64, Int64, Rows, SparseGraph
from gracekit.version.outcomes import FeaturesOutcome

if TYPE_CHECKING:
    from scipy import sparse

_HELD_OUT = 0.25
"""Share of the measured rows held out. Each of them tells d numbers, so one split says enough."""
_PENALTIES = (0.001, 0.01, 0.1, 1.0, 10.0)
"""Penalties of the ridge map that are tried, relative to the mean eigenvalue of what it is fitted
on."""
_LEAST_GAIN = 1e-4
"""Least gain of mean cosine that is worth a more complicated estimate."""
_HOPS = (1, 3)
_MOST_STRETCH = 0.5
_WORTH_SPREAD = 0.3
_ROW_BLOCK = 16_384
_COLUMN_BLOCK, _COLUMN_NUMBERS = 64, 1 << 24
"""Most columns that are diffused at a time, and numbers in them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CarriedFeatures:
    """The features of all rows after a refresh."""

    features: NDArray[np.float16] | Float32
    """[n, d] as the old ones are kept, float16 or float32; measured rows as measured."""
    outcome: FeaturesOutcome
    """What was used, with the held-out cosines that decided it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureEstimate:
    """How the features of all rows are to be carried over; `carried` does it."""

    held_out_rows: Rows
    """[q] measured rows that were held out while the way was chosen."""
    held_out: Float32
    """[q, d] what was predicted of them."""
    carried: Callable[[], CarriedFeatures]
    """Makes the features of all n rows, which takes a copy of them; to be called once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Map:
    """new = old + offset + old @ matrix."""

    offset: Float32
    """[d]"""
    matrix: Float32 | None = None
    """[d, d]; None: the offset alone."""

    def __call__(self, old: Float32) -> Float32:
        """Features [rows, d] carried over."""
        new: Float32 = old + self.offset
        if self.matrix is not None:
            new += old @ self.matrix
        return new


def estimate_features(
    *,
    old: NDArray[np.float16] | Float32,
    measured_rows: Rows,
    new: NDArray[np.float16] | Float32,
    graph: SparseGraph,
    usable: Bool,
    settings: PropagationSection,
    seed: int,
) -> FeatureEstimate:
    """Estimate the new features of all rows from those of the measured ones.

    Tried on held-out measured rows, simplest first: stale; a shift by the mean change; a ridge map
    from old features to their change. Then, on top of the one that is used, what it leaves over on
    the measured rows, diffused over the graph and scaled. What counts is the cosine of predicted
    and measured features, both centred by the mean of the measured ones.

    Args:
        old: [n, d] last known features.
        measured_rows: [m] distinct.
        new: [m, d] measured features; NaN where the measurement was not finite.
        graph: the graph over the old features.
        usable: [n] rows with known old features. The others keep what they have unless measured.
        settings: whether to propagate features, damping, and the least number of measured rows:
            below it they have the common shift alone, as far as it is more than noise, and the
            spread of the measured ones.
        seed: of the split.

    Works in blocks, so that little memory is needed besides `old` and the result.
    """
    comparable = usable[measured_rows] & np.isfinite(new).all(axis=1)
    comparable &= np.isfinite(old[measured_rows]).all(axis=1)
    rows, target = measured_rows[comparable], new[comparable].astype(np.float32)
    source = old[rows].astype(np.float32)
    outcome = FeaturesOutcome(rule=settings.features, num_compared=len(rows))
    held_out_rows, held_out = rows, source
    held: Int64 = np.arange(len(rows))
    is_changed = False
    change: Callable[[NDArray[Any]], None] | None = None
    """Makes new features of the old ones [n, d], in place."""
    if settings.features != "none" and len(rows) >= settings.min_measured:
        walk, rng = transition(graph, usable), np.random.default_rng(seed)
        choice, held, held_out = _choose(source, target, rows, walk, settings.damping, rng)
        held_out_rows, is_changed = rows[held], choice.plain != "stale"

        def change(features: NDArray[Any]) -> None:
            _carry_over(features, rows, target, walk, usable, settings.damping, choice)

        outcome = FeaturesOutcome(
            rule=settings.features,
            num_compared=len(rows),
            used=f"{choice.plain}+diffusion" if choice.hops else choice.plain,
            penalty=choice.penalty if choice.plain == "ridge" else 0.0,
            hops=choice.hops,
            share=choice.share,
            held_out_cosine=choice.cosines,
        )
    elif settings.features != "none":
        shift = common_shift(target - source).astype(np.float32)
        if shift.any():
            held_out, is_changed = _held_out_by_shift(source, target), True

            def change(features: NDArray[Any]) -> None:
                _map_rows(features, np.flatnonzero(usable), lambda block: block + shift)

            outcome = outcome.model_copy(update={"used": "shift"})

    def carried() -> CarriedFeatures:
        features: NDArray[Any] = np.array(old)
        found = outcome
        if change is not None:
            change(features)
        if is_changed and len(rows) >= LEAST_SCALED_ROWS:
            propagated = usable.copy()
            propagated[measured_rows] = False
            others = np.flatnonzero(propagated)
            stretch = restore_spread(features, others, target, held, held_out, old, rows)
            found = outcome.model_copy(update={"stretch": stretch})
        features[measured_rows] = new
        return CarriedFeatures(features=features, outcome=found)

    return FeatureEstimate(held_out_rows=held_out_rows, held_out=held_out, carried=carried)


def _map_rows(
    features: NDArray[Any], rows: Rows, new_of: Callable[[Float32], Float32 | Float64]
) -> None:
    """Replace rows of features [n, d] in place, computed in float32, block by block."""
    for block in _blocks(rows):
        new = new_of(features[block].astype(np.float32))
        features[block] = _as_kept(new, features.dtype)


def _as_kept(new: Float32 | Float64, dtype: np.dtype[Any]) -> NDArray[Any]:
    if dtype == np.float16:
        return to_float16(new.astype(np.float32, copy=False))
    return new.astype(dtype, copy=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Choice:
    """The estimate that the held-out rows speak for."""

    plain: str
    penalty: float
    hops: int
    """0: without diffusion."""
    share: float
    cosines: dict[str, float]
    """Mean held-out cosine of everything tried."""


def _choose(
    source: Float32,
    target: Float32,
    rows: Rows,
    walk: sparse.csr_array,
    damping: float,
    rng: np.random.Generator,
) -> tuple[_Choice, Int64, Float32]:
    """Try everything on held-out rows; which these are, and what the choice says of them."""
    held, kept = np.split(rng.permutation(len(rows)), [int(_HELD_OUT * len(rows))])
    truth, centre = target[held], target.mean(axis=0)

    def loss(predicted: Float32) -> Float64:
        return 1 - row_cosines(predicted - centre, truth - centre)

    def fit(name: str, penalty: float) -> _Map:
        return _FITS[name](source[kept], target[kept], penalty)

    penalty = min(_PENALTIES, key=lambda p: float(loss(fit("ridge", p)(source[held])).mean()))
    maps = {name: fit(name, penalty) for name in _FITS}
    losses = {name: loss(carry(source[held])) for name, carry in maps.items()}
    plain = simplest_good(losses, at_least=_LEAST_GAIN)

    predicted, left = maps[plain](source[held]), target[kept] - maps[plain](source[kept])
    shares = {}
    arrived = _spread_to(walk, rows[kept], left, rows[held], damping)
    for hops, news in arrived.items():
        shares[hops] = share_that_helps(news, truth - predicted)
        losses[f"{plain}+{hops}"] = loss(predicted + np.float32(shares[hops]) * news)
    best = min(_HOPS, key=lambda hops: float(losses[f"{plain}+{hops}"].mean()))
    finalists = {name: losses[name] for name in (plain, f"{plain}+{best}")}
    diffuses = simplest_good(finalists, at_least=_LEAST_GAIN) != plain
    choice = _Choice(
        plain=plain,
        penalty=penalty,
        hops=best if diffuses else 0,
        share=shares[best] if diffuses else 0.0,
        cosines={name: float(1 - each.mean()) for name, each in losses.items()},
    )
    return choice, held, predicted + np.float32(choice.share) * arrived[best]


def _held_out_by_shift(source: Float32, target: Float32) -> Float32:
    """[m, d] each measured row as the common shift of the other half of them says."""
    held_out, is_odd = source.copy(), np.arange(len(target)) % 2 == 1
    for half in (is_odd, ~is_odd):
        held_out[half] += common_shift(target[~half] - source[~half]).astype(np.float32)
    return held_out


def _carry_over(
    features: NDArray[Any],
    rows: Rows,
    target: Float32,
    walk: sparse.csr_array,
    usable: Bool,
    damping: float,
    choice: _Choice,
) -> None:
    """Fit the choice on all measured rows and apply it to the usable rows, in place."""
    source = features[rows].astype(np.float32)
    carry = _FITS[choice.plain](source, target, choice.penalty)
    left = target - carry(source)
    _map_rows(features, np.flatnonzero(usable), carry)
    if choice.hops:
        for columns, arrived in _spread_columns(walk, rows, left, damping, (choice.hops,)):
            news = arrived[choice.hops].values
            news *= np.float32(choice.share)
            news[~usable] = 0
            news += features[:, columns]
            features[:, columns] = _as_kept(news, features.dtype)


def restore_spread(
    features: NDArray[Any],
    rows: Rows,
    target: Float32,
    held: Int64,
    held_out: Float32,
    old: NDArray[np.floating[Any]],
    measured_rows: Rows,
) -> float:
    """Give predicted features the spread that measured ones have, in place.

    A prediction leaves out what is a row's own, so its features lie closer together than true
    ones, and from refresh to refresh ever fewer directions would be left. Along each principal
    axis of the predicted features they are stretched around their mean to the spread to be
    expected, by `_MOST_STRETCH` at most either way, and only as far as held-out rows do not miss
    the cosine of 1 by `_WORTH_SPREAD` more than without. Expected is the standard deviation of the
    measured rows, times what theirs falls short of the predicted rows' in the features known before
    (a ratio estimate: few rows drawn at random spread more or less than others, and did so before).
    The ratio is kept to two standard errors of a spread: rows that were not drawn at random, such
    as the oldest, differ for other reasons.
    (Axes of the measured features would be no good: few rows spread too much along their own first
    axes and too little along their last, whatever they are drawn from.)

    Args:
        features: [n, d]
        rows: predicted rows.
        target: [m, d] measured features.
        held: [q] positions among the measured rows of those that were held out.
        held_out: [q, d] what was predicted of them.
        old: [n, d] last known features.
        measured_rows: [m]

    Returns:
        Share of the stretch that was made, 0 to 1.
    """
    if len(rows) < 2:
        return 0.0
    mean, covariance = _moments(features, rows)
    square, axes = np.linalg.eigh(covariance)
    centre = target.mean(axis=0, dtype=np.float64)
    of_all, of_measured = _spread_along(axes, old, rows), _spread_along(axes, old, measured_rows)
    found = np.sqrt(np.maximum(square, 0))
    wanted = _spread_along(axes, target, np.arange(len(target)))
    by_chance = 2 / np.sqrt(2 * len(target))
    ratio = np.divide(of_all, of_measured, out=np.ones_like(wanted), where=of_measured > 0)
    wanted *= np.clip(ratio, 1 - by_chance, 1 + by_chance)
    wider = np.divide(wanted, found, out=np.ones_like(wanted), where=found > 0) - 1
    stretch = (axes * np.clip(wider, -_MOST_STRETCH, _MOST_STRETCH)) @ axes.T

    def cosine(share: float) -> float:
        stretched = held_out + share * ((held_out - mean) @ stretch)
        return float(row_cosines(stretched - centre, target[held] - centre).mean())

    plain = cosine(0.0)
    enough = plain - _WORTH_SPREAD * (1 - plain)
    share = next((each for each in (1.0, 0.5, 0.25) if cosine(each) >= enough), 0.0)
    if share > 0:
        made = share * stretch
        offset, matrix = -(mean @ made).astype(np.float32), made.astype(np.float32)
        _map_rows(features, rows, _Map(offset=offset, matrix=matrix))
    return share


def _spread_along(axes: Float64, features: NDArray[np.floating[Any]], rows: Rows) -> Float64:
    """[d] standard deviation of the rows along each axis (a column of `axes`)."""
    square: Float64 = np.einsum("ij,ij->j", axes, _moments(features, rows)[1] @ axes)
    return np.sqrt(np.maximum(square, 0))


def _moments(features: NDArray[np.floating[Any]], rows: Rows) -> tuple[Float64, Float64]:
    """Mean [d] and covariance [d, d] of the rows."""
    d = features.shape[1]
    mean, covariance = np.zeros(d), np.zeros((d, d))
    for block in _blocks(rows):
        mean += features[block].sum(axis=0, dtype=np.float64) / len(rows)
    for block in _blocks(rows):
        centred = (features[block] - mean).astype(np.float32)
        covariance += centred.T @ centred / len(rows)
    return mean, covariance


def _blocks(rows: Rows) -> list[Rows]:
    return [rows[start : start + _ROW_BLOCK] for start in range(0, len(rows), _ROW_BLOCK)]


def _spread_columns(
    walk: sparse.csr_array,
    rows: Rows,
    values: Float32,
    damping: float,
    hops: tuple[int, ...],
    to: Rows | None = None,
) -> Iterator[tuple[slice, dict[int, Smoothed]]]:
    """`spread` for a few columns at a time, so that no second [n, d] is ever needed."""
    width = int(np.clip(_COLUMN_NUMBERS // walk.shape[0], 8, _COLUMN_BLOCK))
    paths = Paths(walk, rows, to, hops=hops)
    for start in range(0, values.shape[1], width):
        columns = slice(start, start + width)
        yield columns, paths.spread(values[:, columns], damping=damping)


def _spread_to(
    walk: sparse.csr_array, rows: Rows, values: Float32, to: Rows, damping: float
) -> dict[int, Float32]:
    """What arrives at the rows `to`: hops -> [to, d]."""
    arrived = {hops: np.empty((len(to), values.shape[1]), np.float32) for hops in _HOPS}
    for columns, smoothed in _spread_columns(walk, rows, values, damping, _HOPS, to):
        for hops, news in smoothed.items():
            arrived[hops][:, columns] = news.values
    return arrived


def _no_change(old: Float32, new: Float32, penalty: float) -> _Map:
    return _Map(offset=np.zeros(old.shape[1], np.float32))


def _shift(old: Float32, new: Float32, penalty: float) -> _Map:
    return _Map(offset=(new - old).mean(axis=0))


def _ridge(old: Float32, new: Float32, penalty: float) -> _Map:
    """Ridge regression of the change; a large penalty leaves the mean change."""
    centre = old.mean(axis=0, dtype=np.float64)
    shift = (new - old).mean(axis=0, dtype=np.float64)
    m, d = old.shape
    if m < d:
        x, y = old - centre, new - old - shift
        matrix = x.T @ np.linalg.solve(_penalised(x @ x.T, penalty, d), y)
    else:
        gram, cross = np.zeros((d, d)), np.zeros((d, d))
        for start in range(0, m, _ROW_BLOCK):
            block = slice(start, start + _ROW_BLOCK)
            x, y = old[block] - centre, new[block] - old[block] - shift
            gram += x.T @ x
            cross += x.T @ y
        matrix = np.linalg.solve(_penalised(gram, penalty, d), cross)
    return _Map(
        offset=(shift - centre @ matrix).astype(np.float32), matrix=matrix.astype(np.float32)
    )


def _penalised(gram: Float64, penalty: float, num_features: int) -> Float64:
    size = np.trace(gram) / num_features
    return gram + penalty * (size or 1.0) * np.eye(len(gram))


_FITS: dict[str, Callable[[Float32, Float32, float], _Map]] = {
    "stale": _no_change,
    "shift": _shift,
    "ridge": _ridge,
}
"""Simplest first."""


def row_cosines(a: Float32 | Float64, b: Float32 | Float64) -> Float64:
    """[rows] cosine of each row of `a` with that of `b`; 0 where one of them is 0."""
    dot = np.einsum("ij,ij->i", a, b, dtype=np.float64)
    square = np.einsum("ij,ij->i", a, a, dtype=np.float64)
    square = square * np.einsum("ij,ij->i", b, b, dtype=np.float64)
    cosine: Float64 = np.divide(dot, np.sqrt(square), out=np.zeros_like(dot), where=square > 0)
    return cosine
