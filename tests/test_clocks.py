"""Clocks that jump: while a daemon lives, and between writers of one store.

The daemon is a process of its own under libfaketime (`apt-get install faketime`), whose clock the
test sets; the clock that nobody sets (`CLOCK_MONOTONIC`) and the times of files stay true.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from gracekit.store import Store, StoreReader, verify
from tests.patience import LAST_RESORT_S, until
from tests.tiny import recipe_content, write_checkpoint, write_data

LIBRARIES = [
    *Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"),
    *Path("/usr/lib/faketime").glob("libfaketimeMT.so.1"),
]
pytestmark = pytest.mark.skipif(not LIBRARIES, reason="needs libfaketime")
JUMPS = ("+3h", "-3h", "+5y", "-20y")
"""From the true time; each comes in the middle of the daemon's life."""


class Clock:
    """The time that processes with its environment see."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.set("+0s")
        self.environment = os.environ | {
            "LD_PRELOAD": str(LIBRARIES[0]),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
            "OMP_NUM_THREADS": "1",
        }

    def set(self, offset: str) -> None:
        new = self._file.with_suffix(".new")
        new.write_text(f"{offset}\n")
        new.replace(self._file)

    def run(self, *words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "gracekit", *words],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=LAST_RESORT_S,
        )
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout


@contextmanager
def daemon(clock: Clock, folder: Path) -> Iterator[subprocess.Popen[str]]:
    with (folder / "daemon.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "gracekit", "watch", str(folder / "run"),
             "--recipe", str(folder / "gracekit.yaml")],
            env=clock.environment, stderr=log, stdout=log, text=True,
        )  # fmt: skip
        try:
            yield process
        finally:
            process.terminate()
            process.wait(LAST_RESORT_S)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_data(tmp_path / "train.jsonl")
    (tmp_path / "gracekit.yaml").write_text(yaml.safe_dump(recipe_content()))
    return tmp_path


def versions(folder: Path) -> list[int]:
    root = folder / "store"
    return StoreReader.open(root).versions() if Store.exists(root) else []


def test_a_daemon_whose_clock_jumps_makes_every_version_and_is_well(folder: Path) -> None:
    clock = Clock(folder / "clock")
    clock.run("--version")  # or the clock cannot be set here
    with daemon(clock, folder) as process:
        for number, jump in enumerate(("+0s", *JUMPS), start=1):
            clock.set(jump)
            write_checkpoint(folder / "run", 10 * number)
            until(
                lambda number=number: process.poll() is not None or len(versions(folder)) >= number,  # type: ignore[misc]
                f"version {number} after {jump}",
            )
            assert process.poll() is None, (folder / "daemon.log").read_text()
            told = json.loads(
                clock.run("status", "--check", "--json", "--store", str(folder / "store"))
            )
            assert told["healthy"], told
    assert process.returncode == 0
    log = (folder / "daemon.log").read_text()
    assert "Traceback" not in log and "skipping" not in log, log
    assert versions(folder) == list(range(1, len(JUMPS) + 2))
    assert verify(Store.open(folder / "store")) == []


def test_writers_with_other_clocks_lose_nothing(folder: Path) -> None:
    """Each works an hour to years before or after the one before it."""
    clock, store = Clock(folder / "clock"), folder / "store"
    recipe = ("--recipe", str(folder / "gracekit.yaml"))
    for step in (10, 20):
        clock.set("+0s" if step == 10 else "-1y")
        write_checkpoint(folder / "run", step)
        clock.run("refresh", str(folder / "run" / f"checkpoint-{step}"), *recipe)
    for offset, words in (
        ("+2y", ("pin", "1")),
        ("-5y", ("select", "--set", "selection.count=7")),
        ("+1h", ("rollback", "1")),
        ("-1h", ("status",)),
        ("+9y", ("gc", "--keep", "2")),
        ("-9y", ("unpin", "1")),
        ("-9y", ("versions",)),
        ("+3y", ("gc", "--keep", "1")),
        ("-30y", ("status",)),
    ):
        clock.set(offset)
        clock.run(*words, *recipe)
    found = Store.open(store)
    assert found.latest() == 4
    assert sorted({*found.removed(), *found.versions()}) == [1, 2, 3, 4]
    assert verify(found) == []
