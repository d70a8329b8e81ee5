"""Features are large: mapped from their files, worked on in blocks, and not copied needlessly."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.refresh_cost import make_samples
from gracekit import rounding
from gracekit.aim import likeness as of_likeness
from gracekit.graph import (
    build_index,
    cells,
    directions,
    directions_to_index,
    load_index,
    refresh_index,
    unit_features,
)
from gracekit.graph.directions import exact_neighbors
from gracekit.graph.seal import SEAL_FILE, UNIT_FILE, purpose, seal, write_arrays
from gracekit.propagation import estimate_features, feature_maps
from gracekit.propagation.kernel import _JITTER, PENALTIES, Kernel
from gracekit.recipe import GraphSection, PropagationSection
from gracekit.refresher.rounds import Measured
from gracekit.refresher.step import _all_features
from gracekit.rounding import put_rows, to_float16
from gracekit.store.files.cache import CachePayload, load_cache, save_cache
from gracekit.store.files.paths import StorePaths
from gracekit.types import Float32, Measurement, RefreshPlan, SparseGraph
from tests.test_graph import ALL, DESCENT, clusters, everyone
from tests.test_propagation import random_graph


def peak_of(work: Callable[[], Any]) -> tuple[Any, int]:
    """What it returns, and the most bytes that it had at a time."""
    tracemalloc.start()
    try:
        found = work()
        return found, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def is_mapped(array: Any) -> bool:
    while array is not None and not isinstance(array, np.memmap):
        array = array.base
    return array is not None


# Rounding


def test_float16_is_not_rounded_again() -> None:
    features = np.array([[1, 2], [np.nan, np.nan]], np.float16)
    assert to_float16(features) is features
    half_known = np.array([[1, np.nan], [np.inf, 2], [3, 4]], np.float16)
    np.testing.assert_array_equal(to_float16(half_known), [[np.nan] * 2, [np.nan] * 2, [3, 4]])


def test_rounding_in_blocks_is_that_of_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    features = (rng.standard_normal((23, 3)) * 10.0 ** rng.integers(0, 6, (23, 1))).astype("f4")
    features[[4, 11], [0, 2]] = np.nan, np.inf
    at_once = to_float16(features)
    monkeypatch.setattr(rounding, "_BLOCK", 5)
    np.testing.assert_array_equal(to_float16(features), at_once)
    assert np.abs(at_once[np.isfinite(at_once)]).max() == np.finfo(np.float16).max
    kept = np.isfinite(features).all(axis=1)
    to, rows = np.zeros((40, 3), np.float16), rng.permutation(40)[:23]
    put_rows(to, rows, features, where=kept)
    np.testing.assert_array_equal(to[rows[kept]], at_once[kept])
    assert not np.delete(to, rows[kept], axis=0).any()


# Measurements


def measurement(rows: list[int], sketches: bool) -> Measurement:
    at = np.array(rows, np.int64)
    values: Float32 = np.sqrt(at).astype(np.float32)
    features = np.stack([at, -at], axis=1).astype(np.float16)
    return Measurement(
        rows=at,
        scores={"loss": values, "gradient-norm": -values},
        features=features,
        sketches=features[:, :1] if sketches else None,
    )


@pytest.mark.parametrize("sketches", [(True, True, True), (True, False, True)])
def test_parts_are_arranged_as_if_joined_and_taken(sketches: tuple[bool, ...]) -> None:
    given = ([4, 2], [9], [0, 7, 1])
    parts = [measurement(rows, has) for rows, has in zip(given, sketches, strict=True)]
    order = np.random.default_rng(0).permutation(6)
    expected = Measurement.concatenate(parts).take(order)
    found = Measurement.arranged(iter(parts), expected.rows)
    assert found is not None
    np.testing.assert_array_equal(found.rows, expected.rows)
    np.testing.assert_array_equal(found.features, expected.features)
    for name, score in expected.scores.items():
        np.testing.assert_array_equal(found.scores[name], score)
    assert (found.sketches is None) == (expected.sketches is None) == (not all(sketches))
    first = found.first(4)
    assert np.shares_memory(first.features, found.features) and len(first.rows) == 4
    np.testing.assert_array_equal(first.valid, np.ones(4, bool))


@pytest.mark.parametrize("which", ["all", "one is invalid", "another order"])
def test_features_of_all_rows_are_those_measured(which: str) -> None:
    rows = np.arange(30)[:: -1 if which == "another order" else 1]
    found = clusters(30).astype(np.float16)[rows]
    if which == "one is invalid":
        found[4] = np.nan
    measured = Measured(
        plan=RefreshPlan(rows=rows, reasons=np.zeros(30, np.uint8)),
        measurement=Measurement(rows=rows, scores={}, features=found),
    )
    of_all, valid = _all_features(make_samples(30), None, measured)
    expected = np.nan_to_num(found[np.argsort(rows)])
    np.testing.assert_array_equal(of_all, expected)
    assert valid.sum() == (29 if which == "one is invalid" else 30)
    assert np.shares_memory(of_all, found) == (which == "all")


# The cache


def test_features_of_the_cache_are_mapped_and_outlive_their_name(tmp_path: Path) -> None:
    paths, given = StorePaths(tmp_path), clusters(50).astype(np.float16)
    save_cache(paths, 3, CachePayload(features=given, valid=everyone(50)))
    found = load_cache(paths, 3)
    assert found is not None and is_mapped(found.features)
    assert type(found.features) is np.ndarray
    save_cache(paths, 3, CachePayload(features=given + 1, valid=everyone(50)))
    np.testing.assert_array_equal(found.features, given)  # the file that it was read from
    with pytest.raises(ValueError, match="read-only"):
        found.features[0] = 0


# The index


@ALL
def test_directions_are_mapped_and_their_file_stays_as_it_is(
    tmp_path: Path, settings: GraphSection
) -> None:
    unit = unit_features(clusters(300), everyone(300))
    build_index(unit, settings, valid=everyone(300), seed=0).save(tmp_path)
    before = (tmp_path / UNIT_FILE).read_bytes()
    index = load_index(tmp_path, settings=settings)
    assert index is not None and is_mapped(index.unit)
    moved = unit_features(clusters(300, seed=1), everyone(300))
    moved[:280] = unit[:280]
    again, report = refresh_index(index, moved, settings, valid=everyone(300))
    assert again is index and report.num_moved == 20
    fresh = build_index(moved, settings, valid=everyone(300), seed=0)
    same = [len(np.intersect1d(a, b)) for a, b in
            zip(again.graph.neighbors, fresh.graph.neighbors, strict=True)]  # fmt: skip
    assert np.mean(same) / settings.num_neighbors > 0.95
    assert (tmp_path / UNIT_FILE).read_bytes() == before


@pytest.mark.parametrize("has_own_file", [False, True])
def test_index_of_an_earlier_release_is_read_and_ours_is_none_for_it(
    tmp_path: Path, has_own_file: bool
) -> None:
    unit = unit_features(clusters(300), everyone(300))
    index = build_index(unit, DESCENT, valid=everyone(300), seed=0)
    index.save(tmp_path)
    made_for = json.loads((tmp_path / SEAL_FILE).read_text())["made_for"]
    assert made_for != purpose(unit.shape, DESCENT)  # an earlier release makes its own
    with np.load(tmp_path / index.file_name) as lists:
        arrays = {name: lists[name] for name in lists.files}
    files = [tmp_path / index.file_name]
    if has_own_file:  # in float32, while no file told what it is
        np.save(tmp_path / UNIT_FILE, unit)
        files.append(tmp_path / UNIT_FILE)
    else:
        (tmp_path / UNIT_FILE).unlink()
        write_arrays(tmp_path / index.file_name, unit=unit, **arrays)
    seal(tmp_path, files, purpose(unit.shape, DESCENT), seed=0, is_rounded=False)
    found = load_index(tmp_path, settings=DESCENT)
    assert found is not None
    np.testing.assert_array_equal(found.unit, index.unit)
    np.testing.assert_array_equal(found.graph.neighbors, index.graph.neighbors)


def test_index_of_a_later_release_is_none_for_us(tmp_path: Path) -> None:
    build_index(
        unit_features(clusters(300), everyone(300)), DESCENT, valid=everyone(300), seed=0
    ).save(tmp_path)
    content = json.loads((tmp_path / SEAL_FILE).read_text())
    content["made_for"]["layout"] += 1
    (tmp_path / SEAL_FILE).write_text(json.dumps(content))
    assert load_index(tmp_path, settings=DESCENT) is None


@ALL
def test_taking_new_directions_over_changes_no_list(settings: GraphSection) -> None:
    n = 400
    unit = unit_features(clusters(n), everyone(n))
    after = unit_features(clusters(n, seed=1), everyone(n))
    after[::3] = unit[::3]  # these stay
    after[1::3] = unit[1::3] + 1e-4  # and these move too little
    found = []
    for take in (False, True):
        index = build_index(unit.copy(), settings, valid=everyone(n), seed=0)
        given = index.as_kept(after.copy())
        index, report = refresh_index(index, given, settings, valid=everyone(n), take=take)
        assert report.num_moved == n - len(unit[::3]) - len(unit[1::3])
        if take and index.keeps_directions:
            assert index.unit is given
        found.append((index.unit, index.graph.neighbors))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    np.testing.assert_array_equal(found[0][1], found[1][1])


def test_moved_directions_have_no_second_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directions, "_BLOCK_BYTES", 1 << 18)
    monkeypatch.setattr(cells, "_BLOCK", 256)
    n, d = 8000, 512
    settings = DESCENT.model_copy(update={"num_spare": 0, "num_neighbors": 3})
    index = build_index(
        unit_features(clusters(n, d), everyone(n)), settings, valid=everyone(n), seed=0, take=True
    )
    unit = directions_to_index(clusters(n, d, seed=1), settings, valid=everyone(n))

    def refresh() -> Any:
        return refresh_index(index, unit, settings, valid=everyone(n), take=True)

    (after, _), peak = peak_of(refresh)
    assert after.unit is unit
    assert peak < unit.nbytes / 2  # blocks and lists, and no copy


def test_blocks_of_columns_find_the_same_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    unit = unit_features(clusters(200), everyone(200))
    asked, columns = np.arange(0, 200, 3), np.arange(20, 190)
    at_once = exact_neighbors(unit, asked, columns, 7)
    monkeypatch.setattr(directions, "_BLOCK_BYTES", 4096)
    in_blocks = exact_neighbors(unit, asked, columns, 7)
    np.testing.assert_array_equal(in_blocks[0], at_once[0])
    np.testing.assert_allclose(in_blocks[1], at_once[1], atol=1e-6)


def test_likeness_in_blocks_is_that_of_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    features, valid = clusters(100).astype(np.float16), np.arange(100) % 7 > 0
    targets, rows = clusters(9, seed=1), np.arange(0, 100, 4)
    every = of_likeness.likeness(features, valid, targets)
    some = of_likeness.likeness(features, valid, targets, rows=rows)
    monkeypatch.setattr(of_likeness, "_BLOCK", 13)
    in_blocks = of_likeness.likeness(features, valid, targets)
    np.testing.assert_allclose(in_blocks, every, atol=1e-5)
    np.testing.assert_allclose(some, every[rows], atol=1e-5)
    assert not every[~valid].any()


# Propagation


def carry(old: Any, graph: SparseGraph) -> Any:
    """Features that turn, with a part of their own that is smooth over nothing."""
    rng = np.random.default_rng(1)
    n, d = old.shape
    turn = 0.3 * rng.standard_normal((d, d)) / np.sqrt(d)
    new = old.astype(np.float32) @ (np.eye(d) + turn).astype(np.float32)
    rows = np.sort(rng.permutation(n)[: n // 4])
    return estimate_features(
        old=old,
        measured_rows=rows,
        new=new[rows].astype(np.float16),
        graph=graph,
        usable=np.ones(n, bool),
        settings=PropagationSection(min_measured=20),
        seed=0,
    )


def test_features_carried_in_float16_are_those_in_float32() -> None:
    old = clusters(600, d=24).astype(np.float16)
    graph = random_graph(600, np.random.default_rng(0))
    narrow, wide = carry(old, graph).carried(), carry(old.astype(np.float32), graph).carried()
    assert narrow.features.dtype == np.float16 and wide.features.dtype == np.float32
    assert narrow.outcome.used == wide.outcome.used != "stale"
    assert narrow.outcome.stretch == wide.outcome.stretch
    largest = float(np.abs(wide.features).max())
    np.testing.assert_allclose(narrow.features, wide.features, atol=2e-3 * largest)


def test_features_are_carried_without_a_copy_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_maps, "_ROW_BLOCK", 256)
    n = 20_000
    old = np.random.default_rng(0).standard_normal((n, 128)).astype(np.float16)
    nobody = SparseGraph(
        indptr=np.zeros(n + 1, np.int64),
        indices=np.zeros(0, np.int32),
        weights=np.zeros(0, np.float32),
    )
    few = np.arange(200)
    estimate = estimate_features(
        old=old,
        measured_rows=few,
        new=old[few] + np.float16(1),
        graph=nobody,
        usable=np.ones(n, bool),
        settings=PropagationSection(min_measured=20),
        seed=0,
    )
    carried, peak = peak_of(estimate.carried)
    assert carried.outcome.used == "shift"
    assert peak < 1.6 * carried.features.nbytes  # in float32 it would be twice as large by itself


def test_folds_and_scores_share_products_and_nothing_changes() -> None:
    rng = np.random.default_rng(0)
    n, m = 900, 700
    inputs = rng.standard_normal((n, 4)).astype(np.float32)
    unit = unit_features(rng.standard_normal((n, 6)).astype(np.float32), everyone(n))
    rows, fold = rng.permutation(n)[:m], rng.integers(0, 5, m)
    kernel = Kernel(inputs, unit, rows, fold, rng)
    kernel._landmarks = kernel._landmarks[:90]
    kernel._measured = kernel._measured[:, :90]
    change = np.sin(inputs[rows, 0].astype(np.float64)) + 0.1 * rng.standard_normal(m)
    among = kernel._measured[kernel._landmarks]
    for without in (None, 0, 3):
        fit = kernel.fit(change, 1, 0.3, without=without)
        kept = fold != without if without is not None else np.ones(m, bool)
        spanning = kept[kernel._landmarks]
        left = change - fit.line(kernel._own_old_values(rows, 1))
        at = kernel._measured[kept][:, spanning]
        inside = among[spanning][:, spanning]
        system = at.T @ at + 0.3 * (inside + _JITTER * np.eye(len(inside)))
        expected = np.linalg.solve(system, at.T @ left[kept])
        predicted = kernel._measured[:, spanning] @ expected
        np.testing.assert_allclose(kernel._measured @ fit.weights, predicted, atol=1e-7)

    def error(penalty: float) -> float:
        """As by an inverse for each penalty."""
        inverse = np.linalg.inv(among + penalty * np.eye(len(among)))
        line = kernel.fit(change, 1, 0.3).line
        left = (change - line(kernel._own_old_values(rows, 1)))[kernel._landmarks]
        return float(((inverse @ left / np.diagonal(inverse)) ** 2).mean())

    assert kernel.penalty_for(change, 1) == min(PENALTIES, key=error)
