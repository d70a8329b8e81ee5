"""One decision for all processes of a training job."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

Value = TypeVar("Value")


def decide_on_rank_zero(decide: Callable[[], Value]) -> Value:
    """The result of `decide()` on rank 0, on every rank; a plain call outside a job.

    Ranks that each look for the newest version would sometimes see different ones (a file shows
    up late on a network mount), and their batches would overlap. Every rank must call this at
    the same point of its loop. torch is used only where the trainer has already loaded it.
    """
    torch = _torch_in_job()
    if torch is None:
        return decide()
    box: list[Any] = [decide() if is_rank_zero() else None]
    torch.distributed.broadcast_object_list(box, src=0)
    value: Value = box[0]
    return value


def gather_over_ranks(value: Value) -> list[Value]:
    """The values of all ranks, on every rank; the one value outside a job.

    Every rank must call this at the same point of its loop.
    """
    torch = _torch_in_job()
    if torch is None:
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def is_rank_zero() -> bool:
    """Whether this process decides and writes; also outside a job."""
    torch = _torch_in_job()
    return torch is None or torch.distributed.get_rank() == 0


def _torch_in_job() -> Any:
    """torch, where the trainer has loaded it and runs as one of several processes; else None."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.distributed.is_available():
        return None
    return torch if torch.distributed.is_initialized() else None
