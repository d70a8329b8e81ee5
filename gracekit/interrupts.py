"""What Ctrl-C and SIGTERM do to a command, and what Ctrl-C does before it begins and after its end.

While a command works, `KeyboardInterrupt` is raised, as usual, also at a SIGTERM, so that what it
holds is let go: locks, temporary files, folders for them. `gracekit watch` has a way of its own.
Outside of that there is nothing to let go: Ctrl-C ends the process quietly, for a traceback of an
import, or of the interpreter's end, would tell nobody anything.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

EXIT_CODE = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM
"""Exit code after SIGTERM, as a shell tells it of a process that SIGTERM ended."""


def end_quietly() -> None:
    """From here on Ctrl-C ends the process at once, with exit code 130."""
    signal.signal(signal.SIGINT, _end)


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """Ctrl-C and SIGTERM raise `KeyboardInterrupt` within the block, if `end_quietly` is in force
    outside. A second SIGTERM ends the process at once.
    """
    is_ours = signal.getsignal(signal.SIGINT) is _end
    if not is_ours or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if before is signal.SIG_DFL:  # not where whoever started us wants it ignored
            signal.signal(signal.SIGTERM, _terminate)
        yield
    finally:
        signal.signal(signal.SIGINT, _end)
        if before is signal.SIG_DFL and signal.getsignal(signal.SIGTERM) is _terminate:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def was_terminated() -> bool:
    """Whether it was SIGTERM that raised `KeyboardInterrupt`."""
    return signal.getsignal(signal.SIGTERM) is _end_at_once


def _end(number: int, frame: FrameType | None) -> None:
    os._exit(EXIT_CODE)


def _terminate(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, _end_at_once)
    raise KeyboardInterrupt


def _end_at_once(number: int, frame: FrameType | None) -> None:
    os._exit(TERMINATED)
