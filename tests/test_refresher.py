"""Whole refreshes on a tiny real model: the flow, resuming, and what bad input does."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gracekit
from gracekit.checkpoints import check_checkpoint
from gracekit.errors import (
    CheckpointMismatchError,
    DataError,
    MeasureError,
    RecipeError,
    RefreshStoppedError,
    StoreDataMismatchError,
    StoreError,
    StoreLockedError,
    StoreNotFoundError,
    StoreWriteError,
)
from gracekit.progress import Progress
from gracekit.refresher import (
    Refresher,
    estimate,
    flow,
    preview,
    refresh,
    reselect,
    rollback,
)
from gracekit.refresher.step import step as make_step
from gracekit.samples import tokens
from gracekit.samples.render import Renderer
from gracekit.store import ShardFiles, Store, lock_store, read_uses, uses_path, verify, write_uses
from gracekit.store.retention import collect
from gracekit.training import CoresetSampler
from gracekit.types import Measurement, Origin, Rows
from tests.faults import failing_at
from tests.stores import changed_samples, make_draft, make_store, outcome
from tests.tiny import (
    NUM_SAMPLES,
    make_tokenizer,
    recipe_content,
    tiny_recipe,
    write_checkpoint,
    write_data,
)

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three checkpoints of one run."""
    run = tmp_path_factory.mktemp("run")
    for step in (10, 20, 30):
        write_checkpoint(run, step)
    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_data(tmp_path / "train.jsonl")
    return tmp_path


def test_first_version_measures_everything_and_later_ones_a_part(
    folder: Path, run_dir: Path
) -> None:
    recipe = tiny_recipe(folder)
    results = [refresh(recipe, run_dir / f"checkpoint-{step}") for step in (10, 20, 30)]
    assert [r.version for r in results] == [1, 2, 3]
    assert all(r.is_new for r in results)
    store = Store.open(folder / "store")
    assert verify(store) == []
    first, second = store.scores(1), store.scores(2)
    assert (first.origin == Origin.MEASURED).all()
    measured = second.origin == Origin.MEASURED
    assert 0.35 < measured.mean() < 0.55
    assert (second.measured_step[measured] == 20).all()
    assert (second.measured_step[~measured] == 10).all()
    audit = results[1].header.audit
    assert audit is not None
    assert audit.num_probe == measured.sum(), "all of them were drawn at random"
    assert results[1].header.stats.num_measured == measured.sum()
    assert results[1].header.parent_version == 1
    for result in results:
        coreset = gracekit.Coreset.load(folder / "store", version=result.version)
        assert len(coreset.rows) == round(0.3 * NUM_SAMPLES)
        assert coreset.weights.mean() == pytest.approx(1, abs=1e-5)


def test_a_refresh_knows_the_losses_that_the_trainer_saw(
    folder: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = tiny_recipe(folder)
    refresh(recipe, run_dir / "checkpoint-10")
    root = folder / "store"
    sampler = CoresetSampler(root, NUM_SAMPLES, num_samples=40)
    sampler.set_epoch(0)
    rows = np.arange(0, NUM_SAMPLES, 2)
    sampler.note_losses(rows, np.linspace(1, 2, len(rows), dtype=np.float32), rows * 0 + 11)
    sampler.log_uses(20)
    sampler.note_losses(rows + 1, np.ones(len(rows), np.float32), rows * 0 + 25)
    sampler.log_uses(29)
    started: list[Any] = []
    take_step = make_step

    def looked_at(last: Any, *args: Any, **more: Any) -> Any:
        started.append(dataclasses.replace(last, trained=more["trained"]))
        return take_step(last, *args, **more)

    monkeypatch.setattr(flow, "step", looked_at)
    refresh(recipe, run_dir / "checkpoint-20")
    (last,) = started
    assert np.flatnonzero(last.trained.known).tolist() == rows.tolist(), "not of later steps"
    seen, covariates = last.seen(), last.covariates(20)
    assert seen.shape == (NUM_SAMPLES, 2) and seen[:, 1].sum() == len(rows)
    assert not seen[1::2].any() and np.ptp(seen[::2, 0]) == pytest.approx(np.log(2), abs=1e-5)
    np.testing.assert_array_equal(covariates[:, -2:], seen)
    few = dataclasses.replace(last, trained=last.trained.without(np.arange(NUM_SAMPLES) > 50))
    assert few.seen().shape == (NUM_SAMPLES, 0)
    assert few.covariates(20).shape[1] == covariates.shape[1] - 2

    # Of other data, a log is passed over.
    assert sampler.run is not None
    path = uses_path(Store.open(root).paths, sampler.run, 29)
    logged = read_uses(path)
    write_uses(
        Store.open(root).paths,
        dataclasses.replace(logged, facts=dataclasses.replace(logged.facts, data="other")),
    )
    refresh(recipe, run_dir / "checkpoint-30")
    assert np.flatnonzero(started[1].trained.known).tolist() == rows.tolist()
    assert "a log of uses is passed over" in caplog.text


def test_scores_of_a_full_refresh_are_the_measured_ones(folder: Path, run_dir: Path) -> None:
    """The oracle of a partial refresh: measured rows agree exactly with measuring everything."""
    recipe = tiny_recipe(folder)
    for step in (10, 20):
        refresh(recipe, run_dir / f"checkpoint-{step}")
    everything = tiny_recipe(folder, store="full")
    refresh(everything, run_dir / "checkpoint-20")
    partial, full = Store.open(folder / "store").scores(2), Store.open(folder / "full").scores(1)
    measured = partial.origin == Origin.MEASURED
    for name, score in full.scores.items():
        np.testing.assert_allclose(partial.scores[name][measured], score[measured], rtol=1e-3)
        assert np.isfinite(partial.scores[name]).all()


def test_repeating_a_finished_refresh_adds_nothing(folder: Path, run_dir: Path) -> None:
    recipe = tiny_recipe(folder)
    first = refresh(recipe, run_dir / "checkpoint-10")
    again = refresh(recipe, run_dir / "checkpoint-10")
    assert (again.version, again.is_new) == (first.version, False)
    assert Store.open(folder / "store").versions() == [1]


def test_full_every_measures_everything_again(folder: Path, run_dir: Path) -> None:
    recipe = tiny_recipe(folder, refresh={"full_every": 2})
    fractions = [
        outcome(refresh(recipe, run_dir / f"checkpoint-{step}").header).num_measured / NUM_SAMPLES
        for step in (10, 20, 30)
    ]
    assert fractions[0] == fractions[2] == 1
    assert fractions[1] < 1


def test_full_below_measures_everything_when_the_audit_is_too_bad(
    folder: Path, run_dir: Path
) -> None:
    recipe = tiny_recipe(folder, refresh={"full_below": 0.9999, "target_rank_correlation": 1.0})
    refresh(recipe, run_dir / "checkpoint-10")
    header = refresh(recipe, run_dir / "checkpoint-20").header
    assert header.stats.num_measured == NUM_SAMPLES and outcome(header).num_since_full == 0
    assert header.audit is not None and header.audit.rank_correlation_all == 1
    never = tiny_recipe(folder, store="never", refresh={"target_rank_correlation": 1.0})
    refresh(never, run_dir / "checkpoint-10")
    header = refresh(never, run_dir / "checkpoint-20").header
    assert outcome(header).num_measured < NUM_SAMPLES and outcome(header).num_since_full == 1


def test_a_refresh_starts_with_a_little_less_than_the_last_one_needed(
    folder: Path, run_dir: Path
) -> None:
    easy = {
        "min_fraction": 0.2, "max_fraction": 0.8, "target_rank_correlation": -1.0,
        "target_value": 0.0,
    }  # fmt: skip
    recipe = tiny_recipe(folder, refresh=easy)
    refresh(recipe, run_dir / "checkpoint-10")
    facts = outcome(refresh(recipe, run_dir / "checkpoint-20").header)
    assert (facts.rounds, facts.num_measured) == (1, math.ceil(0.2 * NUM_SAMPLES))

    hard = {**easy, "target_rank_correlation": 1.0}
    recipe = tiny_recipe(folder, store="hard", refresh=hard)
    refresh(recipe, run_dir / "checkpoint-10")
    facts = outcome(refresh(recipe, run_dir / "checkpoint-20").header)
    assert facts.rounds > 1 and facts.num_measured == math.ceil(0.8 * NUM_SAMPLES)
    assert facts.next_budget == NUM_SAMPLES // 2
    relaxed = tiny_recipe(folder, store="hard", refresh=easy)
    facts = outcome(refresh(relaxed, run_dir / "checkpoint-30").header)
    assert (facts.rounds, facts.num_measured) == (1, NUM_SAMPLES // 2)
    assert facts.next_budget == 0


def test_lost_features_cost_a_full_refresh_and_nothing_else(folder: Path, run_dir: Path) -> None:
    recipe = tiny_recipe(folder)
    refresh(recipe, run_dir / "checkpoint-10")
    (folder / "store" / "cache" / "v000001" / "features.npy").write_bytes(b"damaged")
    result = refresh(recipe, run_dir / "checkpoint-20")
    assert result.header.stats.num_measured == NUM_SAMPLES
    assert result.header.operation == "refresh"
    assert verify(Store.open(folder / "store")) == []


def test_select_makes_a_version_without_a_model(folder: Path, run_dir: Path) -> None:
    recipe = tiny_recipe(folder)
    refresh(recipe, run_dir / "checkpoint-10")
    result = reselect(recipe.override({"selection.count": 7, "selection.selector": "top"}))
    store = Store.open(folder / "store")
    assert result.header.operation == "reselect"
    rows = store.coreset(2)["row"].to_numpy()
    importance = store.scores(2).importance
    assert set(rows) == set(np.argsort(-importance, kind="stable")[:7])
    later = refresh(recipe, run_dir / "checkpoint-20")
    assert later.version == 3
    assert outcome(later.header).num_measured < NUM_SAMPLES
    assert verify(store) == []


def test_rollback_goes_back_and_costs_the_next_refresh_nothing(folder: Path, run_dir: Path) -> None:
    recipe = tiny_recipe(folder)
    for step in (10, 20):
        refresh(recipe, run_dir / f"checkpoint-{step}")
    shutil.copytree(folder / "store", folder / "twin")
    store = Store.open(folder / "store")
    made = rollback(store.paths.root, 1)
    assert (made.version, made.is_new) == (3, True)
    assert (made.header.operation, made.header.rollback_of) == ("rollback", 1)
    assert store.coreset(3)["version"].unique().to_pylist() == [3]
    first, second, again = (store.coreset(version).drop(["version"]) for version in (1, 2, 3))
    assert again.equals(first) and not again.equals(second)
    assert not store.paths.scores(3).parent.exists(), "no copy of the scores"
    np.testing.assert_array_equal(store.scores(3).importance, store.scores(1).importance)
    for version in (1, 3):
        repeated = rollback(store.paths.root, version)
        assert (repeated.version, repeated.is_new) == (3, False)
    assert not refresh(recipe, run_dir / "checkpoint-20").is_new, "as before the rollback"
    assert verify(store) == [] and store.recover() == []

    chosen = reselect(recipe.override({"selection.count": 7, "selection.selector": "top"}))
    assert chosen.header.scores_version == 2, "the newest scores"
    with store.lock():
        assert collect(store, 1).removed == (1, 3)
    later = refresh(recipe, run_dir / "checkpoint-30").header
    straight = refresh(tiny_recipe(folder, store="twin"), run_dir / "checkpoint-30").header
    assert later.version == 5 and straight.version == 3
    assert outcome(later).num_measured == outcome(straight).num_measured < NUM_SAMPLES
    assert outcome(later).num_since_full == outcome(straight).num_since_full == 2
    mine, twin = store.scores(5), Store.open(folder / "twin").scores(3)
    for name in ("gradient-norm", "loss"):
        np.testing.assert_array_equal(mine.scores[name], twin.scores[name])
    np.testing.assert_array_equal(mine.origin, twin.origin)
    assert verify(store) == []


def test_rollback_without_samples_that_left_the_data(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    store.commit(make_draft(store, "a"))
    store.commit(make_draft(store, "b", samples=changed_samples(store)))
    gone = np.flatnonzero(~store.samples().present)
    before = store.coreset(1)["row"].to_numpy()
    assert np.isin(gone, before).any(), "the case is there"
    assert (rollback(store.paths.root, 1).header.selection.num_left_out or 0) > 0
    after = store.coreset(3)
    np.testing.assert_array_equal(after["row"], np.setdiff1d(before, gone))
    assert np.mean(after["weight"].to_numpy()) == pytest.approx(1)
    assert verify(store) == []


def test_select_needs_scores(folder: Path) -> None:
    with pytest.raises(StoreNotFoundError, match="store"):
        reselect(tiny_recipe(folder))


def test_a_stop_keeps_finished_shards_and_the_next_start_goes_on(
    folder: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(folder)
    stop = threading.Event()
    saved = stop_after(monkeypatch, stop, num_shards=4)
    with pytest.raises(RefreshStoppedError):
        refresh(recipe, run_dir / "checkpoint-10", stop=stop)
    assert len(saved) == 4
    monkeypatch.undo()
    result = refresh(recipe, run_dir / "checkpoint-10")
    assert outcome(result.header).num_resumed == 4 * 16
    uninterrupted = tiny_recipe(folder, store="other")
    refresh(uninterrupted, run_dir / "checkpoint-10")
    one, other = Store.open(folder / "store"), Store.open(folder / "other")
    assert one.coreset(1)["row"].equals(other.coreset(1)["row"])
    assert not list((folder / "store" / "shards").glob("*/*"))


def test_a_stop_keeps_the_batches_of_a_shard_in_progress(
    folder: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(folder, scoring={"shard_rows": 10_000, "batch_tokens": 128})
    stop, done = threading.Event(), list[int]()
    original = Progress.advance

    def advance(self: Progress, num_rows: int, num_tokens: int) -> None:
        original(self, num_rows, num_tokens)
        done.append(num_rows)
        if len(done) == 3:
            stop.set()

    monkeypatch.setattr(Progress, "advance", advance)
    with pytest.raises(RefreshStoppedError, match=r"stopped after \d+ of the rows"):
        refresh(recipe, run_dir / "checkpoint-10", stop=stop)
    monkeypatch.undo()
    result = refresh(recipe, run_dir / "checkpoint-10")
    assert 0 < outcome(result.header).num_resumed == sum(done) < NUM_SAMPLES


def stop_after(
    monkeypatch: pytest.MonkeyPatch, stop: threading.Event, *, num_shards: int
) -> list[Rows]:
    """Set the event when so many measured shards are on disk, as a signal would in between."""
    saved: list[Rows] = []
    original = ShardFiles.save

    def save(self: ShardFiles, shard: Measurement) -> None:
        original(self, shard)
        if shard.scores:  # and not features alone
            saved.append(shard.rows)
        if len(saved) == num_shards:
            stop.set()

    monkeypatch.setattr(ShardFiles, "save", save)
    return saved


def test_the_checkpoint_is_let_go_of_once_all_is_measured(folder: Path, tmp_path: Path) -> None:
    """A trainer may delete it or write it again while the other stages run."""
    checkpoint = write_checkpoint(tmp_path / "run", 10)
    pins = folder / "store" / "pins"
    held: dict[str, bool] = {}

    class Trainer(Progress):
        def enter(self, stage: str) -> None:
            super().enter(stage)
            held[stage] = pins.is_dir() and any(pins.iterdir())
            if stage == "propagate":
                (checkpoint / "model.safetensors").write_bytes(b"written again")

    recipe = tiny_recipe(folder)
    refresher = Refresher.from_recipe(recipe)
    found = check_checkpoint(checkpoint, recipe.checkpoints)
    with refresher.locked():
        assert refresher.refresh(found, progress=Trainer()).version == 1
    stages = ["pin", "load", "measure", "propagate", "graph", "select", "commit"]
    assert list(held) == stages
    assert [stage for stage in stages if held[stage]] == ["load", "measure"]


def test_a_row_that_is_not_finite_is_marked_and_the_run_goes_on(
    folder: Path, tmp_path: Path
) -> None:
    def poison(model: Any) -> None:
        with torch.no_grad():
            model.model.embed_tokens.weight[3 + 7] = float("nan")  # the digit 7

    checkpoint = write_checkpoint(tmp_path / "run", 10, spoil=poison)
    refresh(tiny_recipe(folder), checkpoint)
    store = Store.open(folder / "store")
    scores = store.scores(1)
    invalid = scores.origin == Origin.INVALID
    assert 0 < invalid.sum() < NUM_SAMPLES
    assert np.isnan(scores.scores["loss"][invalid]).all()
    assert not np.isin(store.coreset(1)["row"].to_numpy(), np.flatnonzero(invalid)).any()
    good = write_checkpoint(tmp_path / "run", 20)
    refresh(tiny_recipe(folder), good)
    assert verify(store) == []


def test_an_invalid_row_recovers_when_the_model_does(folder: Path, tmp_path: Path) -> None:
    def poison(model: Any) -> None:
        with torch.no_grad():
            model.model.embed_tokens.weight[3 + 7] = float("nan")

    recipe = tiny_recipe(folder)
    refresh(recipe, write_checkpoint(tmp_path / "run", 10, spoil=poison))
    store = Store.open(folder / "store")
    before = int((store.scores(1).origin == Origin.INVALID).sum())
    for step in (20, 30, 40, 50):
        refresh(recipe, write_checkpoint(tmp_path / "run", step))
    assert before > 0
    assert (store.scores(5).origin != Origin.INVALID).all()
    assert verify(store) == []


def test_a_stale_score_is_kept_to_the_bit(folder: Path, run_dir: Path) -> None:
    recipe = tiny_recipe(folder, propagation={"rule": "none"})
    refresh(recipe, run_dir / "checkpoint-10")
    refresh(recipe, run_dir / "checkpoint-20")
    store = Store.open(folder / "store")
    first, second = store.scores(1), store.scores(2)
    stale = second.origin == Origin.STALE
    assert stale.any()
    for name in first.scores:
        np.testing.assert_array_equal(second.scores[name][stale], first.scores[name][stale])


def test_select_refuses_another_importance(folder: Path, run_dir: Path) -> None:
    recipe = tiny_recipe(folder)
    refresh(recipe, run_dir / "checkpoint-10")
    with pytest.raises(RecipeError, match=r"scoring\.importance"):
        reselect(recipe.override({"scoring.importance": "loss"}))


def test_select_takes_another_average_of_the_trainer(folder: Path, run_dir: Path) -> None:
    recipe = tiny_recipe(folder, selection={"selector": "balanced", "count": 12})
    refresh(recipe, run_dir / "checkpoint-10")
    other = recipe.override({"scoring.loss": "samples"})
    result = reselect(other)
    scoring = result.header.settings.scoring
    assert result.is_new and scoring is not None and scoring.loss == "samples"
    assert not reselect(other).is_new
    store = Store.open(folder / "store")
    chances = [store.drawn(version).draw.probabilities for version in (1, 2)]  # type: ignore[union-attr]
    lengths = store.samples().num_response_tokens
    weight = [float(np.average(lengths, weights=each)) for each in chances]
    assert weight[0] > weight[1]  # long samples are drawn more often where tokens count
    assert reselect(recipe).is_new
    assert verify(store) == []


def test_a_model_of_nothing_but_nan_is_a_clear_error(folder: Path, tmp_path: Path) -> None:
    def poison(model: Any) -> None:
        with torch.no_grad():
            model.model.norm.weight.fill_(float("nan"))

    checkpoint = write_checkpoint(tmp_path / "run", 10, spoil=poison)
    with pytest.raises(MeasureError, match="finite"):
        refresh(tiny_recipe(folder), checkpoint)


def test_other_data_is_refused_before_the_model_is_loaded(folder: Path, run_dir: Path) -> None:
    recipe = tiny_recipe(folder)
    refresh(recipe, run_dir / "checkpoint-10")
    write_data(folder / "train.jsonl", seed=5)
    with pytest.raises(StoreDataMismatchError, match="made from other data"):
        refresh(recipe, run_dir / "checkpoint-20")
    assert Store.open(folder / "store").versions() == [1]


def test_a_second_process_is_refused(folder: Path, run_dir: Path) -> None:
    recipe = tiny_recipe(folder)
    refresh(recipe, run_dir / "checkpoint-10")
    errors: list[Exception] = []

    def other() -> None:
        try:
            refresh(recipe, run_dir / "checkpoint-20")
        except Exception as error:
            errors.append(error)

    with lock_store(folder / "store"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(errors) == 1
    assert isinstance(errors[0], StoreLockedError)


def test_a_tokenizer_larger_than_the_model_is_refused(folder: Path, tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "run", 10)
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] |= {f"extra{i}": 64 + i for i in range(40)}
    (checkpoint / "tokenizer.json").write_text(json.dumps(tokenizer))
    (checkpoint / "trainer_state.json").touch()
    with pytest.raises(CheckpointMismatchError):
        refresh(tiny_recipe(folder), checkpoint)


def test_another_architecture_is_refused(folder: Path, run_dir: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(folder)
    refresh(recipe, run_dir / "checkpoint-10")
    other = write_checkpoint(tmp_path / "other", 20, hidden_size=48)
    with pytest.raises(CheckpointMismatchError, match="architecture"):
        refresh(recipe, other)
    assert refresh(recipe, run_dir / "checkpoint-20").version == 2


@pytest.mark.parametrize("num_rows", [65, 96])
def test_embeddings_that_grew_for_tokens_of_no_sample_go_on(
    folder: Path, run_dir: Path, tmp_path: Path, num_rows: int
) -> None:
    recipe = tiny_recipe(folder)
    refresh(recipe, run_dir / "checkpoint-10")
    other = write_checkpoint(
        tmp_path / "run", 20, spoil=lambda model: model.resize_token_embeddings(num_rows)
    )
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<unused>"])
    tokenizer.save_pretrained(other)
    (other / "trainer_state.json").touch()
    assert json.loads((other / "config.json").read_text())["vocab_size"] == num_rows
    before, after = (refresh(recipe, path) for path in (other, run_dir / "checkpoint-30"))
    assert (before.version, after.version) == (2, 3)
    assert before.header.dataset.architecture == after.header.dataset.architecture
    wide = write_checkpoint(
        tmp_path / "wide", 40, hidden_size=48, spoil=lambda m: m.resize_token_embeddings(num_rows)
    )
    with pytest.raises(CheckpointMismatchError, match="architecture"):
        refresh(recipe, wide)


@pytest.mark.parametrize("setting", [{"max_length": 12}, {"loss_on": "all"}])
def test_other_tokens_are_refused(folder: Path, run_dir: Path, setting: dict[str, Any]) -> None:
    refresh(tiny_recipe(folder), run_dir / "checkpoint-10")
    with pytest.raises(StoreDataMismatchError, match="other tokens"):
        refresh(tiny_recipe(folder, data=setting), run_dir / "checkpoint-20")


def test_a_store_of_before_turns_were_marked_goes_on_where_its_tokens_are_the_same(
    folder: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as before:
        before.setattr(tokens, "KEY_FORMAT", tokens.EARLIER_KEY_FORMAT)
        first = refresh(tiny_recipe(folder), run_dir / "checkpoint-10")
    store = Store.open(folder / "store")
    known = store.info.dataset.tokens_key
    assert refresh(tiny_recipe(folder), run_dir / "checkpoint-20").version == first.version + 1
    assert Store.open(folder / "store").info.dataset.tokens_key == known
    with monkeypatch.context() as other:  # as if a template's masks differed from then
        other.setattr(Renderer, "_end", lambda self, content: "")
        shutil.rmtree(folder / "store" / "cache" / "tokens")
        with pytest.raises(StoreDataMismatchError, match="other tokens"):
            refresh(tiny_recipe(folder), run_dir / "checkpoint-30")
    with pytest.raises(StoreDataMismatchError, match="other tokens"):
        refresh(tiny_recipe(folder, data={"max_length": 12}), run_dir / "checkpoint-30")


def test_another_tokenizer_is_refused(folder: Path, run_dir: Path, tmp_path: Path) -> None:
    refresh(tiny_recipe(folder), run_dir / "checkpoint-10")
    checkpoint = write_checkpoint(tmp_path / "other", 20)
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["cat"], vocabulary["dog"] = vocabulary["dog"], vocabulary["cat"]
    (checkpoint / "tokenizer.json").write_text(json.dumps(tokenizer))
    (checkpoint / "trainer_state.json").touch()
    with pytest.raises(StoreDataMismatchError, match="tokenizer"):
        refresh(tiny_recipe(folder), checkpoint)


@pytest.mark.parametrize(
    ("sections", "error"),
    [
        ({"scoring": {"scores": ["loss", "nope"], "importance": "loss"}}, RecipeError),
        ({"selection": {"selector": "nope"}}, RecipeError),
        ({"data": {"path": "missing.jsonl"}}, DataError),
        ({"data": {"group_column": "nope"}}, DataError),
    ],
)
def test_mistakes_are_found_before_anything_is_written(
    folder: Path, run_dir: Path, sections: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        refresh(tiny_recipe(folder, **sections), run_dir / "checkpoint-10")
    assert not Store.exists(folder / "store")


def test_a_store_is_never_made_among_other_files(folder: Path, run_dir: Path) -> None:
    before = sorted(p.name for p in folder.iterdir())
    with pytest.raises(StoreError, match="not a store"):
        refresh(tiny_recipe(folder, store="."), run_dir / "checkpoint-10")
    assert sorted(p.name for p in folder.iterdir()) == before


def test_a_full_disk_leaves_the_last_version(folder: Path, run_dir: Path) -> None:
    import errno

    recipe = tiny_recipe(folder)
    refresh(recipe, run_dir / "checkpoint-10")
    for operation in (3, 10, 20):
        with failing_at(operation, errno.ENOSPC), pytest.raises(StoreWriteError, match="full"):
            refresh(recipe, run_dir / "checkpoint-20")
        assert Store.open(folder / "store").latest() == 1
    assert refresh(recipe, run_dir / "checkpoint-20").version == 2
    assert verify(Store.open(folder / "store")) == []


@pytest.mark.parametrize(
    "settings",
    [
        {"full_below": 0.9999, "target_rank_correlation": 1.0},
        {"full_below": 0.9999, "target_rank_correlation": 1.0, "max_fraction": 0.4},
        {"target_rank_correlation": 1.0, "max_fraction": 0.7, "plan": "oldest"},
        {"full_every": 1},
        {"new_samples": "all", "probe_fraction": 0.3},
    ],
)
@pytest.mark.parametrize("num_new", [0, 30])
def test_the_preview_never_says_less_than_the_refresh_measures(
    folder: Path, run_dir: Path, settings: dict[str, Any], num_new: int
) -> None:
    """The very numbers that `gracekit plan` prints, beside the refresh that follows."""
    recipe = tiny_recipe(folder, data={"id_column": "prompt"}, refresh=settings)
    refresh(recipe, run_dir / "checkpoint-10")
    write_data(folder / "train.jsonl", num_samples=NUM_SAMPLES + num_new)
    found = check_checkpoint(run_dir / "checkpoint-20", recipe.checkpoints)
    shown = preview(recipe, found)
    made = refresh(recipe, run_dir / "checkpoint-20").header.refresh
    assert made is not None
    measured = Store.open(folder / "store").measurement(2)
    samples = Store.open(folder / "store").samples(2)
    lengths = samples.num_prompt_tokens + samples.num_response_tokens
    assert shown.num_samples == made.num_rows == NUM_SAMPLES + num_new
    assert shown.num_rows <= len(measured) == made.num_measured <= shown.max_rows
    assert lengths[measured["row"].to_numpy()].sum() <= shown.max_tokens
    if made.rounds == 1:
        assert shown.num_rows == len(measured)
        reasons = [reason.replace("_", " ") for reason in measured["reason"].to_pylist()]
        assert shown.reasons == {reason: reasons.count(reason) for reason in shown.reasons}
    if settings.get("full_below"):
        assert shown.max_rows == made.num_measured == NUM_SAMPLES + num_new


def test_a_selection_and_a_look_at_a_sample_load_no_torch(folder: Path, run_dir: Path) -> None:
    refresh(tiny_recipe(folder), run_dir / "checkpoint-10")
    (folder / "recipe.yaml").write_text(json.dumps(recipe_content(store=str(folder / "store"))))
    sample_id = Store.open(folder / "store").samples().sample_ids[0]
    code = f"""
import sys
import gracekit
store, recipe = {str(folder / "store")!r}, {str(folder / "recipe.yaml")!r}
assert gracekit.select(gracekit.Recipe.load(recipe).override({{"selection.count": 7}})).version == 2
assert gracekit.rollback(store, 1).version == 3
gracekit.explain(store, {sample_id!r})
gracekit.similar(store, {sample_id!r})
gracekit.status(store)
gracekit.diff(store, 1, 2)
heavy = {{"torch", "transformers", "datasets", "accelerate"}} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_preview_says_what_the_refresh_does(folder: Path, run_dir: Path) -> None:
    recipe = tiny_recipe(folder)
    found = check_checkpoint(run_dir / "checkpoint-10", recipe.checkpoints)
    plan = preview(recipe, found)
    assert (plan.version, plan.num_rows, plan.reasons) == (1, NUM_SAMPLES, {"first": NUM_SAMPLES})
    assert not Store.exists(folder / "store")
    refresh(recipe, run_dir / "checkpoint-10")
    found = check_checkpoint(run_dir / "checkpoint-20", recipe.checkpoints)
    plan = preview(recipe, found)
    result = refresh(recipe, run_dir / "checkpoint-20")
    measured = Store.open(folder / "store").measurement(2)
    assert plan.num_rows <= len(measured) <= plan.max_rows
    assert plan.version == result.version == 2


def test_estimate_tells_the_cost_and_writes_nothing(
    folder: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(folder)
    found = check_checkpoint(run_dir / "checkpoint-10", recipe.checkpoints)
    cost = estimate(recipe, found)
    assert not Store.exists(folder / "store")
    assert cost.plan.to_json() == preview(recipe, found).to_json()
    assert cost.seconds > 0 and cost.max_seconds == cost.seconds, "everything is measured"
    assert cost.tokens_per_s * cost.seconds == pytest.approx(cost.plan.num_tokens)
    assert not cost.obstacles

    refresh(recipe, run_dir / "checkpoint-10")
    found = check_checkpoint(run_dir / "checkpoint-20", recipe.checkpoints)
    monkeypatch.setattr("gracekit.refresher.memory_probe.free_bytes", lambda: 1000)
    cost = estimate(recipe, found)
    assert cost.max_seconds > cost.seconds
    assert Store.open(folder / "store").versions() == [1]
    written = sum(f.stat().st_size for f in (folder / "store/cache").rglob("*") if f.is_file())
    assert 0.5 * written < cost.disk_bytes < 5 * written
    (obstacle,) = cost.obstacles
    assert "memory" in obstacle and "scoring.batch_tokens" in obstacle


@pytest.mark.parametrize("rule", ["gated", "grace", "none"])
@pytest.mark.parametrize("plan", ["cover", "grace", "oldest", "random"])
def test_every_rule_and_plan_runs(folder: Path, run_dir: Path, rule: str, plan: str) -> None:
    recipe = tiny_recipe(folder, refresh={"plan": plan}, propagation={"rule": rule})
    refresh(recipe, run_dir / "checkpoint-10")
    refresh(recipe, run_dir / "checkpoint-20")
    origins = set(Store.open(folder / "store").scores(2).origin)
    assert Origin.MEASURED in origins
    if rule == "none":
        assert Origin.STALE in origins


def test_is_done_knows_the_checkpoint_and_the_recipe(folder: Path, run_dir: Path) -> None:
    from gracekit.checkpoints import find_checkpoints

    recipe = tiny_recipe(folder)
    refresh(recipe, run_dir / "checkpoint-10")
    ten, twenty = find_checkpoints(run_dir, recipe.checkpoints)[:2]
    refresher = Refresher.from_recipe(recipe)
    assert refresher.is_done(ten)
    assert not refresher.is_done(twenty)
    refresh(tiny_recipe(folder, retention={"keep": 1}), run_dir / "checkpoint-20")
    assert list(Store.open(folder / "store").removed()) == [1]
    assert refresher.is_done(ten), "also when its version was removed"
    other = Refresher.from_recipe(recipe.override({"selection.fraction": 0.1}))
    assert not other.is_done(ten)
