"""Numbers of a comparison: draws of controls, differences, curves."""

from __future__ import annotations

import dataclasses
import itertools
import math
import xml.etree.ElementTree as ElementTree
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gracekit.aim.directions import directions
from gracekit.axes import ticks
from gracekit.comparing.arms import OVERLAYS, Arm
from gracekit.comparing.comparison import compare_results
from gracekit.comparing.controls import (
    Full,
    InfoBatch,
    Once,
    Random,
    RandomFixed,
    Stratified,
    nearest_in_turn,
)
from gracekit.comparing.curves import Curve, draw
from gracekit.comparing.run_result import Point, RunResult
from gracekit.comparing.statistics import difference, first_reached, share_closed
from gracekit.types import Float64


class NoLooks:
    """Nothing of the model is known but the losses given."""

    def __init__(self, losses: Float64 | None = None) -> None:
        self._losses = losses

    def seen(self) -> Float64:
        assert self._losses is not None
        return self._losses

    def losses(self, rows: Any) -> Any:
        raise AssertionError

    states = losses
    target_states: Any = losses


def bed_of(n: int, num_drawn: int, epochs: int, groups: list[int] | None = None) -> Any:
    compare = SimpleNamespace(epochs=epochs, keep_share=0.3)
    return SimpleNamespace(
        pool=np.arange(n), num_drawn=num_drawn, recipe=SimpleNamespace(compare=compare),
        groups=np.array(groups if groups is not None else [0] * n),
    )  # fmt: skip


sizes = st.tuples(st.integers(2, 40), st.integers(1, 40), st.integers(1, 6)).filter(
    lambda s: s[1] <= s[0]
)


@given(sizes, st.integers(0, 3))
def test_every_row_comes_once_before_any_comes_twice(size: tuple[int, int, int], seed: int) -> None:
    n, drawn, epochs = size
    control = Once(bed_of(n, drawn, epochs), seed)
    rows = np.concatenate([control.draw(e, NoLooks()).rows for e in range(epochs)])
    uses = np.bincount(rows, minlength=n)
    assert len(rows) == drawn * epochs and uses.max() - uses.min() <= 1


@given(sizes)
def test_draws_have_their_size_and_distinct_rows(size: tuple[int, int, int]) -> None:
    n, drawn, epochs = size
    bed = bed_of(n, drawn, epochs)
    fixed = [set(RandomFixed(bed, 0).draw(e, NoLooks()).rows) for e in range(epochs)]
    assert all(rows == fixed[0] and len(rows) == drawn for rows in fixed)
    assert len(set(Random(bed, 0).draw(0, NoLooks()).rows)) == drawn
    assert sorted(Full(bed, 0).draw(1, NoLooks()).rows) == list(range(n))
    few = Random(bed, 0, np.arange(max(1, drawn // 3)))
    assert len(few.draw(0, NoLooks()).rows) == drawn


@given(st.lists(st.integers(0, 3), min_size=4, max_size=40), st.integers(1, 12), st.integers(1, 5))
def test_groups_get_equal_shares_in_turns(groups: list[int], drawn: int, epochs: int) -> None:
    bed = bed_of(len(groups), min(drawn, len(groups)), epochs, groups)
    control = Stratified(bed, 0)
    rows = [control.draw(e, NoLooks()).rows for e in range(epochs)]
    assert all(len(turn) == bed.num_drawn for turn in rows)
    counts = np.bincount(bed.groups[np.concatenate(rows)], minlength=4)[np.unique(groups)]
    assert counts.max() - counts.min() <= epochs
    uses = np.bincount(np.concatenate(rows), minlength=len(groups))
    for group in np.unique(groups):
        of_group = uses[bed.groups == group]
        assert of_group.max() - of_group.min() <= 1


def test_infobatch_keeps_the_mean_and_ends_without_pruning() -> None:
    """Over many passes the weighted uses of rows below the mean are those of the others."""
    n, losses = 40, np.linspace(0, 1, 40)
    bed = bed_of(n, 20, 4000)
    control, weighted = InfoBatch(bed, 0), np.zeros(n)
    for epoch in range(3400):
        turn = control.draw(epoch, NoLooks(losses))
        assert turn.weights is not None and len(turn.rows) == 20
        np.add.at(weighted, turn.rows, turn.weights)
    assert weighted[:20].mean() == pytest.approx(weighted[20:].mean(), rel=0.02)
    weights = control.draw(3600, NoLooks(losses)).weights
    assert weights is not None and set(weights) == {1.0}


def test_every_target_takes_its_nearest_row_in_turn() -> None:
    rng = np.random.default_rng(0)
    rows = directions(rng.normal(size=(30, 4)).astype(np.float32))
    targets = directions(rng.normal(size=(4, 4)).astype(np.float32))
    expected: list[int] = []
    for target in itertools.cycle(targets):
        if len(expected) == 17:
            break
        left = [row for row in range(30) if row not in expected]
        expected.append(max(left, key=lambda row: float(target @ rows[row])))
    assert nearest_in_turn(rows, targets, 17).tolist() == expected
    assert sorted(nearest_in_turn(rows, targets, 99)) == list(range(30))


# --- differences ---


def test_the_interval_is_that_of_the_normal_law_for_many_seeds() -> None:
    """Seed effects alone: the interval is the mean ± 1.96 standard errors."""
    rng = np.random.default_rng(1)
    effects = rng.normal(0.1, 0.05, 60)
    own = np.repeat(effects[:, None], 50, axis=1)
    found = difference(own, np.zeros_like(own), np.full(50, 1 / 50))
    error = effects.std(ddof=1) / 60**0.5
    assert found.mean == pytest.approx(effects.mean())
    assert found.standard_error == pytest.approx(error)
    assert found.low == pytest.approx(effects.mean() - 1.96 * error, abs=0.3 * error)
    assert found.high == pytest.approx(effects.mean() + 1.96 * error, abs=0.3 * error)
    assert found.is_worse == (effects.min() > 0)


def test_rows_have_their_part_in_the_interval() -> None:
    rows = np.random.default_rng(2).normal(-0.2, 1.0, 400)
    own = np.repeat(rows[None], 3, axis=0)
    found = difference(own, np.zeros_like(own), np.full(400, 1 / 400))
    error = rows.std(ddof=1) / 20
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.15)


def test_equal_arms_are_seldom_told_apart() -> None:
    """Of 200 comparisons of three seeds without a difference few are said to have one."""
    rng, false = np.random.default_rng(3), 0
    for _ in range(200):
        apart = rng.normal(0, 0.02, (3, 1)) + rng.normal(0, 0.1, (3, 60))
        found = difference(apart, np.zeros_like(apart), np.full(60, 1 / 60))
        false += found.is_better or found.is_worse
    assert false <= 20


def test_fewer_than_three_seeds_show_nothing() -> None:
    found = difference(np.full((2, 9), -1.0), np.zeros((2, 9)), np.full(9, 1 / 9))
    assert found.mean == -1 and not found.over_seeds and not found.is_better
    assert math.isnan(difference(np.ones((1, 9)), np.zeros((1, 9)), np.ones(9) / 9).standard_error)


def test_where_a_curve_reaches_a_level() -> None:
    steps, losses = np.array([0.0, 10, 20, 30]), np.array([4.0, 3, 2, 2.5])
    assert first_reached(steps, losses, 2.5) == 15
    assert first_reached(steps, losses, 4.5) == 0
    assert first_reached(steps, losses, 3) == 10
    assert math.isnan(first_reached(steps, losses, 1.9))
    assert share_closed(3.0, 2.5, 2.0) == 0.5 and math.isnan(share_closed(2.0, 2.0, 2.0))


def result_of(arm: str, seed: int, losses: list[float], last: float) -> RunResult:
    points = [
        Point(step=step, losses=[loss, loss], trained_tokens=10.0 * step,
              selection_tokens=5.0 if arm == "recipe" else 0.0, training_s=1.0, selection_s=0.0)
        for step, loss in zip((0, 5, 10), [*losses, last], strict=True)
    ]  # fmt: skip
    return RunResult(
        arm=arm, seed=seed, settings={}, num_steps=10, points=points, num_targets=[3, 1],
        groups=[0, 1], group_names=["a", "b"], metric=None, num_trained=80, num_distinct=70,
        most_uses=2, marked={}, weights_digest="",
    )  # fmt: skip


ARMS = [
    Arm(name="random", about=""),
    Arm(name="once", about=""),
    Arm(name="recipe", about=""),
    Arm(name="clean", about="", is_oracle=True),
]


def test_the_verdict_is_against_the_stronger_control() -> None:
    ends = {"random": 3.0, "once": 2.9, "recipe": 2.5, "clean": 2.1}
    results = [
        result_of(arm, seed, [4.0, 2.9 if arm == "recipe" else 3.5], end + 0.01 * seed)
        for arm, end in ends.items()
        for seed in range(3)
    ]
    found = compare_results(results, ARMS, average="tokens")
    assert found.control == "once"
    recipe = found.arms[2]
    assert recipe.closed == pytest.approx(0.5)
    assert recipe.steps_to_control == pytest.approx(0.5, abs=0.03)
    assert recipe.compute[-1] == 105
    assert found.verdict[0].startswith("Head-room: the best oracle `clean` is -0.8")
    assert found.verdict[2].startswith("`recipe` is better than `once`: -0.4")
    assert "% of its compute" in found.verdict[2]
    dearer = [
        dataclasses.replace(
            r,
            points=[
                dataclasses.replace(p, selection_tokens=20.0 * (r.arm == "recipe"))
                for p in r.points
            ],
        )
        for r in results
    ]
    found = compare_results(dearer, ARMS, average="tokens")
    assert "took 120% of the compute of `once`" in found.verdict[3]
    assert "See whether `longest` does as well." in found.verdict[3]
    itself = [dataclasses.replace(r, arm="longest") if r.arm == "recipe" else r for r in dearer]
    arms = [*ARMS[:2], Arm(name="longest", about="")]
    said = " ".join(compare_results(itself, arms, average="tokens").verdict)
    assert "`longest` took 120%" in said and "See whether" not in said


def test_a_metric_is_compared_row_by_row_and_its_direction_is_left_open() -> None:
    """A custom metric may be good high or low, so it is higher, lower, or neither is found."""
    kept = {
        "once": [0.0, 0, 0, 1, 0, 0], "recipe": [1.0, 1, 1, 1, 0, 1], "clean": [0.0, 0, 1, 0, 0, 0],
    }  # fmt: skip
    results = [
        dataclasses.replace(result_of(arm, seed, [4.0, 3.5], 3.0 + 0.1 * place), metric=values)
        for place, (arm, values) in enumerate(kept.items())
        for seed in range(3)
    ]
    found = compare_results(results, ARMS, average="tokens", metric="exact-match")
    apart = found.arms[1].metric_against_control
    assert apart is not None and apart.mean == pytest.approx(4 / 6)
    assert found.arms[0].metric_against_control is None
    said = [sentence for sentence in found.verdict if sentence.startswith("exact-match of")]
    assert said[0].startswith("exact-match of `recipe`, less that of `once`: +0.667 [")
    assert said[0].endswith("higher.") and said[1].endswith("no difference found.")
    arm = found.to_json()["arms"][1]
    assert arm["metric_against_control"]["mean"] == apart.mean
    other = [dataclasses.replace(r, metric=[1.0] if r.arm == "once" else r.metric) for r in results]
    found = compare_results(other, ARMS, average="tokens", metric="exact-match")
    assert all(arm.metric_against_control is None for arm in found.arms)


def test_arms_are_compared_over_the_seeds_that_they_have_in_common() -> None:
    """Seed 2 is much harder, and some runs of it are not done yet."""
    ends = {"random": 2.9, "once": 3.0, "recipe": 2.5, "clean": 2.0}
    done = {"random": 3, "once": 2, "recipe": 3, "clean": 2}
    results = [
        result_of(arm, seed, [4.0, end + 0.2], end + 5.0 * (seed == 2))
        for arm, end in ends.items()
        for seed in range(done[arm])
    ]
    found = compare_results(results, ARMS, average="tokens", missing=2)
    assert found.control == "random", "by its mean over three seeds `once` would be lower"
    recipe = found.arms[2]
    assert recipe.closed == pytest.approx(0.4 / 0.9)
    assert recipe.against_control is not None and len(recipe.against_control.by_seed) == 3
    clean = found.arms[3]
    assert clean.steps_to_control < 1 and clean.closed == pytest.approx(1)


@pytest.mark.parametrize(
    ("curve", "end", "words"),
    [
        ([4.0, 4.2], 4.5, "The training lowers no held-out loss: `once` begins at 4.0"),
        ([4.0, 3.0], 3.4, "`once` is lowest at step 5 (3.0"),
        ([4.0, 3.1], 3.05, ""),
    ],
)
def test_a_training_that_does_not_go_well_is_told(
    curve: list[float], end: float, words: str
) -> None:
    results = [
        result_of(arm, seed, curve, end - 0.3 * (arm == "recipe") + 0.001 * seed)
        for arm in ("once", "recipe")
        for seed in range(3)
    ]
    said = compare_results(results, ARMS, average="tokens").verdict
    assert any(s.startswith(words) for s in said) and len(said) == 1 + bool(words), said
    assert ("reaches its last loss" in said[-1]) == (not words), "the control does so as early"


@pytest.mark.parametrize(
    ("ends", "words", "num_taken"),
    [
        ((4, 6, 8), "ended after 4, 6, 8 of 10 steps, where its versions advised it; with", 6),
        ((4, None, None), "ended after 4 of 10 steps, where its versions advised it, under 1 of 3 "
         "seeds, and took all steps under the others; with 105% of the compute of `once`.", 8),
        ((None,) * 3, "No version of `aimed-stopped` advised an end, so it took all 10 steps", 10),
    ],
)  # fmt: skip
def test_under_which_seeds_a_training_ended_is_told(
    ends: tuple[int | None, ...], words: str, num_taken: int
) -> None:
    """And nothing is said of equal steps, though it took more of the compute."""
    arms = [Arm(name="once", about=""),
            Arm(name="aimed-stopped", about="", overlay=OVERLAYS["aimed-stopped"])]  # fmt: skip
    results = [result_of("once", seed, [4.0, 3.5], 3.0) for seed in range(3)]
    for seed, end in enumerate(ends):
        made = result_of("recipe", seed, [4.0, 3.5], 2.9)
        results.append(dataclasses.replace(made, arm="aimed-stopped", ended_at=end))
    found = compare_results(results, arms, average="tokens")
    assert words in found.verdict[-1] and found.arms[1].num_taken == num_taken
    assert "in as many steps" not in " ".join(found.verdict)


def test_of_few_seeds_numbers_are_told_and_no_finding() -> None:
    """The interval is over held-out rows alone, and says nothing of two runs of one arm."""
    results = [
        dataclasses.replace(result_of(arm, seed, [4.0, 3.5], end), metric=[end, end])
        for arm, end in (("once", 3.0), ("recipe", 2.5), ("clean", 2.9))
        for seed in range(2)
    ]
    said = compare_results(results, ARMS, average="tokens", metric="m").verdict
    assert said[0].startswith("With 2 seeds nothing is shown")
    assert said[1].startswith("Head-room: `clean` less `once` is -0.1") and "2 seeds" in said[1]
    assert said[2].startswith("`recipe` less `once`: -0.") and said[2].endswith("rows alone.")
    assert said[-1].endswith("over held-out rows alone.")
    assert not any("no difference" in sentence for sentence in said)


def test_an_oracle_that_ends_higher_is_said_to() -> None:
    results = [
        result_of(arm, seed, [4.0, 3.5], end + 0.01 * (seed + place))
        for place, (arm, end) in enumerate({"once": 3.0, "clean": 3.4}.items())
        for seed in range(3)
    ]
    said = compare_results(results, ARMS, average="tokens").verdict[0]
    assert said.startswith("No head-room: even the best oracle `clean` ends no lower than `once`")


def test_no_difference_and_no_head_room_are_said() -> None:
    results = [
        result_of(arm, seed, [4.0, 3.5], 3.0 + 0.05 * ((place + seed) % 3))
        for place, arm in enumerate(("random", "once", "recipe", "clean"))
        for seed in range(3)
    ]
    found = compare_results(results, ARMS, average="groups")
    assert found.verdict[0].startswith("No head-room")
    assert "no difference from" in found.verdict[-1]
    alone = compare_results(results[6:9], ARMS, average="tokens")
    assert alone.control is None and "Nothing can be said" in alone.verdict[0]


# --- figures ---


def test_an_oracle_that_wears_its_rows_out_tells_no_lack_of_head_room() -> None:
    """It was ahead half-way: that arms cannot be told apart is not said."""
    middle = {"once": 3.5, "clean": 2.8}
    results = [
        result_of(arm, seed, [4.0, middle[arm]], end + 0.01 * seed)
        for arm, end in (("once", 3.0), ("clean", 3.2))
        for seed in range(3)
    ]
    said = compare_results(results, ARMS, average="tokens").verdict[0]
    assert said.startswith(
        "Head-room at the end is not known: the best oracle `clean` has the last"
    )
    assert "after 41% of its steps" in said and "+0.2" in said


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_ticks_span_the_values_in_round_steps(one: float, two: float) -> None:
    low, high = min(one, two), max(one, two)
    found = ticks(low, high)
    room = 1e-6 * max(abs(low), abs(high), 1)
    assert found[0] <= low + room and found[-1] >= high - room
    assert 2 <= len(found) <= 9


def test_a_figure_is_well_formed_whatever_the_names() -> None:
    curves = [Curve(name=f"<{k}> & co", x=[0, 1, 2], y=[3, 2.5, 2 + 0.01 * k]) for k in range(10)]
    figure = ElementTree.fromstring(draw(curves, title="a < b", x_name="x", y_name="y"))
    lines = figure.findall(".//{http://www.w3.org/2000/svg}polyline")
    assert len(lines) == 10
    styles = {(line.get("stroke"), line.get("stroke-dasharray")) for line in lines}
    assert len(styles) == 10
