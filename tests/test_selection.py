"""`selection`: the way in, with real tables and graphs, and properties of what comes out."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gracekit.errors import RecipeError, SelectionError
from gracekit.protocols import SelectionTask
from gracekit.selection import SELECTORS, selector_for
from gracekit.types import Origin, Selection
from tests.worlds import NUM_ROWS, World


class LastRows:
    """A selector of the user's own, named in a recipe by its module."""

    def select(self, task: SelectionTask) -> Selection:
        rows = np.flatnonzero(task.candidates)[-task.budget :]
        ones = np.ones(len(rows), np.float32)
        return Selection(rows=rows, gains=ones, weights=ones, objective=1.0, details={"mine": 1})


class NotASelector:
    pass


choices = {
    "selector": st.sampled_from(sorted(SELECTORS)),
    "group_quota": st.sampled_from(["none", "proportional", "equal"]),
    "drop_hardest": st.sampled_from([0.0, 0.1, 0.5, 0.9]),
    "importance_weight": st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    "weights": st.sampled_from(["coverage", "uniform"]),
}
budgets = st.one_of(
    st.builds(lambda f: {"fraction": f}, st.sampled_from([0.01, 0.3, 0.77, 1.0])),
    st.builds(lambda c: {"count": c}, st.integers(1, 80)),
    st.just({}),
)


@given(st.integers(0, 10_000), st.fixed_dictionaries(choices), budgets)
def test_what_holds_for_every_selection(
    seed: int, settings: dict[str, Any], budget: dict[str, Any]
) -> None:
    world = World.make(seed)
    usable = world.spoil(np.random.default_rng(seed))
    selection = world.select(seed, **settings, **budget)

    num_usable = int(usable.sum())
    num_candidates = num_usable - int(settings["drop_hardest"] * num_usable)
    asked = budget.get("count") or max(1, int(budget.get("fraction", 0.3) * num_usable + 0.5))
    assert len(selection.rows) == min(asked, num_candidates) == selection.details["budget"]
    assert len(set(selection.rows.tolist())) == len(selection.rows)
    assert usable[selection.rows].all()
    assert selection.rows.dtype == np.int64
    assert selection.gains.dtype == selection.weights.dtype == np.float32
    assert np.isfinite(selection.gains).all()
    assert selection.weights.min() > 0
    assert selection.weights.mean() == pytest.approx(1, abs=1e-5)
    assert selection.details["num_candidates"] == num_candidates
    assert 0 < selection.details["coverage"] <= 1
    if "quotas" in selection.details:
        counts = np.bincount(world.samples.groups[selection.rows], minlength=3)
        assert counts.tolist() == list(selection.details["quotas"].values())
    # The hardest that were cut are at least as important as all that were not.
    if settings["drop_hardest"] and budget.get("fraction") == 1:
        cut = usable.copy()
        cut[selection.rows] = False
        importance = world.scores.importance
        assert importance[cut].min() >= importance[selection.rows].max()


@given(st.integers(0, 10_000), st.fixed_dictionaries(choices))
def test_the_order_of_the_rows_is_no_matter(seed: int, settings: dict[str, Any]) -> None:
    world = World.make(seed)
    world.spoil(np.random.default_rng(seed))
    old = np.random.default_rng(seed + 1).permutation(NUM_ROWS)
    first, again = world.select(3, **settings), world.renumbered(old).select(3, **settings)
    assert old[again.rows].tolist() == first.rows.tolist()
    assert again.gains.tolist() == first.gains.tolist()
    assert again.details == first.details
    if settings["selector"] == "coverage":
        assert again.objective == first.objective


@given(st.integers(0, 10_000), st.fixed_dictionaries(choices))
def test_samples_that_left_the_data_are_no_matter(seed: int, settings: dict[str, Any]) -> None:
    world = World.make(seed)
    world.spoil(np.random.default_rng(seed))
    first, again = world.select(3, **settings), world.with_removed(7).select(3, **settings)
    assert again.rows.tolist() == first.rows.tolist()
    assert again.weights.tolist() == first.weights.tolist()
    assert again.details == first.details


def test_coverage_maximises_what_its_docstring_says() -> None:
    world = World.make(1)
    selection = world.select(count=12, importance_weight=0.3)
    importance = world.scores.importance.astype(np.float64)
    similarities = world.similarities + np.eye(NUM_ROWS)

    def reached(rows: list[int]) -> tuple[float, float]:
        return importance[rows].sum(), similarities[rows].max(axis=0).sum()

    gains = selection.details["importance_gain"] * 12, selection.details["coverage_gain"] * 60

    def objective(rows: list[int]) -> float:
        by_importance, covered = reached(rows)
        return float(0.3 * by_importance / gains[0] + 0.7 * covered / gains[1])

    rows = selection.rows.tolist()
    assert selection.objective == pytest.approx(objective(rows), rel=1e-6)
    assert selection.gains.sum() == pytest.approx(selection.objective, rel=1e-5)
    for place, row in enumerate(rows):
        others = set(range(NUM_ROWS)) - set(rows[:place])
        best = max(objective([*rows[:place], other]) for other in others)
        assert objective([*rows[:place], row]) == pytest.approx(best)

    # One scale: I and C are what each term alone gains over the same random draw.
    drawn = world.select(selector="random", count=12).rows.tolist()
    top = world.select(selector="top", count=12).rows.tolist()
    cover = world.select(count=12, importance_weight=0)
    assert gains[0] == pytest.approx(reached(top)[0] - reached(drawn)[0])
    assert gains[1] == pytest.approx(reached(cover.rows.tolist())[1] - reached(drawn)[1], rel=1e-5)
    assert cover.details["coverage_share"] == pytest.approx(1)
    assert world.select(count=12, importance_weight=1).details["importance_share"] == 1


def test_half_weight_reaches_most_of_both_terms_whatever_their_scale() -> None:
    for low, high in [(0.0, 1.0), (0.98, 1.0), (0.1, 0.1001)]:
        world = World.make(2, n=300)
        importance = low + (high - low) * world.scores.importance
        world.scores = dataclasses.replace(world.scores, importance=importance.astype(np.float32))
        details = world.select(fraction=0.1).details
        assert details["coverage_share"] > 0.5, (low, high)
        if high - low > 0.01:
            assert details["importance_share"] > 0.5, (low, high)


def test_equal_samples_are_ranked_by_id() -> None:
    world = World.make(0)
    world.scores.importance[:] = 0.5
    world.similarities[:] = 0
    by_id = np.argsort(np.asarray(world.samples.sample_ids, str))
    for selector in ("coverage", "top"):
        assert world.select(selector=selector, count=9).rows.tolist() == by_id[:9].tolist()


def test_everything_can_be_selected() -> None:
    for selector in SELECTORS:
        rows = World.make(0).select(selector=selector, fraction=1.0).rows
        assert sorted(rows.tolist()) == list(range(NUM_ROWS))


def test_top_takes_the_most_important() -> None:
    world = World.make(5)
    selection = world.select(selector="top", count=10)
    importance = np.sort(world.scores.importance)[::-1][:10]
    assert selection.gains.tolist() == importance.tolist()
    assert selection.objective == pytest.approx(importance.sum())


def test_random_stays_from_version_to_version_and_fresh_does_not() -> None:
    world = World.make(0)

    def rows(version: int, seed: int = 0, **settings: Any) -> set[int]:
        return set(world.select(seed, version, count=20, **settings).rows.tolist())

    assert rows(1, selector="random") == rows(2, selector="random")
    assert rows(1, selector="random") != rows(1, seed=1, selector="random")
    assert rows(1, selector="random-fresh") == rows(1, selector="random-fresh")
    assert rows(1, selector="random-fresh") != rows(2, selector="random-fresh")
    # A sample that becomes unusable is replaced; the others stay.
    before = rows(1, selector="random")
    lost = min(before)
    world.scores.origin[lost] = Origin.INVALID
    assert len(before - rows(2, selector="random")) == 1


def test_random_is_uniform() -> None:
    world = World.make(0)
    counts = np.zeros(NUM_ROWS)
    for version in range(300):
        counts[world.select(0, version, selector="random-fresh", count=6).rows] += 1
    # 300 · 0.1 = 30 expected, standard deviation 5.2: five of them.
    assert counts.min() > 4
    assert counts.max() < 56


def test_coverage_weights_count_whom_each_selected_sample_covers_best() -> None:
    world = World.make(4)
    world.scores.importance[:] = 0
    # 0 covers 1, 2, 3; 10 covers 11; the others are alone; 20 cannot be selected or counted.
    world.similarities[:] = 0
    for i, j, similarity in [(0, 1, 0.9), (0, 2, 0.8), (0, 3, 0.7), (10, 11, 0.9), (0, 20, 0.9)]:
        world.similarities[i, j] = world.similarities[j, i] = similarity
    world.scores.origin[20] = Origin.INVALID
    selection = world.select(count=2, importance_weight=0)
    assert selection.rows[0] == 0
    assert selection.rows[1] in (10, 11)
    uncovered = NUM_ROWS - 1 - 6
    expected = np.array([4 + uncovered / 2, 2 + uncovered / 2])
    assert selection.weights == pytest.approx(expected / expected.mean())
    assert selection.details["num_uncovered"] == uncovered
    assert selection.details["coverage"] == pytest.approx((2 + 0.9 + 0.8 + 0.7 + 0.9) / 59)


def test_asking_for_more_than_there_is_warns(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        selection = World.make(0).select(count=1000)
    assert len(selection.rows) == NUM_ROWS
    assert "1000 samples are to be selected, but only 60 can be" in caplog.text


def test_nothing_to_select_is_an_error_that_counts_the_reasons() -> None:
    world = World.make(0)
    world.scores.origin[:40] = Origin.NEVER
    world.scores.origin[40:] = Origin.INVALID
    with pytest.raises(SelectionError, match="40 were never measured, 20 gave no finite score"):
        world.select()


def test_selectors_are_found_by_name_or_place() -> None:
    with pytest.raises(RecipeError, match=r"no selector 'covrage'; known: coverage, .*random"):
        World.make(0).select(selector="covrage")
    for wrong in ("no.such.module:X", f"{__name__}:Nothing", f"{__name__}:NotASelector"):
        with pytest.raises(RecipeError, match=r"selection\.selector"):
            selector_for(wrong)
    selection = World.make(0).select(selector=f"{__name__}:LastRows", count=3, weights="uniform")
    assert selection.rows.tolist() == [57, 58, 59]
    assert selection.details["mine"] == 1
    assert selection.weights.tolist() == [1, 1, 1]
