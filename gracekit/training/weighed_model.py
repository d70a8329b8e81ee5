"""A micro-batch's weighted loss, in the place where a trainer looks for the model's own.

- `Trainer` reads `outputs.loss`. The model is called without labels, so that it makes no loss of
  its own, and the weighted one is put there.
- `Trainer` with label smoothing calls `label_smoother(outputs, labels)`: it gets ours.
- `SFTTrainer` (TRL 1.x) sums `outputs.log_probs`, which a fused head makes without logits: they are
  multiplied by what their row weighs.

No loss is computed twice. Read in transformers 5.23 and TRL 1.16.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from gracekit.training.loss import (
    row_of_tokens,
    shifted,
    tokens_of_rows,
    weighted_loss_and_means,
)
from gracekit.training.loss_units import Average
from gracekit.training.trained_losses import Note, means_of_log_probs
from gracekit.training.weighted_data import BatchRows


@dataclass(frozen=True, slots=True, kw_only=True)
class WeighedBatch:
    """A micro-batch and how its loss is to be computed."""

    rows: BatchRows
    factors: torch.Tensor
    """[rows] of each row's sum (or mean), by the denominator of the step."""
    average: Average
    labels: torch.Tensor
    shift_labels: torch.Tensor | None
    scale: float
    """For what the trainer and the average over ranks do to the loss later."""
    num_items: Any
    note: Note
    """Gets the mean loss of each row, neither weighted nor smoothed."""

    def of_logits(self, logits: torch.Tensor, smoothing: float = 0.0) -> torch.Tensor:
        """The loss; logits of virtual tokens in front (prompt tuning) have no labels."""
        labels = self.labels if self.shift_labels is None else self.shift_labels
        loss, means = weighted_loss_and_means(
            logits[:, -labels.shape[-1] :],
            labels,
            self.factors,
            average=self.average,
            denominator=1 / self.scale,
            lengths=self.rows.lengths,
            shift=self.shift_labels is None,
            label_smoothing=smoothing,
        )
        self.note(means)
        return loss

    def of_log_probs(self, log_probs: torch.Tensor, label_mask: torch.Tensor) -> torch.Tensor:
        """[rows, tokens] what a trainer that divides their sum by its tokens gets our loss from."""
        targets = shifted(self.labels) if self.shift_labels is None else self.shift_labels
        is_shifted = self.shift_labels is None
        self.note(
            means_of_log_probs(log_probs, label_mask, targets, self.rows.lengths, shift=is_shifted)
        )
        factors = self.factors
        if self.average == "samples":
            counts = tokens_of_rows(targets, self.rows.lengths)
            factors = factors / counts.clamp(min=1).to(factors)
        factors = factors.to(log_probs)
        per_token = factors[row_of_tokens(targets, self.rows.lengths).to(log_probs.device)]
        if is_shifted:
            per_token = per_token[:, :-1]
        padding = log_probs.shape[-1] - per_token.shape[-1]
        per_token = torch.nn.functional.pad(per_token, (padding, 0))
        num_items = label_mask.sum() if self.num_items is None else self.num_items
        divided_by = torch.as_tensor(num_items, device=log_probs.device).clamp(min=1)
        return log_probs * per_token * (self.scale * divided_by)

    def smoother(self, epsilon: float) -> Any:
        """A `LabelSmoother` that weighs."""

        def smooth(outputs: Any, labels: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
            logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
            return self.of_logits(logits, epsilon)

        return smooth


class WeighedModel:
    """The model as a trainer's `compute_loss` calls it, with a weighted loss."""

    def __init__(self, model: Any, batch: WeighedBatch, base: Any) -> None:
        self._model = model
        self._batch = batch
        self._base = base
        self.problem: str | None = "the trainer's `compute_loss` makes a loss of its own"
        self.made: torch.Tensor | None = None
        """What the trainer is to make its loss of."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, **inputs: Any) -> Any:
        """The model's output; `problem` says why its loss is not weighted, if it is not."""
        if inputs.get("fused_lm_head"):
            outputs = self._model(**inputs)
            outputs.log_probs = self._batch.of_log_probs(outputs.log_probs, outputs.label_mask)
            self.made, self.problem = outputs.log_probs, None
            return outputs
        if inputs.get("labels") is None:
            return self._model(**inputs)
        own = ("labels", "shift_labels", "num_items_in_batch")
        outputs = self._model(**{key: inputs[key] for key in inputs if key not in own})
        logits = outputs.get("logits") if isinstance(outputs, dict) else outputs[0]
        if logits is None:
            self.problem = "the model's output has no logits"
            return self._model(**inputs)
        loss = self._batch.of_logits(logits)
        self.made, self.problem = loss, None
        auxiliary = outputs.get("aux_loss") if isinstance(outputs, dict) else None
        if auxiliary is not None:
            loss = loss + _coefficient(self._base) * auxiliary.to(loss.device)
        if not isinstance(outputs, dict):
            return (loss, *outputs)
        outputs["loss"] = loss
        return outputs


def _coefficient(model: Any) -> float:
    """Of the load-balancing loss, as the model's own forward would add it."""
    config = model.config.get_text_config()
    found = getattr(model, "router_aux_loss_coef", getattr(config, "router_aux_loss_coef", 0.0))
    return float(found)
