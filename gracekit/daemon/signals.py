"""SIGTERM and SIGINT: once to finish the batch in progress, twice to end at once."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import threading
from collections.abc import Iterator
from types import FrameType

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """An event that the first SIGTERM or SIGINT sets; a second one ends the process at once.

    The store needs no goodbye: what a second signal cuts off is what any kill does.

    A handler runs in the middle of whatever the main thread does, also while that holds the lock
    of the event or writes to stderr, which would hang or fail. So it only puts the signal into a
    queue that allows that, and a thread sets the event and logs.
    """
    stop, asked = threading.Event(), queue.SimpleQueue[int]()
    numbers: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if numbers or stop.is_set():
            os._exit(128 + number)
        numbers.append(number)
        asked.put(number)

    def pass_on() -> None:
        if asked.get():
            stop.set()
            logger.warning("stopping after the batch in progress; once more to stop at once")

    thread = threading.Thread(target=pass_on, name="signals", daemon=True)
    thread.start()
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        asked.put(0)
        thread.join()
