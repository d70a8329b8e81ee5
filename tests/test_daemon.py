"""The daemon: a version per checkpoint, SQL meanwhile, signals, and errors that pass."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pytest
import torch
import yaml

import gracekit
from benchmarks.soak import soak
from gracekit import daemon, files
from gracekit.api.reading import status
from gracekit.daemon import heartbeat as beats
from gracekit.daemon import loop
from gracekit.errors import ClusterError, StoreLockedError, StoreWriteError
from gracekit.refresher import Refresher, RefreshResult
from gracekit.store import Store, StorePaths, verify
from gracekit.store.files.paths import names_in
from gracekit.types import Checkpoint
from tests.patience import LAST_RESORT_S, until
from tests.stores import outcome
from tests.test_store_lock import held_elsewhere
from tests.tiny import recipe_content, tiny_recipe, write_checkpoint, write_data

torch.set_num_threads(1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_data(tmp_path / "train.jsonl")
    return tmp_path


def told(heartbeat: Path) -> dict[str, Any]:
    """What the heartbeat says; nothing before the first one."""
    content: dict[str, Any] = json.loads(heartbeat.read_text()) if heartbeat.exists() else {}
    return content


def poison(model: Any) -> None:
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))


@contextmanager
def watching(folder: Path, **sections: Any) -> Iterator[list[RefreshResult]]:
    """A daemon in a thread of this process; yields its results as they come."""
    refresher = Refresher.from_recipe(tiny_recipe(folder, **sections))
    stop, results = threading.Event(), list[RefreshResult]()
    thread = threading.Thread(
        target=daemon.watch,
        args=(refresher, folder / "run"),
        kwargs={"stop": stop, "on_version": results.append},
    )
    thread.start()
    try:
        yield results
    finally:
        stop.set()
        thread.join(LAST_RESORT_S)
        assert not thread.is_alive()


def test_a_version_for_each_checkpoint_in_order(folder: Path) -> None:
    with watching(folder) as results:
        for number, step in enumerate((10, 20, 30), start=1):
            write_checkpoint(folder / "run", step)
            until(lambda n=number: len(results) == n, f"version {number}")  # type: ignore[misc]
    assert [(r.version, r.header.checkpoint.step) for r in results] == [
        (1, 10), (2, 20), (3, 30),
    ]  # fmt: skip
    heartbeat = json.loads((folder / "store" / "heartbeat.json").read_text())
    assert heartbeat["state"] == "stopped"


def test_a_restart_makes_nothing_twice(folder: Path) -> None:
    write_checkpoint(folder / "run", 10)
    for _ in range(2):
        refresher = Refresher.from_recipe(tiny_recipe(folder))
        daemon.watch(refresher, folder / "run", stop=threading.Event(), once=True)
    assert Store.open(folder / "store").versions() == [1]


@pytest.mark.parametrize(("policy", "steps"), [("latest", [30]), ("all", [10, 20, 30])])
def test_backlog(folder: Path, policy: str, steps: list[int]) -> None:
    for step in (10, 20, 30):
        write_checkpoint(folder / "run", step)
    refresher = Refresher.from_recipe(tiny_recipe(folder, checkpoints={"on_backlog": policy}))
    report = daemon.watch(
        refresher, folder / "run", stop=threading.Event(), max_checkpoints=len(steps)
    )
    store = Store.open(folder / "store")
    assert [store.header(v).checkpoint.step for v in store.versions()] == steps
    assert report.num_published == len(steps)


def test_a_bad_checkpoint_is_skipped_and_the_next_one_taken(folder: Path) -> None:
    with watching(folder, checkpoints={"on_backlog": "all"}) as results:
        write_checkpoint(folder / "run", 10, spoil=poison)
        write_checkpoint(folder / "run", 20)
        until(lambda: results, "a version")
    assert results[0].header.checkpoint.step == 20
    assert verify(Store.open(folder / "store")) == []


def test_a_selection_that_changed_data_does_not_allow_costs_one_checkpoint(folder: Path) -> None:
    data = folder / "train.jsonl"
    whole = data.read_text()
    small = "".join(line for i, line in enumerate(whole.splitlines(True)) if i % 3 != 2 or i < 5)
    shares = {"group_quota": "shares", "group_shares": dict.fromkeys("abc", 1)}
    sections = {"selection": shares, "refresh": {"max_lost": 1.0}}
    with watching(folder, **sections) as results:
        heartbeat = folder / "store" / "heartbeat.json"
        write_checkpoint(folder / "run", 10)
        until(lambda: results, "a version")
        data.write_text(small)
        write_checkpoint(folder / "run", 20)
        until(lambda: told(heartbeat).get("state") == "failing", "the refusal")
        assert "group_shares cannot be met: group 'c'" in told(heartbeat)["error"]
        data.write_text(whole)
        write_checkpoint(folder / "run", 30)
        until(lambda: len(results) == 2, "a version of the data that is back")
    assert results[1].header.checkpoint.step == 30


def test_a_disk_that_fails_for_a_while_is_tried_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "FIRST_PAUSE_S", 0.05)
    failures = iter(range(3))
    original = files.link

    def link(source: Path, final: Path) -> None:
        if "manifests" in str(final) and next(failures, None) is not None:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(source, final)

    monkeypatch.setattr(files, "link", link)
    with watching(folder) as results:
        write_checkpoint(folder / "run", 10)
        until(lambda: results, "the version after the failures")
    assert verify(Store.open(folder / "store")) == []


def test_versions_that_cannot_be_listed_for_a_while_are_awaited(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "FIRST_PAUSE_S", 0.05)
    heartbeat = folder / "store" / "heartbeat.json"
    is_failing = threading.Event()

    def names(directory: Path) -> list[str]:
        if is_failing.is_set() and directory.name == "manifests":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(directory))
        return names_in(directory)

    monkeypatch.setattr("gracekit.store.files.manifest_reading.names_in", names)
    with watching(folder) as results:
        write_checkpoint(folder / "run", 10)
        until(lambda: len(results) == 1, "version 1")
        is_failing.set()
        write_checkpoint(folder / "run", 20)
        until(lambda: told(heartbeat).get("state") == "failing", "the error")
        assert "check the disk and the mount" in told(heartbeat)["error"]
        is_failing.clear()
        until(lambda: len(results) == 2, "version 2")
    assert Store.open(folder / "store").versions() == [1, 2]


def test_a_store_that_is_gone_is_waited_for_and_not_begun_anew(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As where it is moved, or its disk is not mounted for a while."""
    monkeypatch.setattr(loop, "FIRST_PAUSE_S", 0.05)
    root = folder / "store"
    with watching(folder) as results:
        write_checkpoint(folder / "run", 10)
        until(lambda: len(results) == 1, "version 1")
        until(lambda: told(root / "heartbeat.json").get("state") == "waiting", "the next look")
        root.rename(folder / "elsewhere")
        write_checkpoint(folder / "run", 20)
        until(lambda: f"the store {root} is gone" in caplog.text, "the error")
        assert not root.exists()
        (folder / "elsewhere").rename(root)
        until(lambda: len(results) == 2, "version 2")
    assert Store.open(root).versions() == [1, 2] and verify(Store.open(root)) == []


def test_a_bug_costs_one_checkpoint_not_the_daemon(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    original = Refresher.refresh

    def refresh(self: Refresher, checkpoint: Checkpoint, **named: Any) -> RefreshResult:
        tried.append(checkpoint.step)
        if checkpoint.step == 10:
            raise RuntimeError("CUDA error: unspecified launch failure")
        return original(self, checkpoint, **named)

    tried: list[int] = []
    monkeypatch.setattr(loop, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(Refresher, "refresh", refresh)
    heartbeat = folder / "store" / "heartbeat.json"
    with watching(folder) as results:
        write_checkpoint(folder / "run", 10)
        until(lambda: told(heartbeat).get("num_skipped") == 1, "the failure")
        assert told(heartbeat)["state"] == "failing" and tried == [10] * loop.MOST_TRIES
        assert told(heartbeat)["error"] == "RuntimeError: CUDA error: unspecified launch failure"
        write_checkpoint(folder / "run", 20)
        until(lambda: results, "the version after the failure")
    assert results[0].header.checkpoint.step == 20
    assert "skipping checkpoint-10 after an unexpected error" in caplog.text
    assert "Traceback" in caplog.text and "launch failure" in caplog.text


@pytest.mark.parametrize(
    "error",
    [RuntimeError("a bug"), StoreWriteError("the disk is full"), ClusterError("nobody answers")],
)
def test_once_raises_what_went_wrong_and_waits_for_no_disk(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*arguments: object, **named: object) -> RefreshResult:
        raise error

    monkeypatch.setattr(Refresher, "refresh", fail)
    write_checkpoint(folder / "run", 10)
    refresher = Refresher.from_recipe(tiny_recipe(folder))
    with pytest.raises(type(error), match=str(error)):
        daemon.watch(refresher, folder / "run", stop=threading.Event(), once=True)
    left = told(folder / "store" / "heartbeat.json")
    assert (left["state"], left["error"]) == ("stopped", str(error))


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_interruptions_pass(
    folder: Path, monkeypatch: pytest.MonkeyPatch, interruption: type[BaseException]
) -> None:
    def interrupt(*arguments: object, **named: object) -> RefreshResult:
        raise interruption

    monkeypatch.setattr(Refresher, "refresh", interrupt)
    write_checkpoint(folder / "run", 10)
    refresher = Refresher.from_recipe(tiny_recipe(folder))
    with pytest.raises(interruption):
        daemon.watch(refresher, folder / "run", stop=threading.Event())


def test_the_heart_beats_while_nothing_happens(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beats, "BEAT_S", 0.1)
    heartbeat = folder / "store" / "heartbeat.json"
    with watching(folder):
        until(lambda: told(heartbeat).get("state") == "waiting", "the start")
        first = told(heartbeat)
        until(lambda: told(heartbeat)["unix_time"] > first["unix_time"], "the next beat")
    assert told(heartbeat)["state"] == "stopped"


def test_one_daemon_a_store(folder: Path) -> None:
    write_checkpoint(folder / "run", 10)
    with watching(folder) as results:
        until(lambda: results, "a version")
        other = Refresher.from_recipe(tiny_recipe(folder))
        with pytest.raises(StoreLockedError, match="is the daemon of the store"):
            daemon.watch(other, folder / "run", stop=threading.Event())


@pytest.mark.parametrize(
    "passing", [StoreWriteError("the disk is full"), ClusterError("the head is lost")]
)
def test_pauses_double_up_to_a_limit_and_status_tells(
    folder: Path, monkeypatch: pytest.MonkeyPatch, passing: Exception
) -> None:
    told_at: list[tuple[float, int, str]] = []
    path = StorePaths(folder / "store").heartbeat

    def pause(self: Any, seconds: float) -> bool:
        if told(path)["state"] != "failing":
            return threading.Event().wait(0.01)
        told_at.append((seconds, told(path)["num_tries"], told(path)["error"]))
        assert status(folder / "store").daemon["next_try_at"].endswith("Z")
        return len(told_at) == 10

    def full(*arguments: object, **named: object) -> RefreshResult:
        raise passing

    monkeypatch.setattr(loop._Loop, "_pause", pause)
    monkeypatch.setattr(Refresher, "refresh", full)
    write_checkpoint(folder / "run", 10)
    report = daemon.watch(
        Refresher.from_recipe(tiny_recipe(folder)), folder / "run", stop=threading.Event()
    )
    assert [seconds for seconds, *_ in told_at] == [2, 4, 8, 16, 32, 64, 128, 256, 300, 300]
    assert [num for _, num, _ in told_at] == [*range(1, 11)]
    assert {error for *_, error in told_at} == {str(passing)}
    assert report.num_skipped == 0


def test_the_older_checkpoint_is_taken_when_the_newest_is_of_no_use(folder: Path) -> None:
    for step in (10, 20, 30):
        write_checkpoint(folder / "run", step, spoil=poison if step == 30 else None)
    refresher = Refresher.from_recipe(tiny_recipe(folder))
    report = daemon.watch(refresher, folder / "run", stop=threading.Event(), max_checkpoints=1)
    assert (report.num_published, report.num_skipped) == (1, 1)
    assert Store.open(folder / "store").header(1).checkpoint.step == 20


def test_others_write_between_two_refreshes(folder: Path) -> None:
    """A selection by hand, and a refresh, while the daemon waits."""
    recipe = tiny_recipe(folder)
    with watching(folder) as results:
        write_checkpoint(folder / "run", 10)
        until(lambda: results, "a version")
        other = subprocess.run(
            [sys.executable, "-m", "gracekit", "select", "--set", "selection.fraction=0.1"],
            cwd=write_recipe(folder), capture_output=True, text=True,
        )  # fmt: skip
        assert other.returncode == 0, other.stderr
        write_checkpoint(folder / "elsewhere", 15)
        assert gracekit.refresh(recipe, folder / "elsewhere" / "checkpoint-15").version == 3
        write_checkpoint(folder / "run", 20)
        until(lambda: len(results) == 2, "another version")
    store = Store.open(folder / "store")
    assert [store.header(v).operation for v in store.versions()] == [
        "init", "reselect", "refresh", "refresh",
    ]  # fmt: skip
    assert verify(store) == []


def test_it_waits_for_another_writer_and_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "LOCK_LOOK_S", 0.01)
    path = StorePaths(folder / "store").heartbeat
    with watching(folder) as results:
        until(lambda: told(path).get("state") == "waiting", "the start")
        with held_elsewhere(folder / "store") as holder:
            write_checkpoint(folder / "run", 10)
            until(lambda: told(path)["state"] == "blocked", "the lock to be noticed")
            assert f"process {holder.pid}" in told(path)["error"] and not results
        until(lambda: results, "the version after the lock")
    assert verify(Store.open(folder / "store")) == []


# --- in a process of its own ---


def write_recipe(folder: Path, **sections: Any) -> Path:
    (folder / "gracekit.yaml").write_text(yaml.safe_dump(recipe_content(**sections)))
    return folder


def start_watch(
    folder: Path, *arguments: str, before: tuple[str, ...] = (), **sections: Any
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "gracekit", *before, "watch", "run", *arguments],
        cwd=write_recipe(folder, **sections),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def shards(folder: Path) -> int:
    try:
        return len(list((folder / "store" / "shards").glob("*/*.shard")))
    except FileNotFoundError:  # a folder of shards was published or removed meanwhile
        return shards(folder)


def test_sql_answers_in_the_middle_of_a_refresh_and_beside_an_open_reader(folder: Path) -> None:
    """Readers in this process, the daemon in another, stopped between two of its many shards."""
    write_checkpoint(folder / "run", 10)
    latest = folder / "store" / "LATEST"
    watch = start_watch(
        folder, scoring={"shard_rows": 1}, refresh={"min_fraction": 0.9, "max_fraction": 0.9}
    )
    try:
        until(lambda: latest.exists() and not shards(folder), "version 1")
        held = gracekit.connect(folder / "store")
        raw = duckdb.connect(str(folder / "store" / "scores.duckdb"), read_only=True)
        write_checkpoint(folder / "run", 20)
        until(lambda: shards(folder) >= 2, "the middle of the refresh")
        watch.send_signal(signal.SIGSTOP)
        os.waitpid(watch.pid, os.WUNTRACED)
        answer = subprocess.run(
            [sys.executable, "-m", "gracekit", "sql", "--json",
             "SELECT count(*) AS n, max(version) AS v FROM score_history"],
            cwd=folder, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert json.loads(answer.stdout)[0]["v"] == 1
        assert answer.stderr == ""
        assert shards(folder) >= 2 and latest.read_text() == "1\n", "the refresh still runs"
        watch.send_signal(signal.SIGCONT)
        # LATEST is written after the database is swapped in.
        until(lambda: latest.read_text() == "2\n", "version 2")
        newest = "SELECT max(version) FROM versions"
        assert held.sql(newest).fetchall() == raw.sql(newest).fetchall() == [(1,)]
        assert gracekit.connect(folder / "store").sql(newest).fetchall() == [(2,)]
    finally:
        watch.send_signal(signal.SIGCONT)
        watch.send_signal(signal.SIGTERM)
        out, err = watch.communicate(timeout=LAST_RESORT_S)
    assert watch.returncode == 0, err
    assert "version 1" in out
    assert "Traceback" not in err


def test_sigterm_in_the_middle_keeps_the_work(folder: Path) -> None:
    write_checkpoint(folder / "run", 10)
    watch = start_watch(folder, scoring={"shard_rows": 1})
    try:
        until(lambda: shards(folder) >= 3, "the middle of the refresh")
    finally:
        watch.send_signal(signal.SIGTERM)
        _, err = watch.communicate(timeout=LAST_RESORT_S)
    assert watch.returncode == 0, err
    assert "Traceback" not in err
    kept = shards(folder)
    assert kept >= 3
    again = start_watch(folder, "--once", scoring={"shard_rows": 1})
    _, err = again.communicate(timeout=LAST_RESORT_S)
    assert again.returncode == 0, err
    header = Store.open(folder / "store").header(1)
    assert outcome(header).num_resumed == kept
    assert os.listdir(folder / "store" / "shards") == []


SECOND_SIGNAL = """
import threading
from gracekit.daemon import stop_on_signals
with stop_on_signals() as stop:
    print("ready", flush=True)
    stop.wait()
    print("stopping", flush=True)
    threading.Event().wait()
"""


def test_a_second_signal_ends_it_at_once() -> None:
    """In the middle of work that does not end."""
    process = subprocess.Popen(
        [sys.executable, "-c", SECOND_SIGNAL],
        cwd=Path(__file__).parent.parent, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    for expected in ("ready\n", "stopping\n"):
        assert process.stdout.readline() == expected
        process.send_signal(signal.SIGTERM)
    process.communicate(timeout=LAST_RESORT_S)
    assert process.returncode == 128 + signal.SIGTERM


def test_a_soak_in_short(tmp_path: Path) -> None:
    """Rotation with one checkpoint kept: some vanish, and all that is made is whole."""
    found = soak(tmp_path, num_checkpoints=12, idle_s=0.5)
    assert found["verify"].endswith("versions verify"), found
    assert found["num_versions"] >= 3 and found["errors"] == {} and found["daemon_exit_code"] == 0
    assert set(found["skipped"]) <= {"CheckpointVanishedError", "CheckpointIncompleteError"}
