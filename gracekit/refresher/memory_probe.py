"""How much memory a model and its batches take."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path
from typing import Self

import torch


class MemoryProbe:
    """What model and batches take, of the GPU if the pass runs on one, else of the process."""

    device = "cpu"
    """Where the model is, as people name it."""
    of_model = 0
    """Bytes of the loaded model."""
    of_batches = 0
    """Most bytes of a batch, without the model; known at the end of the block."""

    def __enter__(self) -> Self:
        self._on_gpu = torch.cuda.is_available()
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats()
        self.free = torch.cuda.mem_get_info()[0] if self._on_gpu else _free_memory()
        self._before = _resident(peak=False)
        return self

    def model_is_loaded(self) -> None:
        """Note what the model takes; what comes on top from here on is batches."""
        self._on_gpu = self._on_gpu and torch.cuda.memory_allocated() > 0
        if self._on_gpu:
            self.device, self.of_model = torch.cuda.get_device_name(), torch.cuda.memory_allocated()
        else:
            self.of_model = max(_resident(peak=False) - self._before, 0)

    def __exit__(self, *error: object) -> None:
        if self._on_gpu:
            peak = torch.cuda.max_memory_allocated()
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


def _free_memory() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvail"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
