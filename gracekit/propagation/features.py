"""Features of the rows that were not measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gracekit.propagation.diffusion import Paths, Smoothed, transition
from gracekit.propagation.feature_maps import FITS, FeatureMap, as_kept, map_rows, row_cosines
from gracekit.propagation.feature_spread import restore_spread
from gracekit.propagation.gates import share_that_helps, simplest_good
from gracekit.propagation.levels import LEAST_SCALED_ROWS, common_shift
from gracekit.recipe import PropagationSection
from gracekit.scratch import room
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
                map_rows(features, np.flatnonzero(usable), lambda block: block + shift)

            outcome = outcome.model_copy(update={"used": "shift"})

    def carried() -> CarriedFeatures:
        features = room(old.shape, old.dtype)
        features[:] = old
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

    def fit(name: str, penalty: float) -> FeatureMap:
        return FITS[name](source[kept], target[kept], penalty)

    penalty = min(_PENALTIES, key=lambda p: float(loss(fit("ridge", p)(source[held])).mean()))
    maps = {name: fit(name, penalty) for name in FITS}
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
    carry = FITS[choice.plain](source, target, choice.penalty)
    left = target - carry(source)
    map_rows(features, np.flatnonzero(usable), carry)
    if choice.hops:
        for columns, arrived in _spread_columns(walk, rows, left, damping, (choice.hops,)):
            news = arrived[choice.hops].values
            news *= np.float32(choice.share)
            news[~usable] = 0
            news += features[:, columns]
            features[:, columns] = as_kept(news, features.dtype)


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
