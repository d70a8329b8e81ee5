"""Budgets, quotas and lists: what a user asks for holds exactly, whatever the selector."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gracekit.errors import RecipeError, SelectionError
from gracekit.protocols import SelectionTask
from gracekit.recipe import Recipe, SelectionSection
from gracekit.selection import SELECTORS, select
from gracekit.selection.pool import row_tokens
from gracekit.types import Origin, Selection
from tests.stores import make_draft, make_store
from tests.worlds import NUM_ROWS, World

selectors = st.sampled_from([*sorted(SELECTORS), "top-loss"])
budgets = st.one_of(
    st.builds(lambda f: {"fraction": f}, st.sampled_from([0.1, 0.4, 0.8])),
    st.builds(lambda c: {"count": c}, st.integers(10, 50)),
    st.builds(lambda t: {"tokens": t}, st.integers(200, 3000)),
)
quotas = st.one_of(
    st.builds(
        lambda k: {"group_quota": k}, st.sampled_from(["none", "proportional", "sqrt", "equal"])
    ),
    st.just({"group_quota": "shares", "group_shares": {"group 0": 2, "group 1": 1.5}}),
)


@given(
    seed=st.integers(0, 10_000),
    selector=selectors,
    budget=budgets,
    quota=quotas,
    minimum=st.sampled_from([0, 0, 3]),
    small=st.sampled_from([0, 0, 12]),
    most=st.sampled_from([None, 0.8]),
    hardest=st.sampled_from([0.0, 0.2]),
)
@settings(max_examples=300)
def test_what_is_asked_for_holds_exactly_or_is_an_error(
    seed: int,
    selector: str,
    budget: dict[str, Any],
    quota: dict[str, Any],
    minimum: int,
    small: int,
    most: float | None,
    hardest: float,
) -> None:
    world = World.make(seed)
    rng = np.random.default_rng(seed)
    usable = world.spoil(rng)
    listed = rng.permutation(np.flatnonzero(world.samples.num_response_tokens > 0))
    always, never = listed[: rng.integers(0, 4)], listed[50:]
    ids = world.samples.sample_ids
    if "tokens" in budget:
        minimum = 0
    asked = {"selector": selector, "drop_hardest": hardest, "max_similarity": most,
             "group_minimum": minimum, "keep_groups_below": small,
             "always_in": tuple(ids[always]), "never_in": tuple(ids[never]),
             **budget, **quota}  # fmt: skip
    try:
        selection = world.select(seed, **asked)
    except SelectionError as error:
        refusal = str(error)
    else:
        refusal = ""
    if refusal:
        assert quota["group_quota"] == "shares" or minimum or small or len(always), refusal
        assert "selection." in refusal
        return
    rows, details = selection.rows, selection.details
    groups = world.samples.groups
    chosen = np.zeros(NUM_ROWS, bool)
    chosen[rows] = True
    assert chosen.sum() == len(rows)
    assert chosen[always].all()
    assert not chosen[never].any()
    assert not (chosen & ~usable)[np.setdiff1d(np.arange(NUM_ROWS), always)].any()
    tokens = row_tokens(world.samples)
    assert details["num_tokens"] == tokens[rows].sum()
    if "tokens" in budget:
        assert tokens[rows].sum() <= budget["tokens"]
    else:
        assert len(rows) == details["budget"]
        assert details["budget"] <= details["num_candidates"]
    counts = np.bincount(groups[rows], None if "tokens" not in budget else tokens[rows], 3)
    if quota["group_quota"] != "none":
        if "tokens" in budget:
            assert (counts <= list(details["quotas"].values())).all()
        else:
            assert counts.tolist() == list(details["quotas"].values())
    if minimum:
        assert ((counts >= minimum) | ((counts > 0) & (small > 0))).all()
    if most is not None:
        free = np.setdiff1d(rows, always)
        assert world.similarities[np.ix_(free, rows)].max(initial=0) <= most or small
    assert len(selection.weights) == len(rows) == len(selection.gains)
    assert selection.weights.mean() == pytest.approx(1, abs=1e-5)


def test_small_groups_are_kept_whole() -> None:
    world = World.make(3)
    sizes = np.bincount(world.samples.groups)
    smallest = int(np.argmin(sizes))
    selection = world.select(count=40, keep_groups_below=int(sizes[smallest]) + 1)
    assert np.bincount(world.samples.groups[selection.rows])[smallest] == sizes[smallest]
    assert selection.details["num_always"] == sizes[smallest]
    none = world.select(count=40, keep_groups_below=int(sizes[smallest]))
    assert none.details["num_always"] == 0


def test_square_roots_lie_between_proportional_and_equal() -> None:
    world = World.make(4, n=300)
    groups = world.samples.groups
    counts = {
        kind: np.sort(np.bincount(groups[world.select(count=60, group_quota=kind).rows]))
        for kind in ("proportional", "sqrt", "equal")
    }
    sizes = np.sort(np.bincount(world.samples.groups))
    assert counts["equal"].tolist() == [20, 20, 20]
    exact = 60 * np.sqrt(sizes) / np.sqrt(sizes).sum()
    assert np.abs(counts["sqrt"] - exact).max() < 1
    assert counts["proportional"][0] < counts["sqrt"][0] < counts["equal"][0]


def test_the_share_of_a_group_that_left_the_data_goes_to_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World.make(3)
    samples = world.samples
    samples.groups[:] = np.arange(len(samples)) % 2
    samples.groups[::10] = 2
    gone = samples.groups == 2
    samples.removed_versions[gone] = 2
    world.scores.origin[gone] = Origin.REMOVED
    shares = {"group 0": 2, "group 1": 1, "group 2": 3}
    found = world.select(count=12, group_quota="shares", group_shares=shares)
    assert np.bincount(samples.groups[found.rows], minlength=3).tolist() == [8, 4, 0]
    assert "group 'group 2' is no longer in the data, left out" in caplog.text


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"count": 50, "group_quota": "shares", "group_shares": {"group 2": 1}},
         r"group 'group 2' is to have 50 of 50, and \d+ can be selected"),
        ({"group_quota": "shares", "group_shares": {"grp": 1}}, "no group 'grp'; the store has"),
        ({"group_minimum": 40}, r"group_minimum is 40, but group 'group \d' has"),
        ({"count": 10, "group_minimum": 5}, "need 15 samples, the budget is 10"),
        ({"count": 2, "always_in": ("s0001", "s0002", "s0003")},
         "takes 3 samples, and the budget is 2"),
        ({"tokens": 1}, "no sample is that short"),
        ({"always_in": ("s0001", "nobody")}, "1 of 2 ids are not in the store, the first 'nobody'"),
        ({"always_in": ("s0001",), "never_in": ("s0001",)}, "'s0001': both always in and never in"),
        ({"never_in_where": "importanc > 1"}, "never_in_where: 'importanc > 1' is not an SQL"),
        ({"never_in_where": "true); DROP TABLE x; SELECT (1"}, "never_in_where"),
        ({"never_in_where": "true"}, "all 60 usable samples are never in"),
        ({"never_in_where": "row IN (SELECT 1 FROM read_csv('/etc/passwd'))"}, "never_in_where"),
    ],
)  # fmt: skip
def test_what_cannot_be_met_is_an_error_that_says_why(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(SelectionError, match=message):
        World.make(0).select(**asked)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"count": 5, "tokens": 9}, "give one budget: count or tokens"),
        ({"group_quota": "shares"}, "belong together"),
        ({"group_shares": {"a": 1}}, "belong together"),
        ({"group_quota": "shares", "group_shares": {"a": -1}}, "zero or more"),
        ({"group_quota": "shares", "group_shares": {"a": 0}}, "not all of them zero"),
        ({"tokens": 5, "group_minimum": 1}, "the budget is in tokens"),
    ],
)
def test_settings_that_contradict_each_other(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Recipe.from_dict({"data": {"path": "x.jsonl"}, "selection": asked})


def test_conditions_see_the_columns_of_samples_and_scores() -> None:
    world = World.make(0)
    world.scores.importance[0] = np.nan
    world.scores.scores["loss"][:10] = np.nan
    samples, scores = world.samples, world.scores
    rows = world.select(
        count=NUM_ROWS, never_in_where="loss > 0.5 OR group_name = 'group 1' -- a comment"
    ).rows
    expected = (
        ~(scores.scores["loss"] > 0.5) & (samples.groups != 1) & np.isfinite(scores.importance)
    )
    assert sorted(rows.tolist()) == np.flatnonzero(expected).tolist()
    always = world.select(count=30, always_in_where="num_response_tokens <= 10").rows
    short = np.flatnonzero(samples.num_response_tokens <= 10)
    assert set(short) <= set(always[: len(short)].tolist())


def test_conditions_can_ask_the_tables_of_the_store(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    store.commit(make_draft(store, "first"))
    chosen = store.coreset(1)["row"].to_pylist()
    world = World.make(0, n=store.info.num_samples)
    selection = select(
        SelectionSection(
            count=24, never_in_where="row IN (SELECT row FROM coresets WHERE version = 1)"
        ),
        dataclasses.replace(world.inputs(), samples=store.samples(), store=store.paths.root),
        seed=0,
        version=2,
    )
    assert sorted(selection.rows.tolist()) == sorted(set(range(24)) - set(chosen))


def test_samples_without_scores_can_be_always_in_but_not_those_without_tokens() -> None:
    world = World.make(0)
    world.scores.origin[3] = Origin.NEVER
    world.scores.importance[3] = np.nan
    name = world.samples.sample_ids[3]
    selection = world.select(count=5, always_in=(name,))
    assert selection.rows[0] == 3
    assert np.isfinite(selection.details["importance"])
    world.samples.num_response_tokens[3] = 0
    with pytest.raises(SelectionError, match="without a token to train on"):
        world.select(count=5, always_in=(name,))


def test_of_near_duplicates_the_most_important_stays_and_stands_for_the_others() -> None:
    world = World.make(0)
    world.similarities[:] = 0
    for i, j in [(0, 1), (1, 2), (0, 2)]:
        world.similarities[i, j] = world.similarities[j, i] = 0.99
    world.scores.importance[:3] = 0.5, 0.9, 0.7
    selection = world.select(fraction=1.0, max_similarity=0.9)
    assert len(selection.rows) == 58
    assert 1 in selection.rows
    weights = dict(zip(selection.rows.tolist(), selection.weights.tolist(), strict=True))
    assert weights[1] == pytest.approx(3 * weights[5])
    kept = world.select(
        fraction=1.0, max_similarity=0.9, always_in=(world.samples.sample_ids[0],)
    ).rows
    assert 0 in kept
    assert not {1, 2} & set(kept.tolist())


def test_token_budgets_buy_more_for_the_same_tokens_than_rows_of_the_same_ranking() -> None:
    world = World.make(1, n=400)
    tokens = world.select(tokens=3000, importance_weight=0.5)
    assert 2900 < tokens.details["num_tokens"] <= 3000
    drawn = world.select(selector="random", tokens=3000)
    assert tokens.details["coverage"] > drawn.details["coverage"]
    assert len(tokens.rows) > len(drawn.rows)


def test_a_churn_penalty_keeps_what_is_not_worth_changing() -> None:
    world = World.make(2, n=400)
    parent = world.select(fraction=0.2).rows
    rng = np.random.default_rng(0)
    world.scores.importance[:] = np.clip(world.scores.importance + 0.5 * rng.random(400), 0, 1)
    results = {
        penalty: world.select(fraction=0.2, parent=parent, churn_penalty=penalty)
        for penalty in (0.0, 0.1, 0.3, 100.0)
    }
    kept = [r.details["num_kept"] for r in results.values()]
    assert kept[0] < kept[1] < kept[2] < kept[3] == len(parent)
    objectives = [r.objective for r in results.values()]
    assert objectives[0] > objectives[2] > objectives[3]
    # A little penalty costs next to nothing.
    assert objectives[1] > 0.995 * objectives[0]
    for result in results.values():
        counted = len(set(result.rows.tolist()) & set(parent.tolist()))
        assert result.details["num_kept"] == counted


def test_inverse_probability_counts_the_group_for_each_selected_of_it() -> None:
    world = World.make(6)
    groups = world.samples.groups
    selection = world.select(
        selector="random", count=18, group_quota="equal", weights="inverse-probability"
    )
    sizes, chosen = np.bincount(groups), np.bincount(groups[selection.rows])
    expected = (sizes / chosen)[groups[selection.rows]]
    assert selection.weights == pytest.approx(expected / expected.mean(), rel=1e-5)
    # So the weighted mean of anything constant within groups is the mean of the data.
    level = np.array([1.0, 5.0, 11.0])
    estimate = np.average(level[groups[selection.rows]], weights=selection.weights)
    assert estimate == pytest.approx(level[groups].mean(), rel=1e-5)


class Careless:
    """A user's selector that ignores what it was asked for."""

    rows: Any = None

    def select(self, task: SelectionTask) -> Selection:
        rows = np.asarray(Careless.rows, np.int64)
        ones = np.ones(len(rows), np.float32)
        return Selection(rows=rows, gains=ones, weights=ones, objective=0.0)


@pytest.mark.parametrize(
    ("rows", "asked", "message"),
    [
        ([1, 1], {}, "picks a row twice"),
        ([99], {}, "no candidate"),
        ([1, 2, 3, 4, 5], {"count": 4}, "more than the budget of 4"),
        ([*range(12)], {"count": 12, "group_quota": "equal"}, "more of a group than its quota"),
    ],
)
def test_a_careless_selector_is_caught(
    rows: list[int], asked: dict[str, Any], message: str
) -> None:
    Careless.rows = rows
    with pytest.raises(SelectionError, match=message):
        World.make(0).select(selector=f"{__name__}:Careless", **asked)
