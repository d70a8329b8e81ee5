"""Devices that this machine does not have, so that a mix of them shows.

Under `pretended_devices` tensors lie in the memory of the CPU, and what they compute is what a CPU
computes; but `cuda:0` and `cuda:1` can be named, a tensor says that it is on the one that it was
made on or moved to, and an operation over tensors of two devices raises as on real ones. That holds
in the backward pass too, where `FakeTensorMode` of torch without CUDA ends the process.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

CPU = torch.device("cpu")
_ANY = torch.device("meta")
"""Of what torch's own code makes from nothing: it asks for the device of a tensor that it has."""
_DEVICE_OF = torch.Tensor.device.__get__
_INDEXED = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")
"""Operations that take indices on the CPU whatever device they index on."""


class MixedDevicesError(RuntimeError):
    """An operation was given tensors of several devices."""


class Devices:
    """Which device a tensor pretends to be on, by its memory."""

    def __init__(self, room: int = 2**40) -> None:
        self.room = room
        """Bytes that each device says are free."""
        self.num_operations: Counter[str] = Counter()
        """Operations that were run on each device."""
        self._of_memory: dict[int, tuple[torch.device, StorageWeakRef, int]] = {}
        """The references are weak, and no other memory gets the number while they are held."""

    def of(self, tensor: torch.Tensor) -> torch.device:
        device, *_ = self._of_memory.get(tensor.untyped_storage()._cdata, (CPU,))
        return device

    def put(self, tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        storage = tensor.untyped_storage()
        weak = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
        self._of_memory[storage._cdata] = device, weak, storage.nbytes()
        return tensor

    def num_bytes(self, device: torch.device) -> int:
        """Bytes that tensors hold on a device now."""
        held = [
            size
            for of_memory, reference, size in self._of_memory.values()
            if of_memory == device and not reference.expired()  # type: ignore[no-untyped-call]
        ]
        return sum(held)


class _Mixing(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Raises for operations over several devices; results are on the one that there is."""

    def __init__(self, devices: Devices) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._devices = devices

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func._schema.name
        if name == "aten::copy_":  # from one device to another
            return result
        bound = (args[0], *args[2:]) if name in _INDEXED else args
        tensors = [t for t in tree_leaves((bound, kwargs)) if isinstance(t, torch.Tensor)]
        found = {self._devices.of(t) for t in tensors if t.ndim} - {_ANY}
        found |= {self._devices.of(t) for t in tensors} - {CPU, _ANY}  # a number fits all
        if name in _INDEXED:
            indices = {self._devices.of(t) for t in args[1] if t is not None}
            found |= indices - {CPU, _ANY}
        if len(found) > 1:
            told = [(tuple(t.shape), str(self._devices.of(t))) for t in tensors]
            raise MixedDevicesError(f"{name} was given tensors of several devices: {told}")
        device = found.pop() if found else CPU if tensors else _ANY
        self._devices.num_operations[str(device)] += 1
        return tree_map(partial(self._put, device), result)

    def _put(self, device: torch.device, value: Any) -> Any:
        return self._devices.put(value, device) if isinstance(value, torch.Tensor) else value


class _Naming(TorchFunctionMode):
    """Lets `cuda:1` be asked for: the tensor is made on the CPU, and its device noted."""

    def __init__(self, devices: Devices) -> None:
        super().__init__()
        self._devices = devices

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func == _DEVICE_OF:
            real = func(*args)
            return real if real.type == "meta" else self._devices.of(args[0])
        if func is torch.Tensor.pin_memory:
            return args[0]
        if func in (torch.Tensor.to, torch.Tensor.cpu):
            return self._moved(func, args, kwargs)
        if func is torch.Tensor.new_tensor:
            return self._devices.put(func(*args, **kwargs), self._devices.of(args[0]))
        device = kwargs.get("device")
        if device is None or torch.device(device).type != "cuda":
            found = func(*args, **kwargs)
            for each in tree_leaves(found):
                if isinstance(each, torch.Tensor) and self._devices.of(each) == _ANY:
                    self._devices.put(each, CPU)
            return found
        return self._devices.put(func(*args, **{**kwargs, "device": CPU}), torch.device(device))

    def _moved(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tensor, *rest = args
        before = self._devices.of(tensor)
        device = CPU if func is torch.Tensor.cpu else kwargs.get("device")
        dtype = kwargs.get("dtype")
        for value in rest:
            if isinstance(value, torch.dtype):
                dtype = value
            elif isinstance(value, torch.Tensor):
                device, dtype = self._devices.of(value), value.dtype
            elif isinstance(value, (str, torch.device)):
                device = value
        device = before if device is None else torch.device(device)
        if device == before or "meta" in (device.type, tensor.untyped_storage().device.type):
            return torch.Tensor.to(tensor, device if device.type == "meta" else CPU, dtype)
        found = tensor.to(dtype=dtype or tensor.dtype, copy=True)
        if found.grad_fn is not None:
            found.grad_fn.register_hook(partial(self._move_back, before))
        return self._devices.put(found, device)

    def _move_back(
        self, device: torch.device, gradients: tuple[torch.Tensor, ...], _given: Any
    ) -> tuple[torch.Tensor, ...]:
        """What the backward pass of a move does, which here sees no other device."""
        return tuple(self._devices.put(each.clone(), device) for each in gradients)


@contextmanager
def pretended_devices(num_gpus: int = 2) -> Iterator[Devices]:
    """Inside, there are so many GPUs; each says that it has the room which is set."""
    devices = Devices()
    naming = _Naming(devices)
    run_backward = torch.autograd._engine_run_backward  # type: ignore[attr-defined]

    def named_backward(*args: Any, **kwargs: Any) -> Any:
        with naming:  # which calls of torch's own functions leave
            return run_backward(*args, **kwargs)

    with (
        patch.object(torch.autograd, "_engine_run_backward", named_backward),
        patch.object(torch.cuda, "device_count", lambda: num_gpus),
        patch.object(torch.cuda, "mem_get_info", lambda _device: (devices.room, devices.room)),
        _Mixing(devices),
        naming,
    ):
        yield devices
