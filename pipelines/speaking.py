"""Who speaks: lines of the processes that a script starts, each behind the name of its process."""

from __future__ import annotations

import threading
from typing import IO

LAST_WORDS_S = 5.0
"""How long to wait for what an ended process has written."""


def relay(stream: IO[str], name: str) -> threading.Thread:
    """Show the lines of a stream as they come, behind a name; the thread ends with the stream.

    Args:
        stream: Text that another process writes.
        name: Of the process, shown in brackets.
    """

    def show() -> None:
        is_heard = True
        for line in stream:  # to its end: nobody else empties the pipe
            if not is_heard:
                continue
            try:
                print(f"[{name}] {line.rstrip()}", flush=True)
            except (OSError, ValueError):  # who reads has gone
                is_heard = False

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    return thread
