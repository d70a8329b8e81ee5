"""How a daemon is: heartbeat, `status --check`, systemd's socket, metrics, logs."""

from __future__ import annotations

import json
import math
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from prometheus_client.parser import text_string_to_metric_families

from gracekit import daemon
from gracekit.api.reading import status
from gracekit.cli import main
from gracekit.daemon import heartbeat as beats
from gracekit.daemon.heartbeat import Heartbeat, beating
from gracekit.daemon.notify import Notifier
from gracekit.errors import RecipeError
from gracekit.progress import Progress
from gracekit.refresher import Refresher
from gracekit.store import Store, StorePaths
from tests.patience import LAST_RESORT_S, until
from tests.test_daemon import start_watch, told
from tests.tiny import tiny_recipe, write_checkpoint, write_data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_data(tmp_path / "train.jsonl")
    return tmp_path


class Silence(Progress):
    """Work that gave no sign for so many seconds."""

    seconds = 0.0

    @property
    def silent_s(self) -> float:
        return self.seconds


# --- the heartbeat ---


def test_progress_is_told_in_the_middle_of_a_refresh_and_nowhere_else(tmp_path: Path) -> None:
    progress = Progress()
    path = tmp_path / "heartbeat.json"
    heartbeat = Heartbeat(path, tmp_path / "run", progress, Notifier({}))
    heartbeat.beat("refreshing", checkpoint="/run/checkpoint-10")
    progress.enter("measure")
    progress.plan(100, 1000)
    progress.advance(5, 250)
    heartbeat.keep()
    found = told(path)
    assert (found["state"], found["checkpoint"]) == ("refreshing", "/run/checkpoint-10")
    assert found["progress"]["stage"] == "measure" and found["progress"]["num_done"] == 5
    assert "checkpoint-10 · measure 5 of 100 rows" in beats.in_words(found)
    heartbeat.beat("failing", error="a bug", num_tries=None)
    found = told(path)
    assert "progress" not in found and "num_tries" not in found
    gone = Heartbeat(tmp_path / "nowhere" / "beat.json", tmp_path, progress, Notifier({}))
    gone.beat("waiting")  # a disk that fails does not stop the daemon


def test_work_that_hangs_is_told_and_the_watchdog_no_longer_pinged(tmp_path: Path) -> None:
    progress, address = Silence(), str(tmp_path / "notify.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        environment = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "2000000"}
        heartbeat = Heartbeat(tmp_path / "beat.json", tmp_path, progress, Notifier(environment))
        heartbeat.beat("waiting")
        assert [manager.recv(100) for _ in range(2)][1] == b"WATCHDOG=1"
        progress.seconds = beats.STUCK_AFTER_S + 1
        heartbeat.keep()
        assert b"stuck" in manager.recv(300)
        with pytest.raises(BlockingIOError):
            manager.recv(100, socket.MSG_DONTWAIT)
        assert told(tmp_path / "beat.json")["state"] == "stuck"
        progress.seconds = 0.0
        heartbeat.keep()
        assert told(tmp_path / "beat.json")["state"] == "waiting"


def test_it_beats_from_a_thread_until_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beats, "BEAT_S", 0.02)
    path = tmp_path / "beat.json"
    heartbeat = Heartbeat(path, tmp_path, Progress(), Notifier({}))

    def work() -> None:
        with beating(heartbeat, Notifier({})):
            first = told(path)["unix_time"]
            until(lambda: told(path)["unix_time"] > first, "a beat while this thread works")
            raise RuntimeError("the end")

    with pytest.raises(RuntimeError, match="the end"):
        work()
    assert (told(path)["state"], told(path)["error"]) == ("stopped", "the end")
    assert not any(thread.name == "heartbeat" for thread in threading.enumerate())


# --- status --check ---


def stand_still(monkeypatch: pytest.MonkeyPatch) -> float:
    """Stop the clock of the wall, however long the test takes; its time."""
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    return now


def check(store: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["status", "--check", "--store", str(store), *arguments])


@pytest.mark.parametrize(
    ("beat", "expected"),
    [
        (None, "no daemon has run on this store"),
        ({"state": "waiting"}, None),
        ({"state": "refreshing", "age_s": 100}, None),
        ({"state": "blocked", "error": "process 1 works on the store"}, None),
        ({"state": "waiting", "age_s": 130}, r"no sign for 130 s \(more than 120 s\)"),
        ({"state": "waiting", "pid": "ended"}, "has ended without saying so"),
        ({"state": "waiting", "pid": "ended", "host": "elsewhere"}, None),
        ({"state": "stopped", "error": "the disk\nis gone"}, "has stopped: the disk is gone"),
        ({"state": "failing", "error": "full", "num_tries": 3, "next_try_at": "2026-01-01T00:00Z"},
         r"meets errors: full \(try 3, next at 2026-01-01T00:00Z\)"),
        ({"state": "stuck"}, "hangs"),
    ],
)  # fmt: skip
def test_check_says_what_is_certain(
    tmp_path: Path,
    beat: dict[str, Any] | None,
    expected: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """There is no store yet: a daemon that waits for its first checkpoint is well."""
    now = stand_still(monkeypatch)
    if beat is not None:
        ended = subprocess.Popen([sys.executable, "-c", ""])
        ended.wait()
        pid = ended.pid if beat.get("pid") == "ended" else os.getpid()
        content = {"host": socket.gethostname(), **beat, "pid": pid}
        content["unix_time"] = now - content.pop("age_s", 0)
        StorePaths(tmp_path).heartbeat.write_text(json.dumps(content))
    result = check(tmp_path)
    found = json.loads(check(tmp_path, "--json").stdout)
    assert len(result.stdout.splitlines()) == 1
    if expected is None:
        assert result.exit_code == 0 and result.stdout == f"healthy: {beat['state']}\n"  # type: ignore[index]
        assert found["healthy"] is True and found["reason"] is None
    else:
        assert result.exit_code == 3 and re.search(f"unhealthy: .*{expected}", result.stdout)
        assert found["healthy"] is False and re.search(expected, found["reason"])


def test_max_age_is_an_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = {"state": "waiting", "unix_time": stand_still(monkeypatch) - 500}
    StorePaths(tmp_path).heartbeat.write_text(json.dumps(content))
    assert check(tmp_path).exit_code == 3 and check(tmp_path, "--max-age", "900").exit_code == 0
    assert status(tmp_path).daemon["state"] == "waiting", "also before there is a store"


# --- systemd ---


@contextmanager
def service_manager(address: str) -> Iterator[list[str]]:
    """A real datagram socket; yields what it was sent."""
    received: list[str] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + address[1:] if address.startswith("@") else address)
        thread = threading.Thread(target=lambda: _receive(manager, received))
        thread.start()
        try:
            yield received
        finally:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
                last.sendto(b"the end", manager.getsockname())
            thread.join()


def _receive(manager: socket.socket, received: list[str]) -> None:
    while (message := manager.recv(1000)) != b"the end":
        received.append(message.decode())


@pytest.mark.parametrize("is_abstract", [False, True])
def test_systemd_is_told_ready_status_pings_and_stopping(
    folder: Path, monkeypatch: pytest.MonkeyPatch, is_abstract: bool
) -> None:
    address = f"@gracekit-test-{os.getpid()}" if is_abstract else str(folder / "notify.sock")
    with service_manager(address) as received:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        monkeypatch.setenv("WATCHDOG_USEC", "200000")
        refresher = Refresher.from_recipe(tiny_recipe(folder))
        stop, results = threading.Event(), list[object]()
        thread = threading.Thread(
            target=daemon.watch,
            args=(refresher, folder / "run"),
            kwargs={"stop": stop, "on_version": results.append},
        )
        thread.start()
        until(lambda: received.count("WATCHDOG=1") > 3, "pings while it waits")
        write_checkpoint(folder / "run", 10)
        until(lambda: results, "a version")
        stop.set()
        thread.join(LAST_RESORT_S)
    assert received.index("READY=1") < received.index("STOPPING=1")
    assert "STATUS=waiting · run" in received
    assert any(m.startswith("STATUS=refreshing · checkpoint-10") for m in received)


def test_without_a_service_manager_nothing_is_sent(tmp_path: Path) -> None:
    for environment in ({}, {"NOTIFY_SOCKET": str(tmp_path / "nobody")}):
        notifier = Notifier(environment)
        notifier.ready()
        notifier.alive()
        assert notifier.watchdog_s is None
    other = {"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}
    assert Notifier(other).watchdog_s is None, "meant for another process"
    assert Notifier({"WATCHDOG_USEC": "1000000"}).watchdog_s == 1.0


# --- metrics ---


def scrape(port: int) -> dict[tuple[str, str], float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        text = answer.read().decode()
    return {
        (sample.name, next(iter(sample.labels.values()), "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_say_what_the_versions_say(folder: Path) -> None:
    refresher = Refresher.from_recipe(tiny_recipe(folder, checkpoints={"on_backlog": "all"}))
    metrics = daemon.Metrics(refresher.root)
    for step in (10, 20):
        write_checkpoint(folder / "run", step)
    broken = write_checkpoint(folder / "run", 15)
    (broken / "config.json").write_text("{}")
    with metrics.serve("127.0.0.1", 0) as port:
        daemon.watch(
            refresher, folder / "run", stop=threading.Event(), max_checkpoints=2, metrics=metrics
        )
        found = scrape(port)
    store = Store.open(refresher.root)
    headers = [store.header(version) for version in store.versions()]
    latest = headers[-1]
    assert latest.audit is not None
    assert found["gracekit_versions_total", ""] == found["gracekit_refresh_seconds_count", ""] == 2
    assert found["gracekit_last_version", ""] == 2 and found["gracekit_last_step", ""] == 20
    num_measured = sum(h.stats.num_measured or 0 for h in headers)
    assert found["gracekit_rows_measured_total", ""] == num_measured
    assert found["gracekit_audit_rank_correlation", ""] == latest.audit.rank_correlation
    assert latest.meter is not None and latest.meter.num_told_by > 0
    for number in ("value", "best", "value_kept", "gradient_error"):
        told, said = found[f"gracekit_coreset_{number}", ""], getattr(latest.meter, number)
        assert told == said or (math.isnan(told) and math.isnan(said)), number
    assert found["gracekit_checkpoints_skipped_total", ""] == 1
    assert sum(n for (name, _), n in found.items() if name == "gracekit_errors_total") == 1
    assert found["gracekit_state", "stopped"] == 1 and found["gracekit_state", "waiting"] == 0
    assert found["gracekit_heartbeat_timestamp_seconds", ""] == pytest.approx(time.time(), abs=600)
    assert found["gracekit_store_bytes", ""] > 10_000
    assert found["process_open_fds", ""] > 3
    names = {name.removesuffix("_total") for name, _ in found if name.startswith("gracekit_")}
    documented = (Path(__file__).parent.parent / "docs" / "daemon.md").read_text()
    missing = {
        n for n in names if re.sub("_(bucket|count|sum|created|info)$", "", n) not in documented
    }
    assert not missing


def test_a_port_in_use_is_said_at_the_start(folder: Path) -> None:
    with daemon.Metrics(folder).serve("127.0.0.1", 0) as port:
        with (
            pytest.raises(RecipeError, match=rf"127.0.0.1:{port}: .*--metrics-port"),
            daemon.Metrics(folder).serve("127.0.0.1", port),
        ):
            pass
        watch = start_watch(folder, "--metrics-port", str(port))
        _, err = watch.communicate(timeout=LAST_RESORT_S)
    assert watch.returncode == 2 and "Traceback" not in err and str(port) in err


# --- logs ---


def test_every_line_of_a_json_log_is_an_object(folder: Path) -> None:
    write_checkpoint(folder / "run", 10)
    broken = write_checkpoint(folder / "run", 20)
    (broken / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0garbage")
    watch = start_watch(
        folder, "--max-checkpoints", "1", before=("--log-format", "json"),
        checkpoints={"on_backlog": "all"},
    )  # fmt: skip
    out, err = watch.communicate(timeout=LAST_RESORT_S)
    assert watch.returncode == 0, err
    lines = [json.loads(line) for line in err.splitlines()]
    assert all({"time", "level", "logger", "message"} <= set(line) for line in lines)
    (published,) = [line for line in lines if "version" in line]
    assert (published["version"], published["step"]) == (1, 10) and "version 1" in out


def test_an_error_that_ends_it_is_json_too(folder: Path) -> None:
    script = (
        "import sys\n"
        "from gracekit.cli import main\n"
        "from gracekit.refresher import Refresher\n"
        "def fail(*arguments, **named): raise RuntimeError('a bug')\n"
        "Refresher.from_recipe = fail\n"
        "main(sys.argv[1:])\n"
    )
    start_watch(folder).kill()  # writes the recipe
    for arguments, error in (
        (["watch", "run"], "RuntimeError"),
        (["watch", "run", "--set", "no.such=1"], "RecipeError"),
    ):
        result = subprocess.run(
            [sys.executable, "-c", script, "--log-format", "json", *arguments],
            cwd=folder, capture_output=True, text=True,
        )  # fmt: skip
        line = json.loads(result.stderr.splitlines()[-1])
        assert line["error"] == error and result.returncode == (1 if error != "RecipeError" else 2)
        assert ("a bug" in line.get("exception", "")) == (error == "RuntimeError")
