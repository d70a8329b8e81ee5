"""What Ctrl-C does before a command has begun and after it has ended: it ends the process quietly.

While a command works, `KeyboardInterrupt` is raised as usual, so that what it holds is let go, and
`gracekit watch` has a way of its own. Outside of that there is nothing to let go, and a traceback
of an import, or of the interpreter's end, would tell nobody anything.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

EXIT_CODE = 128 + signal.SIGINT


def end_quietly() -> None:
    """From here on Ctrl-C ends the process at once, with exit code 130."""
    signal.signal(signal.SIGINT, _end)


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """Ctrl-C raises `KeyboardInterrupt` within the block, if `end_quietly` is in force outside."""
    is_ours = signal.getsignal(signal.SIGINT) is _end
    if not is_ours or threading.current_thread() is not threading.main_thread():
        yield
        return
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        yield
    finally:
        signal.signal(signal.SIGINT, _end)


def _end(number: int, frame: FrameType | None) -> None:
    os._exit(EXIT_CODE)
