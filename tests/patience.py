"""Waiting in tests: for events, and in one place only for so long."""

from __future__ import annotations

import time
from collections.abc import Callable

LAST_RESORT_S = 1500.0
"""Seconds after which what must come is given up. No test is meant to get near it: it is longer
than any of them takes on a machine that is many times overloaded, and ends what hangs."""


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for what must come, however long a busy machine takes."""
    deadline = time.monotonic() + LAST_RESORT_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)
