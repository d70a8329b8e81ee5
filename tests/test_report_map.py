"""The map of a report: what is drawn, and that it stays where it was."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

import gracekit
from gracekit.reporting import earlier_projection
from gracekit.reporting.feature_map import NUM_POINTS, Projection, feature_map
from gracekit.reporting.page import LAYOUT_ID, MARK
from gracekit.store import StoreCache
from gracekit.types import Bool, Float32
from tests.report_stores import draft_of, features_of, report_store


def cache_of(features: Float32) -> StoreCache:
    return StoreCache(
        version=1,
        features=features.astype(np.float16),
        valid=np.ones(len(features), bool),
        target_features=None,
        index_directory=Path("nowhere"),
    )


def everyone(n: int) -> Bool:
    return np.ones(n, np.bool_)


@pytest.mark.parametrize("width", [16, 300])
def test_the_plane_is_that_of_the_two_main_directions(width: int) -> None:
    features = np.hstack([features_of(500, 1), np.zeros((500, width - 16), np.float32)])
    found = feature_map(cache_of(features), everyone(500), {1: np.arange(50)}, fingerprint="a")
    assert found is not None
    half = features.astype(np.float16).astype(np.float64)
    unit = half - half.mean(axis=0)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    _, sizes, axes = np.linalg.svd(unit - unit.mean(axis=0), full_matrices=False)
    expected = (unit - unit.mean(axis=0)) @ axes[:2].T
    signs = np.sign(np.sum(expected * found.points, axis=0))
    np.testing.assert_allclose(found.points, expected * signs, atol=2e-3)
    assert found.spread == pytest.approx((sizes[:2] ** 2).sum() / (sizes**2).sum(), abs=1e-3)


def test_a_report_that_replaces_another_keeps_the_layout(tmp_path: Path) -> None:
    store = report_store(tmp_path / "store", versions=2)
    page = tmp_path / "report.html"
    first = gracekit.report(store, page).map
    store.commit(draft_of(store))
    fresh = gracekit.report(store).map
    second = gracekit.report(store, page).map
    assert first is not None and second is not None and fresh is not None
    assert not first.found.is_kept and second.found.is_kept and not fresh.found.is_kept
    np.testing.assert_array_equal(second.found.projection.axes, first.found.projection.axes)
    moved = np.linalg.norm(second.found.points - first.found.points, axis=1)
    size = np.ptp(first.found.points, axis=0).max()
    assert np.median(moved) < 0.05 * size, "features drift by little, and so does the picture"
    left, right, lower, upper = first.found.projection.frame
    now = second.found.projection.frame
    assert now[0] <= left and now[1] >= right and now[2] <= lower and now[3] >= upper
    assert earlier_projection(page) is not None
    assert "laid out as in the report that this one replaced" in page.read_text()


def test_features_that_became_others_are_laid_out_anew_and_turned_to_fit() -> None:
    rng = np.random.default_rng(0)
    points = rng.normal(size=(400, 2)) * [3, 2]
    before, after = np.zeros((400, 8)), np.zeros((400, 8))
    before[:, :2], after[:, 4:6] = points, points[:, ::-1]
    before += 0.01 * rng.normal(size=before.shape)
    after += 0.01 * rng.normal(size=after.shape)
    old = feature_map(cache_of(before.astype(np.float32)), everyone(400), {}, fingerprint="a")
    assert old is not None
    new = feature_map(cache_of(after.astype(np.float32)), everyone(400), {}, fingerprint="a",
                      earlier=old.projection)  # fmt: skip
    assert new is not None and not new.is_kept
    assert new.spread > 0.9


@pytest.mark.parametrize("change", ["fingerprint", "width"])
def test_the_layout_of_another_store_is_not_taken(change: str) -> None:
    features = features_of(200, 1)
    first = feature_map(cache_of(features), everyone(200), {}, fingerprint="a")
    assert first is not None
    other = first.projection
    if change == "fingerprint":
        other = dataclasses.replace(other, fingerprint="b")
    else:
        other = dataclasses.replace(other, axes=other.axes[:5])
    found = feature_map(cache_of(features), everyone(200), {}, fingerprint="a", earlier=other)
    assert found is not None and not found.is_kept


def test_of_many_samples_some_are_drawn_always_the_same_ones() -> None:
    n = 3 * NUM_POINTS
    found = feature_map(cache_of(features_of(n, 1)), everyone(n), {1: np.arange(n // 2)},
                        fingerprint="a")  # fmt: skip
    more = feature_map(cache_of(features_of(n + 300, 1)), everyone(n + 300), {}, fingerprint="a")
    assert found is not None and more is not None
    assert int(found.is_of_data.sum()) == NUM_POINTS and found.num_samples == n
    data, later = found.rows[found.is_of_data], more.rows
    assert len(np.intersect1d(data, later)) > 0.95 * NUM_POINTS
    # drawn alike from all: no part of the data has more than its share
    counts = np.histogram(data, bins=6, range=(0, n))[0]
    np.testing.assert_allclose(counts, NUM_POINTS / 6, rtol=0.12)
    assert found.coreset_sizes == {1: n // 2}


def test_samples_without_features_and_removed_ones_have_no_place() -> None:
    features = features_of(100, 1)
    features[7] = np.nan
    present = everyone(100)
    present[9] = False
    found = feature_map(cache_of(features), present, {1: np.array([7, 8, 9, 300])}, fingerprint="a")
    assert found is not None
    assert not {7, 9} & set(found.rows.tolist())
    assert found.rows[found.coresets[1]].tolist() == [8]


def test_features_that_are_all_alike_have_no_map() -> None:
    alike = np.ones((50, 4), np.float32)
    assert feature_map(cache_of(alike), everyone(50), {}, fingerprint="a") is None


def test_a_projection_survives_its_json_and_damage_is_noticed() -> None:
    first = feature_map(cache_of(features_of(50, 1)), everyone(50), {}, fingerprint="a")
    assert first is not None
    content = json.loads(json.dumps(first.projection.to_json()))
    again = Projection.from_json(content)
    assert again is not None and again.frame == pytest.approx(first.projection.frame)
    np.testing.assert_array_equal(again.axes, first.projection.axes)
    for change in ({"format": 9}, {"axes": "!!"}, {"width": 3}, {"middle": [1]}, {"frame": [0.0]},
                   {"middle": [float("nan"), 0.0]}, {"width": float("inf")},
                   {"frame": [10**400, 1, 1, 1]}, {"middle": [1e30, 0.0]}):  # fmt: skip
        assert Projection.from_json({**content, **change}) is None
    assert Projection.from_json([]) is None


def test_a_file_that_is_no_report_has_no_layout(tmp_path: Path) -> None:
    assert earlier_projection(tmp_path / "absent.html") is None
    page = tmp_path / "page.html"
    page.write_bytes(b"\xff\xfe")
    assert earlier_projection(page) is None
    page.write_text(
        f'{MARK}<script type="application/json" id="{LAYOUT_ID}">{"[" * 100_000}</script>'
    )
    assert earlier_projection(page) is None
