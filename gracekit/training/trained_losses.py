"""What a trainer sees of each row's loss as it trains on it, noted for the log of uses.

Where the loss is weighted, each row's own is a sum over numbers that are there (`weighed_model`).
Where the model's own loss is used (before the first version, or without weights), the model is
given a loss function of the same value, to the bit, that keeps the log probabilities on the way
(`ObservedModel`). In both the logits are gone over once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch

from gracekit.training.loss import IGNORED, mean_losses, row_of_tokens, shifted, tokens_of_rows
from gracekit.types import Float32, Int64

_MOST_WAITING = 256
"""Micro-batches whose losses stay on the device until they are moved together."""

Note = Callable[[torch.Tensor], None]
"""Takes the mean loss of each row of a micro-batch, as `mean_losses` has it."""


class SeenLosses(NamedTuple):
    """What a rank has seen, in the order in which it trained."""

    positions: Int64
    """[m] in the trainer's dataset; may repeat."""
    losses: Float32
    """[m]; NaN of a row without target tokens."""
    steps: Int64
    """[m] training steps that were done then."""


class LossNotes:
    """What this rank has seen since the last log. Noting makes the device wait for nothing."""

    def __init__(self) -> None:
        self._seen: list[SeenLosses] = []
        self._waiting: list[tuple[tuple[int, ...], int, torch.Tensor]] = []

    def add(self, positions: tuple[int, ...], step: int, losses: torch.Tensor) -> None:
        """Note the losses [rows] of a micro-batch, on whatever device they are."""
        self._waiting.append((positions, step, losses.detach()))
        if len(self._waiting) >= _MOST_WAITING:
            self._move()

    def take(self) -> SeenLosses:
        """All that was noted, which is forgotten here."""
        self._move()
        nothing = SeenLosses(np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros(0, np.int64))
        columns = zip(nothing, *self._seen, strict=True)
        self._seen = []
        return SeenLosses(*(np.concatenate(parts) for parts in columns))

    def _move(self) -> None:
        """Move what waits on the device, in one transfer."""
        if not self._waiting:
            return
        losses = torch.cat([losses.float() for _, _, losses in self._waiting]).cpu().numpy()
        rows = [positions for positions, _, _ in self._waiting]
        steps = [step for _, step, _ in self._waiting]
        self._seen.append(
            SeenLosses(
                positions=np.concatenate([np.array(p, np.int64) for p in rows]),
                losses=losses,
                steps=np.repeat(np.array(steps, np.int64), [len(p) for p in rows]),
            )
        )
        self._waiting = []


def means_of_log_probs(
    log_probs: torch.Tensor,
    label_mask: torch.Tensor,
    targets: torch.Tensor,
    lengths: Sequence[int] | None,
    *,
    shift: bool,
) -> torch.Tensor:
    """[rows] mean loss of each row by the log probabilities that a fused head makes.

    Args:
        log_probs: [rows, tokens] of each target token.
        label_mask: [rows, tokens] where there is one.
        targets: int64 [rows, tokens] as `shifted` gives them.
        lengths: as of `weighted_loss`.
        shift: whether the head has left out the last token, which is about nothing.
    """
    with torch.no_grad():
        owners = row_of_tokens(targets, lengths).to(log_probs.device)
        owners = owners[:, :-1] if shift else owners
        owners = torch.nn.functional.pad(owners, (log_probs.shape[-1] - owners.shape[-1], 0))
        counts = tokens_of_rows(targets, lengths).to(log_probs.device)
        losses = -log_probs.float().masked_fill(~label_mask.bool(), 0)
        sums = losses.new_zeros(len(counts)).index_add_(0, owners.flatten(), losses.flatten())
        return sums / counts


class ObservedModel:
    """The model as a trainer's `compute_loss` calls it, with its own loss, which is noted by row.

    Args:
        model: as the trainer calls it.
        base: the module whose `loss_function` makes the loss, which is transformers' cross-entropy
            of the next token.
        inputs: of the micro-batch.
        lengths: tokens of each row, where the collator has joined them.
        note: gets the losses, where the model makes its loss in one of the ways that are known.
    """

    def __init__(
        self, model: Any, base: Any, inputs: Any, lengths: Sequence[int] | None, note: Note
    ) -> None:
        self._model, self._base = model, base
        self._lengths, self._note = lengths, note
        given = inputs.get("shift_labels")
        self._shift = given is None
        self._targets = shifted(inputs["labels"]) if given is None else given

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, **inputs: Any) -> Any:
        """The model's output, as it is."""
        if inputs.get("fused_lm_head"):
            outputs = self._model(**inputs)
            self._note(
                means_of_log_probs(
                    outputs.log_probs,
                    outputs.label_mask,
                    self._targets,
                    self._lengths,
                    shift=self._shift,
                )
            )
            return outputs
        with _loss_function(self._base, self._loss):
            return self._model(**inputs)

    def _loss(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor | None,
        vocab_size: int,
        num_items_in_batch: Any = None,
        ignore_index: int = IGNORED,
        shift_labels: torch.Tensor | None = None,
        **_: Any,
    ) -> torch.Tensor:
        """Cross-entropy of the next token, averaged as transformers does it: to the bit the same,
        since torch's cross-entropy is these two steps too.
        """
        targets = shift_labels
        if targets is None:
            assert labels is not None
            targets = shifted(labels)
        targets = targets.to(logits.device)
        log_probs = torch.log_softmax(logits.float().view(-1, vocab_size), -1)
        flat = targets.reshape(-1)
        loss = torch.nn.functional.nll_loss(
            log_probs,
            flat,
            ignore_index=ignore_index,
            reduction="mean" if num_items_in_batch is None else "sum",
        )
        if ignore_index == IGNORED and targets.shape == self._targets.shape:
            picked = log_probs.detach().gather(-1, flat.clamp(min=0)[:, None])[:, 0]
            self._note(mean_losses(-picked.view(targets.shape), targets, self._lengths))
        if num_items_in_batch is None:
            return loss
        return loss / torch.as_tensor(num_items_in_batch, device=loss.device)


@contextmanager
def _loss_function(base: Any, function: Any) -> Iterator[None]:
    """A model with another loss function."""
    before = vars(base).get("_loss_function")
    base.loss_function = function
    try:
        yield
    finally:
        if before is None:
            del base._loss_function  # transformers looks the function up by its type again
        else:
            base.loss_function = before
