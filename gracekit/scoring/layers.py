"""The decoder body of a causal language model and its linear layers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from gracekit.errors import MeasureError

LEAST_COVERAGE = 0.9
"""Share of the body's weights that must lie in linear layers for a norm over all of them."""


@dataclass(slots=True, eq=False)
class LinearLayer:
    """One linear layer of the body; implements `protocols.Layer`."""

    name: str
    block: int
    module: torch.nn.Module
    block_name: str
    """Path of its decoder block within the body; empty outside of the blocks."""
    is_adapter: bool
    num_blocks: int = 0
    is_trained: bool = True

    @property
    def is_transposed(self) -> bool:
        """Whether the weight is [in, out]."""
        return isinstance(self.module, Conv1D)

    @property
    def weight(self) -> torch.Tensor:
        """The parameter."""
        weight = self.module.weight
        assert isinstance(weight, torch.Tensor)
        return weight

    @property
    def bias(self) -> torch.Tensor | None:
        """The parameter, if there is one."""
        bias = self.module.bias
        assert bias is None or isinstance(bias, torch.Tensor)
        return bias


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
    """Every `torch.nn.Linear` and `Conv1D` of the body, the output head left out."""
    body, head = decoder_body(model), output_head(model)
    adapters = _adapter_modules(body)
    layers = []
    for name, module in body.named_modules():
        if isinstance(module, (torch.nn.Linear, Conv1D)) and module is not head:
            block, block_name = _block_of(name)
            layers.append(
                LinearLayer(
                    name=name,
                    block=block,
                    module=module,
                    block_name=block_name,
                    is_adapter=id(module) in adapters,
                )
            )
    num_blocks = 1 + max((layer.block for layer in layers), default=-1)
    for layer in layers:
        layer.num_blocks = num_blocks
        layer.is_trained = layer.is_adapter or not adapters
    return layers


def require_coverage(model: Any, layers: list[LinearLayer]) -> None:
    """Refuse a body most of whose weights the linear layers do not hold.

    Mixture-of-experts models keep their experts in plain 3-d parameters, or send them a flat list
    of tokens; a norm over the remaining layers would be a number, but not the gradient's norm.
    """
    body, head = decoder_body(model), output_head(model)
    inside = {id(p) for layer in layers for p in layer.module.parameters(recurse=False)}
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
            f"of {type(model).__name__} (outside: {largest}; mixture-of-experts models are not "
            "supported yet); use `scores: [loss]` and `importance: loss` for this model"
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


def _block_of(name: str) -> tuple[int, str]:
    """Index and path of the decoder block that a module path such as `h.3.attn.c_attn` is in."""
    match = re.match(r"((?:[^.]+\.)*?(\d+))\.", name)
    return (int(match[2]), match[1]) if match else (-1, "")
