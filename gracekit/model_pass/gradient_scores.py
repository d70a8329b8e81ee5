"""Scores from the backward pass: norms of a sample's gradient over layers of the decoder body."""

from __future__ import annotations

import math

import torch

from gracekit.errors import MeasureError
from gracekit.model_pass.ghost import (
    Gram,
    gram,
    gram_is_cheaper,
    squares_from_grams,
    squares_from_product,
)
from gracekit.protocols import Batch, Layer, RoutedRows, Scorer


class GradientNorm(Scorer):
    """Norm of the gradient of the mean token loss over all linear layers of the decoder body.

    Weights and biases of these layers count; embeddings, the output head, norms and other
    parameters do not. A weight or bias that several layers share counts once, with its whole
    gradient. Of a model with an adapter it is the gradient that full fine-tuning would see.
    """

    shrinks_with_length = True
    scale = "log"
    _found_none = (
        "gradient-norm found no linear layer that a gradient reaches in this model (quantized "
        "layers are not read)"
    )

    def wants(self, layer: Layer) -> bool:
        """Every layer of the model itself, whatever adapter is on it."""
        return not layer.is_adapter

    def start(self, batch: Batch) -> None:
        """Begin at zero."""
        self._squares = batch.zeros()
        self._num_layers = 0
        self._gram: tuple[torch.Tensor, Gram] | None = None

    def on_layer(
        self, batch: Batch, layer: Layer, inputs: torch.Tensor, gradients: torch.Tensor
    ) -> None:
        """Add the weight's squared norm."""
        self._add(self._squares_of(inputs, gradients))
        self._num_layers += 1

    def on_routed(self, batch: Batch, layer: Layer, rows: RoutedRows) -> None:
        """Add the squares expert by expert, for at most twice what the rows' product costs."""
        for group in rows.groups():
            squares = self._squares_of(group.inputs, group.gradients)
            device = self._squares.device
            self._squares.index_add_(0, group.sample.to(device), squares.to(device))
        self._num_layers += 1

    def on_bias(self, batch: Batch, layer: Layer, gradient: torch.Tensor) -> None:
        """Add the bias' squared norm."""
        self._add(gradient.square().flatten(1).sum(1))

    def finish(self, batch: Batch) -> torch.Tensor:
        """[B], at least 0; rounding may leave the square of a tiny norm below it."""
        if not self._num_layers:
            raise MeasureError(f"{self._found_none}; use `scores: [loss]` and `importance: loss`")
        self._gram = None
        return self._squares.clamp_min(0).sqrt()

    def _add(self, squares: torch.Tensor) -> None:
        """Squares [B] or [] of a layer, which may be on another device than the batch."""
        self._squares += squares.to(self._squares.device)

    def _squares_of(self, inputs: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
        """The cheaper way."""
        if gram_is_cheaper(inputs.shape[1], inputs.shape[2], gradients.shape[2]):
            return squares_from_grams(self._gram_of(inputs), gram(gradients))
        return squares_from_product(inputs, gradients)

    def _gram_of(self, inputs: torch.Tensor) -> Gram:
        """Query, key and value (and gate and up) read one tensor: its Gram matrix is kept."""
        if self._gram is None or self._gram[0] is not inputs:
            self._gram = inputs, gram(inputs)
        return self._gram[1]


class GradientNormLast(GradientNorm):
    """`GradientNorm` over the last fifth of the decoder blocks; the graph is cut below them.

    Cheaper, and a rougher stand-in for the whole gradient (docs/performance.md).
    """

    share = 0.2
    """Share of the decoder blocks, rounded up."""

    def wants(self, layer: Layer) -> bool:
        """The layers of the last blocks."""
        num_last = math.ceil(self.share * layer.num_blocks)
        return super().wants(layer) and layer.block >= layer.num_blocks - num_last >= 0


class LoraGradientNorm(GradientNorm):
    """`GradientNorm` over what an adapter's trainer moves: LoRA's A and B of every linear layer.

    And the linear layers of the body that it trains whole (`modules_to_save`), not the biases of
    other layers (`bias: all`). While B is zero, at the beginning, only B has a gradient.
    """

    def __init__(self) -> None:
        self._has_adapter = False

    def wants(self, layer: Layer) -> bool:
        """What is trained."""
        self._has_adapter |= layer.is_adapter
        return layer.is_trained

    def finish(self, batch: Batch) -> torch.Tensor:
        """[B], at least 0."""
        if not self._has_adapter:
            raise MeasureError(
                "lora-gradient found no LoRA layers: the checkpoint is no adapter; use "
                "`scores: [loss]` and `importance: loss`"
            )
        return super().finish(batch)
