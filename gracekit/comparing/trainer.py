"""One run with the built-in trainer: a plain Hugging Face `Trainer`, the same for every arm.

A control gives the rows of each epoch itself (`ControlTrainer`); a selection of gracekit's is
refreshed at every epoch's checkpoint and drawn by `CoresetCallback`, as in a user's own script.
"""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch.utils.data import Dataset, Sampler
from transformers import (
    AutoModelForCausalLM,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from gracekit.checkpoints import check_checkpoint, describe_architecture
from gracekit.comparing.arms import Arm
from gracekit.comparing.bed import Bed
from gracekit.comparing.controls import Draws, Turn
from gracekit.comparing.course import Course, Watch, rows_of_steps
from gracekit.comparing.evaluation import padded, row_losses, row_states, sums_of_rows
from gracekit.comparing.recipes import recipe_of
from gracekit.comparing.run_result import AimPoint, WorthPoint
from gracekit.errors import CheckpointError, MeasureError, RecipeError
from gracekit.foreign import foreign
from gracekit.recipe import Recipe
from gracekit.refresher import refresh
from gracekit.refresher.prices import prices
from gracekit.samples import load_samples, tokenize
from gracekit.store import Store
from gracekit.training import CoresetCallback, CoresetTrainerMixin
from gracekit.types import Float32, Float64, Rows

logger = logging.getLogger("gracekit.comparing")


def train(bed: Bed, arm: Arm, seed: int, folder: Path, on_point: Callable[[int], None]) -> Course:
    """Train one arm with one seed.

    Args:
        bed: Rows, start and steps.
        arm: What is trained on.
        seed: Of draws, order, dropout and adapters.
        folder: An empty directory for checkpoints and a store; the caller removes it.
        on_point: Called with the step after each look at the held-out rows.

    Raises:
        MeasureError: The loss stopped being finite.
        RecipeError: The arm or the adapter cannot be made.
    """
    transformers.set_seed(seed)
    model = load_start(bed)
    num_steps = bed.num_full_steps if arm.is_full else bed.num_steps
    watch = Watch(bed, model, num_steps, on_point)
    if arm.draws is not None:
        _train_control(bed, model, arm.draws(bed, seed), seed, folder, watch)
    else:
        _train_selection(bed, model, arm, seed, folder, watch)
    taken = watch.course.ended_at or watch.course.points[-1].step
    advised = [aim.advice for aim in watch.course.aims[-1:] if aim.advice is not None]
    may_end_early = arm.overlay is not None and arm.overlay.ends_early and advised
    if taken != num_steps and not may_end_early:
        raise MeasureError(
            f"the arm {arm.name!r}, seed {seed}, took {taken} of {num_steps} steps: arms with "
            "different steps cannot be compared; see the messages above"
        )
    if not np.isfinite(watch.course.points[-1].losses).all():
        raise MeasureError(
            f"the arm {arm.name!r}, seed {seed}: the held-out loss is not finite after training; "
            "lower compare.learning_rate"
        )
    watch.course.model = model
    return watch.course


def load_start(bed: Bed) -> Any:
    """The model that every run starts from; with `lora_rank` under a new adapter.

    Raises:
        CheckpointError: It cannot be loaded.
        RecipeError: There is no peft for an adapter.
    """
    settings = bed.recipe.compare
    with foreign(bed.start, CheckpointError):
        model = AutoModelForCausalLM.from_pretrained(
            bed.start,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=bed.recipe.checkpoints.trust_remote_code,
        )
    if settings.lora_rank is None:
        return model
    try:
        peft = importlib.import_module("peft")
    except ImportError:
        raise RecipeError(
            "compare.lora_rank needs the package peft: pip install 'gracekit[lora]'"
        ) from None
    return peft.get_peft_model(
        model,
        peft.LoraConfig(r=settings.lora_rank, target_modules="all-linear", task_type="CAUSAL_LM"),
    )


class RowsOfData(Dataset[dict[str, Any]]):
    """All n rows of the data as examples that know their position."""

    def __init__(self, bed: Bed) -> None:
        self._tokens = bed.tokens

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, row: int) -> dict[str, Any]:
        ids, has_loss = self._tokens.take(np.array([row]))[0]
        labels = np.where(has_loss, ids, -100)
        return {"input_ids": ids.tolist(), "labels": labels.tolist(), "row": int(row)}


def _arguments(bed: Bed, seed: int, folder: Path) -> TrainingArguments:
    settings = bed.recipe.compare
    return TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.schedule if settings.warmup == 0 or (
            settings.schedule != "constant") else "constant_with_warmup",
        warmup_steps=round(settings.warmup * bed.num_steps),
        weight_decay=0.0,
        max_grad_norm=1.0,
        seed=seed,
        logging_strategy="no",
        save_strategy="no",
        save_total_limit=2,
        report_to="none",
        use_cpu=bed.recipe.scoring.device == "cpu" or not torch.cuda.is_available(),
        dataloader_pin_memory=False,
        disable_tqdm=True,
        remove_unused_columns=False,
    )  # fmt: skip


class ControlTrainer(Trainer):  # type: ignore[misc]
    """The stock trainer on the rows that a control draws, with their weights, if it has any.

    Its loss is the stock one, the sum over target tokens by their number in the step, with a
    factor for each row; it notes the loss of each row on the way.
    """

    def __init__(self, *args: Any, rows: EpochRows, **kwargs: Any) -> None:
        self._epoch_rows = rows
        super().__init__(*args, **kwargs)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return self._epoch_rows

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Σ weight · loss of its tokens / tokens of the step."""
        rows, labels, weights = (inputs.pop(key) for key in ("rows", "labels", "weights"))
        outputs = model(**inputs)
        sums, counts = sums_of_rows(outputs.logits[:, :-1].float(), labels[:, 1:])
        self._epoch_rows.note(rows, (sums / counts).detach())
        total = counts.sum() if num_items_in_batch is None else num_items_in_batch
        loss = (weights.to(sums) * sums).sum() / total
        return (loss, outputs) if return_outputs else loss


class EpochRows(Sampler[int]):
    """The present epoch's draw in its order, as dataset and as sampler, and the last losses."""

    def __init__(self, num_rows: int, num_drawn: int) -> None:
        self._num_drawn = num_drawn
        self._turn = Turn(np.zeros(0, np.int64))
        self.losses = np.full(num_rows, np.nan)

    def __len__(self) -> int:
        return self._num_drawn

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self._turn.rows)))

    def __getitem__(self, place: int) -> tuple[int, float]:
        """Row at a place of the draw, and the factor of its loss there."""
        weights = self._turn.weights
        return int(self._turn.rows[place]), 1.0 if weights is None else float(weights[place])

    def begin(self, turn: Turn) -> None:
        """Go on with another epoch's rows."""
        self._turn = turn

    def note(self, rows: list[int], losses: torch.Tensor) -> None:
        """The losses that rows had in training."""
        self.losses[rows] = losses.cpu().numpy()


class _Looks:
    """What a control may ask of the model in training; its cost goes to the course."""

    def __init__(self, bed: Bed, model: Any, watch: Watch, seen: Callable[[], Float64]) -> None:
        self._bed, self._model, self._watch, self.seen = bed, model, watch, seen
        target_share = float(bed.tokens.num_targets.sum() / max(bed.tokens.lengths.sum(), 1))
        of_loss = {
            "scoring.scores": ["loss"],
            "scoring.importance": "loss",
            "selection.aim": "none",
        }
        recipe = bed.recipe.override(of_loss)
        architecture = describe_architecture(bed.start, bed.recipe.checkpoints)
        self._price = prices(architecture, recipe, target_share).measure

    def losses(self, rows: Rows) -> Float64:
        """[m] mean losses."""
        pad = self._bed.tokenizer.pad_token_id
        with self._watch.selecting(self._price * float(self._bed.tokens.lengths[rows].sum())):
            return row_losses(self._model, self._bed.tokens, rows, pad)

    def states(self, rows: Rows) -> Float32:
        """[m, d] hidden states."""
        return self._states(self._bed.tokens, rows)

    def target_states(self) -> Float32:
        """[t, d] those of the target's rows that have something to train on, as other arms take."""
        target = self._bed.recipe.target
        assert target is not None
        raw = load_samples(target)
        tokens = tokenize(raw, self._bed.tokenizer, target, self._watch.cache / "target-tokens")
        return self._states(tokens, np.flatnonzero(tokens.num_targets > 0))

    def _states(self, tokens: Any, rows: Rows) -> Float32:
        pad = self._bed.tokenizer.pad_token_id
        with self._watch.selecting(self._price * float(tokens.lengths[rows].sum())):
            return row_states(self._model, tokens, rows, pad)


def _train_control(
    bed: Bed, model: Any, draws: Draws, seed: int, folder: Path, watch: Watch
) -> None:
    watch.cache = folder
    is_full = watch.num_steps != bed.num_steps
    rows = EpochRows(len(bed.raw), len(bed.pool) if is_full else bed.num_drawn)
    looks = _Looks(bed, model, watch, lambda: rows.losses)

    class Drawing(TrainerCallback):  # type: ignore[misc]
        """Draws the rows of each epoch."""

        def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """The next draw."""
            turn = draws.draw(round(state.epoch or 0), looks)
            rows.begin(turn)
            watch.course.trained.append(turn.rows)

    def collate(drawn: list[tuple[int, float]]) -> dict[str, Any]:
        numbers = [row for row, _ in drawn]
        ids, mask, labels = padded(bed.tokens, np.array(numbers), bed.tokenizer.pad_token_id)
        weights = torch.tensor([weight for _, weight in drawn])
        return {
            "input_ids": ids, "attention_mask": mask, "labels": labels,
            "rows": numbers, "weights": weights,
        }  # fmt: skip

    arguments = _arguments(bed, seed, folder)
    if is_full:
        arguments.warmup_steps = round(bed.recipe.compare.warmup * watch.num_steps)
    trainer = ControlTrainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        data_collator=collate,
        callbacks=[Drawing(), watch],
        rows=rows,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()


class CoresetTrainer(CoresetTrainerMixin, Trainer):  # type: ignore[misc]
    """The stock trainer, with versions' weights in its loss."""


class _Refreshing(TrainerCallback):  # type: ignore[misc]
    """A checkpoint after each epoch but the last, and a version of each."""

    def __init__(self, recipe: Recipe, folder: Path, watch: Watch) -> None:
        self._recipe, self._folder, self._watch = recipe, folder, watch

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for the checkpoint."""
        control.should_save = (
            state.global_step < state.max_steps and not control.should_training_stop
        )

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Make a version of it."""
        self.refresh(self._folder / f"checkpoints/checkpoint-{state.global_step}")

    def refresh(self, checkpoint: Path) -> None:
        """One version, on the account of selection."""
        logger.info("selecting by what is measured at %s", checkpoint.name)
        with self._watch.selecting(0.0):
            header = refresh(self._recipe, checkpoint).header
            if header.cost is not None:
                self._watch.course.selection_tokens = header.cost.cost_in_all
            if header.aim is not None:
                self._watch.course.aims.append(AimPoint.of(header.checkpoint.step, header.aim))
            if header.meter is not None:
                worth = WorthPoint.of(header.checkpoint.step, header.meter)
                self._watch.course.worths.append(worth)


def _train_selection(bed: Bed, model: Any, arm: Arm, seed: int, folder: Path, watch: Watch) -> None:
    assert arm.overlay is not None
    recipe = recipe_of(bed, arm, seed, folder / "store")
    refreshing = _Refreshing(recipe, folder, watch)
    record = folder / "drawn.jsonl"
    coresets = CoresetCallback(
        recipe.store,
        sample_ids=bed.raw.sample_ids.tolist(),
        num_samples=bed.num_drawn,
        seed=seed,
        redraw=arm.overlay.redraw,
        record=record,
        weigh_loss=recipe.selection.weights not in ("none", "uniform"),
    )
    arguments = _arguments(bed, seed, folder)

    def collate(examples: list[dict[str, Any]]) -> dict[str, Any]:
        numbers = np.array([example["row"] for example in examples])
        ids, mask, labels = padded(bed.tokens, numbers, bed.tokenizer.pad_token_id)
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    trainer = CoresetTrainer(
        model=model,
        args=arguments,
        train_dataset=RowsOfData(bed),
        data_collator=collate,
        processing_class=bed.tokenizer,
        callbacks=[coresets, watch, refreshing],
    )
    trainer.remove_callback(PrinterCallback)
    begin = folder / "checkpoints/checkpoint-0"
    trainer.save_model(str(begin))
    bed.tokenizer.save_pretrained(begin)
    (begin / "trainer_state.json").write_text(json.dumps({"global_step": 0}), encoding="utf-8")
    check_checkpoint(begin, recipe.checkpoints)
    refreshing.refresh(begin)
    trainer.train()
    with record.open(encoding="utf-8") as file:
        epochs: dict[int, list[int]] = {}
        for line in file:
            drawn = json.loads(line)
            epochs.setdefault(drawn["epoch"], []).extend(drawn["positions"])
    trained = [np.array(epochs[e], np.int64) for e in sorted(epochs)]
    # Where the training ended early the loader was ahead of it.
    steps = watch.course.ended_at or watch.num_steps
    watch.course.trained = rows_of_steps(trained, steps, bed.recipe.compare.batch_size)
    watch.course.versions = len(Store.open(recipe.store).all_versions())
