"""One writer per store, and an error that says who it is."""

from __future__ import annotations

import json
import logging
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
from gracekit.store import StorePaths, lock_daemon, lock_store
from gracekit.store.files import lock as locks
from tests.stores import make_draft, make_store

HOLDER = """
import sys
from pathlib import Path
from gracekit.store import lock_daemon, lock_store
root = Path(sys.argv[1])
with lock_daemon(root, Path("run")) if sys.argv[2] == "daemon" else lock_store(root):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "WAIT_S", 0.0)


@contextmanager
def held_elsewhere(root: Path, what: str = "writer") -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(root), what],
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
    assert store.paths.holder_of(store.paths.lock).exists(), "it had no time to clean up"
    with caplog.at_level("INFO"), store.lock():
        assert json.loads(store.paths.holder_of(store.paths.lock).read_text())["pid"] == os.getpid()
    assert f"took over the lock of process {holder.pid}" in caplog.text
    assert not store.paths.holder_of(store.paths.lock).exists()


def test_a_lock_in_the_name_of_the_dead_says_what_to_do(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    with held_elsewhere(store.paths.root):
        holder = json.loads(store.paths.holder_of(store.paths.lock).read_text()) | {
            "pid": ended.pid
        }
        store.paths.holder_of(store.paths.lock).write_text(json.dumps(holder))
        with pytest.raises(StoreLockedError, match=r"has ended.*delete .*\.lock"):
            store.recover()
        store.paths.holder_of(store.paths.lock).write_text("{")
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
    assert not StorePaths(root).holder_of(StorePaths(root).lock).exists()


def test_a_writer_waits_for_another_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The other one ends as soon as it is told that somebody waits."""
    monkeypatch.setattr(locks, "WAIT_S", 120.0)
    store = make_store(tmp_path / "store")
    with held_elsewhere(store.paths.root) as holder:
        assert holder.stdin is not None

        def on_log(record: logging.LogRecord) -> bool:
            if "waiting up to" in record.getMessage():
                holder.stdin.close()  # type: ignore[union-attr]
                holder.stdin = None
            return True

        logger = logging.getLogger("gracekit.store.files.lock")
        logger.addFilter(on_log)
        try:
            with caplog.at_level("INFO"):
                assert store.commit(make_draft(store, "a")) == 1
        finally:
            logger.removeFilter(on_log)
    assert f"process {holder.pid} on" in caplog.text and "works on the store" in caplog.text


def test_a_thread_waits_for_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "WAIT_S", 120.0)
    store = make_store(tmp_path / "store")
    committed: list[int] = []
    thread = threading.Thread(target=lambda: committed.append(store.commit(make_draft(store, "a"))))
    with lock_store(store.paths.root):
        thread.start()
        assert store.versions() == []
    thread.join()
    assert committed == [1]


def test_one_daemon_and_writers_beside_it(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    root, run = store.paths.root, tmp_path / "run"
    with held_elsewhere(root, "daemon") as holder:
        with (
            pytest.raises(StoreLockedError, match=rf"process {holder.pid} .* is the daemon"),
            lock_daemon(root, run),
        ):
            pass
        assert store.commit(make_draft(store, "a")) == 1
        told = json.loads(store.paths.holder_of(store.paths.daemon_lock).read_text())
        assert told["checkpoint_dir"].endswith("run") and told["pid"] == holder.pid
        holder.send_signal(signal.SIGKILL)
    with lock_daemon(root, run):  # stale: taken over
        assert store.commit(make_draft(store, "b")) == 2


def test_who_follows_a_killed_writer_is_told(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    with held_elsewhere(store.paths.root) as holder:
        holder.send_signal(signal.SIGKILL)
    for expected in (True, False):
        with lock_store(store.paths.root) as was_killed:
            assert was_killed is expected
