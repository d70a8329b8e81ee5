"""Keeps what layers were given until the backward pass brings their outputs' gradients."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from gracekit.errors import MeasureError
from gracekit.model_pass.layers import LinearLayer
from gracekit.model_pass.routed_rows import RoutedRows
from gracekit.protocols import Batch, Reader


@dataclass(slots=True)
class Call:
    """What a layer was given: [B, P, in], or [n, in] with the sample and expert of each row."""

    inputs: torch.Tensor
    sample: torch.Tensor | None = None
    """int64 [n]"""
    expert: torch.Tensor | None = None
    """int64 [n]"""
    version: int = 0
    """Version of the inputs' tensor when the layer read them; another one later: overwritten."""

    def __post_init__(self) -> None:
        self.version = self.inputs._version


_Met = tuple[Call, torch.Tensor]
"""A call, and the gradients of its output, which the backward pass has met."""


class LayerCalls:
    """The calls of one batch; hands a weight's to the readers once all of them were met."""

    def __init__(
        self,
        readers: Mapping[str, Sequence[Reader]],
        batch: Batch,
        *,
        loss_scale: float,
        model_name: str,
    ) -> None:
        self.batch = batch
        self._readers, self._loss_scale, self._model_name = readers, loss_scale, model_name
        self._open: dict[int, Call] = {}
        """Number of the call -> the call; let go once delivered."""
        self._num_calls = 0
        self._calls_of: dict[int, int] = defaultdict(int)
        """id of a weight or bias -> calls of the layers that have it."""
        self._of_weight: dict[int, list[_Met]] = defaultdict(list)
        self._of_bias: dict[int, list[torch.Tensor]] = defaultdict(list)

    def expect(self, layer: LinearLayer, call: Call, output: torch.Tensor) -> None:
        """Wait for the gradient of a layer's output."""
        number, self._num_calls = self._num_calls, self._num_calls + 1
        self._open[number] = call
        self._calls_of[id(layer.parameter)] += 1
        self._calls_of[id(layer.bias)] += 1
        meet = partial(self._match_gradients, layer, number)
        output.register_hook(meet)  # type: ignore[no-untyped-call]

    def expect_nothing(self, layer: LinearLayer) -> None:
        """Note a call without a row: an expert that no token was routed to."""
        self._calls_of[id(layer.parameter)] += 0

    def knows(self, layer: LinearLayer) -> bool:
        """Whether any layer with this weight was called."""
        return id(layer.parameter) in self._calls_of

    def finish(self, layers: Sequence[LinearLayer]) -> None:
        """Deliver the rest: some call's output may not have reached the loss."""
        for layer in layers:
            self._deliver_weight(layer)
            self._deliver_bias(layer)

    def forget(self) -> None:
        """Let go of all tensors; the graph that they are in holds on to this object."""
        self._open.clear()
        self._of_weight.clear()
        self._of_bias.clear()

    def _match_gradients(self, layer: LinearLayer, number: int, gradients: torch.Tensor) -> None:
        call = self._open.pop(number)
        if call.inputs._version != call.version:
            raise MeasureError(
                f"layer {layer.name} of {self._model_name}: its input was overwritten "
                "after the layer had read it, so its gradient cannot be measured; "
                "use `scores: [loss]` and `importance: loss`"
            )
        if call.sample is None:
            gradients = gradients.reshape(*call.inputs.shape[:2], -1)
        if self._loss_scale != 1.0:
            call.inputs, gradients = call.inputs.float(), gradients.float() / self._loss_scale
        weight, bias = id(layer.parameter), id(layer.bias)
        self._of_weight[weight].append((call, gradients))
        if len(self._of_weight[weight]) == self._calls_of[weight]:
            self._deliver_weight(layer)
        if layer.bias is not None:  # its layers need not be those of the weight
            self._of_bias[bias].append(self._bias_gradient(layer.bias, call, gradients))
            if len(self._of_bias[bias]) == self._calls_of[bias]:
                self._deliver_bias(layer)

    def _bias_gradient(
        self, bias: torch.Tensor, call: Call, gradients: torch.Tensor
    ) -> torch.Tensor:
        """float32 [B, *bias.shape]"""
        if call.sample is None or call.expert is None:
            return gradients.sum(1, dtype=torch.float32)
        num_experts = len(bias) if bias.ndim > 1 else 1
        sums = self.batch.zeros(num_experts, gradients.shape[1]).to(gradients.device)
        place = call.sample * num_experts + call.expert
        sums.flatten(0, 1).index_add_(0, place, gradients.float())
        return sums.view(-1, *bias.shape)

    def _deliver_weight(self, layer: LinearLayer) -> None:
        """All calls with the layer's weight, as if they were further positions or rows."""
        calls = self._of_weight.pop(id(layer.parameter), [])
        if not calls:
            return
        if any(call.sample is not None for call, _ in calls):
            rows = self._rows_of(calls)
            for reader in self._readers[layer.name]:
                reader.on_routed(self.batch, layer, rows)
            return
        inputs, gradients = calls[0][0].inputs, calls[0][1]
        if len(calls) > 1:
            inputs = torch.cat([call.inputs for call, _ in calls], dim=1)
            gradients = torch.cat([gradients for _, gradients in calls], dim=1)
        for reader in self._readers[layer.name]:
            reader.on_layer(self.batch, layer, inputs, gradients)

    def _rows_of(self, calls: list[_Met]) -> RoutedRows:
        for call, _ in calls:
            if call.sample is None:  # the layer saw all tokens in this call, and some in others
                num_samples, num_positions, _width = call.inputs.shape
                samples = torch.arange(num_samples, device=call.inputs.device)
                call.sample = samples.repeat_interleave(num_positions)
                call.expert = torch.zeros_like(call.sample)
        return RoutedRows.sorted(
            inputs=torch.cat([call.inputs.flatten(0, -2) for call, _ in calls]),
            gradients=torch.cat([gradients.flatten(0, -2) for _, gradients in calls]),
            expert=torch.cat([call.expert for call, _ in calls if call.expert is not None]),
            sample=torch.cat([call.sample for call, _ in calls if call.sample is not None]),
            num_samples=len(self.batch.input_ids),
        )

    def _deliver_bias(self, layer: LinearLayer) -> None:
        """The sum over all calls with the layer's bias."""
        calls = self._of_bias.pop(id(layer.bias), [])
        if calls:
            for reader in self._readers[layer.name]:
                reader.on_bias(self.batch, layer, torch.stack(calls).sum(0))
