"""A copy of a checkpoint that goes on while the watcher looks, in any order, by half a file."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gracekit.checkpoints import watch_checkpoints
from gracekit.recipe import CheckpointSection
from gracekit.types import Checkpoint

ORDERS = ("name", "size", "large first", "reversed", "marker first", "times kept")


class Copy:
    """A copy of a checkpoint that goes on while the watcher waits, without keeping times."""

    def __init__(self, source: Path, target: Path, order: str) -> None:
        self._root = target
        self._single = source.is_file()
        files = [source] if self._single else [f for f in source.rglob("*") if f.is_file()]
        home = source.parent
        target.mkdir()
        keys: dict[str, Callable[[Path], Any]] = {
            "name": str,
            "size": lambda f: (f.stat().st_size, str(f)),
            "large first": lambda f: (-f.stat().st_size, str(f)),
            "reversed": str,
            "times kept": lambda f: (not _is_marker(f), str(f)),
            "marker first": lambda f: (not _is_marker(f), str(f)),
        }
        files.sort(key=keys[order], reverse=order == "reversed")
        self._keeps_times = order == "times kept"
        self._left = [
            (target / f.relative_to(home), part, f.stat().st_mtime)
            for f in files
            for part in _halves(f.read_bytes())
        ]
        self._started: set[Path] = set()
        self.now = self.quiet_s = 0.0
        self.is_whole = False
        self._more = 40

    def set_clocks(self, patch: pytest.MonkeyPatch) -> None:
        """Let the time of the wall go by the clock of the copy.

        The time at which a file was copied is one that no program can set.
        """
        begun = time.time()
        patch.setattr("gracekit.checkpoints.base_layout.time.time", lambda: begun + self.now)
        patch.setattr("gracekit.checkpoints.watch.quiet_s", lambda files: self.quiet_s)

    def wait(self, seconds: float) -> bool:
        self.now += seconds
        self.quiet_s += seconds
        if self._left:
            self.quiet_s = 0.0
            target, part, at = self._left.pop(0)
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("ab" if target in self._started else "wb") as file:
                file.write(part)
            self._started.add(target)
            if self._keeps_times:
                os.utime(target, (at, at - 3600))
            return False
        self._more -= 1
        return self._more == 0

    def watched(self, settings: CheckpointSection) -> Iterator[Checkpoint]:
        for checkpoint in watch_checkpoints(
            self._root, settings, is_done=lambda c: False, stop=threading.Event(),
            clock=lambda: self.now, wait=self.wait,
        ):  # fmt: skip
            assert not self._left, f"picked up with {len(self._left)} parts to come"
            self.is_whole = True
            yield checkpoint


def _is_marker(file: Path) -> bool:
    return file.name in (
        "trainer_state.json", ".metadata", "random_states_0.pkl", "latest",
        "latest_checkpointed_iteration.txt",
    )  # fmt: skip


def _halves(content: bytes) -> list[bytes]:
    half = len(content) // 2
    return [content[:half], content[half:]]
