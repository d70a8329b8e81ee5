"""The daemon on a run in an object store: a version for each checkpoint, whatever fails."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner

import gracekit
from gracekit.checkpoints import RemoteRun
from gracekit.cli import main
from gracekit.daemon import loop
from gracekit.errors import RemoteError
from gracekit.refresher import RefreshResult
from gracekit.remote import RemoteFolder
from gracekit.store import Store
from gracekit.training import Coreset
from tests.patience import LAST_RESORT_S, until
from tests.published import contents, expected
from tests.remote_faults import DENIED, SLOW, THROTTLED, cut_short, fails_with, in_place_of
from tests.remote_uploads import remove, upload
from tests.tiny import recipe_content, write_checkpoint, write_data

torch.set_num_threads(1)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(loop, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(loop, "LONGEST_PAUSE_S", 0.05)
    monkeypatch.setenv("GRACEKIT_CACHE", str(tmp_path / "user-cache"))
    write_data(tmp_path / "train.jsonl")
    for step in (10, 20, 30):
        write_checkpoint(tmp_path / "saved", step)
    content = recipe_content(publish={"url": f"memory://{tmp_path.name}/published"})
    (tmp_path / "gracekit.yaml").write_text(yaml.safe_dump(content))
    return tmp_path


@pytest.fixture
def run(folder: Path) -> RemoteFolder:
    return RemoteFolder.open(f"memory://{folder.name}/run")


@contextmanager
def watching(folder: Path, url: str, **more: Any) -> Iterator[list[RefreshResult]]:
    """A daemon in a thread of this process; yields its results as they come."""
    stop, results = threading.Event(), list[RefreshResult]()
    thread = threading.Thread(
        target=gracekit.watch,
        args=(folder / "gracekit.yaml", url),
        kwargs={"stop": stop, "on_version": results.append, **more},
    )
    thread.start()
    try:
        yield results
    finally:
        stop.set()
        thread.join(LAST_RESORT_S)
        assert not thread.is_alive()


def test_a_version_for_each_checkpoint_published_and_nothing_twice_after_a_restart(
    folder: Path, run: RemoteFolder
) -> None:
    url = f"memory://{folder.name}/published"
    with watching(folder, run.url) as results:
        for number, step in enumerate((10, 20), start=1):
            upload(run, folder / "saved" / f"checkpoint-{step}")
            until(lambda n=number: len(results) == n, f"version {number}")  # type: ignore[misc]
            assert Coreset.load(url).step == step, "published before it is told of"
    assert [r.header.checkpoint.step for r in results] == [10, 20]
    remove(run, "checkpoint-10")
    with watching(folder, run.url) as results:
        upload(run, folder / "saved" / "checkpoint-30")
        until(lambda: results, "the third version")
    store = Store.open(folder / "store")
    assert [store.header(v).checkpoint.step for v in store.versions()] == [10, 20, 30]
    assert contents(url) == expected(store)
    assert store.verify() == []
    heartbeat = json.loads((folder / "store" / "heartbeat.json").read_text())
    assert heartbeat["state"] == "stopped"


@pytest.mark.parametrize("text", [SLOW, THROTTLED, DENIED])
def test_an_object_store_that_fails_for_a_while_is_tried_again(
    text: str, folder: Path, run: RemoteFolder
) -> None:
    upload(run, folder / "saved" / "checkpoint-10")
    meant = lambda k, name: k % 3 == 0 and k < 60  # noqa: E731
    with in_place_of(meant, fails_with(text)), watching(folder, run.url) as results:
        until(lambda: results, "the version")
    assert results[0].header.checkpoint.step == 10
    gracekit.publish(folder / "store")
    store = Store.open(folder / "store")
    assert contents(f"memory://{folder.name}/published") == expected(store)


def test_a_first_look_that_fails_is_told_in_the_heartbeat(folder: Path, run: RemoteFolder) -> None:
    upload(run, folder / "saved" / "checkpoint-10")
    with in_place_of(lambda k, name: k < 30, fails_with(DENIED)), watching(folder, run.url) as made:
        until((folder / "store/heartbeat.json").exists, "the heartbeat")
        until(lambda: "denied" in str(gracekit.status(folder / "store").daemon), "what it tells")
        until(lambda: made, "the version")


def test_a_download_that_is_cut_is_no_checkpoint(folder: Path, run: RemoteFolder) -> None:
    upload(run, folder / "saved" / "checkpoint-10")
    meant = lambda k, name: name == "get_part" and k < 40  # noqa: E731
    with in_place_of(meant, cut_short), watching(folder, run.url) as results:
        until(lambda: results, "the version")
    assert results[0].header.checkpoint.step == 10


def test_a_version_is_published_and_told_of_though_the_run_cannot_be_read_any_more(
    folder: Path, run: RemoteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(run, folder / "saved" / "checkpoint-10")
    synced, failed = RemoteRun.sync, list[int]()

    def sync(self: RemoteRun, *arguments: Any) -> None:
        if any((folder / "store" / "manifests").glob("*.parquet")):
            failed.append(1)
            raise RemoteError("the bucket cannot be read")
        synced(self, *arguments)

    monkeypatch.setattr(RemoteRun, "sync", sync)
    with watching(folder, run.url) as results:
        until(lambda: failed, "the look")
        assert [r.version for r in results] == [1]
        assert Coreset.load(f"memory://{folder.name}/published").step == 10


def test_each_in_turn_goes_on_where_the_cache_was_lost(folder: Path, run: RemoteFolder) -> None:
    """Those that versions were made of take no places."""
    with watching(folder, run.url, on_backlog="all") as results:
        for number, step in enumerate((10, 20), start=1):
            upload(run, folder / "saved" / f"checkpoint-{step}")
            until(lambda n=number: len(results) == n, f"version {number}")  # type: ignore[misc]
    shutil.rmtree(folder / "store" / "cache" / "checkpoints")
    upload(run, folder / "saved" / "checkpoint-30")
    with watching(folder, run.url, on_backlog="all") as results:
        until(lambda: results, "the third version")
    assert [r.header.checkpoint.step for r in results] == [30]


def invoke(folder: Path, *arguments: str) -> str:
    recipe = ["--recipe", str(folder / "gracekit.yaml")]
    if arguments[0] == "publish":
        recipe = []
    done = CliRunner().invoke(main, [*arguments, *recipe], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_command_line_takes_urls(folder: Path, run: RemoteFolder) -> None:
    upload(run, folder / "saved" / "checkpoint-10")
    upload(run, folder / "saved" / "checkpoint-20")
    assert "checkpoint-20" in invoke(folder, "doctor", run.url)
    assert "step 20" in invoke(folder, "watch", run.url, "--once", "--dry-run")
    assert "step 20" in invoke(folder, "watch", run.url, "--once")
    one = RemoteFolder.open(f"memory://{folder.name}/run/checkpoint-30")
    for path in (folder / "saved" / "checkpoint-30").iterdir():
        one.write(path.name, path)
    assert "step 30" in invoke(folder, "refresh", one.url)
    assert "model pass" in invoke(folder, "plan", one.url)
    assert invoke(folder, "reference", one.url, "-o", str(folder / "reference.parquet"))
    assert (folder / "reference.parquet").is_file()
    other = f"memory://{folder.name}/other"
    said = " ".join(invoke(folder, "publish", str(folder / "store"), other).split())
    assert said.startswith(f"{other}: up to version 2; 2 new versions, ")
    found = json.loads(invoke(folder, "publish", str(folder / "store"), "--json"))
    assert (found["url"], found["published"], found["latest"]) == (other, [], 2)
    assert f"{other} has the versions up to 2" in str(gracekit.status(folder / "store"))
