"""How much memory a model and its batches take."""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import Self

import torch

from gracekit.memory import free_bytes


class MemoryProbe:
    """What model and batches take, of the GPU if the pass runs on one, else of the process.

    Args:
        is_split: Whether the model is spread over all GPUs; then it is what these take together.
    """

    device = "cpu"
    """Where the model is, as people name it."""
    of_model = 0
    """Bytes of the loaded model."""
    of_batches = 0
    """Most bytes of a batch, without the model; known at the end of the block."""

    def __init__(self, *, is_split: bool = False) -> None:
        every: list[int | None] = [*range(torch.cuda.device_count())]
        self._gpus = every if is_split else [None]  # None: the first
        self._on_gpu = torch.cuda.is_available()

    def __enter__(self) -> Self:
        if self._on_gpu:
            for gpu in self._gpus:
                torch.cuda.reset_peak_memory_stats(gpu)
            self.free = sum(torch.cuda.mem_get_info(gpu)[0] for gpu in self._gpus)
        else:
            self.free = free_bytes()
        self._before = _resident(peak=False)
        return self

    def model_is_loaded(self) -> None:
        """Note what the model takes; what comes on top from here on is batches."""
        allocated = sum(map(torch.cuda.memory_allocated, self._gpus)) if self._on_gpu else 0
        self._on_gpu = allocated > 0
        if self._on_gpu:
            times = f"{len(self._gpus)} x " if len(self._gpus) > 1 else ""
            self.device, self.of_model = times + torch.cuda.get_device_name(), allocated
        else:
            self.of_model = max(_resident(peak=False) - self._before, 0)

    def __exit__(self, *error: object) -> None:
        if self._on_gpu:
            peak = sum(map(torch.cuda.max_memory_allocated, self._gpus))
        else:
            peak = _resident(peak=True) - self._before
        self.of_batches = max(peak - self.of_model, 0)


def _resident(*, peak: bool) -> int:
    """Bytes of the process, now or at most since the last question about now.

    Where Linux's files are missing: at most since its start.
    """
    try:
        if not peak:
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        name = "VmHWM" if peak else "VmRSS"
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit if peak else 0
