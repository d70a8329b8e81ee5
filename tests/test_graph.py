"""Neighbour lists against brute force, updates against rebuilds, damage against None."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from gracekit.errors import RecipeError
from gracekit.graph import (
    build_index,
    bytes_of_row,
    directions_to_index,
    effective_rank,
    grow_index,
    load_graph,
    load_index,
    refresh_index,
    symmetric,
    unit_features,
)
from gracekit.graph.descent import DescentIndex
from gracekit.graph.descent_loops import (
    count_beyond,
    explore,
    explore_together,
    fill_scales,
    join,
    rescore,
)
from gracekit.graph.directions import has_direction, recall
from gracekit.graph.exact import ExactIndex
from gracekit.graph.hnsw import HnswIndex
from gracekit.graph.index import Index, moved_rows
from gracekit.graph.seal import backend_for
from gracekit.recipe import GraphSection
from gracekit.rounding import rounded, unrounded
from gracekit.types import Bool, Directions, Float32, KnnGraph

EXACT = GraphSection(backend="exact")
HNSW = GraphSection(backend="hnsw")
DESCENT = GraphSection(backend="descent")
ALL = pytest.mark.parametrize("settings", [EXACT, HNSW, DESCENT], ids=["exact", "hnsw", "descent"])


def clusters(n: int, d: int = 32, seed: int = 0) -> Float32:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(max(n // 30, 1), d))
    points = centres[rng.integers(0, len(centres), n)] + 0.5 * rng.normal(size=(n, d))
    return points.astype(np.float32)


def everyone(n: int) -> Bool:
    return np.ones(n, bool)


def brute_force(unit: Directions, k: int) -> NDArray[np.float64]:
    """[n, k] the largest cosines with other rows that have a direction; -inf fills up."""
    exact = unrounded(unit).astype(np.float64)
    cosine = exact @ exact.T
    np.fill_diagonal(cosine, -np.inf)
    zero = ~unit.any(axis=1)
    cosine[zero] = -np.inf
    cosine[:, zero] = -np.inf
    best: NDArray[np.float64] = -np.sort(-cosine, axis=1)[:, :k]
    return np.hstack([best, np.full((len(unit), k - best.shape[1]), -np.inf)])


def true_recall(graph: KnnGraph, unit: Directions) -> float:
    truth = brute_force(unit, graph.neighbors.shape[1])
    wanted = np.isfinite(truth)
    least = np.where(wanted, truth, np.inf).min(axis=1, keepdims=True)
    unit = unrounded(unit)
    cosine = np.einsum("nd,nkd->nk", unit, unit[graph.neighbors])
    return float(((graph.neighbors >= 0) & (cosine >= least - 1e-3)).sum() / wanted.sum())


def check_lists(graph: KnnGraph) -> None:
    n = len(graph.neighbors)
    assert graph.neighbors.dtype == np.int32 and graph.similarities.dtype == np.float32
    for row, (neighbors, similarities) in enumerate(
        zip(graph.neighbors, graph.similarities, strict=True)
    ):
        known = neighbors[neighbors >= 0]
        assert (neighbors[len(known) :] == -1).all() and (similarities[len(known) :] == 0).all()
        assert len(set(known.tolist())) == len(known) and row not in known and (known < n).all()
        assert (np.diff(similarities[: len(known)]) <= 0).all()
    assert (np.abs(graph.similarities) <= 1).all()


# Directions


@given(
    n=st.integers(1, 12),
    d=st.integers(1, 5),
    scale=st.sampled_from([1e-3, 1.0, 1e4]),
    dtype=st.sampled_from(["float16", "float32"]),
    seed=st.integers(0, 99),
)
def test_directions_are_unit_or_zero(n: int, d: int, scale: float, dtype: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    features = np.asarray(scale * rng.normal(size=(n, d)), np.dtype(dtype))
    features[rng.random((n, d)) < 0.1] = np.nan
    valid = rng.random(n) < 0.8
    unit = unit_features(features, valid)
    length = np.linalg.norm(unit, axis=1)
    assert unit.dtype == np.float32 and np.isfinite(unit).all()
    assert np.all((length == 0) | (np.abs(length - 1) < 1e-5))
    assert not unit[~valid | ~np.isfinite(features).all(axis=1)].any()


def test_directions_match_the_definition() -> None:
    features = clusters(200) + 30
    valid = np.arange(200) % 7 > 0
    centred = features - features[valid].mean(axis=0, dtype=np.float64)
    expected = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    np.testing.assert_allclose(unit_features(features, valid)[valid], expected[valid], atol=1e-6)


def test_effective_rank_by_its_definition() -> None:
    rng = np.random.default_rng(0)
    line = np.zeros((50, 4), np.float32)
    line[:, 0] = np.where(rng.random(50) < 0.5, 1, -1)
    assert effective_rank(line) == pytest.approx(1)
    features = (rng.normal(size=(300, 6)) * [5, 3, 2, 1, 1, 0.1]).astype(np.float32)
    unit = unit_features(features, np.ones(300, bool))
    share = np.linalg.eigvalsh(np.cov(unit.T))
    share /= share.sum()
    assert effective_rank(unit) == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-4)
    assert effective_rank(np.zeros((5, 3), np.float32)) == 0
    assert effective_rank(np.ones((5, 3), np.float32)) == 1


def test_equal_rows_have_no_direction() -> None:
    features = np.repeat(100 * clusters(1), 50, axis=0)
    assert not unit_features(features, everyone(50)).any()


# Lists


@ALL
@pytest.mark.parametrize("kind", ["clustered", "crowded", "duplicates", "masses of duplicates"])
def test_recall_against_brute_force(settings: GraphSection, kind: str) -> None:
    features, rng = clusters(3000), np.random.default_rng(1)
    if kind == "duplicates":
        features[:600] = features[rng.integers(600, 3000, 600)]
    if kind == "masses of duplicates":
        features[rng.choice(3000, 1000, replace=False)] = np.repeat(features[:4], 250, axis=0)
    unit = unit_features(features, everyone(3000))
    if kind == "crowded":
        far = features + 15 * rng.normal(size=(1, 32)).astype(np.float32)
        unit = (far / np.linalg.norm(far, axis=1, keepdims=True)).astype(np.float32)
    index = build_index(unit, settings, valid=everyone(3000), seed=0)
    check_lists(index.graph)
    found = true_recall(index.graph, unit)
    assert found >= (1.0 if settings is EXACT else 0.97)
    sampled = recall(index.unit, index.graph.neighbors, np.arange(3000), seed=0)
    assert abs(sampled - found) < 0.03


@ALL
def test_rows_without_direction_are_nobodys_neighbours(settings: GraphSection) -> None:
    unit = unit_features(clusters(300), everyone(300))
    unit[::10] = 0
    valid = np.arange(300) % 11 > 0
    index = build_index(unit, settings, valid=valid, seed=0)
    check_lists(index.graph)
    out = np.flatnonzero(~valid | ~unit.any(axis=1))
    assert (index.graph.neighbors[out] == -1).all()
    assert not np.isin(index.graph.neighbors, out).any()
    kept = np.where(valid[:, None], unit, 0)
    assert true_recall(index.graph, kept) >= 0.97


@ALL
@pytest.mark.parametrize("n", [0, 1, 2, 5])
def test_fewer_rows_than_neighbours(settings: GraphSection, n: int) -> None:
    unit = np.eye(n, 8, dtype=np.float32)
    graph = build_index(unit, settings, valid=everyone(n), seed=0).graph
    check_lists(graph)
    assert graph.neighbors.shape == (n, 10)
    assert ((graph.neighbors >= 0).sum(axis=1) == n - 1).all()


@ALL
def test_all_duplicates_list_each_other(settings: GraphSection) -> None:
    unit = np.tile(np.eye(1, 8, dtype=np.float32), (40, 1))
    graph = build_index(unit, settings, valid=everyone(40), seed=0).graph
    check_lists(graph)
    assert (graph.neighbors >= 0).all() and (graph.similarities > 0.999).all()


@ALL
def test_a_seed_gives_one_result(settings: GraphSection) -> None:
    unit = unit_features(clusters(500), everyone(500))
    first, second = (build_index(unit, settings, valid=everyone(500), seed=3) for _ in range(2))
    np.testing.assert_array_equal(first.graph.neighbors, second.graph.neighbors)


@pytest.mark.parametrize(
    "n, backend", [(99, ExactIndex), (100, HnswIndex), (199, HnswIndex), (200, DescentIndex)]
)
def test_auto_backend_follows_the_size(n: int, backend: type) -> None:
    unit = unit_features(clusters(n), everyone(n))
    settings = GraphSection(exact_below=100, hnsw_below=200)
    assert isinstance(build_index(unit, settings, valid=everyone(n), seed=0), backend)


# Updates


@given(n=st.integers(2, 60), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_exact_update_equals_rebuild(n: int, share: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    settings = GraphSection(backend="exact", num_neighbors=int(rng.integers(1, 6)))
    features = clusters(n, d=4, seed=seed)
    features[rng.random(n) < 0.2] = features[0]
    unit = unit_features(features, everyone(n))
    index = build_index(unit, settings, valid=everyone(n), seed=0)
    for _ in range(3):
        moved = np.flatnonzero(rng.random(n) < share)
        unit = unit.copy()
        unit[moved] = unit_features(clusters(n, d=4, seed=int(rng.integers(10**6))), everyone(n))[
            moved
        ]
        unit[moved[rng.random(len(moved)) < 0.2]] = 0
        index.update(unit, moved)
        check_lists(index.graph)
        rebuilt = build_index(unit, settings, valid=everyone(n), seed=0).graph
        np.testing.assert_allclose(
            index.graph.similarities, rebuilt.similarities, atol=1e-5, rtol=0
        )


def test_exact_update_is_exact_when_whole_lists_leave() -> None:
    """Every member of a list moves away at once, round after round: the floor must hold."""
    n, rng = 400, np.random.default_rng(0)
    features = clusters(n, d=6)
    unit = unit_features(features, everyone(n))
    index = build_index(unit, EXACT, valid=everyone(n), seed=0)
    for _ in range(6):
        moved = np.unique(index.graph.neighbors[rng.integers(0, n, 3)]).astype(np.int64)
        unit = unit.copy()
        unit[moved] = -unit[moved] + 0.3 * rng.normal(size=(len(moved), 6)).astype(np.float32)
        unit[moved] /= np.linalg.norm(unit[moved], axis=1, keepdims=True)
        index.update(unit, moved)
        assert true_recall(index.graph, unit) == 1.0


@pytest.mark.parametrize("settings", [HNSW, DESCENT], ids=["hnsw", "descent"])
def test_updates_stay_as_good_as_a_rebuild(settings: GraphSection) -> None:
    n, rng = 2000, np.random.default_rng(0)
    features = clusters(n)
    index = build_index(unit_features(features, everyone(n)), settings, valid=everyone(n), seed=0)
    for _ in range(6):
        moved = rng.choice(n, 100, replace=False)
        features[moved] += 0.8 * rng.normal(size=(100, 32)).astype(np.float32)
        unit = index.unit.copy()
        unit[moved] = unit_features(features, everyone(n))[moved]
        unit[moved[:5]] = 0  # some become invalid, and come back when they move again
        index.update(unit, moved)
        check_lists(index.graph)
        assert not np.isin(index.graph.neighbors, moved[:5]).any()
    rebuilt = build_index(index.unit, settings, valid=everyone(n), seed=0)
    assert true_recall(index.graph, index.unit) >= true_recall(rebuilt.graph, index.unit) - 0.01


@ALL
def test_refresh_repairs_little_and_much(settings: GraphSection) -> None:
    n, rng = 600, np.random.default_rng(0)
    features = clusters(n)
    unit = unit_features(features, everyone(n))
    old = build_index(unit, settings, valid=everyone(n), seed=0)

    index, report = refresh_index(old, unit, settings, valid=everyone(n))
    assert index is old and (report.num_moved, report.rebuilt) == (0, False)
    assert report.recall >= 0.97

    unit = unit.copy()
    unit[:20] = unit_features(rng.normal(size=(20, 32)).astype(np.float32), everyone(20))
    index, report = refresh_index(old, unit, settings, valid=everyone(n))
    assert index is old and (report.num_moved, report.rebuilt) == (20, False)
    assert true_recall(index.graph, unit) >= 0.97

    unit = unit_features(clusters(n, seed=1), everyone(n))
    index, report = refresh_index(old, unit, settings, valid=everyone(n))
    assert index is old and report.num_moved == n
    assert true_recall(index.graph, unit) >= 0.97


def drifted(features: Float32, rng: np.random.Generator) -> Float32:
    """A common linear map, and a little of its own for every row."""
    d = features.shape[1]
    turn = 0.4 * rng.normal(size=(d, d)) / np.sqrt(d)
    own = 0.2 * features.std() * rng.normal(size=features.shape)
    moved: Float32 = (features + features @ turn + own).astype(np.float32)
    return moved


def test_common_drift_is_followed_from_the_old_lists() -> None:
    n, rng = 4000, np.random.default_rng(0)
    features = clusters(n)
    index = build_index(unit_features(features, everyone(n)), DESCENT, valid=everyone(n), seed=0)
    for _ in range(5):
        features = drifted(features, rng)
        unit = unit_features(features, everyone(n))
        index, report = refresh_index(index, unit, DESCENT, valid=everyone(n))
        check_lists(index.graph)
        assert report.num_moved > 0.9 * n and not report.rebuilt
        rebuilt = build_index(unit, DESCENT, valid=everyone(n), seed=0)
        assert true_recall(index.graph, unit) >= true_recall(rebuilt.graph, unit) - 0.02


def test_lists_below_the_recall_of_a_rebuild_are_found_from_nothing() -> None:
    n = 2000
    features = clusters(n)
    index = build_index(unit_features(features, everyone(n)), DESCENT, valid=everyone(n), seed=0)
    assert isinstance(index, DescentIndex)
    index._least_recall = 1.01
    unit = unit_features(clusters(n, seed=1), everyone(n))
    index, report = refresh_index(index, unit, DESCENT, valid=everyone(n))
    assert report.rebuilt and report.num_moved == n
    rebuilt = build_index(unit, DESCENT, valid=everyone(n), seed=0)
    np.testing.assert_array_equal(index.graph.neighbors, rebuilt.graph.neighbors)


def test_what_can_be_found_is_known_of_the_present_rows() -> None:
    """Else lists that are as good as they get would be found from nothing at every refresh."""
    n, rng = 2000, np.random.default_rng(0)
    features = rng.normal(size=(n, 64)).astype(np.float32)
    index = build_index(unit_features(features, everyone(n)), DESCENT, valid=~everyone(n), seed=0)
    for _ in range(3):  # the rows arrive, then they turn
        unit = unit_features(features, everyone(n))
        index, report = refresh_index(index, unit, DESCENT, valid=everyone(n))
        assert report.num_moved > 0.9 * n and not report.rebuilt
        assert 0.8 < report.recall < 0.96
        features += np.float32(0.4) * rng.normal(size=(n, 64)).astype(np.float32)


@given(n=st.integers(1, 80), k=st.integers(1, 8), spare=st.integers(0, 4), seed=st.integers(0, 99))
def test_descent_lists_of_few_rows(n: int, k: int, spare: int, seed: int) -> None:
    """Rows come, go, move and repeat; of few rows a few rounds see nearly all."""
    rng = np.random.default_rng(seed)
    settings = GraphSection(backend="descent", num_neighbors=k, num_spare=spare)
    features = clusters(n, d=4, seed=seed)
    features[rng.random(n) < 0.2] = features[0]
    unit = unit_features(features, everyone(n))
    index = build_index(unit, settings, valid=everyone(n), seed=seed)
    for _ in range(3):
        check_lists(index.graph)
        at = unrounded(index.unit)
        pairs = np.clip(np.einsum("nd,nkd->nk", at, at[index.graph.neighbors]), -1, 1)
        listed = index.graph.neighbors >= 0
        np.testing.assert_allclose(index.graph.similarities[listed], pairs[listed], atol=1e-5)
        absent = np.linalg.norm(at, axis=1) == 0
        assert not listed[absent].any() and not absent[index.graph.neighbors[listed]].any()
        assert not listed.any() or true_recall(index.graph, index.unit) == 1.0
        moved = np.flatnonzero(rng.random(n) < rng.random())
        unit = at.copy()
        unit[moved] = unit_features(clusters(n, d=4, seed=int(rng.integers(10**6))), everyone(n))[
            moved
        ]
        unit[moved[rng.random(len(moved)) < 0.3]] = 0
        index.update(unit, moved)


@pytest.mark.parametrize("d", [8, 64])
def test_rows_that_are_nearly_alike_are_told_apart(d: int) -> None:
    """Lengths that rounding changed would make the same few rows the nearest of all."""
    rng, n, k = np.random.default_rng(0), 3000, DESCENT.num_neighbors
    features = rng.standard_normal((10, d))[rng.integers(0, 10, n)]
    features += 0.003 * rng.standard_normal((n, d))
    exact = features - features.mean(axis=0)
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    unit = directions_to_index(features.astype(np.float32), DESCENT, valid=everyone(n))
    index = build_index(unit, DESCENT, valid=everyone(n), seed=0)
    far = 1 - exact[:200] @ exact.T
    far[np.arange(200), np.arange(200)] = np.inf
    bar = np.sort(far, axis=1)[:, k - 1]
    listed = np.take_along_axis(far, index.graph.neighbors[:200].astype(np.int64), axis=1)
    assert np.median(bar) < 1e-5
    assert (listed <= 1.02 * bar[:, None]).mean() > 0.95
    moved = moved_rows(index, unit_features(features.astype(np.float32), everyone(n)), above=1e-6)
    assert len(moved) == 0


def test_scales_make_lengths_1() -> None:
    unit = np.array([[3, 4], [0, 0], [32767, 0], [-23170, 23170], [1, 0]], np.int16)
    scales = np.ones(5, np.float32)
    fill_scales(unit, scales)
    lengths = np.linalg.norm(unit.astype(np.float64) * scales[:, None], axis=1)
    np.testing.assert_allclose(lengths, [1, 0, 1, 1, 1], atol=1e-6)
    np.testing.assert_allclose(unrounded(unit), unit * scales[:, None], atol=1e-6)


@given(n=st.integers(2, 60), seed=st.integers(0, 99))
def test_a_round_against_a_slow_twin(n: int, seed: int) -> None:
    """Each row sees all around those around it, in whatever order the rows are walked."""
    rng, k = np.random.default_rng(seed), 3
    unit = unit_features(rng.normal(size=(n, 5)).astype(np.float32), everyone(n))
    neighbors = np.full((n, k), -1, np.int32)
    for row in range(n):
        others = np.setdiff1d(np.arange(n), row)
        some = rng.permutation(others)[: rng.integers(0, k + 1)]
        neighbors[row, : len(some)] = some
    cosines = np.full((n, k), -np.inf, np.float32)
    news = np.zeros((n, k), bool)
    every, fresh = everyone(n), rng.random(n) < 0.7
    kept, scales = rounded(unit), np.empty(n, np.float32)
    fill_scales(kept, scales)
    rescore(kept, scales, every, neighbors, cosines, news)
    rescore(kept, scales, fresh, neighbors, cosines, news)
    around = np.empty((n, n), np.int32)
    join(neighbors, news, k, around)

    listed = [set(row[row >= 0].tolist()) for row in neighbors]
    near = [listed[i] | {j for j in range(n) if i in listed[j]} for i in range(n)]
    for row in range(n):
        assert set((around[row][around[row] >= 0] >> 1).tolist()) == near[row]
    is_new = {tuple(sorted((i, j))): bool(fresh[i] or fresh[j]) for i in range(n) for j in near[i]}
    truth = []
    for row in range(n):
        seen = set(listed[row])
        for between in near[row]:
            first = is_new[min(row, between), max(row, between)]
            seen |= {between} if first else set()
            for beyond in near[between]:
                if first or is_new[min(between, beyond), max(between, beyond)]:
                    seen.add(beyond)
        best = [float(unit[row] @ unit[other]) for other in seen - {row}]
        truth.append(np.array(sorted(best, reverse=True)[:k]))
    beyond = [{row, *near[row]}.union(*(near[i] for i in near[row])) - {row} for row in range(n)]
    returning = sum(bool(near[row]) for row in range(n))  # a row is around those around it
    direct = sum(len(near[row] - set().union(*(near[i] for i in near[row]))) for row in range(n))
    counted = count_beyond(around, np.arange(n))
    assert counted == sum(map(len, beyond)) + returning - direct
    for order, walk in itertools.product(
        (np.arange(n), rng.permutation(n)), (explore, explore_together)
    ):
        lists = neighbors.copy(), cosines.copy(), news.copy()
        walk(kept, scales, around, order, *lists)
        for row in range(n):
            found = np.sort(
                np.einsum("d,kd->k", unit[row], unit[lists[0][row]])[lists[0][row] >= 0]
            )
            np.testing.assert_allclose(found[::-1], truth[row], atol=1e-5)


@ALL
def test_refresh_follows_validity_and_settings(settings: GraphSection) -> None:
    n = 400
    unit = unit_features(clusters(n), everyone(n))
    index = build_index(unit, settings, valid=everyone(n), seed=0)
    valid = everyone(n)
    valid[:10] = False
    index, report = refresh_index(index, unit, settings, valid=valid)
    assert report.num_moved == 10 and not np.isin(index.graph.neighbors, np.arange(10)).any()
    index, report = refresh_index(index, unit, settings, valid=everyone(n))
    assert report.num_moved == 10 and not report.rebuilt
    assert true_recall(index.graph, unit) >= 0.97

    wider = settings.model_copy(update={"num_neighbors": 12})
    index, report = refresh_index(index, unit, wider, valid=everyone(n))
    assert report.rebuilt and index.graph.neighbors.shape == (n, 12)
    fewer = unit[:300]
    index, report = refresh_index(index, fewer, wider, valid=everyone(300))
    assert report.rebuilt and len(index.graph.neighbors) == 300


def test_slow_drift_adds_up() -> None:
    n = 100
    unit = unit_features(clusters(n, d=2), everyone(n))
    index = build_index(unit, EXACT, valid=everyone(n), seed=0)
    cosine, sine = np.float32(np.cos(0.1)), np.float32(np.sin(0.1))
    turn: Float32 = np.array([[cosine, -sine], [sine, cosine]])
    nearby: Float32 = unit @ turn  # 1 - cos 0.1 = 0.005
    assert len(moved_rows(index, nearby, above=0.02)) == 0
    _, report = refresh_index(index, nearby, EXACT, valid=everyone(n))
    assert report.num_moved == 0
    far: Float32 = nearby @ (turn @ turn).astype(np.float32)
    _, report = refresh_index(index, far, EXACT, valid=everyone(n))
    assert report.num_moved == n


# Files


# Growth

STEPS = st.lists(st.tuples(st.integers(0, 20), st.floats(0, 0.4)), min_size=1, max_size=4)
"""Rows that join, and the share of those there that leave."""


def grow_step(
    index: Index, unit: Float32, num_new: int, share: float, rng: np.random.Generator
) -> tuple[Index, Float32]:
    """Rows leave and others join; returns the index after the refresh, and its directions."""
    settings, n = index.settings, len(unit)
    gone = np.flatnonzero(unit.any(axis=1) & (rng.random(n) < share))
    index = grow_index(index, n + num_new, gone, settings)
    present = has_direction(index.unit)
    assert not present[gone].any() and not present[n:].any()
    assert not np.isin(index.graph.neighbors, [*gone, *range(n, n + num_new)]).any()
    check_lists(index.graph)
    features = np.concatenate([unit, clusters(num_new, seed=int(rng.integers(99)))])
    valid = np.concatenate([unit.any(axis=1), np.ones(num_new, bool)])
    valid[gone] = False
    back = rng.permutation(np.flatnonzero(~valid))[:1]  # one that left comes back
    features[back], valid[back] = clusters(1, seed=7), True
    unit = unit_features(features, valid)
    index, _ = refresh_index(index, unit, settings, valid=valid)
    return index, unit


@given(n=st.integers(1, 40), steps=STEPS, seed=st.integers(0, 99))
def test_a_grown_exact_index_is_one_built_from_nothing(
    n: int, steps: list[tuple[int, float]], seed: int
) -> None:
    settings = GraphSection(backend="exact", moved_above=0, num_neighbors=3)
    rng = np.random.default_rng(seed)
    unit = unit_features(clusters(n), everyone(n))
    index = build_index(unit, settings, valid=everyone(n), seed=0)
    for num_new, share in steps:
        index, unit = grow_step(index, unit, num_new, share, rng)
        fresh = build_index(unit, settings, valid=everyone(len(unit)), seed=0)
        np.testing.assert_allclose(
            index.graph.similarities, fresh.graph.similarities, rtol=1e-5, atol=1e-6
        )
        check_lists(index.graph)


@ALL
def test_a_grown_index_recalls_like_one_built_from_nothing(
    settings: GraphSection, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    unit = unit_features(clusters(1500), everyone(1500))
    index: Index | None = build_index(unit, settings, valid=everyone(1500), seed=0)
    for round_number in range(8):
        assert index is not None
        index, unit = grow_step(index, unit, 60, 0.04, rng)
        fresh = build_index(unit, settings, valid=everyone(len(unit)), seed=0)
        found, expected = (true_recall(i.graph, i.unit) for i in (index, fresh))
        assert found > expected - 0.01
        if round_number % 2:  # as between two refreshes
            index.save(tmp_path)
            index = load_index(tmp_path, settings=settings)


def test_growth_changes_the_backend_when_it_is_due() -> None:
    settings = GraphSection(exact_below=100, hnsw_below=120)
    index: Index = build_index(clusters(0), settings, valid=everyone(0), seed=0)
    for num_new, backend in ((90, ExactIndex), (20, HnswIndex), (30, DescentIndex)):
        n = len(index.unit) + num_new
        index = grow_index(index, n, np.arange(len(index.unit))[:5], settings)
        assert isinstance(index, backend) and len(index.graph.neighbors) == n
        assert not index.unit[:5].any()
        unit = unit_features(clusters(n), everyone(n))
        index, _ = refresh_index(index, unit, settings, valid=everyone(n))


def test_another_backend_takes_the_grown_directions() -> None:
    settings = GraphSection(exact_below=100, hnsw_below=100)
    exact = build_index(
        unit_features(clusters(90), everyone(90)), settings, valid=everyone(90), seed=0
    )
    before = exact.unit.copy()
    index = grow_index(exact, 110, np.arange(5), settings)
    assert isinstance(index, DescentIndex)
    assert not index.unit[:5].any() and not index.unit[90:].any()
    np.testing.assert_array_equal(index.unit[5:90], rounded(before[5:]))
    np.testing.assert_array_equal(exact.unit, before)


@ALL
def test_saved_index_goes_on_as_before(settings: GraphSection, tmp_path: Path) -> None:
    n = 500
    unit = unit_features(clusters(n), everyone(n))
    unit[7] = 0
    index = build_index(unit, settings, valid=everyone(n), seed=0)
    files = index.save(tmp_path)
    assert sorted(files) == sorted(tmp_path.iterdir())
    loaded = load_index(tmp_path, settings=settings)
    assert loaded is not None and loaded.backend == index.backend
    np.testing.assert_array_equal(loaded.unit, index.unit)
    np.testing.assert_array_equal(loaded.graph.neighbors, index.graph.neighbors)
    np.testing.assert_array_equal(loaded.graph.similarities, index.graph.similarities)
    graph = load_graph(tmp_path, settings=settings)
    assert graph is not None
    np.testing.assert_array_equal(graph.neighbors, index.graph.neighbors)
    np.testing.assert_array_equal(graph.similarities, index.graph.similarities)
    turned = unit.copy()
    turned[:30] = -turned[:30]
    for each in (index, loaded):
        each.update(turned, np.arange(30))
    np.testing.assert_array_equal(loaded.graph.neighbors, index.graph.neighbors)


@ALL
def test_damaged_or_unfitting_files_mean_rebuild(settings: GraphSection, tmp_path: Path) -> None:
    unit = unit_features(clusters(200), everyone(200))
    files = build_index(unit, settings, valid=everyone(200), seed=0).save(tmp_path)
    wider = settings.model_copy(update={"num_neighbors": 11})
    other = settings.model_copy(update={"backend": "descent" if settings is EXACT else "exact"})
    assert load_index(tmp_path, settings=wider) is None
    assert load_index(tmp_path, settings=other) is None
    assert load_index(tmp_path / "nowhere", settings=settings) is None
    assert load_graph(tmp_path, settings=wider) is None
    assert load_graph(tmp_path / "nowhere", settings=settings) is None
    for file in files:
        content = file.read_bytes()
        middle = len(content) // 2
        flipped = content[:middle] + bytes(255 - b for b in content[middle : middle + 40])
        for damaged in (flipped + content[middle + 40 :], content[:middle], b"", b"[]", b"{}"):
            file.write_bytes(damaged)
            assert load_index(tmp_path, settings=settings) is None
        file.unlink()
        assert load_index(tmp_path, settings=settings) is None
        file.write_bytes(content)
    assert load_index(tmp_path, settings=settings) is not None


# The symmetric graph


@given(n=st.integers(1, 15), k=st.integers(1, 5), seed=st.integers(0, 99))
def test_symmetric_against_a_dense_twin(n: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    neighbors = np.full((n, k), -1, np.int32)
    similarities = np.zeros((n, k), np.float32)
    dense = np.zeros((n, n), np.float32)
    for row in range(n):
        listed = rng.permutation(n)[: rng.integers(0, k + 1)]
        neighbors[row, : len(listed)] = listed
        similarities[row, : len(listed)] = rng.uniform(-0.5, 1.01, len(listed))
        for other, similarity in zip(listed, similarities[row], strict=False):
            if other != row:
                weight = min(max(similarity, np.float32(0)), np.float32(1))
                dense[row, other] = max(dense[row, other], weight)
                dense[other, row] = max(dense[other, row], weight)
    graph = symmetric(KnnGraph(neighbors=neighbors, similarities=similarities))
    assert (graph.indptr.dtype.name, graph.indices.dtype.name) == ("int64", "int32")
    rebuilt = np.zeros_like(dense)
    for row in range(n):
        edges = slice(graph.indptr[row], graph.indptr[row + 1])
        assert (np.diff(graph.indices[edges]) > 0).all()
        rebuilt[row, graph.indices[edges]] = graph.weights[edges]
    np.testing.assert_array_equal(rebuilt, dense)
    assert (graph.weights > 0).all() and graph.num_nodes == n


def test_without_hnswlib_its_backend_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hnswlib", None)  # as where it is not installed
    unit = unit_features(clusters(60), everyone(60))
    with pytest.raises(RecipeError, match=r"gracekit\[hnsw\]"):
        build_index(unit, HNSW, valid=everyone(60), seed=0)
    assert len(build_index(unit, DESCENT, valid=everyone(60), seed=0).graph.neighbors) == 60


def test_auto_never_asks_for_hnswlib() -> None:
    settings = GraphSection()
    assert [backend_for(n, settings) for n in (10, 20_000, 10**7)] == ["exact", *2 * ["descent"]]


@ALL
def test_what_a_row_takes_on_disk_is_told(tmp_path: Path, settings: GraphSection) -> None:
    n = 1000
    index = build_index(
        unit_features(clusters(n), everyone(n)), settings, valid=everyone(n), seed=0
    )
    written = sum(file.stat().st_size for file in index.save(tmp_path))
    assert 0.9 < written / (n * bytes_of_row(n, 32, settings)) < 1.25
