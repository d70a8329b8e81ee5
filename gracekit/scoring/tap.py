"""Hooks that hand linear layers' inputs and output gradients to the readers that want them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from gracekit.errors import MeasureError
from gracekit.protocols import Batch, Reader
from gracekit.scoring.layers import LinearLayer, decoder_body, linear_layers, require_coverage


class LayerTap:
    """Decides how deep the backward pass goes, and delivers what it meets on the way.

    The autograd graph begins at the first decoder block that any reader wants, or at the
    embeddings. Parameters are frozen by the pass, so that only activations get gradients.
    """

    def __init__(self, model: Any, readers: Sequence[Reader]) -> None:
        self._model = model
        self._layers = linear_layers(model)
        self._readers: dict[str, list[Reader]] = defaultdict(list)
        for reader in readers:
            names = [layer.name for layer in self._layers if reader.wants(layer)]
            whole = {layer.name for layer in self._layers if not layer.is_adapter}
            if names and whole <= set(names):
                require_coverage(model, self._layers)
            for name in names:
                self._readers[name].append(reader)
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._forget()

    @property
    def needs_backward(self) -> bool:
        """Whether any reader wants any layer."""
        return bool(self._readers)

    def open(self) -> None:
        """Register the hooks."""
        if not self.needs_backward:
            return
        layers = [layer for layer in self._layers if layer.name in self._readers]
        self._hooks = [
            layer.module.register_forward_hook(
                partial(self._after_forward, layer), with_kwargs=True
            )
            for layer in layers
        ]
        first = min(layers, key=lambda layer: layer.block)
        if first.block > 0:
            block = decoder_body(self._model).get_submodule(first.block_name)
            self._hooks.append(block.register_forward_pre_hook(_begin_before, with_kwargs=True))
        else:
            embeddings = self._model.get_input_embeddings()
            self._hooks.append(embeddings.register_forward_hook(_begin_after))

    def close(self) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _forget(self) -> None:
        self._batch: Batch | None = None
        self._inputs: dict[int, tuple[torch.Tensor, int]] = {}
        """Number of the call -> its input and the input's version; let go once delivered."""
        self._num_calls = 0
        self._calls_of: dict[int, int] = defaultdict(int)
        """id of a weight or bias -> calls of the layers that have it."""
        self._of_weight: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = defaultdict(list)
        self._of_bias: dict[int, list[torch.Tensor]] = defaultdict(list)

    @contextmanager
    def over(self, batch: Batch, loss_scale: float) -> Iterator[None]:
        """Listen to one forward and backward pass, of the loss times `loss_scale`.

        Whatever ends the block, no tensor of the batch is held after it.
        """
        self._batch, self._loss_scale = batch, loss_scale
        try:
            yield
            for layer in self._layers:  # some call's output may not have reached the loss
                self._deliver_weight(layer)
                self._deliver_bias(layer)
        finally:
            self._forget()

    def _after_forward(
        self,
        layer: LinearLayer,
        module: torch.nn.Module,
        args: tuple[torch.Tensor, ...],
        kwargs: dict[str, torch.Tensor],
        output: torch.Tensor,
    ) -> None:
        if self._batch is None or not output.requires_grad:
            return
        inputs = args[0] if args else next(iter(kwargs.values()))
        places = self._batch.input_ids.shape
        if inputs.ndim != 3 or inputs.shape[:2] != places:
            raise MeasureError(
                f"layer {layer.name} of {type(self._model).__name__} should get its input as "
                f"[samples, positions, width] with {tuple(places)} in front, found "
                f"{tuple(inputs.shape)}: which sample a token belongs to cannot be told (as in "
                "mixture-of-experts layers); use `scores: [loss]` and `importance: loss`"
            )
        call, self._num_calls = self._num_calls, self._num_calls + 1
        self._inputs[call] = inputs, inputs._version
        self._calls_of[id(layer.module.weight)] += 1
        self._calls_of[id(layer.module.bias)] += 1
        deliver = partial(self._after_backward, layer, call)
        output.register_hook(deliver)  # type: ignore[no-untyped-call]

    def _after_backward(self, layer: LinearLayer, call: int, gradients: torch.Tensor) -> None:
        inputs, version = self._inputs.pop(call)
        if inputs._version != version:
            raise MeasureError(
                f"layer {layer.name} of {type(self._model).__name__}: its input was overwritten "
                "after the layer had read it, so its gradient cannot be measured; "
                "use `scores: [loss]` and `importance: loss`"
            )
        if self._loss_scale != 1.0:
            inputs, gradients = inputs.float(), gradients.float() / self._loss_scale
        weight, bias = id(layer.module.weight), id(layer.module.bias)
        self._of_weight[weight].append((inputs, gradients))
        if len(self._of_weight[weight]) == self._calls_of[weight]:
            self._deliver_weight(layer)
        if layer.module.bias is not None:  # its layers need not be those of the weight
            self._of_bias[bias].append(gradients.sum(1, dtype=torch.float32))
            if len(self._of_bias[bias]) == self._calls_of[bias]:
                self._deliver_bias(layer)

    def _deliver_weight(self, layer: LinearLayer) -> None:
        """All calls with the layer's weight, side by side as if they were further positions."""
        calls = self._of_weight.pop(id(layer.module.weight), [])
        if not calls or self._batch is None:
            return
        inputs, gradients = calls[0]
        if len(calls) > 1:
            inputs = torch.cat([i for i, _ in calls], dim=1)
            gradients = torch.cat([g for _, g in calls], dim=1)
        for reader in self._readers[layer.name]:
            reader.on_layer(self._batch, layer, inputs, gradients)

    def _deliver_bias(self, layer: LinearLayer) -> None:
        """The sum over all calls with the layer's bias."""
        calls = self._of_bias.pop(id(layer.module.bias), [])
        if not calls or self._batch is None:
            return
        for reader in self._readers[layer.name]:
            reader.on_bias(self._batch, layer, torch.stack(calls).sum(0))


def _begin_after(_module: torch.nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor:
    return output.detach().requires_grad_()


def _begin_before(
    _module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if args:
        return (args[0].detach().requires_grad_(), *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": kwargs["hidden_states"].detach().requires_grad_()}
