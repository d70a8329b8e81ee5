"""The selector `balanced`: whose gradient it has, its weights, and what it makes of bad scores."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gracekit.errors import RecipeError, SelectionError
from gracekit.recipe import Recipe, ScoringSection, SelectionSection
from gracekit.scores.norms import expected_norms
from gracekit.selection import select
from gracekit.types import Float64, Origin, Selection
from tests.worlds import World

SCORING = ScoringSection(importance="gradient-norm", scores=("gradient-norm", "loss"))


def with_norms(seed: int = 0, n: int = 120) -> World:
    """A world with gradient norms, a third of them estimated with little confidence."""
    world = World.make(seed, n=n)
    rng = np.random.default_rng(seed)
    world.scores.scores["gradient-norm"] = rng.lognormal(0, 0.8, n).astype(np.float32)
    estimated = rng.random(n) < 0.3
    world.scores.origin[estimated] = Origin.PROPAGATED
    world.scores.confidence[estimated] = rng.random(int(estimated.sum()), np.float32)
    return world


def draw(
    world: World, version: int = 1, scoring: ScoringSection | None = SCORING, **asked: Any
) -> Selection:
    inputs = dataclasses.replace(world.inputs(), scoring=scoring)
    return select(
        SelectionSection(selector="balanced", **asked), inputs, seed=0, version=version
    )  # fmt: skip


def test_the_weighted_mean_gradient_is_the_pools_and_nearer_than_that_of_a_random_draw() -> None:
    world = with_norms(n=300)
    tokens = world.samples.num_response_tokens
    world.scores.origin[:] = Origin.MEASURED
    world.scores.confidence[:] = 1
    norms = expected_norms(world.scores, tokens, SCORING)
    directions = np.random.default_rng(1).normal(size=(300, 40))
    gradients = norms[:, None] * directions / np.linalg.norm(directions, axis=1)[:, None]

    def errors(drawn: list[Selection]) -> Float64:
        means = [np.average(gradients[s.rows], axis=0, weights=s.weights) for s in drawn]
        differences: Float64 = np.array(means) - gradients.mean(axis=0)
        return differences

    found = errors([draw(world, v, fraction=0.3) for v in range(300)])
    z = found.mean(axis=0) / (found.std(axis=0) / np.sqrt(300))
    assert np.sqrt(np.mean(z**2)) < 1.5
    plain = [
        world.select(version=v, selector="random-fresh", fraction=0.3, weights="uniform")
        for v in range(300)
    ]
    assert np.square(found).sum() < 0.7 * np.square(errors(plain)).sum()


def test_weights_are_inverse_probabilities_bounded_by_alpha() -> None:
    world = with_norms(3)
    for alpha in (0.1, 0.25, 0.7, 1.0):
        selection = draw(world, alpha=alpha, fraction=0.2)
        assert selection.details["alpha"] == alpha
        assert selection.details["largest_weight"] <= 1 / alpha + 1e-6
        assert selection.weights.mean() == pytest.approx(1, abs=1e-5)
        norms = expected_norms(world.scores, world.samples.num_response_tokens, SCORING)
        size = alpha + (1 - alpha) * norms / norms.mean()
        uncapped = size[selection.rows] < 1 / 0.2 / 2
        products = (selection.weights * size[selection.rows])[uncapped]
        assert products == pytest.approx(products[0], rel=1e-4)
    assert draw(world, alpha=1.0, fraction=0.2).weights == pytest.approx(1)


def test_tokens_per_row_are_those_of_what_is_trained_on() -> None:
    world = with_norms()
    tokens = world.samples.num_response_tokens.astype(np.float64)
    usable = world.scores.usable & (tokens > 0)
    assert draw(world, fraction=0.3).details["tokens_per_row"] == pytest.approx(
        tokens[usable].mean(), rel=1e-6
    )
    drawn = draw(world, count=30, group_quota="equal")
    groups = world.samples.groups
    means = [tokens[usable & (groups == g)].mean() for g in range(len(world.samples.group_names))]
    shares = np.array(list(drawn.details["quotas"].values()))
    assert drawn.details["tokens_per_row"] == pytest.approx(
        np.average(means, weights=shares), rel=1e-6
    )
    others = SelectionSection(selector="top", fraction=0.3)
    assert "tokens_per_row" not in select(others, world.inputs(), seed=0, version=1).details


def test_with_other_weights_all_are_drawn_alike() -> None:
    """They cannot make up for unequal probabilities."""
    world = with_norms(1)
    even = draw(world, alpha=1.0, count=30)
    for kind in ("uniform", "coverage", "inverse-probability"):
        selection = draw(world, count=30, weights=kind)
        assert selection.rows.tolist() == even.rows.tolist()
        assert selection.details["alpha"] == 1
    assert draw(world, count=30, weights="uniform").weights.tolist() == [1.0] * 30
    without, uniform = (draw(world, count=30, weights=kind) for kind in ("none", "uniform"))
    assert without.rows.tolist() == uniform.rows.tolist()
    assert without.weights.tolist() == [1.0] * 30
    own = draw(world, count=30)
    assert draw(world, count=30, weights="selector").weights.tolist() == own.weights.tolist()
    assert len(set(own.weights.tolist())) > 10


@given(st.integers(0, 10_000), st.sampled_from(["proportional", "sqrt", "equal", "minimum"]))
@settings(max_examples=30)
def test_quotas_say_what_to_train_on_and_hold_exactly(seed: int, kind: str) -> None:
    world = with_norms(seed)
    asked: dict[str, Any] = {"count": 30, "group_quota": kind}
    if kind == "minimum":
        asked = {"count": 30, "group_minimum": 4}
    selection = draw(world, **asked)
    counts = np.bincount(world.samples.groups[selection.rows], minlength=3)
    if kind == "minimum":
        assert counts.min() >= 4
        assert counts.sum() == 30
    else:
        assert counts.tolist() == list(selection.details["quotas"].values())
    # Within a group the weights are 1 on average over draws: they do not undo the quota.
    means = [
        np.bincount(world.samples.groups[s.rows], s.weights, 3) / np.bincount(
            world.samples.groups[s.rows], minlength=3)
        for s in (draw(world, v, **asked) for v in range(20))
    ]  # fmt: skip
    assert np.mean(means, axis=0) == pytest.approx(1, abs=0.35)


def test_a_version_is_a_new_draw_and_the_same_again_for_the_same_version() -> None:
    world = with_norms()
    first, again, other = (draw(world, v, count=30) for v in (1, 1, 2))
    assert first.rows.tolist() == again.rows.tolist()
    assert first.weights.tolist() == again.weights.tolist()
    assert set(first.rows.tolist()) != set(other.rows.tolist())


@given(st.integers(0, 10_000))
def test_neither_order_nor_samples_that_left_matter(seed: int) -> None:
    world = with_norms(seed)
    first = draw(world, fraction=0.3)
    old = np.random.default_rng(seed).permutation(len(world.samples))
    again = draw(world.renumbered(old), fraction=0.3)
    assert old[again.rows].tolist() == first.rows.tolist()
    assert again.weights.tolist() == first.weights.tolist()
    assert again.details == first.details
    grown = draw(world.with_removed(5), fraction=0.3)
    assert grown.rows.tolist() == first.rows.tolist()
    assert grown.weights.tolist() == first.weights.tolist()


@given(st.integers(0, 10_000), st.integers(20, 3000), st.sampled_from(["none", "equal", "sqrt"]))
def test_tokens_are_used_up_and_never_exceeded(seed: int, tokens: int, quota: str) -> None:
    world = with_norms(seed)
    selection = draw(world, tokens=tokens, group_quota=quota)
    cost = world.samples.num_prompt_tokens + world.samples.num_response_tokens
    assert selection.details["num_tokens"] <= tokens
    left_out = np.setdiff1d(np.arange(len(cost)), selection.rows)
    if quota == "none" and len(left_out):
        assert cost[left_out].min() > tokens - selection.details["num_tokens"]
    else:
        used = np.bincount(world.samples.groups[selection.rows], cost[selection.rows], 3)
        assert quota == "none" or (used <= list(selection.details["quotas"].values())).all()


def test_what_is_always_in_weighs_like_the_mean_of_the_others() -> None:
    world = with_norms(2)
    names = tuple(world.samples.sample_ids[:5])
    found = []
    for version in range(40):
        selection = draw(world, version, count=40, always_in=names)
        assert set(selection.rows[:5]) == set(range(5))
        found.append(selection.weights[:5])
    assert np.mean(found) == pytest.approx(1, abs=0.1)


def test_uncertain_rows_are_drawn_more_often_than_their_estimate_says() -> None:
    world = with_norms()
    table, tokens = world.scores, world.samples.num_response_tokens
    norms = (table.scores["gradient-norm"] * tokens).astype(np.float64)
    found = expected_norms(table, tokens, SCORING)
    measured = table.origin == Origin.MEASURED
    assert found[measured] == pytest.approx(norms[measured], rel=1e-6)
    logs = np.log(norms / np.sqrt(tokens))[measured]
    doubt = 1 - table.confidence.astype(np.float64)
    assert found == pytest.approx(norms * np.exp((doubt * logs.std()) ** 2), rel=1e-6)
    over_samples = SCORING.model_copy(update={"loss": "samples"})
    table.confidence[:] = 1
    found = expected_norms(table, tokens, over_samples)
    assert found == pytest.approx(table.scores["gradient-norm"])


def test_scores_of_any_sign_or_unknown_ones_fall_back_on_importance() -> None:
    world = with_norms()
    tokens = world.samples.num_response_tokens
    world.scores.confidence[:] = 1
    world.scores.scores["margin"] = np.linspace(-3, 3, len(tokens), dtype=np.float32)
    margin = ScoringSection(importance="margin", scores=("margin", "loss"))
    missing = ScoringSection(importance="lm-head", scores=("lm-head", "loss"))
    for scoring in (margin, missing, None):
        found = expected_norms(world.scores, tokens, scoring)
        assert found == pytest.approx(world.scores.importance)


@pytest.mark.parametrize("value", [0.0, 3.0, np.nan, np.inf])
def test_norms_that_are_all_zero_equal_or_not_finite_give_an_even_draw(value: float) -> None:
    world = with_norms()
    world.scores.confidence[:] = 1
    world.samples.num_response_tokens[:] = 9
    world.scores.scores["gradient-norm"][:] = value
    selection = draw(world, count=20)
    assert selection.weights == pytest.approx(1)
    assert len(selection.rows) == 20


def test_a_norm_above_all_others_is_certain_and_the_others_share_the_rest() -> None:
    world = with_norms()
    world.scores.scores["gradient-norm"][7] = 1e30
    selection = draw(world, count=20)
    assert 7 in selection.rows
    assert selection.details["num_certain"] == 1
    assert selection.details["largest_weight"] <= 4
    copies = World.make(0)
    copies.similarities[:] = 1
    assert len(draw(copies, count=20, scoring=None).rows) == 20


@pytest.mark.parametrize("alpha", [0, -0.1, 1.5, "much"])
def test_alpha_out_of_range_is_an_error(alpha: Any) -> None:
    with pytest.raises(RecipeError, match=r"selection\.alpha: Input should be"):
        Recipe.from_dict({"data": {"path": "x.jsonl"}, "selection": {"alpha": alpha}})


def test_impossible_quotas_stay_errors() -> None:
    with pytest.raises(SelectionError, match="group_minimum"):
        draw(with_norms(), group_minimum=500)
