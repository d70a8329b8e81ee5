"""Rows that were never measured, as a refresh may estimate them: a guess, and a look at features.

A first version measures a few rows, and a budget may not reach all rows that join the data later.
The others get a guess to start from, the mean of what is known in their group, which the measured
rows then correct as they do any other row that is carried over; and their features by a look, the
part of the forward pass that these need, where that is worth its price. A row without features has
no neighbours, and is estimated by its length and group alone.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from gracekit.graph import build_index, directions_to_index, refresh_index, symmetric
from gracekit.recipe import Recipe
from gracekit.refresher.allowance import Allowance
from gracekit.refresher.budget import FirstPlan
from gracekit.refresher.last import LastRefresh
from gracekit.refresher.rounds import Measure
from gracekit.rounding import put_rows, to_float16
from gracekit.scores.working_values import from_working
from gracekit.scratch import room
from gracekit.types import (
    Bool,
    Float32,
    Int32,
    Measurement,
    Origin,
    Rows,
    SampleTable,
    ScoreTable,
    UInt8,
)


def started(
    first: FirstPlan,
    last: LastRefresh | None,
    measure: Measure,
    recipe: Recipe,
    samples: SampleTable,
    allowance: Allowance,
) -> tuple[LastRefresh | None, Rows]:
    """What the refresh starts from, with guesses for rows that it will not measure; rows looked at.

    Without a limit, rows that joined the data later wait until they are measured.
    """
    nobody = np.zeros(0, np.int64)
    if first.is_full or (last is not None and not allowance.is_limited):
        return last, nobody
    if last is None:
        if not len(first.plan.rows):
            return _seen_only(recipe, samples, measure, allowance)
        looked = rows_to_look_at(samples, first)
        measurement = measure(first.plan.rows)
        return _begun(recipe, samples, measurement, looked, measure.look(looked)), looked
    waiting = np.setdiff1d(_never_measured(samples, last.scores), first.plan.rows)
    if not len(waiting):
        return last, nobody
    looked = waiting[~last.valid[waiting]]
    if allowance.of_looking(looked) > allowance.tokens - allowance.of_measuring(first.plan.rows):
        looked = nobody
    if len(looked):
        last = _with_looks(recipe, last, looked, measure.look(looked))
    return _with_guesses(last, waiting), looked


def _seen_only(
    recipe: Recipe, samples: SampleTable, measure: Measure, allowance: Allowance
) -> tuple[LastRefresh | None, Rows]:
    """What a first version starts from that measures nothing: features, if they cost nothing and
    are of use, as where a target is followed by them; else nothing at all.
    """
    nobody = np.zeros(0, np.int64)
    looked = np.flatnonzero(samples.present & (samples.num_response_tokens > 0))
    if not recipe.follows_target or allowance.of_looking(looked) > 0:
        return None, nobody
    features = measure.look(looked)
    nothing = Measurement(
        rows=nobody,
        scores={name: np.zeros(0, np.float32) for name in recipe.scoring.scores},
        features=features[:0],
    )
    return _blank(recipe, samples, nothing, looked, features), looked


def rows_to_look_at(samples: SampleTable, first: FirstPlan) -> Rows:
    """Rows of which a first version computes the features alone: all others, or none."""
    if not first.looks:
        return np.zeros(0, np.int64)
    others = samples.present & (samples.num_response_tokens > 0)
    others[first.plan.rows] = False
    return np.flatnonzero(others)


def _begun(
    recipe: Recipe,
    samples: SampleTable,
    measurement: Measurement,
    looked: Rows,
    features: NDArray[np.float16],
) -> LastRefresh:
    """What the first version starts from: guesses for all rows, and the features that are there."""
    blank = _blank(recipe, samples, measurement, looked, features)
    return _with_guesses(blank, _never_measured(samples, blank.scores))


def _blank(
    recipe: Recipe,
    samples: SampleTable,
    measurement: Measurement,
    looked: Rows,
    features: NDArray[np.float16],
) -> LastRefresh:
    """The features that are there, and no score.

    Args:
        recipe: All settings.
        samples: The sample table [n].
        measurement: The rows that were measured first.
        looked: [q] rows of which only the features were computed.
        features: [q, d] these.
    """
    n, width = len(samples), measurement.features.shape[1]
    all_features, valid = room((n, width), np.float16), np.zeros(n, bool)
    _fill(all_features, valid, looked, features)
    _fill(all_features, valid, measurement.rows, to_float16(measurement.features))
    unit = directions_to_index(all_features, recipe.graph, valid=valid)
    index = build_index(unit, recipe.graph, valid=valid, seed=recipe.seed, take=True)
    nothing = {name: np.full(n, np.nan, np.float32) for name in measurement.scores}
    return LastRefresh(
        version=0,
        num_since_full=0,
        samples=samples,
        scores=ScoreTable(
            scores=nothing,
            importance=np.zeros(n, np.float32),
            origin=_origins(samples),
            measured_step=np.full(n, -1, np.int64),
            measured_version=np.zeros(n, np.int64),
            confidence=np.zeros(n, np.float32),
        ),
        values=nothing,
        changes={name: np.zeros(n, np.float32) for name in nothing},
        features=all_features,
        valid=valid,
        index=index,
        graph=symmetric(index.graph),
    )


def _origins(samples: SampleTable) -> UInt8:
    """[n] of rows of which nothing is known; those without a target have nothing to be measured."""
    measurable = np.where(samples.num_response_tokens > 0, Origin.NEVER, Origin.INVALID)
    return np.where(samples.present, measurable, Origin.REMOVED).astype(np.uint8)


def _never_measured(samples: SampleTable, scores: ScoreTable) -> Rows:
    """Rows that were never measured and have something to train on."""
    return np.flatnonzero((scores.origin == Origin.NEVER) & (samples.num_response_tokens > 0))


def _with_guesses(last: LastRefresh, rows: Rows) -> LastRefresh:
    """The last refresh with a guess of every score for rows that were never measured.

    It is the mean of the known working values in the row's group, of all where the group has none,
    and 0 where nothing is known. Nobody trusts it: its confidence is 0.
    """
    groups = last.samples.groups
    values, scores = dict(last.values), dict(last.scores.scores)
    for name, known in last.values.items():
        values[name] = known.copy()
        values[name][rows] = _means(known, last.scores.usable, groups)[groups[rows]]
    raw = from_working(values, last.samples.num_response_tokens)
    for name, score in scores.items():
        scores[name] = score.copy()
        scores[name][rows] = raw[name][rows]
    origin = last.scores.origin.copy()
    origin[rows] = Origin.PROPAGATED
    return replace(last, values=values, scores=replace(last.scores, scores=scores, origin=origin))


def _with_looks(
    recipe: Recipe, last: LastRefresh, rows: Rows, features: NDArray[np.float16]
) -> LastRefresh:
    """The last refresh with features of rows that had none; they find their neighbours.

    Args:
        recipe: All settings.
        last: Its index is repaired in place.
        rows: [q]
        features: [q, d]
    """
    if not len(rows):
        return last
    all_features, valid = room(last.features.shape, np.float16), last.valid.copy()
    all_features[:] = last.features
    _fill(all_features, valid, rows, features)
    unit = directions_to_index(all_features, recipe.graph, valid=valid)
    index, _ = refresh_index(last.index, unit, recipe.graph, valid=valid, take=True)
    return replace(
        last, features=all_features, valid=valid, index=index, graph=symmetric(index.graph)
    )


def _means(values: Float32, known: Bool, groups: Int32) -> Float32:
    """[g] mean of the known values in each group."""
    is_there = known & np.isfinite(values)
    num_groups = int(groups.max(initial=0)) + 1
    counts = np.bincount(groups[is_there], minlength=num_groups)
    sums = np.bincount(groups[is_there], values[is_there], minlength=num_groups)
    of_all = float(values[is_there].mean(dtype=np.float64)) if is_there.any() else 0.0
    means = np.full(num_groups, of_all)
    np.divide(sums, counts, out=means, where=counts > 0)
    return means.astype(np.float32)


def _fill(
    features: NDArray[np.float16], valid: Bool, rows: Rows, found: NDArray[np.float16]
) -> None:
    """Put features that are finite into place."""
    good: Bool = np.asarray(np.isfinite(found).all(axis=1))
    put_rows(features, rows, found, where=good)
    valid[rows[good]] = True
