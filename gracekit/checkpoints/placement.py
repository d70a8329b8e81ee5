"""A model spread over several GPUs, and the CPU's memory where these are too small.

As transformers' `device_map` has it, decoder blocks go from device to device in their order, and
hooks bring what a block is given to its device. Hooks of our own rather than accelerate's: these
load weights that lie on the CPU as other parameters, so that nothing which is known of a parameter
holds any more, and the backward pass would keep all of them on the GPU.

All that is no decoder block (embeddings, final norm, head) is on the first GPU, with the batch; and
what the last block puts out goes back there. So whatever a model does outside of its blocks, and
all that is read off targets, is on one device.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import partial
from itertools import chain
from typing import Any

import torch
from accelerate.utils import send_to_device

from gracekit.errors import MeasureError
from gracekit.memory import free_bytes

SHARE_FOR_WEIGHTS = 0.8
"""Of a GPU's free memory; the rest is for what a batch takes."""


def spread(model: Any) -> None:
    """Spread a model that is loaded on the CPU over all visible GPUs.

    Raises:
        MemoryError: What is no decoder block does not fit on the first GPU, or what the GPUs have
            no room for neither into the CPU's memory nor, one block at a time, on the last GPU.
        MeasureError: It has no decoder blocks that could be told, or they share weights.
    """
    gc.collect()  # a model before this one refers to itself by its hooks
    torch.cuda.empty_cache()
    gpus = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    place(model, {gpu: int(SHARE_FOR_WEIGHTS * torch.cuda.mem_get_info(gpu)[0]) for gpu in gpus})


def place(model: Any, room: Mapping[torch.device, int]) -> None:
    """Spread a model over devices with room for so many bytes of weights each.

    The blocks that have no room stay on the CPU, are brought to the last device whenever they are
    run, one at a time, and again, weight by weight, in the backward pass.
    """
    blocks = decoder_blocks(model)
    inside = {id(tensor) for block in blocks for tensor in _tensors(block)}
    others = [tensor for tensor in _tensors(model) if id(tensor) not in inside]
    sizes = [_num_bytes(_tensors(block)) for block in blocks]
    devices = _devices_of_blocks(sizes, _num_bytes(others), room)
    on_cpu = sum(size for size, device in zip(sizes, devices, strict=True) if device is None)
    if on_cpu > (free := free_bytes()):
        raise MemoryError(f"{on_cpu:,} bytes have no room on GPUs, and {free:,} on the CPU")
    first, last = next(iter(room)), [*room][-1]
    for tensor in others:
        tensor.data = tensor.data.to(first)
    for block, device in zip(blocks, devices, strict=True):
        block.register_forward_pre_hook(partial(_bring, device or last), with_kwargs=True)
        if device is not None:
            block.to(device)
        else:
            _keep_on_cpu(block, last)
    blocks[-1].register_forward_hook(lambda _block, _args, output: send_to_device(output, first))


def decoder_blocks(model: Any) -> list[torch.nn.Module]:
    """The blocks of a model, in their order: its largest list of modules.

    Raises `MeasureError` where there is none, or one weight is in several of them.
    """
    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    blocks = [*max(lists, key=lambda each: _num_bytes(each.parameters()), default=())]
    owners = Counter(id(weight) for block in blocks for weight in block.parameters())
    if not blocks or max(owners.values(), default=0) > 1:
        why = "its blocks share weights" if blocks else "no decoder blocks were found in it"
        raise MeasureError(
            f"scoring.device is split, and {type(model).__name__} cannot be split over devices: "
            f"{why}; set scoring.device to auto, on a GPU that it fits on"
        )
    return blocks


def _devices_of_blocks(
    sizes: list[int], of_others: int, room: Mapping[torch.device, int]
) -> list[torch.device | None]:
    """The device of each block of so many bytes, None for the CPU.

    Each device gets its part of what the devices before it have left, as far as those behind it
    have room for the rest: what is left free is for the batches. Where blocks stay on the CPU the
    last device keeps room for the largest of them.
    """
    left = dict(room)
    first, last = next(iter(left)), [*left][-1]
    left[first] -= of_others
    _require_room("embeddings and head", of_others, room[first], first)
    if _num_fitting(sizes, [*left.values()]) < len(sizes):
        left[last] -= max(sizes)
        _require_room("a decoder block", max(sizes), max(sizes) + left[last], last)
    devices: list[torch.device | None] = []
    taken, free_of_each = of_others, [*left.values()]  # the others are on the first
    for number, (device, free) in enumerate(left.items()):
        part = (taken + sum(sizes[len(devices) :])) / (len(left) - number)
        while len(devices) < len(sizes) and sizes[len(devices)] <= free:
            rest, later = sizes[len(devices) :], free_of_each[number + 1 :]
            if taken + rest[0] / 2 > part and _num_fitting(rest, later) == len(rest):
                break
            taken, free = taken + rest[0], free - rest[0]
            devices.append(device)
        taken = 0
    return devices + [None] * (len(sizes) - len(devices))


def _num_fitting(sizes: list[int], room: list[int]) -> int:
    """How many of the blocks fit on devices, in their order."""
    number = 0
    for free in room:
        while number < len(sizes) and sizes[number] <= free:
            free -= sizes[number]
            number += 1
    return number


def _require_room(what: str, size: int, room: int, device: torch.device) -> None:
    if size > room:
        raise MemoryError(f"{what}: {size:,} bytes, and room for {max(room, 0):,} on {device}")


def _bring(
    device: torch.device, _block: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, Any]:
    """A block's arguments on its device."""
    return send_to_device(args, device), send_to_device(kwargs, device)


def _keep_on_cpu(block: torch.nn.Module, device: torch.device) -> None:
    """Leave a block's weights in the memory of the CPU, and run it on a device all the same."""
    for weight in block.parameters():
        weight.data = weight.data.clone()  # from the file, which the trainer may write again
    for buffer in block.buffers():
        buffer.data = buffer.data.to(device)
    block.forward = partial(_run_from_cpu, block, block.forward, device)


def _run_from_cpu(
    block: torch.nn.Module, forward: Any, device: torch.device, *args: Any, **kwargs: Any
) -> Any:
    """`forward` with the block's weights on a device for as long as it takes.

    What the graph would keep of them it keeps as a note which weight it is, and the backward pass
    copies that again.
    """
    weights = [*block.parameters()]
    own = [weight.data for weight in weights]
    own_of_copy: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> tuple[torch.Tensor, bool]:
        weight = own_of_copy.get(tensor.untyped_storage().data_ptr())
        if weight is None:
            return tensor.detach(), False  # the tensor itself would hold the graph that holds it
        part = weight.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
        return part, True

    def unpack(packed: tuple[torch.Tensor, bool]) -> torch.Tensor:
        tensor, is_on_cpu = packed
        return tensor.to(device) if is_on_cpu else tensor

    try:
        for weight, data in zip(weights, own, strict=True):
            weight.data = data.to(device)
            own_of_copy[weight.untyped_storage().data_ptr()] = data
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            return forward(*args, **kwargs)
    finally:
        for weight, data in zip(weights, own, strict=True):
            weight.data = data


def _tensors(module: torch.nn.Module) -> Iterable[torch.Tensor]:
    return chain(module.parameters(), module.buffers())


def _num_bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
