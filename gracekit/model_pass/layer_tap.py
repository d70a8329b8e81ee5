"""Hooks that hand linear layers' inputs and output gradients to the readers that want them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from gracekit.errors import MeasureError
from gracekit.model_pass.experts import LinearCalls, low_ranks_on, stacked_forward
from gracekit.model_pass.layer_calls import Call, LayerCalls
from gracekit.model_pass.layers import (
    LinearLayer,
    decoder_body,
    linear_layers,
    require_coverage,
    require_unused,
)
from gracekit.model_pass.routed_rows import UnknownRowsError, token_of_row
from gracekit.protocols import Batch, Reader


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
            wanted = [layer for layer in self._layers if reader.wants(layer)]
            if self._has_whole_block(wanted):
                require_coverage(model, self._layers)
            for layer in wanted:
                self._readers[layer.name].append(reader)
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._replaced: list[tuple[torch.nn.Module, Any]] = []
        self._calls: LayerCalls | None = None
        """Calls of the layers in the batch that is being listened to."""
        self._is_first = True

    def _has_whole_block(self, wanted: list[LinearLayer]) -> bool:
        """Whether they are all layers of a block of the model, whose weights they stand for."""
        last = max((layer.block for layer in wanted), default=None)
        own = {id(each) for each in self._layers if each.block == last and not each.is_adapter}
        return bool(own) and own <= {id(each) for each in wanted}

    @property
    def needs_backward(self) -> bool:
        """Whether any reader wants any layer."""
        return bool(self._readers)

    def open(self) -> None:
        """Register the hooks."""
        if not self.needs_backward:
            return
        layers = [layer for layer in self._layers if layer.name in self._readers]
        stacks: dict[torch.nn.Module, dict[str, LinearLayer]] = defaultdict(dict)
        """Stack of experts -> its layers by what it calls them."""
        for layer in layers:
            if layer.stack is not None:
                stacks[layer.stack][layer.product] = layer
            elif _is_plain(layer.module):
                # Before anybody else's hook, which may change the output.
                hook = partial(self._after_forward, layer)
                self._hooks.append(
                    layer.module.register_forward_hook(hook, with_kwargs=True, prepend=True)
                )
            else:
                self._replace_forward(layer.module, self._watched_forward(layer))
        for stack, of_stack in stacks.items():
            low_ranks = [
                low_rank
                for module in self._model.modules()  # the outermost wrapper comes first
                for low_rank in low_ranks_on(module)
                if low_rank.wrapper.get_base_layer() is stack
            ]
            outermost = low_ranks[0].wrapper if low_ranks else stack
            on_product = partial(self._after_product, of_stack)
            self._replace_forward(outermost, stacked_forward(stack, low_ranks, on_product))
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
        for module, forward in self._replaced:
            del module.forward
            if forward is not None:
                module.forward = forward
        self._hooks, self._replaced = [], []

    def _replace_forward(self, module: torch.nn.Module, forward: Callable[..., Any]) -> None:
        """For this module alone; its class, and so what other models do, stays as it is."""
        self._replaced.append((module, vars(module).get("forward")))
        module.forward = forward

    @contextmanager
    def over(self, batch: Batch, loss_scale: float) -> Iterator[None]:
        """Listen to one forward and backward pass, of the loss times `loss_scale`.

        Whatever ends the block, no tensor of the batch is held after it.
        """
        calls = LayerCalls(
            self._readers, batch, loss_scale=loss_scale, model_name=type(self._model).__name__
        )
        self._calls = calls
        try:
            yield
            self._calls = None
            if self.needs_backward and self._is_first:
                self._check_uncalled(calls)
            calls.finish(self._layers)
        finally:
            self._calls = None
            calls.forget()

    def _check_uncalled(self, calls: LayerCalls) -> None:
        """Layers that were not called must have had no part in the result, like idle experts."""
        wanted = [layer for layer in self._layers if layer.name in self._readers]
        uncalled = [layer for layer in wanted if not calls.knows(layer)]
        if uncalled and len(uncalled) < len(wanted):
            require_unused(self._model, uncalled, calls.batch.input_ids[:1])
        self._is_first = False

    def _after_forward(
        self,
        layer: LinearLayer,
        module: torch.nn.Module,
        args: tuple[torch.Tensor, ...],
        kwargs: dict[str, torch.Tensor],
        output: torch.Tensor,
    ) -> None:
        self._expect(layer, args[0] if args else next(iter(kwargs.values())), output)

    def _watched_forward(self, layer: LinearLayer) -> Callable[..., Any]:
        """The forward of a module that calls `F.linear` itself, whatever else it does."""
        plain = layer.module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            watch = LinearCalls(layer.weight, partial(self._expect, layer))
            with watch:
                output = plain(*args, **kwargs)
            if not watch.num_calls and isinstance(layer.module, torch.nn.Linear):
                self._after_forward(layer, layer.module, args, kwargs, output)
            elif not watch.num_calls:
                raise MeasureError(
                    f"{type(layer.module).__name__} of {type(self._model).__name__} has a weight "
                    f"({layer.name}) that it does not use in a way which can be measured; "
                    "use `scores: [loss]` and `importance: loss`"
                )
            return output

        return forward

    def _after_product(
        self,
        layers: dict[str, LinearLayer],
        name: str,
        inputs: torch.Tensor,
        output: torch.Tensor,
        *,
        tokens: torch.Tensor,
        chosen: torch.Tensor,
        expert: torch.Tensor,
    ) -> None:
        layer = layers.get(name)
        if self._calls is None or not output.requires_grad or layer is None:
            return
        token = self._token_of_row(layer, tokens, self._calls.batch)
        token = chosen if token is None else token[chosen]
        sample = token // self._calls.batch.input_ids.shape[1]
        self._calls.expect(layer, Call(inputs, sample, expert), output)

    def _expect(
        self,
        layer: LinearLayer,
        inputs: torch.Tensor,
        output: torch.Tensor,
        expert: int | None = None,
    ) -> None:
        """Expect the gradient of a layer's output."""
        if self._calls is None or not output.requires_grad:
            return
        if not len(inputs):
            self._calls.expect_nothing(layer)
            return
        num_samples, num_positions = self._calls.batch.input_ids.shape
        shape = inputs.shape
        if inputs.ndim > 2 and shape[0] == num_samples and num_positions in (shape[1], shape[-2]):
            inputs = inputs if inputs.ndim == 3 else inputs.flatten(1, -2)
            self._calls.expect(layer, Call(inputs), output)
            return
        token = self._token_of_row(layer, inputs, self._calls.batch)
        if token is None and expert is None:
            inputs = inputs.view(num_samples, num_positions, -1)
            self._calls.expect(layer, Call(inputs), output)
            return
        token = torch.arange(len(inputs), device=inputs.device) if token is None else token
        of_expert = torch.full_like(token, expert or 0)
        self._calls.expect(layer, Call(inputs, token // num_positions, of_expert), output)

    def _token_of_row(
        self, layer: LinearLayer, rows: torch.Tensor, batch: Batch
    ) -> torch.Tensor | None:
        places = batch.input_ids.shape
        try:
            return token_of_row(rows, places)
        except UnknownRowsError:
            raise MeasureError(
                f"layer {layer.name} of {type(self._model).__name__} should get its input as "
                f"[samples, positions, width] with {tuple(places)} in front, or as rows taken from "
                f"such a tensor, found {tuple(rows.shape)}: which sample a token belongs to cannot "
                "be told; use `scores: [loss]` and `importance: loss`"
            ) from None


def _is_plain(module: torch.nn.Module) -> bool:
    """Whether its output is its product, for sure."""
    if isinstance(module, Conv1D):
        return True
    return isinstance(module, torch.nn.Linear) and type(module).forward is torch.nn.Linear.forward


def _begin_after(_module: torch.nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor:
    return output.detach().requires_grad_()


def _begin_before(
    _module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if args:
        return (args[0].detach().requires_grad_(), *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": kwargs["hidden_states"].detach().requires_grad_()}
