"""One batch at a time, whenever the driver says so: `benchmarks/scoring_peers.py`.

Runs in environments without gracekit. The driver writes a line for each batch to standard input and
reads one JSON object for each back; whatever libraries print goes to standard error.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Turns:
    """The child's side."""

    def __init__(self) -> None:
        self._out = os.dup(1)
        os.dup2(2, 1)
        self._started = 0.0

    def begin(self) -> None:
        """Say that all is set up, or that a batch is done; then wait for the next one's turn."""
        self._say(cpu_s=time.process_time() - self._started)
        sys.stdin.readline()
        self._started = time.process_time()

    def end(self, **results: Any) -> None:
        """Say that the last batch is done, and what came of it all."""
        status = Path("/proc/self/status").read_text(encoding="ascii")
        peak = re.search(r"VmHWM:\s+(\d+) kB", status)
        self._say(cpu_s=time.process_time() - self._started)
        self._say(peak_bytes=1024 * int(peak[1]) if peak else 0, **results)

    def over(self, batches: list[Any], work: Callable[[Any], None]) -> None:
        """Work at each batch when its turn comes; `end` is left to the caller."""
        for batch in batches:
            self.begin()
            work(batch)

    def _say(self, **values: Any) -> None:
        os.write(self._out, (json.dumps(values) + "\n").encode())


def size_of(folder: Path) -> int:
    """Bytes of all files in it."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
