"""Trackers as users write them, for tests: lines of JSON, and such as fail or hang.

Named in recipes as `tests.plain_tracker:Lines`; each runs in a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading

from gracekit.protocols import TrackedRun


class Lines:
    """A line of JSON for each version, in the tracker's folder."""

    def __init__(self, run: TrackedRun) -> None:
        print(f"hello from {run.name}")
        self.path = run.folder / "lines.jsonl"
        self._write({"begin": run.id, "project": run.project, "seed": run.config["seed"]})

    def log(self, values: dict[str, float], step: int) -> None:
        self._write({"step": step, **values})

    def close(self) -> None:
        self._write({"end": True})

    def _write(self, content: object) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(content) + "\n")


class Moody(Lines):
    """Fails as long as there is a file `broken` beside its lines."""

    def log(self, values: dict[str, float], step: int) -> None:
        if self.path.with_name("broken").exists():
            raise OSError(28, "No space left on device")
        super().log(values, step)


class Refused(Lines):
    """Cannot begin, as with a bad key."""

    def __init__(self, run: TrackedRun) -> None:
        raise ValueError("the key is not known here")


class Hanging(Lines):
    """Never comes back."""

    def log(self, values: dict[str, float], step: int) -> None:
        threading.Event().wait()


class Helped(Hanging):
    """Starts a process of its own, and never comes back."""

    def log(self, values: dict[str, float], step: int) -> None:
        helper = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        self._write({"helper": helper.pid})
        super().log(values, step)


class Dying(Lines):
    """Ends its process in the middle."""

    def log(self, values: dict[str, float], step: int) -> None:
        sys.stdout.flush()
        import os

        os._exit(7)


class NoTracker:
    """Has no `log`."""

    def close(self) -> None:
        pass


def no_class() -> None:
    """Is no class either."""
