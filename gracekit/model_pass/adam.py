"""The direction in which Adam would move the weights on a sample alone.

With the moments m, v of the checkpoint after t steps, and the sample's gradient g,

    m' = β₁ m + (1 - β₁) g        v' = β₂ v + (1 - β₂) g²
    direction = m' / (1 - β₁ᵗ⁺¹)  /  (√(v' / (1 - β₂ᵗ⁺¹)) + ε)

which is what a step of `torch.optim.Adam` on this sample moves by, per unit of the learning rate
and without weight decay. Others in use differ: LESS (Xia et al. 2024, arXiv 2402.04333) has
m' / √(v' + ε) without the corrections, which for entries of 1e-4 and less is another direction,
because ε is under the root.

The direction is not linear in g, so every sample's gradient is formed, one layer and sample at a
time: about as many multiplications as the forward pass, and some ten passes over the weights.
"""

from __future__ import annotations

import torch

from gracekit.model_pass.gradient_scores import GradientNorm
from gracekit.model_pass.products import product
from gracekit.protocols import Batch, Layer, OptimizerState, PassContext, RoutedRows


class AdamNorm(GradientNorm):
    """Norm of the Adam direction over the linear layers that the trainer moves.

    Where the checkpoint has no usable optimizer state it is the norm of the plain gradient times
    the root of the number of target tokens (see `length`), and log and manifest header say so.
    """

    shrinks_with_length = False
    needs_optimizer = True

    def bind(self, context: PassContext) -> None:
        """Take the optimizer's state."""
        assert context.optimizer is not None, "who makes the context sees `needs_optimizer`"
        self._state = context.optimizer
        self._idle_squares: dict[str, torch.Tensor] = {}

    def wants(self, layer: Layer) -> bool:
        """Every layer, or those of the adapter."""
        return layer.is_trained

    def start(self, batch: Batch) -> None:
        """Begin at zero."""
        super().start(batch)
        self._is_plain = False

    def on_layer(
        self, batch: Batch, layer: Layer, inputs: torch.Tensor, gradients: torch.Tensor
    ) -> None:
        """Form each sample's gradient, and add the squares of its direction."""
        moments = self._state.moments(layer.parameter)
        if moments is None:
            self._is_plain = True
            super().on_layer(batch, layer, inputs, gradients)
            return
        m, v = (moment.to(inputs.device) for moment in moments)
        if layer.is_transposed:
            m, v = m.T, v.T
        device = self._squares.device
        for sample in range(len(inputs)):
            gradient = product(gradients[sample].T, inputs[sample].T).float()
            squares = adam_direction(gradient, m, v, self._state).square().sum()
            self._squares[sample] += squares.to(device)
        self._num_layers += 1

    def on_routed(self, batch: Batch, layer: Layer, rows: RoutedRows) -> None:
        """Add the squares for each expert and the samples that reached it.

        For the others an expert of a stack has a gradient of 0, and is moved by its momentum; one
        with a parameter of its own has no gradient, and stays.
        """
        moments = self._state.moments(layer.parameter)
        if moments is None:
            self._is_plain = True
            super().on_routed(batch, layer, rows)
            return
        m, v = (layer.arrange(moment).to(rows.inputs.device) for moment in moments)
        m, v = (m[None], v[None]) if m.ndim < 3 else (m, v)
        m, v = (m.mT, v.mT) if layer.is_transposed else (m, v)
        idle = self._squares_without_gradient(layer, m, v)
        self._add(idle.sum())
        for group in rows.groups():
            pairs = zip(group.expert.tolist(), group.sample.tolist(), strict=True)
            for i, (expert, sample) in enumerate(pairs):
                gradient = (group.gradients[i].T @ group.inputs[i]).float()
                moved = adam_direction(gradient, m[expert], v[expert], self._state)
                squares = moved.square().sum() - idle[expert]
                self._squares[sample] += squares.to(self._squares.device)
        self._num_layers += 1

    def _squares_without_gradient(
        self, layer: Layer, m: torch.Tensor, v: torch.Tensor
    ) -> torch.Tensor:
        """Squared norms [E] of the directions without a gradient."""
        if layer.weight.ndim < 3:
            return m.new_zeros(1)
        if layer.name not in self._idle_squares:
            squares = [
                adam_direction(m.new_zeros(m.shape[1:]), *of_expert, self._state).square().sum()
                for of_expert in zip(m, v, strict=True)
            ]
            self._idle_squares[layer.name] = m.new_tensor(squares)
        return self._idle_squares[layer.name]

    def on_bias(self, batch: Batch, layer: Layer, gradient: torch.Tensor) -> None:
        """Add the squares of the bias' direction."""
        moments = None if layer.bias is None else self._state.moments(layer.bias)
        if moments is None:
            super().on_bias(batch, layer, gradient)
            return
        m, v = (moment.to(gradient.device) for moment in moments)
        self._add(adam_direction(gradient, m, v, self._state).square().flatten(1).sum(1))

    def finish(self, batch: Batch) -> torch.Tensor:
        """[B], at least 0."""
        norms = super().finish(batch)
        return norms * batch.num_targets.sqrt() if self._is_plain else norms


def adam_direction(
    gradient: torch.Tensor, m: torch.Tensor, v: torch.Tensor, state: OptimizerState
) -> torch.Tensor:
    """The formula above; overwrites `gradient`, float32 of the moments' shape (or [B, *shape])."""
    (beta1, beta2), step = state.betas, state.step + 1
    of_m, of_v = 1 - beta1**step, 1 - beta2**step
    root = v.mul(beta2 / of_v).addcmul(gradient, gradient, value=(1 - beta2) / of_v)
    root = root.sqrt_().add_(state.eps)
    return gradient.mul_((1 - beta1) / of_m).add_(m, alpha=beta1 / of_m).div_(root)
