"""Who speaks: lines of the processes that a script starts, each behind the name of its process."""

from __future__ import annotations

import threading
from typing import IO


def relay(stream: IO[str], name: str) -> threading.Thread:
    """Show the lines of a stream as they come, behind a name; the thread ends with the stream.

    Args:
        stream: Text that another process writes.
        name: Of the process, shown in brackets.
    """

    def show() -> None:
        for line in stream:
            print(f"[{name}] {line.rstrip()}", flush=True)

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    return thread
