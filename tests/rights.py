"""Files that may not be read, also for root: without the right to pass over permissions."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_VERSION = 0x20080522
"""Of the kernel's structures of capabilities, `_LINUX_CAPABILITY_VERSION_3`."""
_OVERRIDES = (1 << 1) | (1 << 2)
"""CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH."""


@contextmanager
def no_rights_to(path: Path) -> Iterator[None]:
    """Nobody may read or enter `path` within the block, this thread neither if it is root's."""
    mode = path.stat().st_mode & 0o7777
    path.chmod(0)
    try:
        with _without_overrides():
            yield
    finally:
        path.chmod(mode)


@contextmanager
def _without_overrides() -> Iterator[None]:
    if os.geteuid() != 0:
        yield
        return
    system = ctypes.CDLL(None, use_errno=True)
    header, sets = (ctypes.c_uint32 * 2)(_VERSION, 0), (ctypes.c_uint32 * 6)()
    if system.capget(header, sets) != 0:
        pytest.skip("root's right to read everything cannot be taken here")
    before = sets[0]
    sets[0] = before & ~_OVERRIDES
    assert system.capset(header, sets) == 0
    try:
        yield
    finally:
        sets[0] = before
        assert system.capset(header, sets) == 0
