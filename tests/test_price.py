"""The budget: what the trainer says of its pace, what measuring costs, and what may be spent."""

from __future__ import annotations

import dataclasses
import json
import math
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from gracekit.checkpoints import TrainerPace, read_pace
from gracekit.model_pass.context import TargetSamples
from gracekit.pace_log import MACHINE, SAMPLES_A_STEP, SECONDS_A_STEP, this_machine
from gracekit.recipe import Recipe
from gracekit.refresher.allowance import LEAST_ROWS, Allowance, allowance
from gracekit.refresher.budget import LEAST_FIRST
from gracekit.refresher.last import LastRefresh
from gracekit.refresher.prices import Prices, prices
from gracekit.refresher.spent import token_counts, with_seconds, with_target
from gracekit.refresher.step import Refreshed, step
from gracekit.refresher.ways import best_way, kept_by, ways
from gracekit.training.pace import PaceClock
from gracekit.types import Origin, Rows, SampleTable
from gracekit.version.header import Timings
from gracekit.version.outcomes import Cost
from tests.stores import make_samples
from tests.test_refresher_step import Drift, with_never

SMOLLM2 = {"hidden_size": 576, "num_layers": 30, "intermediate_size": 1536, "vocab_size": 49152}
PRICES = Prices(measure=0.6, look=0.05)
NOTHING = np.zeros(0, np.int64)


def recipe_of(max_cost: float | None = 0.1, **sections: Any) -> Recipe:
    return Recipe.from_dict({
        "data": {"path": "none.jsonl"},
        "refresh": {"max_cost": max_cost, **sections.pop("refresh", {})},
        "propagation": {"min_measured": 12},
        "graph": {"num_neighbors": 4},
        **sections,
    })  # fmt: skip


def allowed(
    recipe: Recipe,
    pace: TrainerPace,
    *,
    at: int,
    before: Cost | None = None,
    lengths: NDArray[np.int64] | None = None,
) -> Allowance:
    return allowance(
        recipe,
        pace,
        PRICES,
        step=at,
        lengths=np.full(1000, 50) if lengths is None else lengths,
        trained_rows=None,
        before=before,
    )


def write_state(folder: Path, **state: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "trainer_state.json").write_text(json.dumps(state))
    return folder


# --- the trainer's pace ---


def test_the_callback_says_more_than_the_state(tmp_path: Path) -> None:
    log: list[dict[str, Any]] = [{"loss": 1.0, "step": 3}]
    clock = PaceClock()
    for _ in range(2):
        clock.begin()
        time.sleep(0.001)  # a step of less than half a microsecond would count as none
        clock.end()
        clock.note(log, samples_a_step=32, epoch=0.5, step=7)
    assert len(log) == 2
    folder = write_state(
        tmp_path / "c", global_step=7, max_steps=70, train_batch_size=4, log_history=log
    )
    pace = read_pace(folder)
    assert (pace.num_steps, pace.samples_a_step, pace.is_whole_step) == (70, 32, True)
    assert pace.seconds_a_step == log[1][SECONDS_A_STEP]
    log[1][MACHINE] = "another"
    write_state(folder, global_step=7, log_history=log)
    assert read_pace(folder).seconds_a_step is None


def test_a_state_of_another_trainer_says_what_it_has(tmp_path: Path) -> None:
    folder = write_state(
        tmp_path / "c",
        global_step=10,
        max_steps=100,
        train_batch_size=8,
        num_input_tokens_seen=5000,
        log_history=[],
    )
    pace = read_pace(folder)
    assert pace == TrainerPace(num_steps=100, samples_a_step=8, tokens_seen=5000)


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"global_step": True, "max_steps": -1, "train_batch_size": "8"},
        {"global_step": 3, "max_steps": 1e400, "train_batch_size": 1e30, "log_history": 3},
        {"log_history": [3, None, {SAMPLES_A_STEP: None, SECONDS_A_STEP: [], MACHINE: {}}]},
    ],
    ids=str,
)
def test_a_state_without_a_pace_says_nothing(tmp_path: Path, state: dict[str, Any]) -> None:
    assert read_pace(write_state(tmp_path / "c", **state)) == TrainerPace()


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, "\x00"])
def test_a_damaged_state_says_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "trainer_state.json").write_text(text)
    assert read_pace(tmp_path) == TrainerPace()
    assert read_pace(tmp_path / "not there") == TrainerPace()


# --- prices ---


def test_prices_of_smollm2_are_near_what_was_measured() -> None:
    """Measured there: forward .16 to .24, gradient norm with features .44 to .66 (docs/refresh.md),
    the lower third of the blocks .05 to .08."""
    full = prices(SMOLLM2, recipe_of(), 0.6)
    assert 0.55 < full.measure < 0.75
    assert full.look == 0
    forward = prices(SMOLLM2, recipe_of(scoring={"scores": ("loss",), "importance": "loss"}), 0.6)
    assert 0.2 < forward.measure < 0.34
    third = prices(SMOLLM2, recipe_of(scoring={"features": "hidden-mean", "hidden_block": 9}), 0.6)
    assert 0.05 < third.look < 0.1
    adapter = prices({**SMOLLM2, "adapter": {}}, recipe_of(), 0.6)
    assert adapter.measure == pytest.approx(1.5 * full.measure)
    unknown = prices({}, recipe_of(), 0.6)
    assert 0.5 < unknown.measure < 0.8
    sketch = prices(SMOLLM2, recipe_of(scoring={"features": "gradient-sketch"}), 0.6)
    assert sketch.look == sketch.measure


# --- what may be spent ---


def test_the_first_version_may_spend_half_and_the_others_equal_parts() -> None:
    recipe, pace = recipe_of(), TrainerPace(num_steps=100, samples_a_step=8, is_whole_step=True)
    in_all = 0.1 * 100 * 8 * 50
    first = allowed(recipe, pace, at=20)
    assert first.num_refreshes == 5 - 1  # at 20, 40, 60, 80: at 100 the training is over
    assert first.tokens == pytest.approx(in_all / 2)
    account = first.after(np.arange(10), np.arange(10, 20))
    assert account.cost == pytest.approx(10 * 50 * (0.6 + 0.05))
    assert account.num_looked == 10 and account.pace == "callback"
    second = allowed(recipe, pace, at=40, before=account)
    assert second.tokens == pytest.approx((in_all - account.cost) / 3)
    assert second.account.trained_tokens == 40 * 8 * 50
    assert second.account.training_tokens == 100 * 8 * 50


def test_a_run_without_a_plan_is_counted_up_to_the_next_checkpoint() -> None:
    pace = TrainerPace(samples_a_step=8)
    first = allowed(recipe_of(), pace, at=20)
    assert first.tokens == pytest.approx(0.1 * 40 * 8 * 50)
    assert first.account.pace == "batch size"
    longer = TrainerPace(num_steps=30, samples_a_step=8)
    at_40 = first.after(NOTHING, NOTHING).model_copy(update={"trained_step": 40})
    after = allowed(recipe_of(), longer, at=50, before=at_40)
    # 20 steps were counted when the account was written at step 40, and 10 more since.
    assert after.account.training_tokens == pytest.approx((20 + 10 + 10) * 8 * 50)


def test_the_recipe_corrects_the_trainer() -> None:
    recipe = recipe_of(training={"steps": 10, "samples_a_step": 100})
    found = allowed(recipe, TrainerPace(num_steps=99, samples_a_step=1, tokens_seen=5), at=5)
    assert found.account.training_tokens == 10 * 100 * 50
    assert found.account.pace == "recipe"
    seen = allowed(recipe_of(), TrainerPace(num_steps=10, tokens_seen=5 * 777), at=5)
    assert seen.account.trained_tokens == 5 * 777


def test_a_pace_that_changes_counts_from_then_on() -> None:
    first = allowed(recipe_of(), TrainerPace(num_steps=40, samples_a_step=8), at=10)
    then = allowed(
        recipe_of(),
        TrainerPace(num_steps=40, samples_a_step=2),
        at=20,
        before=first.after(NOTHING, NOTHING),
    )
    assert then.account.trained_tokens == 10 * 8 * 50 + 10 * 2 * 50


def test_a_run_that_begins_anew_adds_to_the_account() -> None:
    pace = TrainerPace(num_steps=40, samples_a_step=8, run="first")
    first = allowed(recipe_of(), pace, at=40)
    spent = first.after(np.arange(100), NOTHING)
    again = allowed(recipe_of(), dataclasses.replace(pace, run="second"), at=10, before=spent)
    assert again.account.trained_tokens == 50 * 8 * 50
    assert again.tokens > 0


@pytest.mark.parametrize("run", [None, "first"])
def test_an_earlier_checkpoint_of_a_run_is_no_new_training(run: str | None) -> None:
    pace = TrainerPace(num_steps=100, samples_a_step=8, run=run)
    at_20 = allowed(recipe_of(), pace, at=20).after(np.arange(10), NOTHING)
    at_40 = allowed(recipe_of(), pace, at=40, before=at_20).after(np.arange(5), NOTHING)
    for at in (10, 20, 40):
        again = allowed(recipe_of(), pace, at=at, before=at_40)
        assert again.account.trained_tokens == 40 * 8 * 50
        assert again.account.training_tokens == 100 * 8 * 50
        assert again.num_refreshes == 3, "as far apart as before"
        at_60 = allowed(recipe_of(), pace, at=60, before=again.after(NOTHING, NOTHING))
        assert at_60.account.trained_tokens == 60 * 8 * 50


def test_steps_before_the_pace_was_known_count_once_it_is() -> None:
    unknown = allowed(recipe_of(), TrainerPace(), at=20).after(np.arange(100), NOTHING)
    known = allowed(
        recipe_of(), TrainerPace(num_steps=100, samples_a_step=8), at=40, before=unknown
    )
    assert known.account.trained_tokens == 40 * 8 * 50
    assert known.account.cost_in_all == unknown.cost_in_all > 0
    lost = allowed(recipe_of(), TrainerPace(), at=50, before=known.after(NOTHING, NOTHING))
    assert lost.account.trained_tokens == 40 * 8 * 50, "what was known stays"


def test_a_target_set_is_paid_for_first() -> None:
    pace = TrainerPace(num_steps=100, samples_a_step=8)
    plain = allowed(recipe_of(), pace, at=50)
    aimed = plain.with_target(300.0)
    assert aimed.tokens == pytest.approx(plain.tokens - 300)
    assert aimed.after(NOTHING, NOTHING).cost == 300
    influence = recipe_of(scoring={"scores": ("influence",), "importance": "influence"})
    assert PRICES.of_target(100, influence) == pytest.approx(60)
    assert PRICES.of_target(100, recipe_of()) == pytest.approx(5)
    followed: dict[str, Any] = {"target": {"path": "target.jsonl"}}
    assert PRICES.of_target(100, recipe_of(**followed)) == pytest.approx(60)
    forward = dataclasses.replace(PRICES, loss=0.2)
    likeness = recipe_of(**followed, selection={"aim": "likeness"})
    assert forward.of_target(100, likeness) == pytest.approx(20)


def test_of_a_target_that_is_followed_as_much_is_measured_as_is_paid_for() -> None:
    tokens: Any = Tokens(100)
    target = TargetSamples(
        tokens=tokens, groups=np.zeros(100, np.int32), group_names=("all",),
        contents=np.array([f"{i}" for i in range(100)], object),
    )  # fmt: skip
    recipe = recipe_of(target={"path": "target.jsonl"})
    pace = TrainerPace(num_steps=100, samples_a_step=8)
    plain = allowed(recipe, pace, at=50)
    left, some = with_target(plain, target, recipe)
    assert some is not None and 8 < len(some.groups) < 100
    of_target = PRICES.of_target(50 * len(some.groups), recipe)
    assert of_target <= 0.3 * plain.tokens < of_target + PRICES.of_target(50, recipe)
    assert left.tokens == pytest.approx(plain.tokens - of_target)
    assert some.contents.tolist() == target.contents[: len(some.groups)].tolist()
    nothing = dataclasses.replace(plain, tokens=0.0, own_part=0.0)
    assert with_target(nothing, target, recipe) == (nothing, None)
    left_to_later = dataclasses.replace(nothing, own_part=PRICES.of_target(50 * 9, recipe))
    still, few = with_target(left_to_later, target, recipe)
    assert few is not None and len(few.groups) == 8 and still.tokens == 0, "its loss is wanted"
    assert still.after(NOTHING, NOTHING).cost == pytest.approx(PRICES.of_target(50 * 8, recipe))
    free = dataclasses.replace(nothing, prices=dataclasses.replace(PRICES, look=0.0))
    same, seen = with_target(free, target, recipe)
    assert same == free and seen is not None and len(seen.groups) == 100
    assert not seen.is_followed and not seen.keeps_sketches
    unlimited, whole = with_target(allowed(recipe_of(None), pace, at=50), target, recipe)
    assert whole is target and not unlimited.is_limited
    compared = recipe_of(
        target={"path": "target.jsonl"},
        scoring={"scores": ("influence",), "importance": "influence"},
    )
    assert with_target(plain, target, compared)[1] is target, "a score compares with all of it"
    assert with_target(plain, None, recipe) == (plain, None)


@dataclasses.dataclass
class Tokens:
    """As many samples of 50 tokens."""

    count: int

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.full(self.count, 50)

    def arranged(self, rows: Rows) -> Tokens:
        return Tokens(len(rows))


def test_long_rows_that_come_first_are_counted_as_such() -> None:
    spending = Allowance(
        tokens=2400.0, prices=PRICES, lengths=np.repeat([10, 100], 50),
        account=Cost(cost=0.0, cost_in_all=0.0),
    )  # fmt: skip
    assert spending.num_rows() == 72
    assert spending.num_rows(longer=np.arange(50, 80)) == 30 + 18, "what is left buys plain rows"
    assert spending.num_rows(longer=np.arange(50, 100)) == 40
    assert spending.num_rows(longer=np.arange(50, 51)) == 72, "a single row stops nothing"


def test_parts_too_small_for_any_measuring_are_put_together() -> None:
    pace, rows = TrainerPace(num_steps=400, samples_a_step=8), list[int]()
    before: Cost | None = None
    for at in range(10, 400, 10):
        found = allowed(recipe_of(0.05), pace, at=at, before=before)
        num = found.num_rows()
        rows.append(num if num >= LEAST_ROWS else 0)
        before = found.after(np.arange(rows[-1]), NOTHING)
        assert before.cost_in_all <= 0.05 * before.training_tokens * (1 + 1e-9)
    assert sum(count > 0 for count in rows[1:]) >= 3
    assert before is not None and before.cost_in_all >= 0.8 * 0.05 * before.training_tokens


def test_a_first_version_in_the_midst_of_a_run_leaves_half() -> None:
    pace = TrainerPace(num_steps=400, samples_a_step=8)
    found = allowed(recipe_of(), pace, at=200)
    assert found.tokens == pytest.approx(0.1 * 400 * 8 * 50 / 2)


def test_tokens_seen_since_the_last_account_count() -> None:
    first = allowed(recipe_of(), TrainerPace(num_steps=200, tokens_seen=100_000), at=100)
    then = allowed(
        recipe_of(), TrainerPace(num_steps=200, tokens_seen=105_000), at=150,
        before=first.after(NOTHING, NOTHING),
    )  # fmt: skip
    assert then.account.trained_tokens == 105_000
    assert then.account.training_tokens == 105_000 + 50 * 100


def test_more_steps_than_the_trainer_plans_do_not_count(caplog: pytest.LogCaptureFixture) -> None:
    recipe = recipe_of(training={"steps": 100_000})
    found = allowed(recipe, TrainerPace(num_steps=400, samples_a_step=8), at=100)
    assert found.account.training_tokens == 400 * 8 * 50
    assert "the trainer plans 400" in caplog.text


def test_prices_follow_how_deep_a_score_goes_back() -> None:
    def measure(score: str) -> float:
        return prices(
            SMOLLM2, recipe_of(scoring={"scores": (score,), "importance": score}), 0.6
        ).measure

    assert measure("loss") == measure("lm-head") < measure("gradient-norm-last")
    assert measure("gradient-norm-last") < 0.7 * measure("gradient-norm")
    assert measure("loss") < measure("ifd") < 2 * measure("loss")


def test_without_a_pace_there_is_no_limit_and_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    found = allowed(recipe_of(), TrainerPace(num_steps=100), at=5)
    assert not found.is_limited and found.has_budget
    assert "training.samples_a_step" in caplog.text
    caplog.clear()
    assert not allowed(recipe_of(None), TrainerPace(), at=5).has_budget
    assert not caplog.text


def test_seconds_that_are_used_up_end_it_too() -> None:
    pace = TrainerPace(num_steps=100, samples_a_step=8, seconds_a_step=1.0)
    first = allowed(recipe_of(), pace, at=20)
    cheap = first.after(np.arange(10), NOTHING)
    # Of ten seconds in all seven are gone; two more versions take half a second each, this one too.
    spent = {"cost_seconds": 7.0, "pass_seconds": 5.0, "other_seconds": 0.5}
    then = allowed(recipe_of(), pace, at=40, before=cheap.model_copy(update=spent))
    assert then.tokens == pytest.approx(1.5 / (5.0 / cheap.cost) / 3)
    gone = cheap.model_copy(update=spent | {"cost_seconds": 11.0})
    assert allowed(recipe_of(), pace, at=40, before=gone).tokens == 0


def test_later_versions_are_not_taken_to_read_the_data_as_the_first_one_did() -> None:
    pace = TrainerPace(num_steps=100, samples_a_step=8, seconds_a_step=1.0)
    first = allowed(recipe_of(), pace, at=20).after(np.arange(10), NOTHING)
    spent = with_seconds(first, Timings(model_pass_s=1.0, other_s=2.0))
    then = allowed(recipe_of(), pace, at=40, before=spent)
    assert then.left == pytest.approx((10 - 3 - 3 * 0.6) / (1.0 / first.cost))
    # What the second one took is known.
    second = with_seconds(then.after(NOTHING, NOTHING), Timings(model_pass_s=0.0, other_s=1.0))
    later = allowed(recipe_of(), pace, at=60, before=second)
    assert later.left == pytest.approx((10 - 4 - 2 * 1.0) / (1.0 / first.cost))


def test_what_a_first_version_takes_to_load_is_set_aside() -> None:
    pace = TrainerPace(num_steps=100, samples_a_step=8, seconds_a_step=1.0)
    of_token = 1.0 / (8 * 50)
    found = allowance(
        recipe_of(), pace, PRICES, step=20, lengths=np.full(1000, 50), trained_rows=None,
        before=None, elapsed_s=2.0,
    )  # fmt: skip
    assert found.tokens == pytest.approx((10 - 2 - 4 * 0.6) / of_token / 2)


@given(
    max_cost=st.floats(0, 1),
    gaps=st.lists(st.integers(1, 50), min_size=1, max_size=8),
    batches=st.lists(st.integers(1, 64), min_size=8, max_size=8),
    spends=st.lists(st.floats(0, 1), min_size=8, max_size=8),
    planned=st.integers(0, 100),
)
def test_no_chain_of_versions_spends_more_than_its_share(
    max_cost: float, gaps: list[int], batches: list[int], spends: list[float], planned: int
) -> None:
    at = 0
    before: Cost | None = None
    for gap, batch, part in zip(gaps, batches, spends, strict=False):
        at += gap
        pace = TrainerPace(num_steps=planned or None, samples_a_step=batch)
        found = allowed(recipe_of(max_cost), pace, at=at, before=before)
        assert found.tokens >= 0
        rows = np.arange(int(found.num_rows() * part))
        cost = found.after(rows, NOTHING)
        assert cost.cost <= found.tokens + 1e-6
        if before is None or cost.cost > 0:
            allowed_in_all = max_cost * found.account.training_tokens
            assert cost.cost_in_all <= allowed_in_all * (1 + 1e-9) + 1e-6
        before = cost


# --- ways ---


@given(st.floats(0, 3), st.integers(40, 5000), st.floats(0.01, 1), st.floats(0, 1))
def test_the_way_that_is_taken_is_paid_for(
    budget: float, n: int, measure: float, look: float
) -> None:
    lengths = np.full(n, 20)
    spending = Allowance(
        tokens=budget * lengths.sum(),
        prices=Prices(measure=measure, look=look),
        lengths=lengths,
        account=Cost(cost=0.0, cost_in_all=0.0, max_cost=0.1),
    )
    found = ways(spending, n=n, least=min(LEAST_FIRST, n), most=n)
    way = best_way(found, spending, 30)
    assert way.cost <= spending.tokens
    allowed = [each for each in found if each.num_rows >= 30 or each.num_rows == 0]
    assert all(each.value <= way.value + 0.005 for each in allowed if each.cost <= spending.tokens)
    assert 1 <= way.value <= max(each.value for each in found)
    shares = [kept_by(m, n) for m in range(0, n + 1, max(1, n // 20))]
    assert shares == sorted(shares) and kept_by(n, n) == pytest.approx(1)


# --- a first version from a fraction ---

NUM = 900


def first_version(
    max_cost: float = 0.1, tokens: float | None = None, **refresh: Any
) -> tuple[Refreshed, Drift, SampleTable, Recipe]:
    samples, drift = make_samples(NUM), Drift(NUM, 0, noise=0.05)
    recipe = recipe_of(max_cost, refresh=refresh)
    spending = spending_of(samples, tokens)
    made = step(None, drift, recipe, samples=samples, step=10, version=1, allowance=spending)
    return made, drift, samples, recipe


def spending_of(samples: SampleTable, rows: float | None, max_cost: float = 0.1) -> Allowance:
    """Enough to measure so many rows; None: no limit, as where the pace is not known."""
    lengths = token_counts(samples)
    of_row = PRICES.measure * float(lengths.mean())
    return Allowance(
        tokens=math.inf if rows is None else rows * of_row,
        prices=Prices(measure=PRICES.measure, look=0.0),
        lengths=lengths,
        account=Cost(cost=0.0, cost_in_all=0.0, max_cost=max_cost),
    )


def test_a_first_version_measures_a_part_and_estimates_the_rest() -> None:
    made, drift, _, _ = first_version(tokens=120)
    num = len(made.plan.rows)
    assert 100 <= num <= 120 and made.outcome.num_measured == num
    assert drift.num_looked == NUM - num == made.cost.num_looked
    assert made.valid.all()
    np.testing.assert_allclose(
        made.features[made.plan.rows], drift._features[made.plan.rows], rtol=1e-3, atol=1e-3
    )
    is_measured = made.scores.origin == Origin.MEASURED
    assert set(np.flatnonzero(is_measured)) == set(made.plan.rows)
    assert (made.scores.origin[~is_measured] == Origin.PROPAGATED).all()
    assert (made.scores.measured_step[~is_measured] == -1).all()
    assert all(np.isfinite(score).all() for score in made.scores.scores.values())
    assert made.audit is not None and made.meter.num_told_by >= 100
    draw = made.selection.draw
    assert draw is not None and (draw.probabilities > 0).all()
    assert len(np.unique(made.selection.rows)) == round(0.3 * NUM)
    # What the clusters share is known of the rows that were not measured.
    truth, found = drift._level, made.scores.scores["gradient-norm"]
    error = np.log(found / truth)[~is_measured]
    assert np.isfinite(error).all() and abs(error.mean()) < 3 / math.sqrt(num)


def test_what_was_not_measured_is_not_believed() -> None:
    made, _, _, _ = first_version(tokens=120)
    others = made.scores.origin == Origin.PROPAGATED
    assert (made.scores.confidence[others] < 0.9).all()
    assert (made.scores.confidence[~others] == 1).all()


def test_the_next_version_goes_on_from_a_first_part() -> None:
    made, drift, samples, recipe = first_version(tokens=120)
    drift.train()
    looked = drift.num_looked
    then = step(
        made.as_last(None), drift, recipe, samples=samples, step=20, version=2,
        allowance=spending_of(samples, 60),
    )  # fmt: skip
    assert 50 <= len(then.plan.rows) <= 60
    assert drift.num_looked == looked
    assert then.scores.usable.all()
    assert then.cost.cost <= 60 * PRICES.measure * token_counts(samples).mean() * 1.05


def test_without_a_pace_a_first_version_measures_a_few_all_the_same() -> None:
    made, drift, _, _ = first_version(tokens=None, target_value=0.0)
    assert len(made.plan.rows) == LEAST_FIRST
    assert drift.num_looked == NUM - LEAST_FIRST


def test_without_a_budget_a_first_version_measures_everything() -> None:
    samples, drift = make_samples(NUM), Drift(NUM, 0, noise=0.05)
    made = step(None, drift, recipe_of(None), samples=samples, step=10, version=1)
    assert len(made.plan.rows) == NUM and drift.num_looked == 0


@pytest.mark.parametrize("rows", [0, 29])
def test_too_little_for_any_measuring_draws_all_alike(
    rows: int, caplog: pytest.LogCaptureFixture
) -> None:
    made, drift, samples, recipe = first_version(tokens=rows)
    assert not drift.asked and not drift.num_looked
    assert made.outcome.num_measured == 0 and made.cost.cost == 0
    assert "allows no measuring" in caplog.text
    assert (made.scores.origin == Origin.NEVER).all()
    draw = made.selection.draw
    assert draw is not None
    np.testing.assert_allclose(draw.probabilities, 0.3, rtol=1e-6)
    assert len(made.selection.rows) == round(0.3 * NUM)
    # Once it is paid for, a later version begins as a first one does.
    then = step(
        made.as_last(None), drift, recipe, samples=samples, step=20, version=2,
        allowance=spending_of(samples, 100),
    )  # fmt: skip
    assert 90 <= len(then.plan.rows) <= 100 and then.scores.usable.all()


def test_with_nothing_left_scores_stay_and_a_new_draw_is_made() -> None:
    made, drift, samples, recipe = first_version(tokens=120)
    drift.train()
    drift.asked.clear()
    then = step(
        made.as_last(None), drift, recipe, samples=samples, step=20, version=2,
        allowance=spending_of(samples, 5),
    )  # fmt: skip
    assert not drift.asked
    assert (then.scores.origin == Origin.STALE).all()
    for name, score in made.scores.scores.items():
        np.testing.assert_array_equal(then.scores.scores[name], score)
    np.testing.assert_array_equal(then.scores.measured_step, made.scores.measured_step)
    assert set(then.selection.rows) != set(made.selection.rows)
    assert then.outcome.num_since_full == made.outcome.num_since_full + 1


def grown(made: Refreshed, num_new: int) -> tuple[LastRefresh, Rows]:
    new = np.random.default_rng(1).permutation(NUM)[:num_new]
    return with_never(made.as_last(None), new), new


def test_rows_that_the_budget_does_not_reach_are_drawn_by_their_neighbours() -> None:
    made, drift, samples, recipe = first_version(tokens=300)
    last, new = grown(made, 200)
    looked = drift.num_looked
    then = step(
        last, drift, recipe, samples=samples, step=20, version=2,
        allowance=spending_of(samples, 60),
    )  # fmt: skip
    waiting = np.setdiff1d(new, then.plan.rows)
    assert len(waiting) >= 140
    assert drift.num_looked - looked == len(waiting)
    assert (then.scores.origin[waiting] == Origin.PROPAGATED).all()
    assert np.isfinite(then.scores.scores["gradient-norm"]).all()
    draw = then.selection.draw
    assert draw is not None and (draw.probabilities[waiting] > 0).all()


def test_without_a_limit_rows_that_joined_wait_until_they_are_measured() -> None:
    made, drift, samples, recipe = first_version(tokens=300)
    last, new = grown(made, 600)
    then = step(
        last, drift, recipe, samples=samples, step=20, version=2,
        allowance=spending_of(samples, None),
    )  # fmt: skip
    waiting = np.setdiff1d(new, then.plan.rows)
    assert len(waiting) and (then.scores.origin[waiting] == Origin.NEVER).all()


def test_a_full_refresh_by_count_is_made_only_where_it_is_paid_for() -> None:
    made, drift, samples, recipe = first_version(tokens=120, full_every=1)
    last = made.as_last(None)
    poor = step(
        last, drift, recipe, samples=samples, step=20, version=2,
        allowance=spending_of(samples, 60),
    )  # fmt: skip
    assert len(poor.plan.rows) <= 60
    rich = step(
        poor.as_last(last), drift, recipe, samples=samples, step=30, version=3,
        allowance=spending_of(samples, NUM + 1),
    )  # fmt: skip
    assert len(rich.plan.rows) == NUM


def test_this_machine_has_a_name() -> None:
    assert platform.node() not in this_machine(), "a hash, which a log may hold"
    assert this_machine().isalnum()


def test_rows_without_a_target_cost_nothing_and_are_not_waited_for() -> None:
    samples, drift = make_samples(NUM), Drift(NUM, 0, noise=0.05)
    no_target = np.arange(0, NUM, 9)
    targets = samples.num_response_tokens.copy()
    targets[no_target] = 0
    samples = dataclasses.replace(samples, num_response_tokens=targets)
    recipe, spending = recipe_of(), spending_of(samples, 120)
    assert (spending.lengths[no_target] == 0).all()
    made = step(None, drift, recipe, samples=samples, step=10, version=1, allowance=spending)
    assert (made.scores.origin[no_target] == Origin.INVALID).all()
    then = step(
        made.as_last(None), drift, recipe, samples=samples, step=20, version=2,
        allowance=spending_of(samples, 60),
    )  # fmt: skip
    assert not np.isin(then.plan.rows, no_target).any()
    assert then.cost.cost <= spending_of(samples, 60).tokens * 1.1


def test_rows_without_a_target_do_not_keep_a_version_from_being_whole() -> None:
    n = 2 * LEAST_FIRST - 12
    samples, drift = make_samples(n), Drift(n, 0, noise=0.05)
    targets = samples.num_response_tokens.copy()
    targets[::5] = 0
    samples = dataclasses.replace(samples, num_response_tokens=targets)
    recipe = recipe_of(refresh={"full_every": 2})
    rich = spending_of(samples, None)
    made = step(None, drift, recipe, samples=samples, step=10, version=1, allowance=rich)
    assert len(made.plan.rows) == n
    last = made.as_last(None)
    for at, is_full in ((20, False), (30, True)):
        then = step(last, drift, recipe, samples=samples, step=at, version=2, allowance=rich)
        assert (len(then.plan.rows) == n) == is_full
        last = then.as_last(last)
