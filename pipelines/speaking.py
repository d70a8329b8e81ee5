"""Who speaks: lines of the processes that a script starts, each behind the name of its process, and
a sign that the work goes on where nobody has spoken for some seconds.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO

LAST_WORDS_S = 5.0
"""How long to wait for what an ended process has written."""
SILENCE_S = 8.0
"""After so long a silence a line says that the work goes on, so that none lasts ten seconds."""


class Silence:
    """How long nobody has spoken. Any thread may ask and tell.

    Args:
        clock: Seconds of a steady clock.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last = clock()
        self._began, self._doing = self._last, ""

    def broken(self) -> None:
        """Somebody spoke."""
        self._last = self._clock()

    def begin(self, doing: str) -> None:
        """From now on this is done."""
        self._began, self._doing = self._clock(), doing
        self.broken()

    def sign(self) -> str | None:
        """A line for where nobody has spoken for `SILENCE_S`; None: it is not needed."""
        now = self._clock()
        if not self._doing or now - self._last < SILENCE_S:
            return None
        self._last = now
        return f"... {self._doing}, for {now - self._began:.0f} s now"


SILENCE = Silence()


@contextmanager
def at_work(doing: str, *, look_s: float = 0.5) -> Iterator[None]:
    """Within the block no silence lasts longer than `SILENCE_S` and a look.

    Args:
        doing: What is done, for people.
        look_s: Seconds from one look to the next.
    """
    is_over = threading.Event()

    def look() -> None:
        while not is_over.wait(look_s):
            if (sign := SILENCE.sign()) is not None:
                _say(sign)

    thread = threading.Thread(target=look, daemon=True)
    SILENCE.begin(doing)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
        SILENCE.begin("")


def relay(stream: IO[str], name: str) -> threading.Thread:
    """Show the lines of a stream as they come, behind a name; the thread ends with the stream.

    Args:
        stream: Text that another process writes.
        name: Of the process, shown in brackets.
    """

    def show() -> None:
        is_heard = True
        for line in stream:  # to its end: nobody else empties the pipe
            if is_heard:
                is_heard = _say(f"[{name}] {line.rstrip()}")

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    return thread


def _say(line: str) -> bool:
    """Print a line; False where who reads has gone."""
    SILENCE.broken()
    try:
        print(line, flush=True)
    except (OSError, ValueError):
        return False
    return True
