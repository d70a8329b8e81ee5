"""The budget of whole refreshes: real checkpoints, stops, a second daemon, a plan beside them."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gracekit
from gracekit.checkpoints import check_checkpoint
from gracekit.cli.output import Output
from gracekit.cli.results import print_plan
from gracekit.errors import RefreshStoppedError, StoreWriteError
from gracekit.pace_log import MACHINE, SAMPLES_A_STEP, SECONDS_A_STEP, this_machine
from gracekit.progress import Progress
from gracekit.recipe import Recipe
from gracekit.refresher.clock import StageClock
from gracekit.refresher.flow import Refresher
from gracekit.refresher.previewing import model_beside, plan_next
from gracekit.refresher.run_cost import RunCost
from gracekit.refresher.ways import kept_by, rows_that_keep
from gracekit.store import Store
from gracekit.types import Origin
from gracekit.version.header import Header
from gracekit.version.outcomes import Cost
from gracekit.views.cost_words import cost_in_words
from tests.tiny import tiny_recipe, write_checkpoint, write_data

NUM = 600
STEPS, BATCH = 400, 32


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of a run of 400 steps of 32 samples, and its data."""
    folder = tmp_path_factory.mktemp("run")
    write_data(folder / "train.jsonl", num_samples=NUM)
    for step in (100, 200, 300):
        saved = write_checkpoint(folder / "run", step)
        state = {"global_step": step, "max_steps": STEPS, "train_batch_size": BATCH}
        (saved / "trainer_state.json").write_text(json.dumps(state))
    return folder


def recipe_in(run_dir: Path, store: Path, **refresh: Any) -> Recipe:
    settings = {"min_fraction": 0.1, "max_fraction": 0.3, "max_cost": 0.01, **refresh}
    return tiny_recipe(run_dir, refresh=settings, store=str(store))


def untrained(folder: Path) -> Path:
    """A model before its first step, which no trainer has written."""
    start = write_checkpoint(folder, 0)
    (start / "trainer_state.json").unlink()
    return start.rename(folder / "start")


def refreshed(recipe: Recipe, run_dir: Path, step: int, progress: Progress | None = None) -> Header:
    refresher = Refresher.from_recipe(recipe)
    found = check_checkpoint(run_dir / f"run/checkpoint-{step}", recipe.checkpoints)
    with refresher.locked():
        return refresher.refresh(found, progress=progress).header


def account(header: Header) -> Cost:
    assert header.cost is not None
    return header.cost


def require_within(header: Header) -> None:
    cost = account(header)
    assert cost.cost_in_all <= 0.01 * cost.training_tokens * 1.02  # rows differ in length
    assert cost.share <= 0.0102


class StopsSoon(Progress):
    """Asks to stop after some batches."""

    def __init__(self, num_rows: int) -> None:
        super().__init__(threading.Event())
        self.num_rows = num_rows

    def advance(self, num_rows: int, num_tokens: int) -> None:
        super().advance(num_rows, num_tokens)
        self.num_rows -= num_rows

    @property
    def is_stopping(self) -> bool:
        return self.num_rows <= 0


def test_all_versions_stay_within_the_budget(run_dir: Path, tmp_path: Path) -> None:
    recipe = recipe_in(run_dir, tmp_path / "store")
    headers = [refreshed(recipe, run_dir, step) for step in (100, 200, 300)]
    measured = [header.stats.num_measured or 0 for header in headers]
    assert 30 <= measured[0] < NUM / 2 and all(0 < m < NUM / 2 for m in measured[1:])
    for header in headers:
        require_within(header)
    costs = [account(header) for header in headers]
    assert costs[-1].cost_in_all == pytest.approx(sum(cost.cost for cost in costs))
    assert costs[0].num_looked == NUM - measured[0] and costs[0].pace == "batch size"
    assert costs[0].training_tokens == pytest.approx(costs[2].training_tokens, rel=0.1)
    store = Store.open(tmp_path / "store")
    scores = store.scores(3)
    assert scores.usable.all()
    assert (scores.measured_step[scores.origin == Origin.PROPAGATED] == -1).any()
    assert not gracekit.verify(tmp_path / "store").problems
    table = gracekit.sql(tmp_path / "store", "SELECT cost, cost_in_all, allowance FROM versions")
    found = table.to_arrow().column("cost").to_pylist()
    assert found == pytest.approx([cost.cost for cost in costs])
    words = " ".join(cost_in_words(costs[-1]))
    assert "of the training's compute (at most 1% is allowed)" in words
    assert "of the training's compute" in str(gracekit.status(tmp_path / "store"))


def test_reading_and_commits_count_in_the_seconds(run_dir: Path, tmp_path: Path) -> None:
    recipe = recipe_in(run_dir, tmp_path / "store")
    refresher = Refresher.from_recipe(recipe)
    headers = []
    for step in (100, 200, 300):
        found = check_checkpoint(run_dir / f"run/checkpoint-{step}", recipe.checkpoints)
        with refresher.locked():
            headers.append(refresher.refresh(found).header)
    first, *later = (header.timings for header in headers)
    assert first.stages["read"] > 0 and "last_commit" not in first.stages
    assert all(t.stages["last_commit"] > 0 and "read" not in t.stages for t in later)
    spent = [account(header).cost_seconds for header in headers]
    totals = [header.timings.total_s or 0.0 for header in headers]
    np.testing.assert_allclose(spent, np.cumsum(totals), atol=0.005)
    for header in headers:
        in_stages = sum(header.timings.stages.values()) + (header.timings.model_pass_s or 0.0)
        assert in_stages <= (header.timings.total_s or 0.0) + 0.01


def test_what_no_account_holds_yet_counts_once_when_a_refresh_is_repeated(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_in(run_dir, tmp_path / "store")
    refresher = Refresher.from_recipe(recipe)
    first, second = (
        check_checkpoint(run_dir / f"run/checkpoint-{step}", recipe.checkpoints)
        for step in (100, 200)
    )

    def full(*_: object, **__: object) -> int:
        raise StoreWriteError("the disk is full")

    with refresher.locked():
        with monkeypatch.context() as patched:
            patched.setattr(Store, "commit", full)
            with pytest.raises(StoreWriteError):
                refresher.refresh(first)
        made = refresher.refresh(first)
        again = refresher.refresh(first)
        assert not again.is_new and again.header == made.header
        later = refresher.refresh(second)
    assert made.header.timings.stages["read"] > 0
    stages = later.header.timings.stages
    assert stages["last_commit"] > 0 and "read" not in stages


def test_a_refresh_that_was_stopped_costs_what_it_measured_once(
    run_dir: Path, tmp_path: Path
) -> None:
    recipe = recipe_in(run_dir, tmp_path / "store")
    for num_rows in (3, 20):
        with pytest.raises(RefreshStoppedError):
            refreshed(recipe, run_dir, 100, StopsSoon(num_rows))
    first = refreshed(recipe, run_dir, 100)
    whole = refreshed(recipe_in(run_dir, tmp_path / "whole"), run_dir, 100)
    assert first.refresh is not None and first.refresh.num_resumed > 0
    assert account(first).cost == account(whole).cost
    a, b = Store.open(tmp_path / "store").scores(1), Store.open(tmp_path / "whole").scores(1)
    for name, score in a.scores.items():
        np.testing.assert_allclose(score, b.scores[name], rtol=1e-5)
    # A second daemon goes on with the account of the first one.
    for step in (200, 300):
        require_within(refreshed(recipe, run_dir, step))


def test_the_plan_says_what_is_spent(run_dir: Path, tmp_path: Path) -> None:
    recipe = recipe_in(run_dir, tmp_path / "store")
    checkpoint = run_dir / "run/checkpoint-100"
    shown = gracekit.refresh(recipe, checkpoint, dry_run=True)
    assert {way.name for way in shown.ways} >= {"draw all alike", "measure everything"}
    assert shown.run.everything > shown.run.training > shown.run.selection
    headers = [refreshed(recipe, run_dir, step) for step in (100, 200, 300)]
    first, last = account(headers[0]), account(headers[-1])
    assert shown.cost.cost <= first.cost
    assert shown.num_rows <= (headers[0].stats.num_measured or 0) <= shown.max_rows
    assert last.cost_in_all == pytest.approx(shown.run.selection, rel=0.2)
    assert json.loads(json.dumps(shown.to_json()))["cost"]["pace"] == "batch size"


def test_a_plan_of_a_run_whose_draws_need_more_than_the_least(
    run_dir: Path, tmp_path: Path
) -> None:
    """Later refreshes go up to what `target_value` is likely to need, or to `max_fraction`."""
    generous = {"max_cost": 1.0, "min_fraction": 0.1, "target_value": 1.0}
    recipe = recipe_in(run_dir, tmp_path / "store", **generous, max_fraction=0.15)
    shown = gracekit.refresh(recipe, run_dir / "run/checkpoint-100", dry_run=True)
    headers = [refreshed(recipe, run_dir, step) for step in (100, 200, 300)]
    measured = [header.stats.num_measured or 0 for header in headers]
    assert measured[1:] == [90, 90]
    assert account(headers[-1]).cost_in_all == pytest.approx(shown.run.selection, rel=0.05)


def test_a_plan_before_the_first_step(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """How far apart checkpoints are only the recipe can tell."""
    start = untrained(tmp_path)
    recipe = recipe_in(run_dir, tmp_path / "store")
    known = {"training.steps": STEPS, "training.samples_a_step": BATCH}

    def planned(**more: Any) -> tuple[RunCost, str]:
        plan = gracekit.refresh(recipe, start, dry_run=True, set={**known, **more})
        print_plan(Output(), plan)
        text = " ".join(capsys.readouterr().out.split())  # lines end where the terminal does
        return plan.run, text[text.index("run in all") :]

    unknown, words = planned()
    assert "at most 1.0% for selection" in words and "training.checkpoint_every" in words
    assert unknown.refreshes is None
    assert unknown.selection == pytest.approx(0.01 * unknown.training)
    none, words = planned(**{"refresh.max_cost": None})
    assert none.refreshes is None and math.isnan(none.selection) and "cannot be told" in words
    told, words = planned(**{"training.checkpoint_every": 100})
    assert told.refreshes == 3, "at 100, 200 and 300"
    assert told.from_step == 100
    assert "in 3 refreshes from step 100 on; training and selection" in words
    last = [refreshed(recipe, run_dir, step) for step in (100, 200, 300)][-1]
    assert account(last).cost_in_all == pytest.approx(told.selection, rel=0.2)


@pytest.mark.parametrize(("seconds", "part"), [(1e-12, 0), (math.nan, 1), (1e6, 1)])
def test_a_plan_before_the_first_step_counts_the_seconds_of_the_pass(
    run_dir: Path, tmp_path: Path, seconds: float, part: int
) -> None:
    """Training a token is taken to need what measuring one takes, by their prices."""
    start = untrained(tmp_path)
    known = {"steps": STEPS, "samples_a_step": BATCH, "checkpoint_every": 100}
    recipe = recipe_in(run_dir, tmp_path / "store").override({"training": known})
    found = check_checkpoint(start, recipe.checkpoints)
    refresher = Refresher.from_recipe(recipe)
    with model_beside(refresher, found) as (_, model):
        tokens = model.tokens(refresher.samples)
    planned = plan_next(refresher, found, lambda: tokens, target=None, clock=StageClock())
    run = planned.run_at(seconds)
    assert run.selection == pytest.approx(part * 0.01 * run.training, rel=0.05)
    told = gracekit.plan(recipe, start).plan.run
    assert told.from_step == 100 and told.selection_elsewhere == planned.shown.run.selection > 0
    assert 0 <= told.selection <= told.selection_elsewhere


def test_the_words_say_on_which_machine_the_training_is_taken_to_run(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_in(run_dir, tmp_path / "store")
    plan = gracekit.refresh(recipe, run_dir / "run/checkpoint-100", dry_run=True)
    run = RunCost(
        training=1e6, selection=4e4, everything=3e6, refreshes=3, from_step=100,
        selection_elsewhere=1e5,
    )  # fmt: skip
    print_plan(Output(), dataclasses.replace(plan, run=run))
    words = " ".join(capsys.readouterr().out.split())
    assert "about 4.0% for selection in 3 refreshes from step 100 on if the training runs" in words
    assert "on another one about 10.0%;" in words
    unknown = dataclasses.replace(run, refreshes=None, from_step=None)
    print_plan(Output(), dataclasses.replace(plan, run=unknown))
    words = " ".join(capsys.readouterr().out.split())
    assert "at most 4.0% for selection if the training runs on this machine" in words
    assert "on another one about 10.0%: how many steps" in words


def test_a_run_that_ends_before_its_first_checkpoint_is_planned_as_long_as_it_is(
    run_dir: Path, tmp_path: Path
) -> None:
    start = untrained(tmp_path)
    known = {"training.steps": STEPS, "training.samples_a_step": BATCH}
    recipe = recipe_in(run_dir, tmp_path / "store").override(known)

    def planned(every: int) -> RunCost:
        asked = recipe.override({"training.checkpoint_every": every})
        return gracekit.refresh(asked, start, dry_run=True).run

    at_end, never = planned(STEPS), planned(2 * STEPS)
    assert never.from_step == at_end.from_step == STEPS and never.refreshes == 1
    assert never.training == at_end.training
    assert never.selection == at_end.selection


@pytest.mark.parametrize("pace", [{}, {"training": {"steps": STEPS, "samples_a_step": BATCH}}])
def test_a_plan_warns_once(
    run_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, pace: dict[str, Any]
) -> None:
    recipe = recipe_in(run_dir, tmp_path / "store").override(pace)
    gracekit.plan(recipe, untrained(tmp_path))
    warnings = [each.message for each in caplog.records if each.name.startswith("gracekit")]
    assert len(warnings) == len(set(warnings)), warnings
    assert any("how fast the training goes" in each for each in warnings) == (not pace)


@pytest.mark.parametrize(("seconds", "part"), [(1e-6, 0), (1e6, 1)])
def test_a_plan_counts_the_seconds_too(
    run_dir: Path, tmp_path: Path, seconds: float, part: int
) -> None:
    checkpoint = shutil.copytree(run_dir / "run/checkpoint-100", tmp_path / "checkpoint-100")
    entry = {SAMPLES_A_STEP: BATCH, SECONDS_A_STEP: seconds, MACHINE: this_machine(), "step": 100}
    state = {"global_step": 100, "max_steps": STEPS, "log_history": [entry]}
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    recipe = recipe_in(run_dir, tmp_path / "store")
    shown = gracekit.refresh(recipe, checkpoint, dry_run=True)
    assert shown.run.selection == pytest.approx(part * 0.01 * shown.run.training)
    assert (shown.num_rows > 0) == bool(part)


@pytest.mark.parametrize("n", [1, 40, 700])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.75, 0.97, 1.0])
def test_the_rows_that_keep_a_share_are_the_fewest(n: int, share: float) -> None:
    rows = rows_that_keep(share, n)
    assert rows == next(m for m in range(n + 1) if m == n or kept_by(m, n) >= share)


def test_what_was_measured_for_no_version_is_accounted(run_dir: Path, tmp_path: Path) -> None:
    recipe = recipe_in(run_dir, tmp_path / "store")
    with pytest.raises(RefreshStoppedError):
        refreshed(recipe, run_dir, 100, StopsSoon(30))
    measured, looked = Store.open(tmp_path / "store").left_over("another")
    assert len(measured) >= 30 and not len(looked)
    second = refreshed(recipe, run_dir, 200)  # the trainer has gone on
    cost = account(second)
    lost = cost.cost_in_all - cost.cost
    assert lost == pytest.approx(cost.price * 15 * len(measured), rel=0.5)
    require_within(second)
    assert account(refreshed(recipe, run_dir, 300)).cost_in_all >= cost.cost_in_all


def test_the_cost_is_told_where_nothing_may_be_measured(run_dir: Path, tmp_path: Path) -> None:
    recipe = recipe_in(run_dir, tmp_path / "store", max_cost=0.0)
    found = gracekit.plan(recipe, run_dir / "run/checkpoint-100")
    assert found.plan.num_rows == 0 and found.tokens_per_s > 0 and not found.obstacles


def test_a_budget_too_small_draws_alike_and_says_so(
    run_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = recipe_in(run_dir, tmp_path / "store", max_cost=1e-5)
    header = refreshed(recipe, run_dir, 100)
    assert header.stats.num_measured == 0 and account(header).cost == 0
    assert "allows no measuring" in caplog.text
    assert header.stats.num_selected == round(0.3 * NUM)
    told = str(gracekit.status(tmp_path / "store"))
    assert "not known" in told and "Next: raise refresh.max_cost" in told
    again = refreshed(recipe, run_dir, 200)
    assert again.stats.num_measured == 0 and again.version == 2
    richer = refreshed(recipe_in(run_dir, tmp_path / "store"), run_dir, 300)
    assert (richer.stats.num_measured or 0) >= 30
    assert not gracekit.verify(tmp_path / "store").problems
    assert not math.isnan(account(richer).share)
