"""What Ctrl-C and SIGTERM do to a command, and what Ctrl-C does before it begins and after its end.

While a command works, `KeyboardInterrupt` is raised, as usual, also at a SIGTERM, so that what it
holds is let go: locks, temporary files, folders for them. `gracekit watch` has a way of its own.
Python raises nothing amid a call into a library, such as one that waits for a network, so a thread
ends the process where SIGTERM is not noticed, as SIGKILL would. It needs the interpreter's lock for
that, which a few calculations keep until they are done.

Outside of a command there is nothing to let go: Ctrl-C ends the process quietly, for a traceback of
an import, or of the interpreter's end, would tell nobody anything.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
from collections.abc import Iterator
from types import FrameType

EXIT_CODE = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM
"""Exit code after SIGTERM, as a shell tells it of a process that SIGTERM ended."""
NOTICED_S = 10.0
"""Seconds within which a command is to notice SIGTERM: a third of what Kubernetes waits."""


def end_quietly() -> None:
    """From here on Ctrl-C ends the process at once, with exit code 130."""
    signal.signal(signal.SIGINT, _end)


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """Ctrl-C and SIGTERM raise `KeyboardInterrupt` within the block, if `end_quietly` is in force
    outside. A second SIGTERM ends the process at once, and so does one that goes unnoticed for
    `NOTICED_S`.
    """
    is_ours = signal.getsignal(signal.SIGINT) is _end
    if not is_ours or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if before is not signal.SIG_DFL:  # whoever started us wants it ignored
            yield
            return
        signal.signal(signal.SIGTERM, _terminate)
        with _seen_to():
            yield
    finally:
        signal.signal(signal.SIGINT, _end)
        if before is signal.SIG_DFL and signal.getsignal(signal.SIGTERM) is _terminate:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def was_terminated() -> bool:
    """Whether it was SIGTERM that raised `KeyboardInterrupt`."""
    return signal.getsignal(signal.SIGTERM) is _end_at_once


@contextlib.contextmanager
def _seen_to() -> Iterator[None]:
    """Within the block a thread ends the process where the handlers of SIGTERM cannot."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=_tell_no_more)  # the signals of a child are not ours
    threading.Thread(target=_see_to, args=(reading,), name="SIGTERM", daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writing)


def _see_to(reading: int) -> None:
    num_asked = 0
    while numbers := os.read(reading, 64):
        num_asked += numbers.count(signal.SIGTERM)
        if signal.getsignal(signal.SIGTERM) not in (_terminate, _end_at_once):
            num_asked = 0  # `gracekit watch` has handlers of its own
        if num_asked > 1:
            os._exit(TERMINATED)
        if num_asked:
            select.select([reading], [], [], NOTICED_S)
            if signal.getsignal(signal.SIGTERM) is _terminate:
                os._exit(TERMINATED)
    os.close(reading)


def _tell_no_more() -> None:
    with contextlib.suppress(ValueError):  # forked by a thread that is not the main one
        signal.set_wakeup_fd(-1)


def _end(number: int, frame: FrameType | None) -> None:
    os._exit(EXIT_CODE)


def _terminate(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, _end_at_once)
    raise KeyboardInterrupt


def _end_at_once(number: int, frame: FrameType | None) -> None:
    os._exit(TERMINATED)
