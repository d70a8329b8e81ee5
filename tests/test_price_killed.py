"""The budget after kills: of daemons while they measure, and of a trainer between two saves."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

import gracekit
from gracekit.progress import Progress
from gracekit.recipe import Recipe
from gracekit.store import Store
from gracekit.training import CoresetCallback, CoresetTrainerMixin
from gracekit.version.outcomes import Cost
from pipelines.train_quickstart import read_rows
from tests.storm import PROCESSES
from tests.tiny import make_tokenizer, tiny_recipe, write_checkpoint, write_data

NUM, EPOCH, BATCH, EPOCHS, MAX_COST = 600, 160, 8, 6, 0.1
SLACK = 1.02
"""Rows differ in length, and which of them come is not known when they are counted."""


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _trains_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds do not count: of so small a model they would not pay for loading."""
    monkeypatch.setattr("gracekit.checkpoints.pace.this_machine", lambda: "another")


def recipe_in(folder: Path) -> Recipe:
    return tiny_recipe(
        folder,
        refresh={"min_fraction": 0.1, "max_fraction": 0.3, "max_cost": MAX_COST},
        scoring={"shard_rows": 8, "batch_tokens": 128},
        checkpoints={"poll_interval_s": 0.05, "on_backlog": "all"},
        training={"samples_a_step": BATCH, "steps": EPOCHS * EPOCH // BATCH},
    )


def accounts(store: Path) -> list[Cost]:
    """Of all versions, which stay within the budget."""
    opened, found = Store.open(store), list[Cost]()
    for version in opened.versions():
        cost = opened.header(version).cost
        assert cost is not None
        assert cost.cost_in_all <= MAX_COST * cost.training_tokens * SLACK
        found.append(cost)
    return found


def watch_and_die(folder: Path, version: int, num_rows: int) -> None:
    """A daemon that is killed once it has measured so many rows for a version."""
    torch.set_num_threads(1)
    recipe, left = recipe_in(folder), num_rows
    advance = Progress.advance

    def dying(self: Progress, rows: int, tokens: int) -> None:
        nonlocal left
        advance(self, rows, tokens)
        made = Store.open(recipe.store).versions() if Store.exists(recipe.store) else []
        left -= rows if len(made) == version - 1 else 0
        if left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)

    with patch.object(Progress, "advance", dying):
        gracekit.watch(recipe, folder / "run", max_checkpoints=5)


def test_killed_daemons_and_the_one_after_them_stay_within_the_budget(tmp_path: Path) -> None:
    write_data(tmp_path / "train.jsonl", num_samples=NUM)
    for step in (20, 40, 60):
        write_checkpoint(tmp_path / "run", step)
    for version in (1, 2):
        child = PROCESSES.Process(target=watch_and_die, args=(tmp_path, version, 20))
        child.start()
        child.join()
        assert child.exitcode == -signal.SIGKILL
    recipe = recipe_in(tmp_path)
    gracekit.watch(recipe, tmp_path / "run", max_checkpoints=2)
    costs, store = accounts(Path(recipe.store)), Store.open(recipe.store)
    assert len(costs) == 3
    for version in (1, 2):
        outcome = store.header(version).refresh
        assert outcome is not None and outcome.num_resumed > 0
    assert costs[-1].cost_in_all == pytest.approx(sum(cost.cost for cost in costs))
    assert costs[-1].cost_in_all > 0.5 * MAX_COST * costs[-1].training_tokens
    assert not gracekit.verify(recipe.store).problems


class CoresetTrainer(CoresetTrainerMixin, Trainer):  # type: ignore[misc]
    """The trainer with epochs of its callback's length."""


class KilledError(Exception):
    """Stands for a kill: nothing is saved after it."""


class Refreshing(TrainerCallback):  # type: ignore[misc]
    """A version of every checkpoint, and a kill after a step."""

    def __init__(self, recipe: Recipe, *, killed_at: int) -> None:
        self.recipe, self.killed_at = recipe, killed_at

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        gracekit.refresh(self.recipe, checkpoint)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.killed_at:
            raise KilledError


def trained(folder: Path, recipe: Recipe, *, resume: bool, killed_at: int = -1) -> list[int]:
    """Number of tokens of each batch that the model was fed."""
    tokenizer, fed = make_tokenizer(), list[int]()
    model = AutoModelForCausalLM.from_pretrained(write_checkpoint(folder / "start", 0))
    model.register_forward_pre_hook(
        lambda module, args, kwargs: fed.append(int(kwargs["attention_mask"].sum())),
        with_kwargs=True,
    )
    dataset = []
    for row in read_rows(folder / "train.jsonl", None):
        prompt, answer = (tokenizer(row[name])["input_ids"] for name in ("prompt", "response"))
        ids = [*prompt, *answer, tokenizer.eos_token_id]
        labels = [-100] * len(prompt) + ids[len(prompt) :]
        dataset.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels})
    trainer = CoresetTrainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(folder / "run"), num_train_epochs=EPOCHS, save_strategy="epoch",
            per_device_train_batch_size=BATCH, logging_strategy="no", report_to="none",
            use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False,
        ),
        train_dataset=dataset,
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        processing_class=tokenizer,
        callbacks=[
            CoresetCallback(recipe.store, num_samples=EPOCH),
            Refreshing(recipe, killed_at=killed_at),
        ],
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=resume)
    return fed


def test_a_training_that_is_killed_and_resumed_stays_within_the_budget(tmp_path: Path) -> None:
    write_data(tmp_path / "train.jsonl", num_samples=NUM)
    recipe = recipe_in(tmp_path).override({"training": {}})
    of_epoch = EPOCH // BATCH
    with pytest.raises(KilledError):
        trained(tmp_path, recipe, resume=False, killed_at=5 * of_epoch // 2)
    before = accounts(Path(recipe.store))[-1]
    rest = trained(tmp_path, recipe, resume=True)
    last = accounts(Path(recipe.store))[-1]
    assert before.trained_step == 2 * of_epoch and last.trained_step == EPOCHS * of_epoch
    assert last.run == before.run and last.pace == "callback"
    of_rest = last.trained_tokens - before.trained_tokens
    assert of_rest == pytest.approx(sum(rest), rel=0.1)
    assert last.cost_in_all > before.cost_in_all > 0
