"""Between two refreshes, memory that nobody uses goes back to the system."""

from __future__ import annotations

import contextlib
import ctypes

import pyarrow as pa


def release_memory() -> None:
    """Ask the allocators for what a refresh has freed: by themselves they keep it for the next one.

    Does what the platform can: only glibc has `malloc_trim`.
    """
    pa.default_memory_pool().release_unused()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
