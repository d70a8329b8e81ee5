"""Hooks that hand decoder blocks' outputs to the readers that want them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from gracekit.model_pass.layers import decoder_body, linear_layers
from gracekit.protocols import Batch, Reader


class EnoughReadError(Exception):
    """Ends a forward pass at the block behind which nothing is wanted; for `BlockTap.over` only."""


class BlockTap:
    """Delivers hidden states between blocks at the target positions of a batch.

    When every reader reads blocks alone, the forward pass ends behind the last that is wanted.
    """

    def __init__(self, model: Any, readers: Sequence[Reader]) -> None:
        layers = linear_layers(model)
        names = {layer.block: layer.block_name for layer in layers if layer.block >= 0}
        self._hooked = [
            (decoder_body(model).get_submodule(name), reader)
            for block, name in names.items()
            for reader in readers
            if reader.wants_block(block, len(names))
        ]
        self.ends_the_pass = bool(self._hooked) and all(r.reads == "blocks" for r in readers)
        """Whether the forward pass does not come back from inside `over`."""

    @contextmanager
    def over(self, batch: Batch) -> Iterator[None]:
        """Listen to one forward pass; it ends the block that runs it, if nothing more is wanted."""
        hooks = [
            module.register_forward_hook(partial(_deliver, batch, reader))
            for module, reader in self._hooked
        ]
        if self.ends_the_pass:
            last, _ = self._hooked[-1]  # blocks come in the order in which they are run
            hooks.append(last.register_forward_hook(_end))
        try:
            yield
        except EnoughReadError:
            pass
        finally:
            for hook in hooks:
                hook.remove()


def _deliver(
    batch: Batch, reader: Reader, _module: torch.nn.Module, _args: Any, output: Any
) -> None:
    hidden = output if isinstance(output, torch.Tensor) else output[0]
    device = hidden.device  # not the batch's where the model is split
    at_targets = batch.target_sample.to(device), batch.target_position.to(device)
    reader.on_block(batch, hidden.detach()[at_targets].to(batch.input_ids.device))


def _end(_module: torch.nn.Module, _args: Any, _output: Any) -> None:
    raise EnoughReadError
