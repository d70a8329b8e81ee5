"""Checkpoints of other trainers: complete only when they are, and loaded to the same logits.

The files are written by accelerate, torch and transformers themselves; what Lightning and nested
layouts hold has their shape. Libraries in environments of their own are in test_matrix.py.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from gracekit.checkpoints import find_checkpoints, watch_checkpoints
from gracekit.recipe import CheckpointSection
from gracekit.types import Checkpoint
from tests.checkpoint_writers import WRITERS, Trap, loaded, logits
from tests.tiny import write_checkpoint


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("base"), 0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the trainer has in memory."""
    saved = write_checkpoint(tmp_path_factory.mktemp("trained"), 30)
    return AutoModelForCausalLM.from_pretrained(saved).eval()


@pytest.fixture(params=WRITERS)
def written(
    request: pytest.FixtureRequest, model: Any, tmp_path: Path
) -> tuple[Path, torch.Tensor]:
    """A checkpoint, and what its model says."""
    if request.param == "accelerate save_state":
        pytest.importorskip("accelerate")
    Trap.place = str(tmp_path / "was-run")
    return WRITERS[request.param](model, tmp_path / "run"), logits(model)


@pytest.mark.filterwarnings("ignore")
def test_each_layout_loads_to_the_same_logits(
    written: tuple[Path, torch.Tensor], base: Path, tmp_path: Path
) -> None:
    path, expected = written
    settings = CheckpointSection(base_model=str(base), settle_s=0)
    torch.testing.assert_close(loaded(path, settings, tmp_path / "pins"), expected, atol=0, rtol=0)
    (found,) = find_checkpoints(tmp_path / "run", settings)
    assert (found.path, found.step) == (path, 3)
    assert not (tmp_path / "was-run").exists()
    assert list((tmp_path / "pins").iterdir()) == []


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "order", ["name", "size", "large first", "reversed", "marker first", "times kept"]
)
def test_half_copied_it_is_never_picked_up_and_never_lost(
    written: tuple[Path, torch.Tensor],
    base: Path,
    tmp_path: Path,
    order: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At every boundary of two files, and in the middle of every file, with a look in between."""
    path, _ = written
    settings = CheckpointSection(base_model=str(base), settle_s=12, poll_interval_s=5)
    copy = Copy(path, tmp_path / "copy", order)
    begun = time.time()
    monkeypatch.setattr("gracekit.checkpoints.base_layout.time.time", lambda: begun + copy.now)
    # The time at which a file was copied, which no program can set, by the clock of the copy.
    monkeypatch.setattr("gracekit.checkpoints.watch.quiet_s", lambda files: copy.quiet_s)
    seen = list(copy.watched(settings))
    assert [c.step for c in seen] == [3] and copy.is_whole


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
    return file.name in ("trainer_state.json", ".metadata", "random_states_0.pkl")


def _halves(content: bytes) -> list[bytes]:
    half = len(content) // 2
    return [content[:half], content[half:]]
