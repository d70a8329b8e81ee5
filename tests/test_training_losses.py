"""The losses of trained rows: what a real Trainer notes is what its weights at that step give."""

from __future__ import annotations

import copy
import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import DataCollatorWithFlattening, TrainerCallback

from gracekit.errors import StoreFormatError
from gracekit.refresher.loss_trend import LEAST_TRAINED, loss_beside_others
from gracekit.refresher.uses import state_and_losses
from gracekit.store import LoggedUses, Store, newest_run, read_uses, uses_path, write_uses
from gracekit.training import CoresetCallback, CoresetSampler, Drawn
from gracekit.training.trained_losses import LossNotes, means_of_log_probs
from gracekit.types import TrainedLosses
from tests.drawable import drawable_store, publish_draw
from tests.stores import changed_samples, make_draft
from tests.test_training_callback import CoresetTrainer, StopAt, train
from tests.weighted_training import (
    DRAWS,
    TOKENS_PER_ROW,
    WEIGHTS,
    ScriptedCallback,
    WeighedTrainer,
    all_draws,
    arguments,
    make_model,
    pad,
    pool,
    publish,
)

FLATTEN = DataCollatorWithFlattening()
ALIKE = all_draws([1.0] * 5)
N = 24


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Snapshots(TrainerCallback):  # type: ignore[misc]
    """The model before each step, by the number of steps done."""

    def __init__(self) -> None:
        self.models: dict[int, Any] = {}

    def on_step_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        self.models[state.global_step] = copy.deepcopy(model)


def loss_of(model: Any, row: dict[str, list[int]]) -> float:
    """Mean over the row's own target tokens, by torch alone."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
    return float(torch.nn.functional.cross_entropy(logits, torch.tensor(row["labels"][1:])))


def last_log(root: Path) -> LoggedUses:
    files = newest_run(Store.open(root).paths)
    return read_uses(files[max(files)])


def trained(
    root: Path,
    output: Path,
    *,
    kind: Any = WeighedTrainer,
    model: Any = None,
    script: list[Drawn] | None = None,
    collator: Any = pad,
    more: tuple[Any, ...] = (),
    weigh_loss: bool = True,
    **options: Any,
) -> tuple[Any, dict[int, Any]]:
    """A trainer after its training, and the model before each of its steps."""
    seen = Snapshots()
    drawn = all_draws() if script is None else script
    trainer = kind(
        model=make_model() if model is None else model,
        args=arguments(output, **{"learning_rate": 0.5, **options}),
        data_collator=collator,
        train_dataset=pool(),
        callbacks=[ScriptedCallback(root, drawn, weigh_loss=weigh_loss), seen, *more],
    )
    trainer.train()
    return trainer, seen.models


def last_step_of(row: int) -> int:
    """Of the script of all draws, a draw a step."""
    return max(step for step, rows in enumerate(DRAWS) if row in rows)


def lora() -> Any:
    torch.manual_seed(1)
    config = LoraConfig(
        r=2, target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False
    )
    return get_peft_model(make_model(), config).double()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"collator": FLATTEN},
        {"loss": "samples", "collator": FLATTEN},
        {"label_smoothing_factor": 0.3},
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1},
        {"model": lora},
        {"script": ALIKE, "tokens_per_row": None},
        {"script": ALIKE, "tokens_per_row": None, "collator": FLATTEN, "model": lora},
        {"weigh_loss": False},
    ],
    ids=["weighted", "joined", "samples", "smoothed", "one batch", "lora", "own", "own joined",
         "not weighed"],
)  # fmt: skip
def test_the_noted_losses_are_those_of_the_weights_at_that_step(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    options = dict(options)
    root = publish(
        tmp_path / "store",
        loss=options.pop("loss", "tokens"),
        tokens_per_row=options.pop("tokens_per_row", TOKENS_PER_ROW),
    )
    if "model" in options:
        options["model"] = options["model"]()
    _, models = trained(root, tmp_path / "run", **options)
    logged = last_log(root)
    assert logged.facts.step == len(DRAWS)
    assert logged.trained.step.tolist() == [last_step_of(row) for row in range(5)]
    expected = [loss_of(models[last_step_of(row)], pool()[row]) for row in range(5)]
    np.testing.assert_allclose(logged.trained.loss, expected, rtol=1e-5)
    others = [loss_of(models[0], row) for row in pool()]
    assert np.abs(logged.trained.loss - others).min() > 1e-3, "the weights have moved"


class Unobserved(WeighedTrainer):
    """Whose losses nobody looks at."""

    def _note_of(self, rows: Any) -> None:
        return None


def test_looking_at_the_trainers_own_loss_changes_no_bit(tmp_path: Path) -> None:
    root = publish(tmp_path / "store")
    found = []
    for kind in (Unobserved, WeighedTrainer):
        trainer, models = trained(
            root, tmp_path / "run", kind=kind, script=ALIKE, logging_strategy="steps",
            logging_steps=1,
        )  # fmt: skip
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        found.append((losses, models[4].state_dict()))
        assert last_log(root).trained.known.all() == (kind is WeighedTrainer)
        assert "_loss_function" not in vars(trainer.model)
    assert len(found[0][0]) == len(DRAWS) and found[0][0] == found[1][0]
    assert all(torch.equal(found[0][1][name], found[1][1][name]) for name in found[0][1])


class PublishAt(TrainerCallback):  # type: ignore[misc]
    """The first version, within the training."""

    def __init__(self, root: Path, step: int) -> None:
        self.root, self.step = root, step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            publish_draw(Store.open(self.root), step=state.global_step)


def test_losses_from_before_the_first_version_are_kept_for_its_log(tmp_path: Path) -> None:
    root = drawable_store(tmp_path / "store", versions=0).paths.root
    callback = CoresetCallback(root)
    train(
        tmp_path / "run", callback, PublishAt(root, 12), kind=CoresetTrainer,
        max_steps=15, save_strategy="no",
    )  # fmt: skip
    logged = last_log(root)
    assert logged.trained.known.all(), "the first epoch went over all samples"
    is_old = logged.trained.step < 12
    np.testing.assert_array_equal(is_old, logged.epoch_uses == 0)
    assert is_old.any() and not is_old.all()


def test_a_killed_run_logs_the_losses_of_one_that_was_not(tmp_path: Path) -> None:
    """Two batches a step; killed two steps after the checkpoint of step 7."""
    root = drawable_store(tmp_path / "store").paths.root
    other = Path(shutil.copytree(root, tmp_path / "copy"))
    options: dict[str, Any] = {
        "save_strategy": "steps", "save_steps": 7, "gradient_accumulation_steps": 2,
        "num_train_epochs": 2, "kind": CoresetTrainer, "learning_rate": 0.1,
    }  # fmt: skip
    train(tmp_path / "whole", CoresetCallback(root, seed=5), **options)
    train(tmp_path / "cut", CoresetCallback(other, seed=5), StopAt(9), **options)
    assert last_log(other).facts.step == 9
    train(tmp_path / "cut", CoresetCallback(other, seed=5), resume=True, **options)
    whole, resumed = last_log(root), last_log(other)
    assert whole.facts.step == resumed.facts.step == 12
    np.testing.assert_array_equal(whole.trained.step, resumed.trained.step)
    np.testing.assert_array_equal(whole.trained.loss, resumed.trained.loss)
    assert (whole.trained.step[whole.trained.known] < 7).any(), "some are of the first part"


def test_the_log_probabilities_of_a_fused_head_tell_the_same() -> None:
    torch.manual_seed(0)
    targets = torch.randint(0, 5, (2, 6))
    targets[:, -1], targets[0, :3] = -100, -100
    log_probs = torch.randn(2, 6).log_softmax(-1)
    expected = [-log_probs[row][targets[row] != -100].mean().item() for row in range(2)]
    for shift in (True, False):
        given = log_probs[:, :-1] if shift else log_probs
        mask = (targets != -100)[:, :-1] if shift else targets != -100
        for front in (0, 2):  # virtual tokens
            padded = torch.nn.functional.pad(given, (front, 0), value=7.0)
            mask_padded = torch.nn.functional.pad(mask, (front, 0))
            found = means_of_log_probs(padded, mask_padded, targets, None, shift=shift)
            assert found.tolist() == pytest.approx(expected)


# --- what is kept ---


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from([1.0, 2.0, 3.0, np.nan]), st.integers(0, 5)),
        max_size=12,
    ),
    st.integers(0, 12),
)
def test_of_each_row_the_newest_loss_counts(seen: list[Any], cut: int) -> None:
    slow: dict[int, tuple[float, int]] = {}
    kept = TrainedLosses.none(4)
    for part in (seen[:cut], seen[cut:]):
        for row, loss, step in part:
            if np.isfinite(loss) and step >= slow.get(row, (0, -1))[1]:
                slow[row] = (loss, step)
        rows, losses, steps = zip(*part, strict=True) if part else ((), (), ())
        kept = kept.noted(
            np.array(rows, np.int64), np.array(losses, np.float32), np.array(steps, np.int64)
        )
    assert np.flatnonzero(kept.known).tolist() == sorted(slow)
    for row, (loss, step) in slow.items():
        assert (kept.loss[row], kept.step[row]) == (loss, step)
    assert np.isnan(kept.loss[~kept.known]).all()


@pytest.mark.parametrize("most", [1, 2, 100])
def test_notes_are_moved_in_the_order_of_training(
    monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr("gracekit.training.trained_losses._MOST_WAITING", most)
    notes = LossNotes()
    for step in range(3):
        notes.add((step, step + 1), step, torch.tensor([0.5, 1.5]).double() + step)
    found = notes.take()
    assert found.positions.tolist() == [0, 1, 1, 2, 2, 3]
    assert found.losses.tolist() == [0.5, 1.5, 1.5, 2.5, 2.5, 3.5]
    assert found.steps.tolist() == [0, 0, 1, 1, 2, 2]
    assert all(len(column) == 0 for column in notes.take())


# --- the log ---


def new_run(store: Store) -> CoresetSampler:
    ids = [str(i) for i in store.samples().sample_ids]
    return CoresetSampler(store.paths.root, ids, num_samples=12)


def logged_run(store: Store) -> CoresetSampler:
    """A run that has seen row 2i's loss i + 1 at step i, up to step 10, and logged it."""
    sampler = new_run(store)
    sampler.set_epoch(0)
    list(sampler)
    rows = np.arange(0, N, 2)
    sampler.note_losses(rows, (rows / 2 + 1).astype(np.float32), np.minimum(rows // 2, 9))
    sampler.log_uses(10)
    return sampler


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return drawable_store(tmp_path / "store", N)


def rewritten(path: Path, **columns: Any) -> None:
    """The file with other columns; without those that are None."""
    table = pq.read_table(path)
    for name, values in columns.items():
        index = table.column_names.index(name)
        table = table.remove_column(index)
        if values is not None:
            table = table.add_column(index, name, [values])
    pq.write_table(table, path)


def test_the_daemon_reads_what_was_seen(store: Store) -> None:
    logged_run(store)
    samples = store.samples()
    _, found = state_and_losses(store, samples, None, 10)
    assert found is not None
    assert np.flatnonzero(found.known).tolist() == list(range(0, N, 2))
    assert found.loss[4] == 3 and found.step[4] == 2
    _, ahead = state_and_losses(store, samples, np.arange(3), 9)
    assert ahead is None, "never ahead of the checkpoint"


def test_of_a_sample_that_changed_nothing_is_known(store: Store, tmp_path: Path) -> None:
    sampler = logged_run(store)
    saved, table = sampler.state_dict(), changed_samples(store)
    is_new = table.content_versions > 1
    _, found = state_and_losses(store, table, None, 10)
    assert found is not None and len(found) == N + 3
    before = np.zeros(N + 3, bool)
    before[:N:2] = True
    np.testing.assert_array_equal(found.known, before & ~is_new)
    assert (before & is_new).sum() + (~before & is_new).sum() == 4

    # A trainer that goes on with the dataset that it has: its losses are of the old contents.
    store.commit(make_draft(store, "changed", samples=table))
    run = new_run(store)
    run.load_state_dict({**saved, "version_log": [[0, 0, 1], [1, 0, 2]], "epoch": 1})
    run.set_epoch(1)
    everything = np.arange(N + 3)
    run.note_losses(everything, np.ones(N + 3, np.float32), np.full(N + 3, 11))
    run.log_uses(12)
    assert run.run is not None
    again = read_uses(uses_path(store.paths, run.run, 12))
    assert again.facts.newest_version == 2
    # It was restarted, and read version 2 first: all its contents are those of version 2.
    np.testing.assert_array_equal(again.trained.step[~is_new], 11)


def test_a_run_that_met_the_change_while_it_ran_logs_nothing_of_what_changed(
    store: Store,
) -> None:
    sampler = new_run(store)
    sampler.set_epoch(0)
    table = changed_samples(store)
    store.commit(make_draft(store, "changed", samples=table))
    sampler.set_epoch(1)
    assert sampler.version == 2
    sampler.note_losses(np.arange(N), np.ones(N, np.float32), np.full(N, 3))
    sampler.log_uses(5)
    assert sampler.run is not None
    logged = read_uses(uses_path(store.paths, sampler.run, 5))
    np.testing.assert_array_equal(logged.trained.known, table.content_versions == 1)


def test_a_resumed_run_forgets_the_losses_of_what_changed(store: Store) -> None:
    sampler = logged_run(store)
    saved = sampler.state_dict()
    table = changed_samples(store)
    store.commit(make_draft(store, "changed", samples=table))
    resumed = new_run(store)
    resumed.load_state_dict(saved)
    resumed.set_epoch(1)
    resumed.log_uses(20)
    assert resumed.run == sampler.run is not None
    logged = read_uses(uses_path(store.paths, str(resumed.run), 20))
    seen = np.zeros(N + 3, bool)
    seen[:N:2] = True
    np.testing.assert_array_equal(logged.trained.known, seen & (table.content_versions == 1))


def test_a_log_of_an_earlier_release_has_no_losses(store: Store) -> None:
    sampler = logged_run(store)
    assert sampler.run is not None
    path = uses_path(store.paths, sampler.run, 10)
    uses = read_uses(path).epoch_uses
    rewritten(path, trained_loss=None, trained_step=None)
    logged = read_uses(path)
    np.testing.assert_array_equal(logged.epoch_uses, uses)
    assert len(logged.trained) == N and not logged.trained.known.any()
    state, losses = state_and_losses(store, store.samples(), None, 10)
    assert state.source is not None and losses is None
    resumed = new_run(store)
    resumed.load_state_dict(sampler.state_dict())
    resumed.set_epoch(0)
    resumed.log_uses(11)
    assert not read_uses(uses_path(store.paths, sampler.run, 11)).trained.known.any()


@pytest.mark.parametrize(
    "columns",
    [
        {"trained_loss": np.full(N, np.nan, np.float32)},
        {"trained_step": np.full(N, 11)},
        {"trained_step": np.full(N, -2)},
        {"trained_loss": None},
    ],
    ids=["not finite", "ahead", "no step", "no loss"],
)
def test_losses_that_no_trainer_writes_are_damage(
    store: Store, caplog: pytest.LogCaptureFixture, columns: dict[str, Any]
) -> None:
    sampler = logged_run(store)
    assert sampler.run is not None
    path = uses_path(store.paths, sampler.run, 10)
    rewritten(path, **columns)
    with pytest.raises(StoreFormatError):
        read_uses(path)
    state, losses = state_and_losses(store, store.samples(), None, 10)
    assert state.source is None and losses is None
    assert "a log of uses is passed over" in caplog.text


def test_losses_come_back_as_they_were_written(store: Store) -> None:
    sampler = logged_run(store)
    assert sampler.run is not None
    logged = read_uses(uses_path(store.paths, sampler.run, 10))
    moved = dataclasses.replace(logged, facts=dataclasses.replace(logged.facts, step=99))
    again = read_uses(write_uses(store.paths, moved))
    assert again.trained.loss.dtype == np.float32 and again.trained.step.dtype == np.int64
    np.testing.assert_array_equal(again.trained.loss, logged.trained.loss)
    np.testing.assert_array_equal(again.trained.step, logged.trained.step)


# --- what a refresh makes of them ---


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 99), st.floats(-3, 0), st.integers(LEAST_TRAINED, 400), st.booleans())
def test_the_trend_of_the_training_is_taken_out(
    seed: int, fall: float, num_known: int, at_once: bool
) -> None:
    rng = np.random.default_rng(seed)
    n = num_known + 20
    rows = rng.permutation(n)[:num_known]
    steps = np.full(num_known, 7) if at_once else rng.integers(0, 1000, num_known)
    own = rng.normal(size=num_known) * 0.3
    own[: num_known // 20] += 50  # rows unlike the others
    losses = np.exp(own + 1 + fall * steps / 1000).astype(np.float32)
    found = loss_beside_others(TrainedLosses.none(n).noted(rows, losses, steps))
    assert found.dtype == np.float32 and np.isfinite(found).all()
    known = np.zeros(n, bool)
    known[rows] = True
    assert not found[~known].any()
    left = found[rows] - own
    assert abs(np.median(left)) < 0.3
    if num_known >= 200:
        assert np.abs(left - np.median(left)).max() < 0.25 + 0.1 * abs(fall)
    one = np.flatnonzero(steps == 7)
    if at_once:
        np.testing.assert_allclose(np.ptp(left[one]), 0, atol=1e-4)


def test_weights_of_the_draw_do_not_matter_to_a_rows_own_loss(tmp_path: Path) -> None:
    root = publish(tmp_path / "store", tokens_per_row=TOKENS_PER_ROW)
    losses = []
    for factor in (1, 3):
        trained(root, tmp_path / "run", script=all_draws(factor * WEIGHTS), learning_rate=0.0)
        losses.append(last_log(root).trained.loss)
    np.testing.assert_array_equal(losses[0], losses[1])
