"""What killed processes leave: told from what a living one writes, and removed by the next."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest

import gracekit
from gracekit import files, leftovers
from gracekit.errors import ExportError
from gracekit.exports import export
from gracekit.files import TEMPORARY_MARK
from gracekit.leftovers import UNCHANGED_S
from gracekit.training import Coreset
from gracekit.types import Json
from tests.exported import content_of
from tests.faults import Killed, as_a_process_that_ends, count_operations, failing_at, killed_at
from tests.patience import LAST_RESORT_S
from tests.stores import make_draft, make_store

ROWS: list[Json] = [{"instruction": f"in {i}", "output": f"out {i}"} for i in range(3)]
OTHER_ROWS: list[Json] = [{"prompt": f"in {i}", "completion": f"out {i}"} for i in range(2)]


def below(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


def make_old(path: Path) -> None:
    for below in [*path.rglob("*"), path]:
        os.utime(below, (0, os.stat(below).st_mtime - UNCHANGED_S - 60))


def filled_store(root: Path) -> Path:
    store = make_store(root)
    with store.lock():
        store.commit(make_draft(store, "1"))
    return root


# --- whose it is ---


def test_only_what_the_dead_made_is_left(tmp_path: Path) -> None:
    final = tmp_path / "out.html"
    with as_a_process_that_ends():
        dead = files.temporary_path(final)
        dead.write_text("half")
        assert files.left_beside(final) == []  # it lives yet
    living = files.temporary_path(final)
    living.write_text("half")
    theirs = tmp_path / "out.html.partial-mine"
    theirs.write_text("the only copy")
    assert files.left_beside(final) == [dead]
    assert files.left_beside(tmp_path / "html") == []
    files.remove_left_files(final)
    assert sorted(tmp_path.iterdir()) == sorted([living, theirs])


def test_a_number_that_was_given_again_is_another_process(tmp_path: Path) -> None:
    final = tmp_path / "out"
    mine = files.temporary_path(final)
    pid, where, start = mine.name.split("-")[2:]
    other = mine.with_name(f"out{TEMPORARY_MARK}0123abcd-{pid}-{where}-{int(start) + 1}")
    for path in (mine, other):
        path.write_text("half")
    assert files.left_beside(final) == [other]


def test_containers_of_one_name_in_which_no_process_has_a_birth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where /proc is that of the host, or hides the boot; numbers count in each by itself."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait(LAST_RESORT_S)
    monkeypatch.setattr(leftovers, "birth_of", lambda pid: None)
    container = "pid:[1]"
    monkeypatch.setattr(leftovers, "pid_namespace", lambda: container)
    leftovers._where.cache_clear()
    try:
        left = tmp_path / f"out{TEMPORARY_MARK}0123abcd-{process.pid}-{leftovers._where()}-0"
        left.write_text("half")
        assert files.left_beside(tmp_path / "out") == [left]
        container = "pid:[2]"
        leftovers._where.cache_clear()
        assert files.left_beside(tmp_path / "out") == [], "it may live in the other one"
    finally:
        leftovers._where.cache_clear()


def test_a_maker_of_unknown_birth_is_told_by_its_number(tmp_path: Path) -> None:
    final = tmp_path / "out"
    pid, where, _ = files.temporary_path(final).name.split("-")[2:]
    living = tmp_path / f"out{TEMPORARY_MARK}0123abcd-{pid}-{where}-0"
    living.write_text("half")
    assert files.left_beside(final) == []


def _number_of_one_that_has_ended() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait(LAST_RESORT_S)
    return process.pid


@pytest.mark.parametrize("ending", ["0123abcd-1-00000000-7", "0123abcd"])
def test_what_others_made_is_left_once_nobody_changes_it(tmp_path: Path, ending: str) -> None:
    """Of another host, of an earlier boot, and of an earlier release."""
    final = tmp_path / "out"
    there = tmp_path / f"out{TEMPORARY_MARK}{ending}"
    there.mkdir()
    (there / "half").write_text("half")
    assert files.left_beside(final) == []
    make_old(there)
    assert files.left_beside(final) == [there]
    (there / "half").write_text("more")
    assert files.left_beside(final) == []


def test_long_names_are_found_again(tmp_path: Path) -> None:
    final, other = tmp_path / ("ü" * 120), tmp_path / ("ü" * 100)
    with as_a_process_that_ends():
        left = files.temporary_path(final)
        left.write_text("half")
    assert len(os.fsencode(left.name)) <= 255
    assert (files.left_beside(final), files.left_beside(other)) == ([left], [])


def test_a_file_takes_the_place_of_what_was_left_on_the_way_to_it(tmp_path: Path) -> None:
    final = tmp_path / "result.json"
    with as_a_process_that_ends(), suppress(Killed), killed_at(3):
        files.write_text_atomic(final, "half")
    assert len(below(tmp_path)) == 1
    files.write_text_atomic(final, "whole", tidy=True)
    assert below(tmp_path) == ["result.json"]


def test_a_download_takes_the_place_of_those_that_were_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRACEKIT_CACHE", str(tmp_path / "cache"))
    url = f"file://{tmp_path}/copy"
    gracekit.publish(filled_store(tmp_path / "store"), url)
    num = len(count_operations(lambda: Coreset.load(url)))
    for k in range(1, num + 1):
        monkeypatch.setenv("GRACEKIT_CACHE", str(tmp_path / f"cache-{k}"))
        with as_a_process_that_ends(), suppress(Killed), killed_at(k, torn=True):
            Coreset.load(url)
        Coreset.load(url)
        assert not [
            name for name in below(tmp_path / f"cache-{k}/stores") if TEMPORARY_MARK in name
        ]


# --- exports ---


def require_consistent(folder: Path) -> None:
    """What `dataset_info.json` has is there, whole, and has the columns that it tells."""
    known = json.loads((folder / "dataset_info.json").read_text())
    assert known["theirs"] == {"file_name": "mine.json"}
    if entry := known.get("subset"):
        lines = (folder / entry["file_name"]).read_text().splitlines()
        assert lines and set(entry["columns"].values()) <= json.loads(lines[0]).keys()
        manifest = json.loads((folder / "subset/manifest.json").read_text())
        assert len(lines) == manifest["export"]["num_rows"]


@pytest.mark.parametrize("before", [None, "llamafactory", "ids"])
@pytest.mark.parametrize("name", ["llamafactory", "parquet"])
def test_a_kill_at_any_file_call_of_an_export(
    tmp_path: Path, before: str | None, name: str
) -> None:
    """Nothing is entered that is not there, nothing of the earlier export is lost, and the next
    export leaves nothing of the killed one.
    """

    def prepare(folder: Path) -> None:
        folder.mkdir()
        (folder / "dataset_info.json").write_text('{"theirs": {"file_name": "mine.json"}}')
        if before is not None:
            export(content_of(ROWS), before, folder / "subset")

    def work(folder: Path) -> None:
        export(content_of(OTHER_ROWS), name, folder / "subset", overwrite=True)

    prepare(tmp_path / "counted")
    num = len(count_operations(lambda: work(tmp_path / "counted")))
    whole = below(tmp_path / "counted")
    seen = set()
    for k in range(1, num + 2):
        folder = tmp_path / f"{k}"
        prepare(folder)
        with as_a_process_that_ends(), suppress(Killed), killed_at(k, torn=k % 2 == 0):
            work(folder)
        require_consistent(folder)
        manifests = [*folder.glob("subset*/manifest.json")]
        assert manifests or before is None
        left = [path.name for path in folder.iterdir() if TEMPORARY_MARK in path.name]
        seen.update(left and ["left"])
        work(folder)
        assert below(folder) == whole, f"after a kill at operation {k}"
        require_consistent(folder)
        known = json.loads((folder / "dataset_info.json").read_text())
        assert ("subset" in known) == (name == "llamafactory")
    assert seen == {"left"}


def test_a_disk_that_fails_at_any_file_call_leaves_what_is_there_entered(tmp_path: Path) -> None:
    """Or the message says that it is not."""

    def prepared(name: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "dataset_info.json").write_text('{"theirs": {"file_name": "mine.json"}}')
        export(content_of(ROWS), "llamafactory", folder / "subset")
        return folder

    def work(folder: Path) -> str:
        try:
            export(content_of(OTHER_ROWS), "llamafactory", folder / "subset", overwrite=True)
        except ExportError as error:
            return str(error)
        return ""

    counted, told = prepared("counted"), []
    for k in range(1, 1 + len(count_operations(lambda: work(counted)))):
        folder = prepared(f"{k}")
        with failing_at(k, errno.EIO):
            message = work(folder)
        require_consistent(folder)
        known = json.loads((folder / "dataset_info.json").read_text())
        assert "subset" in known or "is written, but not entered in" in message, f"{k}: {message}"
        told.append(message)
    assert any("not entered" in message for message in told)
    assert any("cannot write the export" in message for message in told)


def test_an_export_at_work_and_what_is_not_ours_are_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    with as_a_process_that_ends():
        for name in ("torn", "theirs", "whole"):
            path = files.temporary_path(out)
            export(content_of(ROWS), "ids", path)
            path.rename(tmp_path / f"{path.name}")
            if name == "torn":
                (path / "manifest.json").write_text("{")
            if name == "theirs":
                (path / "thesis.txt").write_text("the only copy")
            if name == "whole":
                whole = path
    living = files.temporary_path(out)
    export(content_of(ROWS), "ids", living)
    export(content_of(ROWS), "ids", out)
    assert (living / "ids.txt").exists() and not whole.exists()
    assert [path.read_text() for path in tmp_path.rglob("thesis.txt")] == ["the only copy"]
    assert len(list(tmp_path.iterdir())) == 4
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2 and any("(thesis.txt)" in line for line in told)


def test_a_disk_that_fails_leaves_what_a_kill_between_the_renames_left(tmp_path: Path) -> None:
    """Until another export is in its place: they may be the only ones there are."""
    out = tmp_path / "out"
    export(content_of(ROWS), "ids", out)

    def work() -> None:
        export(content_of(ROWS), "ids", out, overwrite=True)

    second = [k for k, name in enumerate(count_operations(work), 1) if name == "replace"][1]
    with as_a_process_that_ends(), suppress(Killed), killed_at(second):
        work()
    assert not out.exists()
    before = below(tmp_path)
    with as_a_process_that_ends(), suppress(Killed), killed_at(3):
        work()
    assert set(before) <= set(below(tmp_path))
    work()
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


# --- folders for temporary files ---


SLOW = "SELECT count(*) FROM range(3000000) a, range(3000000) b WHERE a.range + b.range = 7"


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """TMPDIR of this process and those that it starts."""
    place = tmp_path / "scratch"
    place.mkdir()
    monkeypatch.setenv("TMPDIR", str(place))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return place


def slow_query(store: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "gracekit", "sql", "--store", str(store), SLOW],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)},
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_a_folder(process: subprocess.Popen[str], scratch: Path) -> None:
    while not list(scratch.glob("gracekit-sql-*")):
        assert process.poll() is None


def test_sigterm_leaves_no_folder(tmp_path: Path, scratch: Path) -> None:
    root = filled_store(tmp_path / "store")
    process = slow_query(root)
    wait_for_a_folder(process, scratch)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=LAST_RESORT_S)
    assert process.returncode == 128 + signal.SIGTERM
    assert told == "gracekit: ended by SIGTERM; the last published version is unchanged\n"
    assert list(scratch.iterdir()) == []


def test_the_next_start_removes_folders_of_the_dead(tmp_path: Path, scratch: Path) -> None:
    root = filled_store(tmp_path / "store")
    process = slow_query(root)
    wait_for_a_folder(process, scratch)
    (theirs := scratch / "gracekit-sql-notes").mkdir()
    living = leftovers.make_scratch_folder("sql")
    assert len(list(scratch.iterdir())) == 3
    process.kill()
    process.communicate(timeout=LAST_RESORT_S)
    with leftovers.scratch_folder("model") as own:
        assert set(scratch.iterdir()) == {theirs, living, own}
        assert own.stat().st_mode & 0o777 == 0o700
    assert set(scratch.iterdir()) == {theirs, living}


def test_a_reader_makes_its_folder_by_the_same_way(tmp_path: Path, scratch: Path) -> None:
    from gracekit.store.sql import database

    with as_a_process_that_ends():
        left = leftovers.make_scratch_folder("sql")
    database._own_directory.cache_clear()
    gracekit.sql(filled_store(tmp_path / "store"), "SELECT 1")
    assert not left.exists()
    database._own_directory.cache_clear()
