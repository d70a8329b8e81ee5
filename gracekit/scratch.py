"""Room for arrays that are large beside a machine's memory."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

LARGE = 1 << 30
"""Bytes from which on an array goes to disk."""
_LEFT = 4
"""How many times its size is left free there: a version's own files take about three times that of
its largest array, and they are written while it is still there."""

_directory: ContextVar[Path | None] = ContextVar("_directory", default=None)


@contextmanager
def scratch_in(directory: Path) -> Iterator[None]:
    """Within the block, what `room` gives may lie in files of this directory.

    They have no name, so that a killed process leaves none on a local disk. The directory should
    be that of the store: what is called temporary may be memory.
    """
    token = _directory.set(directory)
    try:
        yield
    finally:
        _directory.reset(token)


def room(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """An array of zeros.

    One of more than `LARGE` bytes is a mapped file, where `scratch_in` says where: when the system
    needs memory it takes that of pages which are not in use, and the process holds none. The disk
    has the room before this returns, and room for what is to be written beside it; where it has
    not, the array is in memory.
    """
    directory, num_bytes = _directory.get(), math.prod(shape) * np.dtype(dtype).itemsize
    if directory is None or num_bytes <= LARGE:
        return np.zeros(shape, dtype)
    try:
        if shutil.disk_usage(directory).free < (1 + _LEFT) * num_bytes:
            return np.zeros(shape, dtype)
        with tempfile.TemporaryFile(dir=directory) as file:
            os.posix_fallocate(file.fileno(), 0, num_bytes)
            return np.asarray(np.memmap(file, dtype, "r+", shape=shape))
    except (OSError, AttributeError):  # full, read-only, or a system that does not reserve room
        return np.zeros(shape, dtype)
