"""The one pass over a batch that everything is read off.

Forward through the body; logits, cross-entropy and their gradients at the target positions in
pieces; then one backward pass through the body, if any reader wants a layer. The loss is the sum
over samples of the mean loss over their target tokens, so no sample sees another's gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

from gracekit.protocols import Batch, Reader
from gracekit.scoring.blocks import BlockTap
from gracekit.scoring.layers import head_size
from gracekit.scoring.readout import FullReadout, Readout, choose_readout
from gracekit.scoring.tap import LayerTap

LOGITS_AT_ONCE = 2**25
"""Logits that exist at one time (128 MiB in float32), unless one sample alone has more."""
HALF_LOSS_SCALE = 1024.0
"""Factor of the loss in float16, whose smallest number is above most token gradients."""


@dataclass
class PassTargets:
    """Target positions of whole samples; implements `protocols.Targets`."""

    sample: torch.Tensor
    ids: torch.Tensor
    hidden: torch.Tensor
    logits: torch.Tensor
    token_loss: torch.Tensor

    @cached_property
    def probabilities(self) -> torch.Tensor:
        """By way of the loss, which knows the normaliser: a single pass over the logits."""
        own = self.logits.gather(1, self.ids[:, None])[:, 0]
        return (self.logits - (own + self.token_loss)[:, None]).exp_()


class ModelPass:
    """A model opened for measuring: frozen, in eval mode, hooks in place; restored on exit."""

    def __init__(self, model: Any, readers: Sequence[Reader]) -> None:
        self._model, self._readers = model, readers
        self._tap = LayerTap(model, readers)
        self._blocks = BlockTap(model, readers)
        self._readout: Readout | None = None
        self._num_vocabulary, _ = head_size(model)
        is_half = next(model.parameters()).dtype == torch.float16
        self._loss_scale = HALF_LOSS_SCALE if is_half else 1.0

    def __enter__(self) -> Self:
        self._was_training = self._model.training
        self._trainable = [p for p in self._model.parameters() if p.requires_grad]
        self._model.eval()
        for parameter in self._trainable:
            parameter.requires_grad_(False)
        self._tap.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._tap.close()
        for parameter in self._trainable:
            parameter.requires_grad_(True)
        self._model.train(self._was_training)

    def run(self, batch: Batch) -> list[torch.Tensor]:
        """What each reader makes of the batch, in the readers' order: float32 [B] or [B, d]."""
        backward = self._tap.needs_backward
        if self._readout is None:
            self._readout = choose_readout(self._model, batch)
        readout = self._readout or FullReadout(self._model)
        for reader in self._readers:
            reader.start(batch)
        with torch.set_grad_enabled(backward), self._tap.over(batch, self._loss_scale):
            with self._blocks.over(batch):
                source, hidden = readout.forward(batch)
            gradient = self._at_targets(batch, readout, source.detach(), hidden.detach())
            if source.requires_grad:
                torch.autograd.backward(source, gradient)
        return [reader.finish(batch).detach() for reader in self._readers]

    def _at_targets(
        self, batch: Batch, readout: Readout, source: torch.Tensor, hidden: torch.Tensor
    ) -> torch.Tensor | None:
        """Show the readers all targets; the gradient of the loss by the source, if wanted."""
        gradients: list[torch.Tensor] = []
        for piece in self._pieces(batch):
            part = source[piece].requires_grad_(self._tap.needs_backward)
            sample, ids = batch.target_sample[piece], batch.target_ids[piece]
            logits = readout.logits(part)
            token_loss = F.cross_entropy(logits, ids, reduction="none")
            targets = PassTargets(
                sample=sample,
                ids=ids,
                hidden=hidden[piece],
                logits=logits.detach(),
                token_loss=token_loss.detach(),
            )
            for reader in self._readers:
                reader.on_targets(batch, targets)
            if self._tap.needs_backward:
                loss = (token_loss / batch.num_targets[sample]).sum() * self._loss_scale
                gradients += torch.autograd.grad(loss, part)
            del logits, token_loss, targets  # before the next piece makes its own
        return torch.cat(gradients) if gradients else None

    def _pieces(self, batch: Batch) -> list[slice]:
        """Slices of the target positions, each of whole samples."""
        ends = np.cumsum(batch.num_targets.cpu().numpy())
        most = max(1, LOGITS_AT_ONCE // self._num_vocabulary)
        pieces, start = [], 0
        while start < ends[-1]:
            within = int(np.searchsorted(ends, start + most, side="right"))
            next_end = int(np.searchsorted(ends, start, side="right"))
            stop = int(ends[max(within - 1, next_end)])
            pieces.append(slice(start, stop))
            start = stop
        return pieces
