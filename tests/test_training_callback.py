"""The callback in a real Hugging Face Trainer: what the model is fed is what the versions say."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from gracekit.errors import RecipeError
from gracekit.store import LoggedUses, Store, newest_run, read_uses
from gracekit.training import Coreset, CoresetCallback, CoresetSampler, CoresetTrainerMixin
from gracekit.version.header import CheckpointInfo
from gracekit.version.outcomes import Aim
from tests.drawable import publish_draw
from tests.patience import LAST_RESORT_S
from tests.stores import N, make_draft, make_store

NUM_ROWS = 2 * N
ROWS = [{"input_ids": [i, 50, 51], "labels": [i, 50, 51]} for i in range(NUM_ROWS)]
"""A row's first token is its position."""
ONE_EPOCH: dict[str, Any] = {"num_train_epochs": 1, "save_strategy": "no"}


class CoresetTrainer(CoresetTrainerMixin, Trainer):  # type: ignore[misc]
    """The trainer with epochs of its callback's length."""


class Publisher(TrainerCallback):  # type: ignore[misc]
    """Stands for `gracekit watch`: publishes a version at once, for each checkpoint or step given.

    Its place after the `CoresetCallback` means that a version is seen one step later.
    """

    def __init__(self, store: Store, steps: tuple[int, ...] = ()) -> None:
        self.store = store
        self.steps = steps

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.steps:
            publish(self.store, state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in self.steps:
            publish(self.store, state.global_step)


class StopAt(TrainerCallback):  # type: ignore[misc]
    """Stands for a kill after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step >= self.step


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(tmp_path / "store")


def publish(store: Store, step: int) -> int:
    draft = make_draft(store, f"refresh-{store.next_version()}")
    return store.commit(dataclasses.replace(draft, checkpoint=CheckpointInfo(step=step)))


class Adviser(Publisher):
    """Publishes versions of which the second says that more steps are worse than none."""

    stop = "advise"

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        aim = Aim(stop=self.stop)
        if self.store.next_version() == 2:
            aim = Aim(advice="the loss was lowest at step 12", stop=self.stop)
        draft = make_draft(self.store, f"refresh-{self.store.next_version()}")
        draft = dataclasses.replace(
            draft, checkpoint=CheckpointInfo(step=state.global_step), aim=aim
        )
        self.store.commit(draft)


@pytest.mark.parametrize("stop", ["advise", "stop", "never"])
def test_a_version_advises_to_end_the_training(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture, stop: str
) -> None:
    adviser = Adviser(store)
    adviser.stop = stop
    with caplog.at_level(logging.WARNING, logger="gracekit.training"):
        trainer, _ = train(
            tmp_path / "run", CoresetCallback(store.paths.root), adviser, num_train_epochs=4
        )
    told = [r.message for r in caplog.records if "the training:" in r.message]
    assert len(told) == (stop != "never")
    assert trainer.state.global_step == (25 if stop == "stop" else 48)
    if stop == "advise":
        assert "version 2 advises to end the training: the loss was lowest at step 12" in told[0]
        assert "training.stop: stop" in told[0]


def rows_of(store: Store, version: int) -> set[int]:
    if version == 0:
        return set(range(NUM_ROWS))
    return set(Coreset.load(store.paths.root, version).source_rows.tolist())


def train(
    output: Path,
    *callbacks: Any,
    resume: bool = False,
    kind: type[Any] = Trainer,
    dataset: Any = ROWS,
    **settings: Any,
) -> tuple[Any, list[list[int]]]:
    """A trainer after training, and the dataset positions of each batch the model was fed."""
    fed: list[list[int]] = []
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.register_forward_pre_hook(
        lambda module, args, kwargs: fed.append(kwargs["input_ids"][:, 0].tolist()),
        with_kwargs=True,
    )
    arguments: dict[str, Any] = {
        "output_dir": str(output), "num_train_epochs": 3, "per_device_train_batch_size": 4,
        "save_strategy": "epoch", "logging_strategy": "no", "report_to": "none", "use_cpu": True,
        "disable_tqdm": True, "dataloader_pin_memory": False, **settings,
    }  # fmt: skip
    trainer = kind(
        model=model,
        args=TrainingArguments(**arguments),
        train_dataset=dataset,
        callbacks=list(callbacks),
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer, fed


def by_epoch(fed: list[list[int]], steps: int) -> list[list[int]]:
    return [[p for batch in fed[i : i + steps] for p in batch] for i in range(0, len(fed), steps)]


def logged(trainer: Any) -> list[tuple[int, int, int]]:
    return [
        (entry["coreset_epoch"], entry["coreset_start"], entry["coreset_version"])
        for entry in trainer.state.log_history
        if "coreset_version" in entry
    ]


def test_each_epoch_trains_on_the_newest_version(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record = tmp_path / "drawn.jsonl"
    callback = CoresetCallback(store.paths.root, record=record)
    with caplog.at_level(logging.INFO, logger="gracekit.training"):
        trainer, fed = train(tmp_path / "run", callback, Publisher(store))

    epochs = by_epoch(fed, steps=NUM_ROWS // 4)
    assert [len(drawn) for drawn in epochs] == [NUM_ROWS] * 3
    assert [set(drawn) for drawn in epochs] == [rows_of(store, version) for version in (0, 1, 2)]
    assert trainer.state.global_step == trainer.state.max_steps == 36
    assert logged(trainer) == [(0, 0, 0), (1, 0, 1), (2, 0, 2)]
    assert [r.message for r in caplog.records if r.levelno == logging.INFO] == [
        "epoch 1 trains on all 48 samples, since there is no coreset yet; 48 draws an epoch",
        "epoch 2 trains on coreset version 1 (step 12)",
        "epoch 3 trains on coreset version 2 (step 24)",
    ]

    lines = [json.loads(line) for line in record.read_text().splitlines()]
    assert [line["positions"] for line in lines] == epochs
    assert [(line["epoch"], line["version"]) for line in lines] == [(1, None), (2, 1), (3, 2)]
    assert lines[0]["sample_ids"] is None
    for line in lines[1:]:
        coreset = Coreset.load(store.paths.root, line["version"])
        assert set(line["sample_ids"]) == set(coreset.sample_ids)
        expected = dict(zip(coreset.source_rows.tolist(), coreset.sample_ids, strict=True))
        assert line["sample_ids"] == [expected[p] for p in line["positions"]]


def test_the_mixin_lets_the_callback_set_the_length_of_an_epoch(
    store: Store, tmp_path: Path
) -> None:
    publish(store, 0)
    callback = CoresetCallback(store.paths.root, num_samples=8, mode="weighted")
    trainer, fed = train(tmp_path / "run", callback, Publisher(store), kind=CoresetTrainer)
    assert trainer.state.max_steps == 3 * 2
    epochs = by_epoch(fed, steps=2)
    assert [len(drawn) for drawn in epochs] == [8, 8, 8]
    for version, drawn in zip((1, 2, 3), epochs, strict=True):
        assert set(drawn) <= rows_of(store, version)
    assert logged(trainer) == [(0, 0, 1), (1, 0, 2), (2, 0, 3)]


def test_without_the_mixin_another_length_is_a_warning(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    callback = CoresetCallback(store.paths.root, num_samples=8)
    trainer, _ = train(tmp_path / "run", callback, **ONE_EPOCH)
    assert trainer.state.global_step == NUM_ROWS // 4
    assert "num_samples=8 has no effect" in caplog.text


def test_the_mixin_without_a_callback_changes_nothing(tmp_path: Path) -> None:
    _, with_mixin = train(tmp_path / "a", kind=CoresetTrainer, **ONE_EPOCH)
    _, stock = train(tmp_path / "b", **ONE_EPOCH)
    assert with_mixin == stock


@pytest.mark.parametrize(
    ("stop", "kind"),
    [(24, Trainer), (29, CoresetTrainer)],
    ids=["between epochs", "within an epoch"],
)
def test_a_resumed_run_is_fed_the_same_batches(
    store: Store, tmp_path: Path, stop: int, kind: type[Any]
) -> None:
    publish(store, 0)

    def callback() -> CoresetCallback:
        return CoresetCallback(store.paths.root, record=tmp_path / "drawn.jsonl", seed=3)

    settings: dict[str, Any] = {"save_strategy": "steps", "save_steps": stop}
    publishing = Publisher(store, steps=(12, 24))
    _, fed = train(tmp_path / "run", callback(), publishing, StopAt(stop), kind=kind, **settings)
    publish(store, stop)
    newest = store.versions()[-1]
    trainer, rest = train(tmp_path / "run", callback(), resume=True, kind=kind, **settings)

    assert len(fed) == stop and len(fed) + len(rest) == 36
    last_epoch = by_epoch(fed + rest, steps=12)[2]
    version = newest if stop == 24 else 3  # the epoch that was begun keeps its version
    assert set(last_epoch) == rows_of(store, version)
    assert logged(trainer) == [(0, 0, 1), (1, 0, 2), (2, 0, version)]
    whole = CoresetSampler(store.paths.root, NUM_ROWS, seed=3)
    whole.load_state_dict({**whole.state_dict(), "version_log": logged(trainer)})
    for epoch, drawn in enumerate(by_epoch(fed + rest, steps=12)):
        whole.set_epoch(epoch)
        assert drawn == list(whole)
    lines = [json.loads(line) for line in (tmp_path / "drawn.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert lines[2]["positions"] == last_epoch


class Breaks(TrainerCallback):  # type: ignore[misc]
    """Breaks a training off, as an error or Ctrl-C does."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt


def test_a_sampler_of_a_training_that_broke_off_is_led_no_more_by_the_next(
    store: Store, tmp_path: Path
) -> None:
    publish(store, 0)
    callback = CoresetCallback(store.paths.root, seed=3)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "broken", callback, Breaks())
    first = callback.sampler
    assert first is not None and first.is_led
    train(tmp_path / "run", callback)
    first.set_epoch(1)
    assert first.epoch == 1


class FirstAgain(TrainerCallback):  # type: ignore[misc]
    """Tells the sampler in each epoch that it is the first, as a resumed loader of Accelerate
    before 1.15 does."""

    def __init__(self, of: CoresetCallback) -> None:
        self.of = of

    def on_epoch_begin(self, *args: Any, **kwargs: Any) -> None:
        assert self.of.sampler is not None
        self.of.sampler.set_epoch(0)


@pytest.mark.parametrize("kind", [Trainer, CoresetTrainer])
def test_the_callback_alone_says_which_epoch_it_is(
    store: Store, tmp_path: Path, kind: type[Any]
) -> None:
    publish(store, 0)
    callback = CoresetCallback(store.paths.root, seed=3)
    publishing = Publisher(store, steps=(12, 24))
    trainer, fed = train(tmp_path / "run", callback, publishing, FirstAgain(callback), kind=kind)
    assert logged(trainer) == [(0, 0, 1), (1, 0, 2), (2, 0, 3)]
    for version, drawn in enumerate(by_epoch(fed, steps=12), start=1):
        assert set(drawn) == rows_of(store, version)
    assert callback.sampler is not None
    callback.sampler.set_epoch(7)  # the training has ended
    assert callback.sampler.epoch == 7


def test_a_killed_run_goes_on_with_the_same_batches_and_uses(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Drawn anew, two batches a step; killed two steps after the checkpoint of step 17."""
    publish_draw(store, step=0)
    settings: dict[str, Any] = {
        "save_strategy": "steps", "save_steps": 17, "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 3, "num_train_epochs": 3,
    }  # fmt: skip
    stores = [store, Store.open(shutil.copytree(store.paths.root, tmp_path / "copy"))]

    def last_uses(of: Store, steps: list[int]) -> LoggedUses:
        logged = newest_run(of.paths)
        assert list(logged) == steps
        return read_uses(logged[steps[-1]])

    def counted(fed: list[list[int]]) -> list[int]:
        found = np.bincount([p for batch in fed for p in batch], minlength=NUM_ROWS)
        return [int(uses) for uses in found[::2]]

    whole, expected = train(
        tmp_path / "whole",
        CoresetCallback(stores[0].paths.root, seed=5, weigh_loss=False),
        **settings,
    )
    cut = tmp_path / "cut"
    callback = CoresetCallback(stores[1].paths.root, seed=5, weigh_loss=False)
    _, fed = train(cut, callback, StopAt(19), **settings)
    ahead = last_uses(stores[1], [17, 19])
    assert (ahead.state.uses + ahead.epoch_uses).tolist() == counted(fed)
    callback = CoresetCallback(stores[1].paths.root, seed=5, weigh_loss=False)
    trainer, rest = train(cut, callback, resume=True, **settings)

    assert whole.state.global_step == trainer.state.global_step == 24
    assert fed[: 2 * 17] + rest == expected
    assert set(expected[0]) != set(expected[16 * 2])
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    found = [last_uses(of, [17, 24]) for of in stores]
    for logged in found:
        assert (logged.state.uses + logged.epoch_uses).tolist() == counted(expected)
    for name in ("uses", "owed", "start_low", "start_high"):
        one, other = (getattr(logged.state, name) for logged in found)
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(found[0].epoch_due, found[1].epoch_due)
    runs = [entry["coreset_run"] for entry in trainer.state.log_history if "coreset_run" in entry]
    assert runs == [found[1].facts.run]


def test_the_record_of_what_was_drawn_anew_has_the_ids(store: Store, tmp_path: Path) -> None:
    publish_draw(store, step=0)
    record = tmp_path / "drawn.jsonl"
    _, fed = train(tmp_path / "run", CoresetCallback(store.paths.root, record=record), **ONE_EPOCH)
    (line,) = (json.loads(text) for text in record.read_text().splitlines())
    assert line["positions"] == by_epoch(fed, steps=12)[0]
    assert line["sample_ids"] == [f"id-{p // 2:03d}" for p in line["positions"]]


def test_within_an_epoch_a_new_version_is_taken_one_batch_late(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def callback() -> CoresetCallback:
        return CoresetCallback(store.paths.root, follow="step", check_steps=1)

    settings: dict[str, Any] = {"num_train_epochs": 1, "save_strategy": "steps", "save_steps": 9}
    with caplog.at_level(logging.INFO, logger="gracekit.training"):
        trainer, fed = train(
            tmp_path / "run", callback(), Publisher(store, steps=(5,)), StopAt(9), **settings
        )
    # Published after step 5, seen at the end of step 6, when the loader had drawn batch 7 already.
    assert logged(trainer) == [(0, 0, 0), (0, 28, 1)]
    assert "from step 6 on: coreset version 1 (step 5)" in caplog.text
    assert all(set(batch) <= rows_of(store, 1) for batch in fed[7:])
    before = [position for batch in fed[:7] for position in batch]
    assert len(set(before)) == 28 and not set(before) <= rows_of(store, 1)

    trainer, rest = train(tmp_path / "run", callback(), resume=True, **settings)
    whole = CoresetSampler(store.paths.root, NUM_ROWS)
    whole.load_state_dict({**whole.state_dict(), "version_log": logged(trainer)})
    assert [position for batch in fed + rest for position in batch] == list(whole)


def test_waiting_for_the_coreset_of_the_last_checkpoint(store: Store, tmp_path: Path) -> None:
    class LatePublisher(Publisher):
        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step < state.max_steps:
                threading.Timer(0.5, publish, (self.store, state.global_step)).start()

    callback = CoresetCallback(store.paths.root, wait_s=LAST_RESORT_S)
    trainer, _ = train(tmp_path / "run", callback, LatePublisher(store), num_train_epochs=2)
    assert logged(trainer) == [(0, 0, 0), (1, 0, 1)]


def test_rows_are_found_by_id_when_the_trainer_reorders_and_drops_columns(
    store: Store, tmp_path: Path
) -> None:
    publish(store, 0)
    ids = [f"id-{i:03d}" for i in range(N)]
    table = datasets.Dataset.from_list([{"uid": uid, **ROWS[i]} for i, uid in enumerate(ids)])
    table = table.shuffle(seed=1)
    callback = CoresetCallback(store.paths.root, sample_ids=table["uid"])
    _, fed = train(tmp_path / "run", callback, dataset=table, **ONE_EPOCH)
    fed_ids = {ids[token] for batch in fed for token in batch}
    assert fed_ids == set(Coreset.load(store.paths.root).sample_ids)


def test_training_a_second_time_starts_a_new_log(store: Store, tmp_path: Path) -> None:
    callback = CoresetCallback(store.paths.root, record=tmp_path / "drawn.jsonl")
    trainer, _ = train(tmp_path / "run", callback, **ONE_EPOCH)
    publish(store, 12)
    trainer.train()
    assert logged(trainer) == [(0, 0, 1)]
    lines = [json.loads(line) for line in (tmp_path / "drawn.jsonl").read_text().splitlines()]
    assert [(line["epoch"], line["version"]) for line in lines] == [(1, 1)]


def test_a_missing_store_trains_on_all_samples(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    callback = CoresetCallback(tmp_path / "nowhere", record=tmp_path / "nowhere.txt" / "x.jsonl")
    (tmp_path / "nowhere.txt").touch()  # the record cannot be written either
    _, fed = train(tmp_path / "run", callback, num_train_epochs=2, save_strategy="no")
    assert [set(drawn) for drawn in by_epoch(fed, steps=12)] == [set(range(NUM_ROWS))] * 2
    assert f"there is no coreset in {tmp_path / 'nowhere'} yet" in caplog.text
    assert "cannot record the drawn samples" in caplog.text


@pytest.mark.parametrize("kind", [Trainer, CoresetTrainer])
def test_ids_of_another_length_train_without_coresets(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: type[Any]
) -> None:
    publish(store, 0)
    callback = CoresetCallback(store.paths.root, sample_ids=["a", "b"])
    trainer, fed = train(tmp_path / "run", callback, kind=kind, **ONE_EPOCH)
    assert sorted(p for batch in fed for p in batch) == list(range(NUM_ROWS))
    assert logged(trainer) == []
    assert "48 rows but 2 sample_ids were given" in caplog.text


def test_a_version_that_is_refused_is_not_called_missing(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publish(store, 0)
    callback = CoresetCallback(store.paths.root, sample_ids=[f"x{i}" for i in range(NUM_ROWS)])
    with caplog.at_level(logging.INFO, logger="gracekit.training"):
        train(tmp_path / "run", callback, num_train_epochs=2, save_strategy="no")
    assert "coreset version 1 is not used" in caplog.text
    assert f"since no coreset of {store.paths.root} was taken (where one was refused" in caplog.text
    assert "epoch 2 trains on all samples (no coreset was taken)" in caplog.text
    assert "yet" not in caplog.text


def test_a_streamed_dataset_trains_without_coresets(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publish(store, 0)
    stream = datasets.Dataset.from_list(ROWS).to_iterable_dataset()
    _, fed = train(
        tmp_path / "run", CoresetCallback(store.paths.root), dataset=stream, kind=CoresetTrainer,
        max_steps=3, save_strategy="no",
    )  # fmt: skip
    assert [p for batch in fed for p in batch] == list(range(12))
    assert "no coreset can be drawn" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"follow": "batch"}, "follow should be one of epoch, step, never; found 'batch'"),
        ({"mode": "weight"}, "mode should be one of cycle, weighted; found 'weight'"),
        ({"redraw": "sometimes"}, "redraw should be one of pass, epoch, never; found 'sometimes'"),
        ({"check_steps": 0}, "check_steps should be >= 1, found 0"),
        ({"num_samples": 0}, "num_samples should be >= 1, found 0"),
    ],
)
def test_wrong_arguments_are_clear(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        CoresetCallback("store", **arguments)
