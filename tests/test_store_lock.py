"""One writer per store, and an error that says who it is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gracekit.errors import StoreLockedError
from gracekit.store import StorePaths, lock_store
from tests.stores import make_draft, make_store

HOLDER = """
import sys
from pathlib import Path
from gracekit.store import lock_store
with lock_store(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held_elsewhere(root: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(root)],
        cwd=Path(__file__).parent.parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    try:
        yield process
    finally:
        process.communicate()


def test_another_process_is_named_and_readers_go_on(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    store.commit(make_draft(store, "a"))
    draft = make_draft(store, "b")
    with held_elsewhere(store.paths.root) as holder:
        for write in (lambda: store.commit(draft), store.recover):
            with pytest.raises(StoreLockedError, match=rf"process {holder.pid} on .* since 20"):
                write()
        assert store.versions() == [1] and len(store.coreset(1)) == 8
    assert store.commit(draft) == 2


def test_the_lock_of_a_killed_process_is_taken_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = make_store(tmp_path / "store")
    with held_elsewhere(store.paths.root) as holder:
        holder.send_signal(signal.SIGKILL)
    assert store.paths.lock_holder.exists(), "it had no time to clean up"
    with caplog.at_level("INFO"), store.lock():
        assert json.loads(store.paths.lock_holder.read_text())["pid"] == os.getpid()
    assert f"took over the lock of process {holder.pid}" in caplog.text
    assert not store.paths.lock_holder.exists()


def test_a_lock_in_the_name_of_the_dead_says_what_to_do(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    with held_elsewhere(store.paths.root):
        holder = json.loads(store.paths.lock_holder.read_text()) | {"pid": ended.pid}
        store.paths.lock_holder.write_text(json.dumps(holder))
        with pytest.raises(StoreLockedError, match=r"has ended.*delete"):
            store.recover()
        store.paths.lock_holder.write_text("{")
        with pytest.raises(StoreLockedError, match="another process"):
            store.recover()


def test_nested_in_a_thread_and_refused_to_another(tmp_path: Path) -> None:
    root = tmp_path / "new" / "store"
    refused: list[StoreLockedError] = []

    def other_thread() -> None:
        try:
            with lock_store(root):
                pass
        except StoreLockedError as error:
            refused.append(error)

    def run() -> None:
        thread = threading.Thread(target=other_thread)
        thread.start()
        thread.join()

    with lock_store(root), lock_store(root):
        store = make_store(root)
        store.commit(make_draft(store, "a"))
        run()
    assert len(refused) == 1 and "another thread" in str(refused[0])
    run()
    assert len(refused) == 1, "released"
    assert not StorePaths(root).lock_holder.exists()
