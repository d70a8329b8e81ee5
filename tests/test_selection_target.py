"""`target-coverage`: against plain greedy on all similarities, and an independent library."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gracekit import refresh, select
from gracekit.errors import RecipeError, SelectionError
from gracekit.selection import target
from gracekit.store import Store
from gracekit.types import Float64
from tests.tiny import tiny_recipe, write_checkpoint, write_data
from tests.worlds import World


def cosines(world: World) -> Float64:
    """[t, n] around the samples' centre, none below 0."""
    assert world.features is not None and world.targets is not None
    centre = world.features.astype(np.float64).mean(axis=0)

    def unit(x: Float64) -> Float64:
        centred = x - centre
        return np.asarray(centred / np.linalg.norm(centred, axis=1, keepdims=True))

    found = unit(world.targets.astype(np.float64)) @ unit(world.features.astype(np.float64)).T
    return np.asarray(found.clip(0, 1))


def plain_greedy(similarity: Float64, budget: int) -> list[float]:
    """Value after each pick, trying every sample at every step."""
    covered = np.zeros(len(similarity))
    values = []
    for _ in range(budget):
        gains = np.maximum(similarity - covered[:, None], 0).sum(axis=0)
        covered = np.maximum(covered, similarity[:, gains.argmax()])
        values.append(float(covered.sum()))
    return values


@given(st.integers(0, 10_000), st.integers(1, 12))
def test_picks_reach_what_plain_greedy_reaches(seed: int, budget: int) -> None:
    world = World.make(seed)
    selection = world.select(0, selector="target-coverage", count=budget, importance_weight=0.0)
    similarity = cosines(world)
    expected = plain_greedy(similarity, budget)
    for num, value in enumerate(expected, 1):
        reached = similarity[:, selection.rows[:num]].max(axis=1).sum()
        assert reached == pytest.approx(value, rel=1e-4)
    assert selection.details["target_coverage_share"] == pytest.approx(1, abs=1e-3)


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="submodlib-py has no wheel for it")
def test_mutual_information_of_submodlib_is_the_same() -> None:
    from submodlib import FacilityLocationVariantMutualInformationFunction

    for seed in range(12):
        world = World.make(seed)
        similarity = cosines(world)
        selection = world.select(0, selector="target-coverage", count=7, importance_weight=0.0)
        function = FacilityLocationVariantMutualInformationFunction(
            n=similarity.shape[1],
            num_queries=len(similarity),
            query_sijs=np.ascontiguousarray(similarity.T.astype(np.float32)),
            queryDiversityEta=0,
        )
        picked = function.maximize(
            budget=7, optimizer="NaiveGreedy", stopIfZeroGain=False, stopIfNegativeGain=False,
            show_progress=False,
        )  # fmt: skip
        theirs = similarity[:, [row for row, _ in picked]].max(axis=1).sum()
        ours = similarity[:, selection.rows].max(axis=1).sum()
        assert ours == pytest.approx(theirs, rel=1e-4), seed


def test_importance_and_lists_count_too(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World.make(1)
    monkeypatch.setattr(target, "NEAREST", 5)
    by_importance = world.select(0, selector="target-coverage", count=8, importance_weight=1.0)
    top = world.select(0, selector="top", count=8)
    assert set(by_importance.rows) == set(top.rows)
    never = str(world.samples.sample_ids[by_importance.rows[0]])
    always = str(world.samples.sample_ids[np.argmin(world.scores.importance)])
    selection = world.select(
        0, selector="target-coverage", count=8, never_in=(never,), always_in=(always,)
    )
    chosen = {str(s) for s in world.samples.sample_ids[selection.rows]}
    assert always in chosen and never not in chosen
    tokens = world.select(0, selector="target-coverage", tokens=200)
    assert tokens.details["num_tokens"] <= 200


def test_without_a_target_it_says_what_to_do() -> None:
    world = dataclasses.replace(World.make(0), targets=None)
    with pytest.raises(SelectionError, match="measured without one; name it in the recipe"):
        world.select(0, selector="target-coverage")


def test_from_recipe_to_coreset(tmp_path: Path) -> None:
    write_data(tmp_path / "train.jsonl")
    lines = (tmp_path / "train.jsonl").read_text().splitlines()
    (tmp_path / "target.jsonl").write_text("\n".join(lines[1:70:3]) + "\n")  # group b
    asked = {"path": "target.jsonl", "max_length": 64}
    choice = {"selector": "target-coverage", "count": 20, "importance_weight": 0.0}
    recipe = tiny_recipe(tmp_path, target=asked, selection=choice)
    for step in (100, 300):
        refresh(recipe, write_checkpoint(tmp_path / "run", step))
    store = Store.open(recipe.store)
    for version in (1, 2):
        rows = store.coreset(version)["row"].to_numpy()
        b = store.samples().group_names.index("b")
        assert (store.samples().groups[rows] == b).mean() > 0.8
    again = select(recipe.override({"selection.count": 10}))
    kept = store.coreset(again.version)["row"].to_numpy()
    assert set(kept) <= set(store.coreset(2)["row"].to_numpy())


def test_wrong_target_is_named(tmp_path: Path) -> None:
    write_data(tmp_path / "train.jsonl")
    with pytest.raises(RecipeError, match=r"unknown key 'target.paths'; did you mean 'path'"):
        tiny_recipe(tmp_path, target={"paths": "x.jsonl"})
