"""Ctrl-C at any moment of `gracekit watch`: no traceback, the documented exit codes, a whole store.

Moments are counted in calls of Python functions, not in seconds, so that a busy machine changes
nothing: from the first module that is loaded over the refresh to the end of the interpreter.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

from gracekit.store import Store, verify
from tests.patience import LAST_RESORT_S, until
from tests.tiny import recipe_content, write_checkpoint, write_data

SEED = 20260522
FIRST = 20
"""Calls after which Ctrl-C is gracekit's own: before, Python itself is loaded."""

COUNTED = """
import atexit, signal, sys
from gracekit.__main__ import main

def counter(moment, interrupt, number):
    calls = [0]
    def count(frame, event, argument):  # of locals only: globals are gone at the very end
        if event == "call":
            calls[0] += 1
            if calls[0] == moment:
                interrupt(number)
    return count, calls

count, calls = counter(int(sys.argv[1]), signal.raise_signal, signal.SIGINT)
total = sys.argv[2]
if total:
    atexit.register(lambda: open(total, "w").write(str(calls[0])))
sys.argv[1:] = sys.argv[3:]
sys.setprofile(count)
main()
"""


class World:
    """Data and one checkpoint; each run starts without a store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_data(folder / "train.jsonl", num_samples=60)
        write_checkpoint(folder / "run", 10)
        (folder / "gracekit.yaml").write_text(yaml.safe_dump(recipe_content()))

    def num_calls(self) -> int:
        """Of a run that nobody interrupts."""
        done = self.watch(-1, str(self.folder / "total"))
        assert done.returncode == 0 and "version 1" in done.stdout, done.stderr
        return int((self.folder / "total").read_text())

    def watch(self, moment: int, total: str = "") -> subprocess.CompletedProcess[str]:
        """`gracekit watch run --once`, interrupted at a call, or not at all (-1)."""
        shutil.rmtree(self.folder / "store", ignore_errors=True)
        root = str(Path(__file__).parent.parent)
        return subprocess.run(
            [sys.executable, "-c", COUNTED, str(moment), total, "watch", "run", "--once"],
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=LAST_RESORT_S,
            env=os.environ | {"PYTHONPATH": root},
        )

    def interrupt(self, moment: int) -> int:
        """Interrupt there; the exit code. Raises unless all is as documented."""
        done = self.watch(moment)
        told = f"moment {moment:,}: exit code {done.returncode}\n"
        for word in ("Traceback", "Exception ignored", "Logging error", "Aborted"):
            assert word not in done.stderr, told + done.stderr
        assert done.returncode in (0, 128 + signal.SIGINT, -signal.SIGINT), told + done.stderr
        if Store.exists(self.folder / "store"):
            store = Store.open(self.folder / "store")
            store.recover()
            assert verify(store) == []
            assert store.versions() in ([], [1])
        return done.returncode


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("interrupts"))


def test_interrupted_as_it_is_loaded_and_at_work(world: World) -> None:
    assert world.interrupt(FIRST) == world.interrupt(30_000) == 128 + signal.SIGINT
    world.interrupt(150_000)


@pytest.mark.torture
@pytest.mark.timeout(7200)
def test_interrupted_at_random_moments(world: World) -> None:
    rng = random.Random(SEED)
    num_calls = world.num_calls()
    # Most of them where signals are handed from one to the other: as it is loaded.
    early = [int(FIRST * (num_calls / FIRST) ** rng.random()) for _ in range(42)]
    moments = [*early, *(rng.randrange(FIRST, num_calls) for _ in range(14))]
    codes = Counter(world.interrupt(moment) for moment in sorted(moments))
    assert world.watch(-1).returncode == 0
    print(
        f"\nseed {SEED}: {len(moments)} moments of {num_calls:,} calls, exit codes "
        f"{json.dumps(dict(sorted(codes.items())))}, 0 tracebacks, all stores whole"
    )


AMID_A_CALL = """
import ctypes
from gracekit import interrupts

interrupts.end_quietly()
with interrupts.raised():
    {before}
    ctypes.CDLL(None).system(b"echo begun; read line")  # until stdin ends, whatever signals come
"""
FORKED = """
    import os, signal, time
    ours, theirs = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.write(theirs, b"1")
            time.sleep(3600)
        finally:
            os._exit(0)
    os.read(ours, 1)
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        os.kill(child, signal.SIGTERM)
        time.sleep(0.01)
"""


def amid_a_call(before: str) -> subprocess.Popen[bytes]:
    code = AMID_A_CALL.format(before=before.strip())
    return subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


@pytest.mark.parametrize("noticed_s", [1, 3600])
def test_sigterm_amid_a_call_that_does_not_let_go(noticed_s: int) -> None:
    """One that is not noticed, and further ones."""
    with amid_a_call(f"interrupts.NOTICED_S = {noticed_s}") as process:
        assert process.stdout is not None and process.stdout.readline() == b"begun\n"
        process.send_signal(signal.SIGTERM)
        if noticed_s == 1:
            process.wait(LAST_RESORT_S)

        def has_ended() -> bool:
            process.send_signal(signal.SIGTERM)
            return process.poll() is not None

        until(has_ended, "the end of the process")
    assert process.returncode == 128 + signal.SIGTERM


def test_sigterm_of_a_forked_process_is_its_own() -> None:
    with amid_a_call(f"interrupts.NOTICED_S = 0\n{FORKED}") as process:
        assert process.communicate()[0] == b"begun\n"
    assert process.returncode == 0
