"""Exports to an object store: complete once the manifest is there, whatever fails or is killed."""

from __future__ import annotations

import contextlib
import itertools
import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import gracekit
from gracekit.cli import main
from gracekit.errors import ExportError, RemoteConflictError, RemoteError, UsageError
from gracekit.exports import ExportedRows, export, point_to_latest
from gracekit.exports.remote_place import LATEST, UNFINISHED
from gracekit.remote import RemoteFolder
from tests import remote_faults
from tests.exported import content_of
from tests.faults import Killed
from tests.stores import make_draft, make_store

RECORDS = [{"prompt": f"is {i} large", "completion": f"the {i} is small"} for i in range(6)]
JSONL = {"coreset.jsonl", "README.md", "manifest.json"}
_NUMBERS = itertools.count()


def memory() -> str:
    """The URL of an empty folder."""
    return f"memory://exports-{next(_NUMBERS)}"


def content(num_rows: int = 6) -> ExportedRows:
    return content_of(RECORDS[:num_rows], [1.0, 2.0, 0.5, 1.0, 1.0, 0.5][:num_rows])


def at(url: str) -> dict[str, bytes]:
    """All objects below a URL."""
    folder = RemoteFolder.open(url)
    return {name: folder.read(name) for name in folder.list()}


def from_call(number: int, *, alone: bool = False) -> Callable[[int, str], bool]:
    """Means the call of that number, and all after it where it is not alone."""
    return lambda k, _: k == number if alone else k >= number


def manifest(found: dict[str, bytes]) -> Any:
    return json.loads(found["manifest.json"])["export"]


@pytest.mark.parametrize(
    "name", ["jsonl", "parquet", "ids", "webdataset", "axolotl", "llamafactory"]
)
def test_objects_are_the_files_of_a_directory(tmp_path: Path, name: str) -> None:
    url = memory()
    here = tmp_path / url.removeprefix("memory://")  # a dataset is called as its folder
    report, local = export(content(), name, url), export(content(), name, here)
    found = at(url)
    assert report.path == url and report.details.keys() == local.details.keys()
    files = {p.relative_to(here).as_posix(): p.read_bytes() for p in here.rglob("*") if p.is_file()}
    assert found.keys() == files.keys()
    for file, expected in files.items():
        assert found[file].replace(url.encode(), str(here).encode()) == expected, file
    if name == "axolotl":
        assert f"path: {url}/coreset.jsonl" in found["axolotl.yaml"].decode()


def test_an_earlier_export_is_replaced_only_when_that_is_asked_for() -> None:
    url = memory()
    export(content(), "ids", url)
    before = at(url)
    with pytest.raises(ExportError, match=r"earlier export.*--force"):
        export(content(), "jsonl", url)
    assert at(url) == before
    export(content(4), "jsonl", url, overwrite=True)
    found = at(url)
    assert found.keys() == JSONL
    assert manifest(found)["num_rows"] == 4 and found["coreset.jsonl"].count(b"\n") == 4


@pytest.mark.parametrize("with_export", [False, True])
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_not_ours_is_left_alone(with_export: bool, overwrite: bool) -> None:
    url = memory()
    if with_export:
        export(content(), "jsonl", url)
    RemoteFolder.open(url).write("theirs/coreset.jsonl", b"mine")
    before = at(url)
    with pytest.raises(ExportError, match=r"theirs/coreset\.jsonl|earlier export"):
        export(content(), "jsonl", url, overwrite=overwrite)
    assert at(url) == before


@pytest.mark.parametrize("below", ["", "/subset", "/headers/x/y"])
def test_nothing_goes_into_a_published_store(tmp_path: Path, below: str) -> None:
    store = make_store(tmp_path / "store")
    store.commit(make_draft(store, "refresh 1"))
    url = f"file://{tmp_path}/bucket/run"
    gracekit.publish(store, url)
    before = at(url)
    places: list[dict[str, Any]] = [{"out": f"{url}{below}"}, {"versions_in": f"{url}{below}"}]
    for place in places:
        with pytest.raises(ExportError, match=r"lies in the store that is at .*/bucket/run,"):
            gracekit.export(store, format="ids", force=True, **place)
    assert at(url) == before


def test_nothing_is_published_among_exports(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    store.commit(make_draft(store, "refresh 1"))
    url = f"file://{tmp_path}/bucket"
    gracekit.export(store, format="ids", versions_in=url)
    before = at(url)
    with pytest.raises(RemoteConflictError, match="has an object LATEST of others"):
        gracekit.publish(store, url)
    assert at(url) == before


def test_a_manifest_of_others_is_no_export() -> None:
    for text in (
        b"{}",
        b"[]",
        b"\xff",
        b'{"export": {"written": 3}}',
        b'{"export": null}',
        b"[" * 10**5,
    ):
        url = memory()
        RemoteFolder.open(url).write("manifest.json", text)
        with pytest.raises(ExportError, match="no earlier export"):
            export(content(), "jsonl", url, overwrite=True)
        assert at(url) == {"manifest.json": text}


@pytest.mark.parametrize("is_done", [False, True], ids=["before the call", "after it"])
@pytest.mark.parametrize("replaces", [False, True])
def test_a_kill_at_any_call_leaves_no_half_export(replaces: bool, is_done: bool) -> None:
    """Whoever sees a manifest sees all of its files; the next export makes the rest right."""
    wanted, old = memory(), memory()
    export(content(4), "jsonl", wanted)
    export(content(), "ids", old)
    fault = remote_faults.kill_after if is_done else remote_faults.kill
    for number in itertools.count(1):
        url = memory()
        if replaces:
            export(content(), "ids", url)
        killed = remote_faults.in_place_of(from_call(number), fault)
        with killed as calls, contextlib.suppress(Killed):
            export(content(4), "jsonl", url, overwrite=replaces)
        if len(calls) < number:
            break
        found = at(url)
        if "manifest.json" in found:
            whole = at(old) if manifest(found)["format"] == "ids" else at(wanted)
            kept = {name: found.get(name) for name in whole if name != "manifest.json"}
            assert kept == {n: c for n, c in whole.items() if n != "manifest.json"}
        export(content(4), "jsonl", url, overwrite="manifest.json" in found)
        again = at(url)
        assert again["coreset.jsonl"] == at(wanted)["coreset.jsonl"]
        assert again.keys() == JSONL
    assert number > 4


@pytest.mark.parametrize("fault", ["fails", "lies"])
def test_a_call_that_fails_is_told_and_one_that_lies_is_looked_up(fault: str) -> None:
    text = remote_faults.THROTTLED
    make = remote_faults.fails_with if fault == "fails" else remote_faults.fails_after
    for number in itertools.count(1):
        url = memory()
        with remote_faults.in_place_of(from_call(number, alone=True), make(text)) as calls:
            is_told_as_done = False
            with contextlib.suppress(RemoteError):
                export(content(), "jsonl", url)
                is_told_as_done = True
        if len(calls) < number:
            break
        found = at(url)
        if is_told_as_done:
            assert found.keys() == JSONL
        elif "manifest.json" not in found:
            export(content(), "jsonl", url)
        assert "coreset.jsonl" in at(url)
    assert number > 3


def test_puts_that_are_told_and_not_done_are_found() -> None:
    for number in itertools.count(1):
        url = memory()
        is_put = from_call(number, alone=True)
        lies = remote_faults.in_place_of(
            lambda k, name, is_meant=is_put: is_meant(k, name) and name == "put_object",  # type: ignore[misc]
            remote_faults.told_as_done,
        )
        is_told_as_done = False
        with lies as calls, contextlib.suppress(RemoteError, ExportError):
            export(content(), "jsonl", url)
            is_told_as_done = True
        if len(calls) < number:
            break
        whole = at(url).keys() == JSONL
        assert whole or not is_told_as_done, f"put {number}"
    assert number > 4


def test_what_is_there_is_listed_once_before_and_once_after() -> None:
    calls: list[str] = []

    def call(number: int, name: str) -> bool:
        calls.append(name)
        return False

    with remote_faults.in_place_of(call, remote_faults.kill):
        export(content(), "jsonl", memory())
    assert calls.count("list_objects") == 2


def test_two_exports_to_one_place_are_told() -> None:
    url, has_begun = memory(), False

    def another(number: int, name: str) -> bool:
        nonlocal has_begun
        if name == "put_object" and not has_begun and UNFINISHED in RemoteFolder.open(url).list():
            has_begun = True
            RemoteFolder.open(url).write(UNFINISHED, b'{"by": "another", "written": []}')
        return False

    with remote_faults.in_place_of(another, remote_faults.kill), pytest.raises(
        ExportError, match="another export"
    ):  # fmt: skip
        export(content(), "jsonl", url)
    assert "manifest.json" not in at(url)


def test_latest_is_the_newest_complete_version(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/bucket"
    for version in ("v000009", "v000010"):
        export(content(), "ids", f"{url}/{version}")
    RemoteFolder.open(url).write("v000011/ids.txt", b"half")
    assert point_to_latest(url) == f"{url}/{LATEST}"
    assert at(url)[LATEST] == b"v000010\n"


def test_latest_does_not_stay_behind_when_several_export() -> None:
    url, has_ended = memory(), False
    other = RemoteFolder.open(url)
    export(content(), "ids", url)
    files = at(url)
    for name in files:
        other.remove(name)

    def put(version: str) -> None:
        for name, text in files.items():
            other.write(f"{version}/{name}", text)

    def another(number: int, name: str) -> bool:
        """Between the listing and the write of one, the other puts a version and names it."""
        nonlocal has_ended
        if name == "put_object" and not has_ended:
            has_ended = True
            put("v000010")
            other.write(LATEST, b"v000010\n")
        return False

    put("v000009")
    with remote_faults.in_place_of(another, remote_faults.kill):
        point_to_latest(url)
    assert has_ended and at(url)[LATEST] == b"v000010\n"


@pytest.mark.parametrize("text", [b"build 12\n", b"12\n", b""])
def test_a_latest_of_others_is_left_alone(tmp_path: Path, text: bytes) -> None:
    store = make_store(tmp_path / "store")
    store.commit(make_draft(store, "refresh 1"))
    url = f"file://{tmp_path}/bucket"
    RemoteFolder.open(url, create=True).write(LATEST, text)
    with pytest.raises(ExportError, match=r"LATEST at .* is not of our exports"):
        gracekit.export(store, format="ids", versions_in=url)
    found = at(url)
    assert found[LATEST] == text and "v000001/manifest.json" in found


def test_latest_names_no_folder_of_others(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/bucket"
    folder = RemoteFolder.open(url, create=True)
    folder.write("v000011/manifest.json", b'{"export": "mine"}')
    with pytest.raises(ExportError, match="no complete export"):
        point_to_latest(url)
    assert LATEST not in at(url)
    export(content(), "ids", f"{url}/v000010")
    point_to_latest(url)
    assert at(url)[LATEST] == b"v000010\n"


def test_a_full_disk_for_temporary_files_is_told() -> None:
    """By the limit of the system for the size of a file."""
    url = memory()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, limits[1]))
    try:
        with pytest.raises(ExportError, match=rf"the export {url}: .*too large.*set TMPDIR"):
            export(content(), "jsonl", url)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert at(url) == {}


@pytest.mark.parametrize("option", ["--out", "--versions-in"])
def test_a_url_of_this_machine_has_the_whole_path(tmp_path: Path, option: str) -> None:
    store = make_store(tmp_path / "store")
    store.commit(make_draft(store, "refresh 1"))
    place = {"--out": "out", "--versions-in": "versions_in"}[option]
    places: dict[str, Any] = {place: "file://subset/a"}
    with pytest.raises(UsageError, match="three slashes"):
        gracekit.export(store, format="ids", **places)
    words = ["export", "--store", str(store.paths.root), "--format", "ids", option]
    answer = CliRunner().invoke(main, [*words, "file://subset/a"])
    assert answer.exit_code == 2 and "three slashes" in answer.output, answer.output


def test_each_version_of_a_store_has_a_folder(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    for version in (1, 2):
        store.commit(make_draft(store, f"refresh {version}"))
    url = f"file://{tmp_path}/bucket"
    for version in (1, 2):
        report = gracekit.export(store, version=version, format="ids", versions_in=url)
        assert (
            report.path == f"{url}/v{version:06d}" and report.details["latest"] == f"{url}/LATEST"
        )
    before = at(url)
    assert before["LATEST"] == b"v000002\n"
    assert gracekit.export(store, version=1, format="ids", versions_in=url).details["was_there"]
    assert at(url) == before
    with pytest.raises(ExportError, match="already, as ids"):
        gracekit.export(store, version=2, format="indices-npy", versions_in=url)

    answer = CliRunner().invoke(
        main, ["export", "--store", str(tmp_path / "store"), "--format", "ids", "-o", f"{url}-2/a"]
    )
    assert answer.exit_code == 0, answer.output
    assert f"in {url}-2/a" in answer.output.replace("\n  ", "")  # lines are wrapped
    assert "ids.txt" in at(f"{url}-2/a")
