"""Every command on a disk that is full, or fills up while it runs: clear errors, a whole store.

Store, data, checkpoints, outputs and `TMPDIR` all lie on one small file system in memory.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner

from gracekit.cli import main
from gracekit.files import TEMPORARY_MARK
from gracekit.refresher import refresh
from gracekit.store import Store, verify
from tests.small_disks import fill_up, small_disk
from tests.tiny import recipe_content, write_checkpoint, write_data

KEPT_FREE = (0, 6_000, 40_000, 150_000)
"""Bytes that a command finds free."""

Line = Callable[[Path], list[str]]


def line(*words: str) -> Line:
    """A command line; `@` stands for the folder, and `#` for a sample."""

    def of(folder: Path) -> list[str]:
        found = [word.replace("@", str(folder)) for word in words]
        if "#" in found:
            found[found.index("#")] = Store.open(folder / "store").samples().sample_ids[3]
        return found

    return of


READING = {
    "status": line("status"),
    "versions": line("versions"),
    "diff": line("diff", "1", "2"),
    "explain": line("explain", "#"),
    "similar": line("similar", "#"),
    "sql": line("sql", "SELECT count(*) FROM score_history"),
    "verify": line("verify"),
    "verify of a copy": line("verify", "file://@/copy"),
    "doctor": line("doctor", "@/run"),
    "plan": line("plan", "@/run/checkpoint-30"),
}
OUTPUTS = {
    "init": line("init", "@/train.jsonl", "-o", "@/out/new.yaml"),
    "export": line("export", "-o", "@/out/export"),
    "export for LLaMA-Factory": line("export", "-f", "llamafactory", "-o", "@/out/lf"),
    "export as a data set": line("export", "-f", "hf-dataset", "-o", "@/out/hf"),
    "export of each version": line("export", "--versions-in", "@/out/all"),
    "export to a URL": line("export", "-o", "file://@/out/remote"),
    "report": line("report", "-o", "@/out/report.html"),
    "sql to a file": line("sql", "FROM samples", "--parquet", "@/out/samples.parquet"),
    "publish": line("publish", "@/store", "file://@/out/published"),
}
WRITING = {
    "pin": line("pin", "1", "--note", "the first"),
    "unpin": line("unpin", "2"),
    "rollback": line("rollback", "1"),
    "select": line("select", "--set", "selection.fraction=.2"),
    "gc": line("gc", "--keep", "1"),
    "refresh": line("refresh", "@/run/checkpoint-30"),
    "reference": line("reference", "@/run/checkpoint-10"),
    "watch": line("watch", "@/run", "--once"),
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a recipe, a store with two versions and a copy of it, and a third checkpoint."""
    folder = tmp_path_factory.mktemp("prepared")
    write_data(folder / "train.jsonl")
    (folder / "gracekit.yaml").write_text(yaml.safe_dump(recipe_content()))
    torch.set_num_threads(1)
    for step in (10, 20):
        refresh(folder / "gracekit.yaml", write_checkpoint(folder / "run", step))
    write_checkpoint(folder / "run", 30)
    store = Store.open(folder / "store")
    store.pin(2)
    assert call(folder, line("publish", "@/store", "file://@/copy")) == (0, "")
    (folder / "out").mkdir()
    (folder / "out/dataset_info.json").write_text('{"theirs": {"file_name": "mine.json"}}')
    (folder / "tmp").mkdir()
    return folder


@pytest.fixture
def disk(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A small disk with a folder `world`, where the commands run."""
    # Links to paths as long as these need room of their own on such a disk; shorter ones do not.
    place = tmp_path / ("disk" + "-" * 120)
    with small_disk(place, 64):
        world = shutil.copytree(prepared, place / "world")
        monkeypatch.chdir(world)
        monkeypatch.setattr(tempfile, "tempdir", str(world / "tmp"))
        yield place
        monkeypatch.chdir(tmp_path)


def call(folder: Path, command: Line) -> tuple[int, str]:
    """Exit code and, of a failure, what was said; an error that is none of ours is raised."""
    result = CliRunner().invoke(main, ["-q", *command(folder)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output if result.exit_code else ""


def left_beside(folder: Path) -> list[Path]:
    return [path for path in folder.rglob(f"*{TEMPORARY_MARK}*") if path.parent.name != "tmp"]


@pytest.mark.parametrize("kept_free", KEPT_FREE)
def test_who_reads_needs_no_room_or_says_so(disk: Path, kept_free: int) -> None:
    world = disk / "world"
    before = contents(world)
    fill_up(disk / "filler", kept_free)
    for name, command in READING.items():
        code, said = call(world, command)
        assert code == 0 or "free" in said.lower(), f"{name}: {said}"
        if name in ("status", "versions", "verify"):
            assert code == 0, f"{name}: {said}"
    (disk / "filler").unlink()
    assert contents(world) == before


@pytest.mark.parametrize("kept_free", KEPT_FREE)
def test_what_is_written_is_whole_or_not_there(disk: Path, kept_free: int) -> None:
    world = disk / "world"
    before, refused = contents(world), 0
    for name, command in OUTPUTS.items():
        there = contents(world)
        fill_up(disk / "filler", kept_free)
        code, said = call(world, command)
        (disk / "filler").unlink()
        refused += code != 0
        assert code == 0 or "free" in said.lower(), f"{name}: {said}"
        if code != 0 and "URL" not in name and name != "publish":  # which go on next time
            assert contents(world) == there, name
        assert left_beside(world) == [], name
        assert code == 0 or call(world, command) == (0, ""), name
    assert refused or kept_free > 100_000
    after = contents(world)
    changed = {name for name in before if after.get(name) != before[name]}
    assert changed <= {"out/dataset_info.json", "store/published.json"}, changed


@pytest.mark.parametrize("kept_free", [0, 150_000])
@pytest.mark.parametrize("name", WRITING)
def test_a_store_on_a_full_disk_loses_nothing(disk: Path, name: str, kept_free: int) -> None:
    world = disk / "world"
    root, command = world / "store", WRITING[name]
    fill_up(disk / "filler", kept_free)
    code, said = call(world, command)
    assert code == 0 or "free" in said.lower(), said
    assert call(world, line("status"))[0] == 0
    latest = Store.open(root).latest()
    assert latest is not None and latest >= 2
    (disk / "filler").unlink()
    assert call(world, command)[0] == 0
    store = Store.open(root)
    store.recover()
    assert verify(store) == [] and left_beside(world) == []
    assert (store.latest() or 0) >= latest


def contents(folder: Path) -> dict[str, bytes]:
    """Of all files but those that say what a process does."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".lock" not in path.name and "tmp" not in path.parts[-2:]
    }
