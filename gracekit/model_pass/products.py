"""float32 matrix products on processors where torch's own use half of the width.

torch multiplies float32 matrices by MKL, which takes AVX-512 on Intel's processors only and AVX2 on
AMD's. oneDNN, another part of torch, takes AVX-512 on both: on AMD's it is twice as fast, and as
exact (docs/performance.md). It prepares a kernel for each new shape, which takes about 2 ms, and
each call has its price, so that small products stay with MKL. On any other device, dtype or
processor all of this is plain torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

LEAST_MULTIPLICATIONS = 2**23
"""Least multiplications of all products of a call together for which oneDNN pays."""
LEAST_OF_SAMPLE = 2**21
"""Least multiplications of one sample's product for which it pays, where there is one for each."""


@cache
def onednn_is_faster() -> bool:
    """Whether this is a processor that oneDNN uses better than MKL does.

    Neither the question nor the operator is in every torch that gracekit runs with.
    """
    found: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return (
        torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and "AMD" in str(found.get("cpu_name", ""))
        and bool(found.get("avx512_f", False))
    )


def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """`a @ b.mT`, [..., m] of [..., k] and [m, k]."""
    if _is_wide(a, a.numel() * len(b)):
        return _onednn(a, b)
    return a @ b.mT


def products(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """`a @ b.mT` of each sample: [B, n, m] of [B, n, k] and [B, m, k]."""
    of_sample = a[0].numel() * b.shape[1]
    if of_sample >= LEAST_OF_SAMPLE and _is_wide(a, len(a) * of_sample):
        return torch.stack([_onednn(x, y) for x, y in zip(a, b, strict=True)])
    return a.bmm(b.mT)


@contextmanager
def wide_linears(model: torch.nn.Module) -> Iterator[None]:
    """Inside, the linear layers of a model with frozen weights multiply by `product`."""
    changed = [
        module
        for module in model.modules()
        if type(module) in (torch.nn.Linear, Conv1D)
        and "forward" not in vars(module)  # somebody else's
        and all(_is_wide(p, LEAST_MULTIPLICATIONS) for p in module.parameters())
    ]
    try:
        for module in changed:
            vars(module)["forward"] = partial(_forward, module)
        yield
    finally:
        for module in changed:
            del vars(module)["forward"]


class WideLinear(torch.autograd.Function):
    """`inputs @ weight.mT + bias` with a gradient for the inputs alone."""

    @staticmethod
    def forward(
        ctx: Any, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """[..., out] of [..., in], [out, in] and [out]"""
        ctx.save_for_backward(weight)
        return _onednn(inputs, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """[..., in] of [..., out]"""
        (weight,) = ctx.saved_tensors
        return product(gradients[0], weight.mT), None, None


def _forward(module: Any, *args: torch.Tensor, **kwargs: torch.Tensor) -> torch.Tensor:
    (inputs,) = (*args, *kwargs.values())
    weight = module.weight.mT if isinstance(module, Conv1D) else module.weight
    is_frozen = not module.weight.requires_grad
    if is_frozen and _is_wide(inputs, inputs.numel() * len(weight)):
        output: torch.Tensor = WideLinear.apply(inputs, weight, module.bias)  # type: ignore[no-untyped-call]
    else:
        output = type(module).forward(module, inputs)
    return output


def _is_wide(tensor: torch.Tensor, num_multiplications: int) -> bool:
    return (
        num_multiplications >= LEAST_MULTIPLICATIONS
        and tensor.dtype == torch.float32
        and tensor.device.type == "cpu"
        and onednn_is_faster()
    )


def _onednn(a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
    return found
