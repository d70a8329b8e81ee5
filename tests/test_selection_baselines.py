"""The baselines against their published algorithms, written out plainly."""

from __future__ import annotations

import dataclasses
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from scipy.optimize import nnls

from gracekit.errors import RecipeError, SelectionError
from gracekit.recipe import Recipe
from gracekit.selection.by_features import BLOCK_ROWS
from gracekit.types import Float64
from tests.worlds import World


def features_of(world: World) -> Float64:
    assert world.features is not None
    return world.features.astype(np.float64)


def unit(world: World) -> Float64:
    centred = features_of(world) - features_of(world).mean(axis=0)
    directions: Float64 = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    return directions


def by_id(world: World) -> list[int]:
    return [int(r) for r in np.argsort(np.asarray(world.samples.sample_ids, str))]


def test_bottom_and_tops_by_name() -> None:
    world = World.make(0)
    importance = world.scores.importance
    bottom = world.select(selector="bottom", count=10).rows
    assert importance[bottom].tolist() == np.sort(importance)[:10].tolist()
    for name in ("loss", "el2n"):
        selection = world.select(selector=f"top-{name}", count=10)
        values = world.scores.scores[name]
        assert selection.gains.tolist() == np.sort(values)[::-1][:10].tolist()
        assert values[selection.rows].tolist() == selection.gains.tolist()
    with pytest.raises(SelectionError, match="no score 'los'; it has loss, el2n"):
        world.select(selector="top-los")
    with pytest.raises(RecipeError, match=r"'el2n' is not among scoring\.scores"):
        Recipe.from_dict({"data": {"path": "x"}, "selection": {"selector": "top-el2n"}})


@pytest.mark.parametrize("seed", range(5))
def test_stratified_gives_each_interval_what_ccs_does(seed: int) -> None:
    world = World.make(seed, n=300)
    importance = world.scores.importance.astype(np.float64)
    budget = 90
    selection = world.select(seed, selector="stratified", count=budget)
    width = (importance.max() - importance.min()) / 50
    strata = np.minimum(((importance - importance.min()) // width).astype(int), 49)
    # CCS, algorithm 1: the smallest stratum first takes min(its size, the mean of what is left).
    remaining, quotas = budget, {}
    left = sorted(set(strata.tolist()), key=lambda s: int((strata == s).sum()))
    while left:
        stratum = left.pop(0)
        quotas[stratum] = min(int((strata == stratum).sum()), remaining // (len(left) + 1))
        remaining -= quotas[stratum]
    counts = np.bincount(strata[selection.rows], minlength=50)
    for stratum, quota in quotas.items():
        assert abs(int(counts[stratum]) - quota) <= 1
    weighted = world.select(
        seed, selector="stratified", count=budget, weights="inverse-probability"
    )
    sizes = np.bincount(strata, minlength=50)
    expected = (sizes / np.maximum(counts, 1))[strata[weighted.rows]]
    assert weighted.weights == pytest.approx(expected / expected.mean(), rel=1e-5)
    assert "strata" not in weighted.details


@pytest.mark.parametrize("seed", range(10))
def test_d2_is_its_published_loop(seed: int) -> None:
    world = World.make(seed)
    importance = world.scores.importance.astype(np.float64)
    distance = np.sqrt(2 - 2 * world.similarities.astype(np.float64))
    edges = world.similarities > 0
    value = importance + (np.exp(-distance) * edges) @ importance
    order = np.argsort(by_id(world))
    picked: list[int] = []
    for _ in range(20):
        rounded = np.round(value, 7)
        rounded[picked] = -np.inf
        equal = np.flatnonzero(rounded == rounded.max())
        row = int(equal[np.argmin(order[equal])])
        picked.append(row)
        value -= np.exp(-0.1 * distance[row]) * edges[row] * max(value[row], 0)
    selection = world.select(selector="d2", count=20)
    assert selection.rows.tolist() == picked
    assert np.diff(selection.gains).max() <= 1e-6


def test_k_center_is_farthest_first_and_within_twice_the_best_radius() -> None:
    for seed in range(8):
        world = World.make(seed, n=12)
        directions = unit(world)
        selection = world.select(selector="k-center", count=3)
        assert selection.rows[0] == max(
            by_id(world), key=lambda r: world.scores.importance[r]
        )  # the first of equals
        angles = np.arccos(np.clip(directions @ directions.T, -1, 1))
        for place in (1, 2):
            nearest = angles[selection.rows[:place]].min(axis=0)
            assert nearest[selection.rows[place]] == pytest.approx(nearest.max(), abs=1e-3)
        radius = angles[selection.rows].min(axis=0).max()
        best = min(angles[list(s)].min(axis=0).max() for s in combinations(range(12), 3))
        assert radius <= 2 * best + 1e-3
        assert world.select(selector="k-center", count=12).gains.min() >= 0


def test_clusters_keep_the_least_redundant() -> None:
    world = World.make(3)
    assert world.features is not None
    world.features[10:20] = world.features[0:10]  # ten pairs of copies
    rows = set(world.select(selector="cluster", count=50).rows.tolist())
    for i in range(10):
        assert len({i, i + 10} & rows) == 1
    # One cluster at this size: SemDeDup by its definition.
    directions = unit(world)
    centre = directions.sum(axis=0)
    outermost = np.lexsort((np.argsort(by_id(world)), np.round(directions @ centre, 6)))
    similar = directions[outermost] @ directions[outermost].T
    redundancy = [float(similar[i, :i].max(initial=-1)) for i in range(60)]
    limit = sorted(redundancy)[30]
    kept = {int(outermost[i]) for i in range(60) if redundancy[i] < limit - 1e-5}
    assert kept <= set(world.select(selector="cluster", count=31).rows.tolist())


def test_craig_is_facility_location_with_the_sizes_of_its_clusters() -> None:
    world = World.make(1)
    craig = world.select(selector="craig", count=15, weights="selector")
    cover = world.select(count=15, importance_weight=0)
    assert craig.rows.tolist() == cover.rows.tolist()
    assert craig.weights == pytest.approx(cover.weights, rel=1e-6)


def alignment(world: World, rows: Any, weights: Float64) -> float:
    """Cosine of the weighted sum of the selected with the sum of all."""
    features = features_of(world)
    target, estimate = features.sum(axis=0), weights @ features[rows]
    return float(target @ estimate / np.linalg.norm(target) / np.linalg.norm(estimate))


def test_matching_takes_atoms_as_orthogonal_matching_pursuit_does() -> None:
    world = World.make(2, n=BLOCK_ROWS)
    features = features_of(world)
    target = features.sum(axis=0)
    chosen: list[int] = []
    residual = target
    for _ in range(4):
        fit = features @ residual
        fit[chosen] = -np.inf
        chosen.append(int(np.argmax(fit)))
        solution, *_ = np.linalg.lstsq(features[chosen].T, target, rcond=None)
        residual = target - features[chosen].T @ solution
    selection = world.select(selector="gradient-matching", count=4, weights="selector")
    assert selection.rows.tolist() == chosen
    expected, _ = nnls(features[chosen].T, target)
    expected = np.maximum(expected, 0.01 * expected.mean())
    assert selection.weights == pytest.approx(expected / expected.mean(), rel=1e-4)


def test_matching_points_where_everything_points() -> None:
    for seed in range(5):
        world = World.make(seed, n=600)
        matched = world.select(selector="gradient-matching", count=60, weights="selector")
        drawn = world.select(selector="random", count=60, weights="uniform")
        cosines = [alignment(world, s.rows, s.weights.astype(np.float64)) for s in (matched, drawn)]
        assert cosines[0] > 0.97
        assert cosines[0] > cosines[1]


def test_without_features_the_error_says_what_to_do() -> None:
    world = dataclasses.replace(World.make(0), features=None)
    for selector in ("k-center", "cluster", "gradient-matching"):
        with pytest.raises(SelectionError, match="they are not at hand; refresh"):
            world.select(selector=selector, count=5)
