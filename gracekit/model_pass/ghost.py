"""Norms of per-sample gradients of a linear layer, without forming the gradients.

A sample's gradient of the weight is `W = Σ_t g_t a_tᵀ` over its positions, with the inputs `a_t`
and the gradients `g_t` of the outputs. Its squared norm is also `Σ_ts (a_t·a_s)(g_t·g_s)`, the sum
over the product of two Gram matrices (the "ghost" trick). Which is cheaper depends on the number
of positions; neither takes more memory than the inputs and gradients themselves.

Products run in the tensors' dtype and are added up in float32. In bfloat16 an entry is rounded by
at most 2⁻⁹, at random, which leaves the sum far more exact than the pass it came from.

B samples, P positions.
"""

from __future__ import annotations

import torch

from gracekit.model_pass.products import products

Gram = tuple[torch.Tensor, torch.Tensor]
"""[B, P/2, P] the upper rows of a Gram matrix, and [B, P/2, P/2] its lower right quarter."""

GRAM_SHARE = 0.75
"""Share of a Gram matrix that is computed."""


def gram_is_cheaper(num_positions: int, num_inputs: int, num_outputs: int) -> bool:
    """Whether two P x P Gram matrices need fewer multiplications than the product itself."""
    return GRAM_SHARE * num_positions * (num_inputs + num_outputs) < num_inputs * num_outputs


def gram(vectors: torch.Tensor) -> Gram:
    """Inner products of each sample's positions [B, P, d]: a symmetric matrix, so not all of it.

    The upper half of its rows, and of the lower half what is not above the diagonal's block. Finer
    steps save more multiplications, and lose it again with smaller matrices.
    """
    half = vectors.shape[1] // 2
    upper, lower = vectors[:, :half], vectors[:, half:]
    return products(upper, vectors), products(lower, lower)


def squares_from_grams(of_inputs: Gram, of_gradients: Gram) -> torch.Tensor:
    """Squared norms of the weight's gradients, float32 [B]; overwrites `of_gradients`."""
    upper, lower = (g.float().mul_(a) for a, g in zip(of_inputs, of_gradients, strict=True))
    half = upper.shape[1]
    beside = upper[:, :, half:].sum((1, 2))
    return upper[:, :, :half].sum((1, 2)) + 2 * beside + lower.sum((1, 2))


def squares_from_product(inputs: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    """Squared norms, float32 [B], by the product of inputs [B, P, in] and gradients [B, P, out]."""
    return products(gradients.mT, inputs.mT).float().square_().sum((1, 2))
