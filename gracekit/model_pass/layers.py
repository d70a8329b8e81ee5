"""The decoder body of a causal language model and its linear layers.

A linear layer is a weight that the body multiplies activations with: of `nn.Linear` and `Conv1D`,
of a module with a weight of its own that calls `F.linear` (routers), or of a stack of experts.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from gracekit.errors import MeasureError
from gracekit.model_pass.experts import LowRank, is_stack, low_ranks_on, projections_of

LEAST_COVERAGE = 0.9
"""Share of the body's weights that must lie in linear layers for a norm over all of them."""


def _as_it_is(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


@dataclass(slots=True, eq=False, kw_only=True)
class LinearLayer:
    """One linear layer of the body; implements `protocols.Layer`."""

    name: str
    block: int
    module: torch.nn.Module
    block_name: str
    """Path of its decoder block within the body; empty outside of the blocks."""
    is_adapter: bool
    parameter: torch.Tensor
    bias: torch.Tensor | None
    """The parameter, if there is one."""
    num_blocks: int = 0
    is_trained: bool = True
    is_transposed: bool = False
    """Whether the weight is [in, out]."""
    stack: torch.nn.Module | None = None
    """The stack of experts that it belongs to."""
    product: str = ""
    """What the stack calls it."""
    arrange: Callable[[torch.Tensor], torch.Tensor] = _as_it_is

    @property
    def weight(self) -> torch.Tensor:
        """The parameter, or what is made of it."""
        return self.arrange(self.parameter)

    def of_expert(self, expert: int) -> LinearLayer:
        """A layer of a stack of experts; the layer itself when it is no stack."""
        if self.weight.ndim < 3:
            return self
        bias = self.bias if self.bias is None else self.bias[expert]
        return replace(
            self,
            name=f"{self.name}.{expert}",
            bias=bias,
            arrange=lambda tensor: self.arrange(tensor)[expert],
        )


def decoder_body(model: Any) -> torch.nn.Module:
    """The part of the model from token ids to last hidden states; the model itself if unknown."""
    find = getattr(model, "get_decoder", None)
    body = find() if find is not None else None
    if body is None:
        body = getattr(model, "base_model", model)
    assert isinstance(body, torch.nn.Module)
    return body


def output_head(model: Any) -> torch.nn.Module:
    """The module that maps hidden states to logits; `MeasureError` where there is none."""
    head = model.get_output_embeddings()
    if head is None:
        raise MeasureError(
            f"{type(model).__name__} has no output embeddings, so it is not a causal language "
            "model; point gracekit at checkpoints of a ...ForCausalLM model"
        )
    assert isinstance(head, torch.nn.Module)
    return head


def head_size(model: Any) -> tuple[int, int]:
    """(vocabulary, hidden width) of the output head."""
    weight = output_head(model).weight
    assert isinstance(weight, torch.Tensor)
    return weight.shape[0], weight.shape[1]


def linear_layers(model: Any) -> list[LinearLayer]:
    """Every linear layer of the body, the output head left out."""
    body, head = decoder_body(model), output_head(model)
    adapters = _adapter_modules(body)
    layers = []
    taken = {id(head)}
    for name, module in body.named_modules():
        for low_rank in low_ranks_on(module):
            taken |= {id(part) for part in low_rank.parts.values()}
            layers += _low_rank_layers(name, low_rank)
        if id(module) not in taken:
            layers += _own_layers(name, module, is_adapter=id(module) in adapters)
    num_blocks = 1 + max((layer.block for layer in layers), default=-1)
    trained = adapters | _saved_modules(body)
    for layer in layers:
        layer.num_blocks = num_blocks
        layer.is_trained = id(layer.module) in trained or not trained
    return layers


def _own_layers(name: str, module: torch.nn.Module, *, is_adapter: bool) -> list[LinearLayer]:
    """Layers of the parameters of a module that it multiplies activations with."""
    own = module._parameters
    if is_stack(module):
        return [
            LinearLayer(
                **_place_of(f"{name}.{projection}"),
                module=module,
                is_adapter=is_adapter,
                parameter=getattr(module, projection),
                bias=own.get(f"{projection}_bias"),
                is_transposed=bool(module.is_transposed),
                stack=module,
                product=projection,
            )
            for projection in projections_of(module)
        ]
    weight = own.get("weight")
    no_product = (torch.nn.Embedding, torch.nn.modules.conv._ConvNd)
    if weight is None or weight.ndim not in (2, 3) or isinstance(module, no_product):
        return []
    layer = LinearLayer(
        **_place_of(name),
        module=module,
        is_adapter=is_adapter,
        parameter=weight,
        bias=own.get("bias"),
        is_transposed=isinstance(module, Conv1D),
    )
    return [layer]


def _low_rank_layers(name: str, low_rank: LowRank) -> list[LinearLayer]:
    return [
        LinearLayer(
            **_place_of(f"{name}.{side}.{low_rank.adapter}"),
            module=part,
            is_adapter=True,
            parameter=part.weight,
            bias=None,
            stack=low_rank.wrapper.get_base_layer(),
            product=low_rank.product(side),
            arrange=partial(low_rank.by_expert, side),
        )
        for side, part in low_rank.parts.items()
    ]


def require_coverage(model: Any, layers: list[LinearLayer]) -> None:
    """Refuse a body most of whose weights the linear layers do not hold.

    What keeps its weights in other ways (some mixtures of experts, state-space models) would give a
    number, but not the gradient's norm.
    """
    body, head = decoder_body(model), output_head(model)
    inside = {id(p) for layer in layers for p in (layer.parameter, layer.bias) if p is not None}
    embeddings = {
        id(p)
        for module in (*body.modules(), head)
        if isinstance(module, torch.nn.Embedding) or module is head
        for p in module.parameters(recurse=False)
    }
    covered, missed = 0, dict[str, int]()
    for name, parameter in body.named_parameters():
        if id(parameter) in inside:
            covered += parameter.numel()
        elif parameter.ndim >= 2 and id(parameter) not in embeddings:
            missed[name] = parameter.numel()
    share = covered / max(1, covered + sum(missed.values()))
    if share < LEAST_COVERAGE:
        largest = max(missed, key=lambda name: missed[name], default="no linear layer at all")
        raise MeasureError(
            f"gradients are read off linear layers, and these hold only {share:.0%} of the weights "
            f"of {type(model).__name__} (outside: {largest}); use `scores: [loss]` and "
            "`importance: loss` for this model"
        )


def require_unused(model: Any, layers: list[LinearLayer], input_ids: torch.Tensor) -> None:
    """Refuse a model that uses the weights of these layers without calling them.

    Some state-space layers hand the weight of a linear layer to a kernel of their own.
    """
    weights = [layer.parameter for layer in layers]
    for weight in weights:
        weight.requires_grad_(True)
    try:
        with torch.enable_grad():
            result = decoder_body(model)(input_ids=input_ids, use_cache=False, return_dict=True)[0]
            found = torch.autograd.grad(result.float().sum(), weights, allow_unused=True)
    finally:
        for weight in weights:
            weight.requires_grad_(False)
    used = [layer for layer, g in zip(layers, found, strict=True) if g is not None]
    if used:
        raise MeasureError(
            f"{type(model).__name__} uses the weight of {used[0].name} without calling the layer "
            "(state-space layers and some adapters do), so its gradient cannot be read off; "
            "use `scores: [loss]` and `importance: loss` for this model"
        )


def _adapter_modules(body: torch.nn.Module) -> set[int]:
    """Ids of the modules that PEFT put around a layer, which it keeps as their `base_layer`."""
    found = set()
    for module in body.modules():
        base = getattr(module, "base_layer", None)
        if isinstance(base, torch.nn.Module):
            own = {id(part) for part in base.modules()}
            found |= {id(part) for part in module.modules()} - own
    return found


def _saved_modules(body: torch.nn.Module) -> set[int]:
    """Ids of the copies of modules that PEFT trains whole and saves with an adapter."""
    return {
        id(part)
        for module in body.modules()
        if isinstance(copies := getattr(module, "modules_to_save", None), torch.nn.ModuleDict)
        for part in copies.modules()
    }


def _place_of(name: str) -> dict[str, Any]:
    """Name, and index and path of the decoder block that a path such as `h.3.attn.c_attn` is in."""
    match = re.match(r"((?:[^.]+\.)*?(\d+))\.", name)
    block, block_name = (int(match[2]), match[1]) if match else (-1, "")
    return {"name": name, "block": block, "block_name": block_name}
