"""TensorBoard, wandb (offline, and with a server that is not there) and trackio, as they are.

In an environment of its own: `make test-trackers`. What was logged is read back with each library's
own reader.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gracekit.recipe import Recipe
from gracekit.store import Store
from gracekit.trackers import tracking
from gracekit.trackers.logged import Logged
from gracekit.trackers.names import TRACKERS
from gracekit.trackers.tracking import Tracking
from gracekit.trackers.values import version_values
from tests.patience import until
from tests.stores import make_draft, make_store
from tests.test_trackers import warnings_of

pytestmark = [
    pytest.mark.trackers,
    *(
        pytest.mark.skipif(importlib.util.find_spec(known.library) is None, reason="not installed")
        for known in TRACKERS.values()
    ),
]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two versions at one step each."""
    made = make_store(tmp_path / "store")
    for number in (1, 2):
        made.commit(make_draft(made, f"refresh-{number}"))
    return made


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the machine's own settings, and nothing written outside."""
    for name in list(os.environ):
        if name.startswith(("WANDB_", "TRACKIO_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("HOME", str(tmp_path))


def recipe_of(store: Store, **watch: Any) -> Recipe:
    content = {"data": {"path": "train.jsonl"}, "store": str(store.paths.root), "watch": watch}
    return Recipe.from_dict(content)


def log_twice(store: Store, name: str) -> str:
    """Two versions, a restart, a third; the id of the run."""
    with Tracking(recipe_of(store), [name]):
        pass
    store.commit(make_draft(store, "refresh-3"))
    with Tracking(recipe_of(store), [name]):
        pass
    logged = Logged.begin(store.paths.trackers / name)
    assert logged.version == 3, (store.paths.trackers / name / "output.txt").read_text()
    return logged.run


def in_subprocess(code: str) -> Any:
    """What a program prints as JSON: a library's reader, with nothing left of it here."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def expected(store: Store) -> list[tuple[int, dict[str, float]]]:
    found = []
    for version in (1, 2, 3):
        values = version_values(store.renew(), version)
        found.append((int(values["coreset/step"]), values))
    return found


# --- TensorBoard ---


def tensorboard_points(store: Store) -> dict[str, list[tuple[int, float]]]:
    """Name -> (step, value) of each point, by TensorBoard's own reader."""
    from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
    from tensorboard.util.tensor_util import make_ndarray

    found = EventMultiplexer().AddRunsFromDirectory(str(store.paths.trackers / "tensorboard"))
    found.Reload()
    (run,) = found.Runs()
    names = found.Runs()[run]["tensors"]
    return {
        name: [(e.step, float(make_ndarray(e.tensor_proto))) for e in found.Tensors(run, name)]
        for name in names
    }


def test_tensorboard_shows_every_version_once(store: Store) -> None:
    log_twice(store, "tensorboard")
    points = tensorboard_points(store)
    wanted: dict[str, list[tuple[int, float]]] = {}
    for step, values in expected(store):
        for name, value in values.items():
            wanted.setdefault(name, []).append((step, pytest.approx(value)))  # type: ignore[arg-type]
    assert points == wanted


def test_tensorboard_has_none_twice_when_the_note_was_lost(store: Store) -> None:
    log_twice(store, "tensorboard")
    folder = store.paths.trackers / "tensorboard"
    Logged(Logged.begin(folder).run, version=1).save(folder)  # killed before it was written
    with Tracking(recipe_of(store), ["tensorboard"]):
        pass
    assert [value for _, value in tensorboard_points(store)["coreset/version"]] == [1, 2, 3]


# --- wandb ---


def wandb_records(path: Path) -> Iterator[bytes]:
    """The records of a run's file: LevelDB's log format behind seven bytes that say whose it is.

    Blocks of 32 KiB; each fragment has a checksum, its length, and whether it is a whole record
    (1), or the first (2), a middle (3) or the last (4) part of one.
    """
    content = path.read_bytes()
    assert content[:4] == b":W&B"
    place, record = 7, b""
    while place + 7 <= len(content):
        left = -place % 32768 or 32768
        if left < 7:  # what is left of the block is filled with zeros
            place += left
            continue
        length, kind = struct.unpack_from("<HB", content, place + 4)
        record = (b"" if kind in (1, 2) else record) + content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield record


def wandb_history(store: Store) -> dict[str, list[dict[str, Any]]]:
    """Run id -> what was logged, from the files of offline runs in the order of their starts."""
    from wandb.proto.wandb_internal_pb2 import Record

    found: dict[str, list[dict[str, Any]]] = {}
    place = store.paths.trackers / "wandb" / "wandb"
    for path in sorted(place.glob("offline-run-*/run-*.wandb"), key=lambda f: f.stat().st_mtime_ns):
        run = ""
        for raw in wandb_records(path):
            record = Record()
            record.ParseFromString(raw)
            run = record.run.run_id or run
            if record.WhichOneof("record_type") == "history":
                items = {
                    item.key or "/".join(item.nested_key): json.loads(item.value_json)
                    for item in record.history.item
                }
                found.setdefault(run, []).append(items)
    return found


def test_wandb_offline_goes_on_in_the_same_run(store: Store) -> None:
    run = log_twice(store, "wandb")
    history = wandb_history(store)
    assert list(history) == [run]
    own = [{k: v for k, v in row.items() if k.startswith("coreset/")} for row in history[run]]
    assert own == [pytest.approx(values) for _, values in expected(store)]


def test_wandb_without_a_key_is_told_and_made_up_for(
    store: Store, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    with Tracking(recipe_of(store), ["wandb"]):
        until(lambda: warnings_of(caplog), "the warning")
    (warning,) = warnings_of(caplog)
    assert "the tracker wandb failed: " in warning
    monkeypatch.setenv("WANDB_MODE", "offline")
    log_twice(store, "wandb")
    assert [row["coreset/version"] for rows in wandb_history(store).values() for row in rows] == [
        1, 2, 3,
    ]  # fmt: skip


@contextmanager
def silent_server() -> Iterator[str]:
    """Takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_wandb_with_a_server_that_never_answers_is_left_behind(
    store: Store, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "CLOSE_S", 1.0)
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    caplog.set_level(logging.INFO)
    with silent_server() as url:
        monkeypatch.setenv("WANDB_BASE_URL", url)
        with Tracking(recipe_of(store), ["wandb"]):
            pass
    (warning,) = warnings_of(caplog)
    assert "did not end within 1 s" in warning


# --- trackio ---


def test_trackio_goes_on_in_the_same_run(store: Store) -> None:
    run = log_twice(store, "trackio")
    code = """
import json
from trackio.sqlite_storage import SQLiteStorage
print(json.dumps({run: SQLiteStorage.get_logs("gracekit", run)
                  for run in SQLiteStorage.get_runs("gracekit")}))
"""
    found = in_subprocess(code)
    assert list(found) == [f"store-{run}"]
    rows = found[f"store-{run}"]
    assert [row["step"] for row in rows] == [step for step, _ in expected(store)]
    own = [{k: v for k, v in row.items() if k.startswith("coreset/")} for row in rows]
    assert own == [pytest.approx(values) for _, values in expected(store)]


def test_all_three_at_once(store: Store) -> None:
    with Tracking(recipe_of(store), list(TRACKERS)):
        pass
    for name in TRACKERS:
        assert Logged.begin(store.paths.trackers / name).version == 2, name
