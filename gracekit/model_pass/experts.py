"""Mixture-of-experts layers, and linear maps that are no `nn.Linear`, made to show their products.

transformers (from 5.0) keeps the experts of a layer stacked in 3-d parameters and lets one of
several implementations run them. `stacked_forward` is one more, equal in result: it sorts the
routed pairs of token and expert by expert, so that each expert is one product over its own rows
and all rows of a projection lie in one tensor. With N tokens of which each goes to k experts it
multiplies N * k rows, never more.

Routers, and older stacks of experts, call `F.linear` on a parameter of their own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode

PROJECTIONS = ("gate_up_proj", "up_proj", "down_proj")
"""Weights of a stack of experts."""


class OnProduct(Protocol):
    """Is shown a product of rows with the weight of experts."""

    def __call__(
        self,
        name: str,
        inputs: torch.Tensor,
        output: torch.Tensor,
        *,
        tokens: torch.Tensor,
        chosen: torch.Tensor,
        expert: torch.Tensor,
    ) -> None:
        """Rows sorted by expert; row i is the one of `tokens` [N, d] that `chosen` [n] says."""


def is_stack(module: torch.nn.Module) -> bool:
    """Whether it is a stack of experts of transformers, for which an implementation is chosen."""
    return hasattr(module, "is_transposed") and callable(getattr(module, "_apply_gate", None))


def projections_of(module: torch.nn.Module) -> list[str]:
    """Names of the stack's weights, each [E, out, in] or, if transposed, [E, in, out]."""
    return [name for name in PROJECTIONS if name in module._parameters]


@dataclass(frozen=True, slots=True)
class LowRank:
    """A LoRA adapter of PEFT on one projection of a stack: adds `scale * B A` to each expert."""

    wrapper: Any
    adapter: str
    projection: str

    @property
    def parts(self) -> dict[str, torch.nn.Linear]:
        """`lora_A` and `lora_B`, which hold the experts' side by side."""
        sides = ("lora_A", "lora_B")
        return {side: getattr(self.wrapper, side)[self.adapter] for side in sides}

    @property
    def scale(self) -> float:
        """The adapter's scaling."""
        return float(self.wrapper.scaling[self.adapter])

    def by_expert(self, side: str, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of the shape of A's weight as [E, r, in], or of B's as [E, out, r]."""
        num_experts = self.wrapper.num_experts
        if side == "lora_A":
            return tensor.view(num_experts, -1, tensor.shape[1])
        return tensor.view(len(tensor), -1, num_experts).permute(2, 0, 1)

    def product(self, side: str) -> str:
        """Its name among the products of the stack."""
        return f"{self.projection}.{side}.{self.adapter}"


def low_ranks_on(module: Any) -> list[LowRank]:
    """The adapters that a module of PEFT puts on a stack; empty when it is none of these."""
    projection = getattr(module, "parameter_name", None)
    if projection is None or not hasattr(module, "lora_A") or not is_stack(module.get_base_layer()):
        return []
    if module.disable_adapters or module.merged:
        return []
    return [LowRank(module, name, projection) for name in module.active_adapters]


def stacked_forward(
    module: Any, low_ranks: Iterable[LowRank], on_product: OnProduct
) -> Callable[..., torch.Tensor]:
    """A stand-in for the `forward` of a stack, or of the outermost wrapper around it."""
    first = "gate_up_proj" if getattr(module, "has_gate", True) else "up_proj"
    of_projection: dict[str, list[LowRank]] = defaultdict(list)
    for low_rank in low_ranks:
        of_projection[low_rank.projection].append(low_rank)

    def forward(*args: torch.Tensor, **kwargs: torch.Tensor) -> torch.Tensor:
        tokens, index, weights = (*args, *kwargs.values())
        num_tokens, times = index.shape
        order = index.flatten().argsort(stable=True)
        expert, chosen = index.flatten()[order], order // times
        counts = expert.bincount(minlength=module.num_experts).tolist()

        def multiply(
            name: str, rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
        ) -> torch.Tensor:
            output = _by_expert(rows, counts, weight, bias)
            on_product(name, rows, output, tokens=tokens, chosen=chosen, expert=expert)
            return output

        def project(name: str, rows: torch.Tensor) -> torch.Tensor:
            weight = getattr(module, name)
            weight = weight.mT if module.is_transposed else weight
            output = multiply(name, rows, weight, getattr(module, f"{name}_bias", None))
            for low_rank in of_projection[name]:
                inner = rows
                for side, part in low_rank.parts.items():
                    weight = low_rank.by_expert(side, part.weight)
                    inner = multiply(low_rank.product(side), inner, weight)
                output = output + low_rank.scale * inner
            return output

        hidden = project(first, tokens[chosen])
        hidden = module._apply_gate(hidden) if first == "gate_up_proj" else module.act_fn(hidden)
        hidden = project("down_proj", hidden)
        if getattr(module, "has_post_expert_norm", False):
            hidden = module.post_expert_norm(hidden)
        hidden = hidden * weights.flatten()[order, None]
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        hidden = hidden[back].view(num_tokens, times, -1).sum(1)
        return hidden.to(tokens.dtype)

    return forward


def _by_expert(
    rows: torch.Tensor, counts: list[int], weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Products of each expert's rows with its [out, in] of the weight."""
    products = [
        F.linear(part, weight[i].to(rows.dtype), None if bias is None else bias[i])
        for i, part in enumerate(torch.split(rows, counts))
        if len(part)
    ]
    return torch.cat(products)


class LinearCalls(TorchFunctionMode):
    """While it is entered, shows each `F.linear` with a weight, a cast of it, or an expert of it.

    The listener is given inputs, output and, of a weight [E, out, in], the expert.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        listener: Callable[[torch.Tensor, torch.Tensor, int | None], None],
    ) -> None:
        super().__init__()
        self._weight, self._listener = weight, listener
        self.num_calls = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func is F.linear:
            inputs, weight = (*args, *(kwargs or {}).values())[:2]
            if weight.shape == self._weight.shape[-2:]:
                self._report_call(inputs, weight, output)
        return output

    def _report_call(
        self, inputs: torch.Tensor, weight: torch.Tensor, output: torch.Tensor
    ) -> None:
        """Tell the listener of a product with this weight, or with one expert's part of it.

        Which expert that is tells the address at which its part begins.
        """
        num_bytes = self._weight.stride(0) * self._weight.itemsize
        expert, rest = divmod(weight.data_ptr() - self._weight.data_ptr(), num_bytes)
        if self._weight.ndim == 3 and rest == 0 and 0 <= expert < len(self._weight):
            self._listener(inputs, output, expert)
        elif self._weight.ndim == 2 and (
            weight.data_ptr() == self._weight.data_ptr() or weight.dtype != self._weight.dtype
        ):
            self._listener(inputs, output, None)
        else:
            return
        self.num_calls += 1
