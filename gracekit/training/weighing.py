"""How the weights of a version's rows reach the loss of a Hugging Face `Trainer`, or do not.

`compute_loss` of the trainer (transformers' `Trainer`, TRL's `SFTTrainer`) is given a model whose
loss is weighted (`weighed_model.py`); the rest of it, its metrics included, stays as it is. What a
trainer multiplies its loss by afterwards (`_after_scale`) is made up for, so that the
gradient of a step, which ranks average and micro-batches add up to, is that of `weighted_loss`.
Read in transformers 5.23 and TRL 1.16.
"""

from __future__ import annotations

import functools
import logging
import math
from dataclasses import dataclass
from typing import Any

import torch

from gracekit.training.loss import shifted, tokens_of_rows
from gracekit.training.loss_units import WAY_OUT, Average, LossUnit
from gracekit.training.trained_losses import Note, ObservedModel
from gracekit.training.weighed_model import WeighedBatch, WeighedModel
from gracekit.training.weighted_data import BATCH_KEY, BatchRows, WeighedDataset, WeighingCollator

logger = logging.getLogger("gracekit.training")

_OPERATIONS = 200
"""That a trainer may put between the model's loss and its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTotals:
    """Of all micro-batches and ranks of a step."""

    average: Average
    num_rows: float
    num_weighted_tokens: float | None
    """Σ weight · target tokens; None where the tokens of the pool's rows are known."""


class WeighedTrainer:
    """The part of `CoresetTrainerMixin` that weighs the loss; to be mixed in before a trainer."""

    accelerator: Any
    args: Any
    callback_handler: Any
    data_collator: Any
    model: Any
    state: Any
    _coreset_step: StepTotals | None = None
    _coreset_problem: str | None = None
    _coreset_checked: bool = False

    def _weighing_callback(self) -> Any:
        """The `CoresetCallback` whose weights are to reach the loss, if any."""
        callback = self._coreset_callback()
        return callback if callback is not None and callback.weigh_loss else None

    def _coreset_callback(self) -> Any:
        """The `CoresetCallback`, if any: the one whose weights are to reach the loss first."""
        callbacks = self.callback_handler.callbacks
        found = [c for c in callbacks if hasattr(c, "weigh_loss")]
        return max(found, key=lambda c: c.weigh_loss, default=None)

    def _get_dataloader(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """The trainer's own; where it is for training, its batches know their rows and weights."""
        make: Any = super()._get_dataloader  # type: ignore[misc]
        streams = isinstance(dataset, torch.utils.data.IterableDataset)
        knows = kwargs.get("is_training") and self._coreset_callback() is not None
        if not knows or streams or not hasattr(dataset, "__getitem__"):
            return make(dataset, *args, **kwargs)
        if self._is_dispatched():
            if self._weighing_callback() is not None:
                self._say_once("rank 0 sends the others their batches (`dispatch_batches`)")
            return make(dataset, *args, **kwargs)
        trainer: Any = self
        collator = self.data_collator
        if hasattr(dataset, "remove_columns"):  # a datasets.Dataset
            dataset = trainer._remove_unused_columns(dataset, description="training")
            inner = collator
        else:
            inner = trainer._get_collator_with_removed_columns(collator, description="training")
        self.data_collator = WeighingCollator(inner)
        try:
            return make(WeighedDataset(dataset), *args, **kwargs)
        finally:
            self.data_collator = collator

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The micro-batches of a step, with what they weigh added up over the ranks."""
        batches, num_items = super().get_batch_samples(*args, **kwargs)  # type: ignore[misc]
        callback = self._weighing_callback()
        self._coreset_step = None
        if callback is not None and callback.sampler is not None:
            self._coreset_step = self._totals(batches, callback)
        return batches, num_items

    def _totals(self, batches: list[Any], callback: Any) -> StepTotals | None:
        """None where the trainer's own loss is to be used; all ranks must call it together."""
        rows = [batch.get(BATCH_KEY) if hasattr(batch, "get") else None for batch in batches]
        problem = self._coreset_problem or self._problem() or _problem_of(rows)
        known = [r for r in rows if r is not None]
        weights = [w for r in known for w in r.weights]
        used = [unit for r in known for unit in _units(r, callback)]
        weighted_tokens = sum(
            float((torch.tensor(r.weights, dtype=torch.float64) * _counts(b, r)).sum())
            for b, r in zip(batches, rows, strict=True)
            if r is not None and not r.problem
        )
        num_by_samples = sum(u is not None and u.average == "samples" for u in used)
        num_unknown = sum(u is None or u.tokens_per_row is None for u in used)
        num_unlike = sum(w != 1 for w in weights)
        rows_in_step, tokens_in_step, by_samples, unknown, unlike, problems = self._over_ranks(
            [
                len(weights),
                weighted_tokens,
                num_by_samples,
                num_unknown,
                num_unlike,
                problem is not None,
            ]
        )
        if problems:
            if unlike:
                self._say_once(problem or "another rank cannot apply them")
            return None
        if by_samples:
            return StepTotals(average="samples", num_rows=rows_in_step, num_weighted_tokens=None)
        if unknown and not unlike:
            return None  # Σ weight · tokens is the tokens of the step: the trainer's own loss
        return StepTotals(
            average="tokens",
            num_rows=rows_in_step,
            num_weighted_tokens=tokens_in_step if unknown else None,
        )

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The trainer's own, in training with each row's weight as a factor."""
        rows = inputs.pop(BATCH_KEY, None)
        trainer: Any = self
        compute: Any = super().compute_loss  # type: ignore[misc]
        given = {"return_outputs": return_outputs, "num_items_in_batch": num_items_in_batch}
        callback = self._weighing_callback()
        step = self._coreset_step
        if rows is None or not self.model.training:
            return compute(model, inputs, **given)
        note = self._note_of(rows)
        if step is None or callback is None:
            if note is not None:
                base, lengths = self._base_model(), rows.lengths
                model = ObservedModel(model, base, inputs, lengths, note)
            return compute(model, inputs, **given)
        batch = WeighedBatch(
            rows=rows,
            factors=_factors(rows, step, _units(rows, callback)),
            average=step.average,
            labels=inputs["labels"],
            shift_labels=inputs.get("shift_labels"),
            scale=self._num_ranks() / self._after_scale(num_items_in_batch),
            num_items=num_items_in_batch,
            note=note or _pass_over,
        )
        smoother = trainer.label_smoother
        if smoother is not None:
            trainer.label_smoother = batch.smoother(smoother.epsilon)
            try:
                return compute(model, inputs, **given)
            finally:
                trainer.label_smoother = smoother
        weighed = WeighedModel(model, batch, self._base_model())
        result = compute(weighed, inputs, **given)
        if not self._coreset_checked and weighed.problem is None:
            self._coreset_checked = True
            loss = result[0] if return_outputs else result
            if not _comes_from(loss, weighed.made):
                weighed.problem = "the trainer's `compute_loss` makes a loss of its own"
        if weighed.problem is not None:
            self._coreset_problem, self._coreset_step = weighed.problem, None
            self._say_once(weighed.problem)
        return result

    def _note_of(self, rows: BatchRows) -> Note | None:
        """What the mean losses of a micro-batch's rows are noted with; None where they cannot be
        had of this trainer without going over its logits again.
        """
        callback = self._coreset_callback()
        if callback is None or rows.problem or len(rows.positions) != len(rows):
            return None
        if self._coreset_step is None and (self._coreset_problem or not self._has_own_loss()):
            return None
        return functools.partial(callback.losses.add, rows.positions, int(self.state.global_step))

    def _has_own_loss(self) -> bool:
        """Whether the trainer's loss is the model's own, which can be looked at by row."""
        trainer: Any = self
        is_plain = trainer.label_smoother is None and not getattr(self.args, "torch_compile", False)
        return is_plain and self._problem() is None

    def _after_scale(self, num_items: Any) -> float:
        """What the trainer multiplies the loss by before the ranks average their gradients."""
        trainer: Any = self
        scale = 1.0
        counted = num_items is not None and trainer.model_accepts_loss_kwargs
        if counted and self.args.average_tokens_across_devices:
            scale *= self._num_ranks()
        is_scaled = getattr(trainer, "loss_is_scaled_for_ga", None)
        if not (counted if is_scaled is None else is_scaled):
            scale /= trainer.current_gradient_accumulation_steps
        return scale

    def _num_ranks(self) -> int:
        """Ranks with batches of their own, whose gradients are averaged."""
        shared = getattr(self, "get_tp_size", lambda: 1)()
        return int(self.accelerator.num_processes) // max(1, int(shared))

    def _over_ranks(self, values: list[float]) -> list[float]:
        """Sums over the ranks, those that share a batch counted once."""
        if self.accelerator.num_processes == 1:
            return [float(value) for value in values]
        local = torch.tensor([values], dtype=torch.float64, device=self.accelerator.device)
        sums = self.accelerator.gather(local).sum(0) / self.accelerator.num_processes
        return [float(value) for value in (sums * self._num_ranks()).tolist()]

    def _is_dispatched(self) -> bool:
        """Whether rank 0 alone reads batches and sends the others parts of them, which have to be
        tensors (`dispatch_batches` of accelerate).
        """
        is_asked = bool(getattr(self.accelerator, "dispatch_batches", None))
        return is_asked and int(self.accelerator.num_processes) > 1

    def _base_model(self) -> Any:
        model = self.accelerator.unwrap_model(self.model)
        return model.get_base_model() if hasattr(model, "get_base_model") else model

    def _problem(self) -> str | None:
        """Why this trainer's loss cannot be weighted; the same on all ranks."""
        from transformers.loss.loss_utils import ForCausalLMLoss

        trainer, args = self, self.args
        kernels = getattr(args, "liger_kernel_config", None) or {}
        parallel = getattr(self.accelerator, "parallelism_config", None)
        if getattr(trainer, "compute_loss_func", None) is not None:
            return "the loss is the trainer's `compute_loss_func`"
        if getattr(args, "loss_type", "nll") not in ("nll", None):
            return f"the loss is `loss_type={args.loss_type!r}`"
        if getattr(args, "packing", False):
            return "the dataset is packed, so that an example holds several rows"
        if args.use_liger_kernel and kernels.get("fused_linear_cross_entropy", True):
            return "Liger's fused loss makes no logits"
        if args.n_gpu > 1:
            return "the model is replicated by nn.DataParallel (start one process for each GPU)"
        if parallel is not None and (parallel.cp_enabled or getattr(parallel, "sp_enabled", False)):
            return "sequences are split over ranks"
        if getattr(self._base_model(), "loss_function", None) is not ForCausalLMLoss:
            return "the model's loss is its own, not the cross-entropy of the next token"
        return None

    def _say_once(self, problem: str) -> None:
        if not getattr(self, "_coreset_said", False) and self.args.process_index == 0:
            logger.warning("the coreset's weights do not reach the loss: %s. %s", problem, WAY_OUT)
        self._coreset_said = True


def _pass_over(losses: torch.Tensor) -> None:
    """Where losses are not noted."""


def _comes_from(loss: torch.Tensor, source: torch.Tensor | None) -> bool:
    """Whether a loss was made of a value within a few operations, by autograd's record of them."""
    wanted = None if source is None else source.grad_fn
    found: set[Any] = set()
    ahead: list[Any] = [loss.grad_fn]
    while ahead and len(found) < _OPERATIONS:
        node = ahead.pop(0)
        if node is None or node in found:
            continue
        if node is wanted:
            return True
        found.add(node)
        ahead += [following for following, _ in node.next_functions]
    return False


def _units(rows: BatchRows, callback: Any) -> list[LossUnit | None]:
    """[rows] how the loss of each is averaged; None where that could not be read."""
    present = callback.sampler.version
    return [callback.units[present if v is None else v] for v in rows.versions]


def _factors(rows: BatchRows, step: StepTotals, units: list[LossUnit | None]) -> torch.Tensor:
    """[rows] float64 weight of each row by the denominator of the step."""
    weights = torch.tensor(rows.weights, dtype=torch.float64)
    if step.average == "samples":
        return weights / step.num_rows
    if step.num_weighted_tokens is not None:
        return weights / max(step.num_weighted_tokens, 1e-30)
    tokens = [unit.tokens_per_row or math.inf if unit else math.inf for unit in units]
    return weights / (torch.tensor(tokens, dtype=torch.float64) * step.num_rows)


def _counts(batch: Any, rows: BatchRows) -> torch.Tensor:
    """[rows] target tokens of each row of a micro-batch."""
    targets = batch.get("shift_labels")
    targets = shifted(batch["labels"]) if targets is None else targets
    return tokens_of_rows(targets, rows.lengths).cpu().double()


def _problem_of(rows: list[BatchRows | None]) -> str | None:
    """Why the weights of these micro-batches cannot be applied."""
    if any(r is None for r in rows):
        return "the batches come without them (a data loader or collator of your own)"
    return next((r.problem for r in rows if r is not None and r.problem), None)
