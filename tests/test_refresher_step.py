"""A refresh as a function: chains without a store, and the plan that never understates."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gracekit.graph.lists import NeighborLists
from gracekit.recipe import Recipe
from gracekit.refresher.allowance import no_limit
from gracekit.refresher.budget import NEVER_FULL, first_plan
from gracekit.refresher.drafting import draft_version
from gracekit.refresher.last import LastRefresh
from gracekit.refresher.loading import load_last
from gracekit.refresher.spent import token_counts
from gracekit.refresher.step import Refreshed, step
from gracekit.types import MeasuredTarget, Measurement, Origin, Rows, SampleTable
from gracekit.version.header import CheckpointInfo
from tests.stores import make_samples, make_store

WIDTH = 6


class Drift:
    """Measures rows of a made-up run: clusters that move together, and a part of every row's own.

    With `noise` as large as the rest nothing can be predicted, so that every audit misses.
    """

    def __init__(self, n: int, seed: int, noise: float, spoiled: Rows | None = None) -> None:
        rng = np.random.default_rng(seed)
        self._cluster = rng.integers(0, 4, n)
        self._centres = rng.normal(size=(4, WIDTH))
        self._features = self._centres[self._cluster] + 0.2 * rng.normal(size=(n, WIDTH))
        self._level = rng.lognormal(size=n)
        self._noise, self._rng = noise, rng
        self._spoiled = np.zeros(0, np.int64) if spoiled is None else spoiled
        self.asked: list[Rows] = []
        self.num_finished = self.num_looked = 0

    def train(self) -> None:
        """On to the next checkpoint."""
        own = self._noise * self._rng.normal(size=len(self._level))
        self._level = self._level * np.exp(0.3 * self._rng.normal(size=4)[self._cluster] + own)
        self._features = self._features + 0.1 * self._centres[self._cluster]

    def __call__(self, rows: Rows) -> Measurement:
        self.asked.append(rows)
        norms = self._level[rows].astype(np.float32)
        norms[np.isin(rows, self._spoiled)] = np.nan
        return Measurement(
            rows=rows,
            scores={"gradient-norm": norms, "loss": np.sqrt(norms)},
            features=self._features[rows].astype(np.float16),
        )

    def look(self, rows: Rows) -> NDArray[np.float16]:
        self.num_looked += len(rows)
        return np.asarray(self._features[rows], np.float16)

    def finish(self) -> MeasuredTarget | None:
        self.num_finished += 1
        return None


def recipe_of(**refresh: Any) -> Recipe:
    return Recipe.from_dict({
        "data": {"path": "none.jsonl"},
        "refresh": {"min_probe": 12, **refresh},
        "propagation": {"min_measured": 12},
        "graph": {"num_neighbors": 4},
    })  # fmt: skip


def run(
    last: LastRefresh | None, run: Drift, recipe: Recipe, samples: SampleTable, at: int
) -> Refreshed:
    version = 1 if last is None else last.version + 1
    return step(last, run, recipe, samples=samples, step=at, version=version)


def without_some(samples: SampleTable, rows: Rows) -> SampleTable:
    removed = samples.removed_versions.copy()
    removed[rows] = 1
    return dataclasses.replace(samples, removed_versions=removed)


def with_never(last: LastRefresh, rows: Rows) -> LastRefresh:
    """As if the rows had joined the data since."""
    origin = last.scores.origin.copy()
    origin[rows] = Origin.NEVER
    values = {name: value.copy() for name, value in last.values.items()}
    for value in values.values():
        value[rows] = np.nan
    valid = last.valid.copy()
    valid[rows] = False
    scores = dataclasses.replace(last.scores, origin=origin)
    return dataclasses.replace(last, scores=scores, values=values, valid=valid)


def test_a_chain_of_steps_needs_no_store() -> None:
    samples, drift = make_samples(120), Drift(120, 0, noise=0.05)
    recipe = recipe_of(min_fraction=0.3, max_fraction=0.6)
    first = run(None, drift, recipe, samples, at=10)
    assert (first.scores.origin == Origin.MEASURED).all() and first.audit is None
    assert first.outcome.graph is not None and first.outcome.graph.rebuilt
    drift.train()
    last = first.as_last(None)
    drift.asked.clear()
    second = run(last, drift, recipe, samples, at=20)
    assert second.version == 2 and drift.num_finished == 2
    assert 0.3 * 120 <= len(second.plan.rows) <= 0.6 * 120
    np.testing.assert_array_equal(drift.asked[-1], second.plan.rows)
    np.testing.assert_array_equal(second.measurement.rows, second.plan.rows)
    is_measured = second.scores.origin == Origin.MEASURED
    assert set(np.flatnonzero(is_measured)) == set(second.plan.rows)
    assert second.outcome.num_measured == len(second.plan.rows)
    after = second.as_last(last)
    moved = np.abs(after.changes["gradient-norm"][is_measured])
    assert (moved > 0).mean() > 0.9, "the change of what was measured is known"
    assert len(second.selection.rows) == math.floor(0.3 * 120 + 0.5)


@pytest.mark.parametrize("backend", ["exact", "hnsw", "descent"])
@pytest.mark.parametrize("features", ["ridge", "none"])
def test_a_chain_of_steps_is_what_a_store_gives_back(
    tmp_path: Path, backend: str, features: str
) -> None:
    """Every field of `LastRefresh` to the bit, committed and read back at every step."""
    drift = Drift(150, 3, noise=0.1, spoiled=np.array([5, 70], np.int64))
    recipe = recipe_of(min_fraction=0.3, max_fraction=0.5).override(
        {"graph.backend": backend, "propagation.features": features, "refresh.min_probe": 20}
    )
    store = make_store(tmp_path / "store", 150)
    samples = store.samples()
    last = None
    for at in (10, 20, 30):
        made = run(last, drift, recipe, samples, at=at)
        last = made.as_last(last)
        draft = draft_version(
            made,
            recipe,
            refresh_id=f"refresh-{at}",
            measure_id=f"measure-{at}",
            checkpoint=CheckpointInfo(step=at),
            is_first=store.latest() is None,
        )
        assert store.commit(draft) == made.version
        read = load_last(store, recipe)
        assert read is not None
        for field in dataclasses.fields(LastRefresh):
            assert_equal(getattr(read, field.name), getattr(last, field.name), field.name)
        drift.train()


def assert_equal(found: Any, expected: Any, name: str) -> None:
    """Equal to the bit, whatever it is."""
    if dataclasses.is_dataclass(expected):
        for field in dataclasses.fields(expected):
            inside = f"{name}.{field.name}"
            assert_equal(getattr(found, field.name), getattr(expected, field.name), inside)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys(), name
        for key in expected:
            assert_equal(found[key], expected[key], f"{name}[{key}]")
    elif isinstance(expected, NeighborLists):
        assert type(found) is type(expected)
        assert_equal(found.unit, expected.unit, f"{name}.unit")
        assert_equal(found.graph, expected.graph, f"{name}.graph")
    else:
        np.testing.assert_array_equal(found, expected, err_msg=name)


def test_rows_that_are_not_finite_have_neither_scores_nor_features() -> None:
    samples = make_samples(60)
    spoiled = np.array([3, 17], np.int64)
    made = run(None, Drift(60, 0, noise=0, spoiled=spoiled), recipe_of(), samples, at=10)
    assert (made.scores.origin[spoiled] == Origin.INVALID).all()
    assert not made.valid[spoiled].any() and (made.features[spoiled] == 0).all()
    assert np.isnan(made.scores.scores["loss"][spoiled]).all()
    assert not np.isin(spoiled, made.selection.rows).any()


@st.composite
def refresh_settings(draw: st.DrawFn) -> dict[str, Any]:
    least, most = sorted(draw(st.tuples(st.floats(0.02, 1), st.floats(0.02, 1))))
    return {
        "min_fraction": least,
        "max_fraction": most,
        "probe_fraction": draw(st.floats(0, 1)),
        "min_probe": draw(st.integers(0, 80)),
        "target_rank_correlation": draw(st.sampled_from([None, -1.0, 0.5, 0.9, 1.0])),
        "target_value": draw(st.sampled_from([0.0, 0.75, 1.0])),
        "full_below": draw(st.sampled_from([-1.0, 0.0, 0.5, 1.0])),
        "full_every": draw(st.integers(0, 3)),
        "new_samples": draw(st.sampled_from(["budget", "all"])),
        "plan": draw(st.sampled_from(["random", "cover", "grace", "oldest"])),
    }


@settings(max_examples=60)
@given(
    chosen=refresh_settings(),
    seed=st.integers(0, 100),
    noise=st.sampled_from([0.0, 0.3, 3.0]),
    num_never=st.integers(0, 30),
    num_removed=st.integers(0, 10),
    advice=st.integers(0, 60),
)
def test_the_plan_never_understates_what_is_measured(
    chosen: dict[str, Any], seed: int, noise: float, num_never: int, num_removed: int, advice: int
) -> None:
    n, drift = 60, Drift(60, seed, noise)
    shuffled = np.random.default_rng(seed).permutation(n)
    samples = without_some(make_samples(n), shuffled[:num_removed])
    recipe = recipe_of(**chosen)
    last = run(None, drift, recipe_of(), make_samples(n), at=10).as_last(None)
    last = dataclasses.replace(last, samples=samples, next_budget=advice)
    origin = last.scores.origin.copy()
    origin[shuffled[:num_removed]] = Origin.REMOVED
    last = dataclasses.replace(last, scores=dataclasses.replace(last.scores, origin=origin))
    last = with_never(last, shuffled[num_removed : num_removed + num_never])
    drift.train()
    shown = first_plan(
        last, recipe, samples=samples, step=20, allowance=no_limit(token_counts(samples))
    )
    drift.asked.clear()
    made = run(last, drift, recipe, samples, at=20)
    np.testing.assert_array_equal(drift.asked[0], shown.plan.rows)
    assert len(made.plan.rows) <= shown.most <= shown.num_rows == n - num_removed
    assert len(np.unique(made.plan.rows)) == len(made.plan.rows)
    assert samples.present[made.plan.rows].all()
    lengths = np.where(samples.present, np.random.default_rng(seed).integers(1, 99, n), 0)
    assert lengths[made.plan.rows].sum() <= shown.most_tokens(lengths) <= lengths.sum()
    if shown.most == shown.num_rows:
        assert shown.most_tokens(lengths) == lengths.sum()
    if chosen["full_below"] == NEVER_FULL and not shown.is_full:
        assert shown.most == shown.limit
    np.testing.assert_array_equal(drift.asked[-1], made.plan.rows)


def test_full_below_measures_everything_as_the_plan_had_said() -> None:
    samples, drift = make_samples(120), Drift(120, 1, noise=3.0)
    recipe = recipe_of(
        min_fraction=0.2, max_fraction=0.4, full_below=0.99, target_rank_correlation=0.9
    )
    last = run(None, drift, recipe, samples, at=10).as_last(None)
    drift.train()
    shown = first_plan(
        last, recipe, samples=samples, step=20, allowance=no_limit(token_counts(samples))
    )
    assert (shown.limit, shown.most) == (48, 120)
    made = run(last, drift, recipe, samples, at=20)
    assert made.outcome.num_measured == 120 and made.outcome.num_since_full == 0


@pytest.mark.parametrize("seed", range(3))
def test_a_step_gives_the_same_for_the_same(seed: int) -> None:
    def chain() -> Refreshed:
        samples, drift = make_samples(80), Drift(80, seed, noise=0.2)
        recipe = recipe_of(min_fraction=0.3, max_fraction=0.6)
        last = run(None, drift, recipe, samples, at=10).as_last(None)
        drift.train()
        return run(last, drift, recipe, samples, at=20)

    one, two = chain(), chain()
    np.testing.assert_array_equal(one.scores.importance, two.scores.importance)
    np.testing.assert_array_equal(one.features, two.features)
    np.testing.assert_array_equal(one.selection.rows, two.selection.rows)
    assert one.audit == two.audit
