"""The one pass over a batch that everything is read off.

Forward through the body; logits at the target positions in pieces, with the cross-entropy and its
gradient `p - onehot(y)` in closed form; then one backward pass through the body, if any reader
wants a layer. The loss is the sum over samples of the mean loss over their target tokens, so no
sample sees another's gradient. What no reader reads is not run: where only features are asked for,
neither logits nor the blocks behind the last one wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch

from gracekit.model_pass.block_tap import BlockTap
from gracekit.model_pass.layer_tap import LayerTap
from gracekit.model_pass.layers import head_size
from gracekit.model_pass.products import wide_linears
from gracekit.model_pass.readout import FullReadout, Readout, choose_readout
from gracekit.protocols import Batch, Reader

LOGITS_AT_ONCE = 2**23
"""Logits that exist at one time, unless one sample alone has more: what the C library's allocator
keeps for the next ones (32 MiB in float32) and does not take from the system anew."""
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
    log_probabilities: torch.Tensor
    """float32 [m, V], until somebody asks for `probabilities`."""

    @classmethod
    def of(
        cls, sample: torch.Tensor, ids: torch.Tensor, hidden: torch.Tensor, logits: torch.Tensor
    ) -> Self:
        """Compute the losses from logits, which may be part of an autograd graph."""
        logits = logits.detach()
        log_probabilities = logits.log_softmax(1)
        loss = -log_probabilities.gather(1, ids[:, None])[:, 0]
        return cls(sample, ids, hidden, logits, loss, log_probabilities)

    @cached_property
    def probabilities(self) -> torch.Tensor:
        """Softmax of the logits; overwrites the logarithms, which saves their memory."""
        return self.log_probabilities.exp_()

    def gradient(self, weight: torch.Tensor) -> torch.Tensor:
        """Gradient [m, V] by the logits of loss times weight [m]; overwrites the probabilities."""
        of_token = (-self.token_loss).expm1()
        return self.probabilities.scatter_(1, self.ids[:, None], of_token[:, None]).mul_(
            weight[:, None]
        )


class ModelPass:
    """A model opened for measuring: frozen, in eval mode, hooks in place; restored on exit."""

    def __init__(self, model: Any, readers: Sequence[Reader]) -> None:
        self._model, self._readers = model, readers
        self._tap = LayerTap(model, readers)
        self._blocks = BlockTap(model, readers)
        self._reads_all = any(reader.reads == "all" for reader in readers)
        self._needs_model = any(reader.reads != "tokens" for reader in readers)
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
        self._opened = ExitStack()
        self._opened.enter_context(wide_linears(self._model))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._opened.close()
        self._tap.close()
        for parameter in self._trainable:
            parameter.requires_grad_(True)
        self._model.train(self._was_training)

    def run(self, batch: Batch) -> list[torch.Tensor]:
        """What each reader makes of the batch, in the readers' order: float32 [B] or [B, d]."""
        for reader in self._readers:
            reader.start(batch)
        if self._needs_model:
            self._forward_and_back(batch)
        return [reader.finish(batch).detach() for reader in self._readers]

    def _forward_and_back(self, batch: Batch) -> None:
        """As far as the readers need it."""
        backward = self._tap.needs_backward
        if self._readout is None:
            self._readout = choose_readout(self._model, batch)
        readout = self._readout or FullReadout(self._model)
        with torch.set_grad_enabled(backward), self._tap.over(batch, self._loss_scale):
            with self._blocks.over(batch):
                source, hidden = readout.forward(batch, with_logits=self._reads_all)
            if not self._blocks.ends_the_pass:
                for reader in self._readers:
                    reader.on_states(batch, hidden.detach())
            if self._reads_all:
                gradient = self._at_targets(batch, readout, source.detach(), hidden.detach())
                if source.requires_grad:
                    torch.autograd.backward(source, gradient)

    def _at_targets(
        self, batch: Batch, readout: Readout, source: torch.Tensor, hidden: torch.Tensor
    ) -> torch.Tensor | None:
        """Show the readers all targets; the gradient of the loss by the source, if wanted."""
        gradients: list[torch.Tensor] = []
        for piece in self._pieces(batch):
            part = source[piece].requires_grad_(self._tap.needs_backward)
            sample, ids = batch.target_sample[piece], batch.target_ids[piece]
            logits = readout.logits(part)
            targets = PassTargets.of(sample, ids, hidden[piece], logits)
            for reader in self._readers:
                reader.on_targets(batch, targets)
            if self._tap.needs_backward:
                weight = self._loss_scale / batch.num_targets[sample]
                gradients += torch.autograd.grad(logits, part, targets.gradient(weight))
            del logits, targets  # before the next piece makes its own
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
