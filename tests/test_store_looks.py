"""How often an operation looks at the disk: it lists directories a few times, whatever the store
holds, and reads no header twice.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import gracekit
from gracekit.errors import StoreWriteError
from gracekit.store import Store, verify
from gracekit.store.files import manifest_reading, removals
from gracekit.store.files.formats import read_json_object
from gracekit.store.files.parquet import read_schema
from gracekit.version.header import Header
from tests.faults import count_operations, failing_at
from tests.stores import make_draft, make_store
from tests.tiny import tiny_recipe, write_checkpoint, write_data

torch.set_num_threads(1)


class Looks:
    """What was looked at."""

    def __init__(self) -> None:
        self.listed: list[str] = []
        """Directories, in the order they were listed."""
        self.read: Counter[str] = Counter()
        """File -> how often a header was read from it."""
        self.parsed = 0
        """Headers that were made of JSON."""


@contextmanager
def looks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Looks]:
    """Count; `os.walk`, `iterdir`, `glob` and `rglob` list by these two functions as well."""
    seen = Looks()

    def counted(original: Callable[..., Any]) -> Callable[..., Any]:
        def look(path: Any = ".") -> Any:
            seen.listed.append(os.fspath(path) if not isinstance(path, int) else str(path))
            return original(path)

        return look

    def reading(original: Callable[..., Any]) -> Callable[..., Any]:
        def read(path: Path, *rest: Any) -> Any:
            seen.read[path.name] += 1
            return original(path, *rest)

        return read

    def parsing(content: Any) -> Header:
        seen.parsed += 1
        return from_json(content)

    def reading_json(path: Path) -> Any:
        seen.read.update([path.name])
        return read_json_object(path)

    from_json = Header.from_json
    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", counted(os.listdir))
        patch.setattr(os, "scandir", counted(os.scandir))
        patch.setattr(manifest_reading, "read_schema", reading(read_schema))
        patch.setattr(removals, "read_json_object", reading_json)
        patch.setattr(Header, "from_json", parsing)
        yield seen


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store of four versions: two refreshes, a reselect, a rollback."""
    folder = tmp_path_factory.mktemp("world")
    write_data(folder / "train.jsonl")
    recipe = tiny_recipe(folder)
    for step in (10, 20):
        gracekit.refresh(recipe, write_checkpoint(folder / "run", step))
    gracekit.reselect(recipe.override({"selection.fraction": 0.2}))
    gracekit.rollback(folder / "store", 1)
    return folder


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> Path:
    return shutil.copytree(prepared, tmp_path / "world")


def require_few(seen: Looks, headers: int, most_listed: int = 3) -> None:
    assert len(seen.listed) <= most_listed, seen.listed
    assert max(seen.read.values()) == 1, seen.read
    assert seen.parsed <= headers, "each header is parsed once"


def test_the_counting_counts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with looks(monkeypatch) as seen:
        assert list(folder.iterdir()) and list(folder.glob("*"))
        assert list(os.walk(folder))
        num_listed = len(seen.listed)
        assert num_listed > 10
        for _ in range(2):
            assert Store.open(folder / "store").header(1).version == 1
    assert seen.read == {"v000001.parquet": 2} and seen.parsed == 2
    assert len(seen.listed) == num_listed, "one header by its number needs no snapshot"


def test_a_selection_looks_little(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny_recipe(folder, selection={"fraction": 0.3})
    with looks(monkeypatch) as seen:
        result = gracekit.reselect(recipe)
    assert (result.version, result.is_new) == (5, True)
    require_few(seen, headers=5)
    with looks(monkeypatch) as seen:
        assert not gracekit.reselect(recipe).is_new
    require_few(seen, headers=5)
    assert verify(Store.open(folder / "store")) == []


def test_so_does_one_on_a_store_with_removed_versions(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.open(folder / "store")
    store.pin(1)
    store.gc(1)
    assert list(store.removed()) == [3]
    recipe = tiny_recipe(folder, selection={"fraction": 0.3})
    with looks(monkeypatch) as seen:
        assert gracekit.reselect(recipe).version == 5
    require_few(seen, headers=5)
    assert verify(Store.open(folder / "store")) == []


def test_a_rollback_looks_little(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with looks(monkeypatch) as seen:
        assert gracekit.rollback(folder / "store", 2).version == 5
    require_few(seen, headers=5)


@pytest.mark.parametrize("spoil", ["LATEST", "scores.duckdb", "headers/v000004.json"])
def test_what_was_not_published_is_published_by_the_next_operation(
    folder: Path, spoil: str
) -> None:
    """As after a kill or a full disk at the end of a commit, where the lock says nothing."""
    (folder / "store" / spoil).unlink()
    result = gracekit.rollback(folder / "store", 4)
    assert not result.is_new and verify(Store.open(folder / "store")) == []


def test_after_a_commit_that_could_not_publish_the_next_operation_cleans_up(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    store.commit(make_draft(store, "a"))
    num_operations = len(
        count_operations(lambda: store.commit(make_draft(store, "b", measure_id="m")))
    )
    num_late = 0
    for k in range(1, num_operations + 1, 5):
        version = store.next_version()
        try:
            with failing_at(k, errno.EIO):
                store.commit(make_draft(store, f"{version}", measure_id="m"), keep=2)
        except StoreWriteError:
            assert store.renew().next_version() == version, k
        num_late += store.paths.holder_of(store.paths.lock).exists()
        with store.writing():
            pass
        assert not store.paths.holder_of(store.paths.lock).exists()
        assert verify(store) == [] and store.recover() == [], k
        assert store.snapshot == Store.open(store.paths.root).snapshot
    assert num_late > num_operations / 10, "of every fifth operation most leave something"


def test_after_a_failure_the_next_operation_cleans_up(folder: Path) -> None:
    store = Store.open(folder / "store")
    (store.paths.root / "scores.duckdb.partial-00aa11bb").write_bytes(b"half")
    with store.writing():
        pass
    assert list(store.paths.root.glob("*.partial-*")), "there was no sign of it"
    with pytest.raises(ZeroDivisionError), store.lock():
        raise ZeroDivisionError
    with store.writing():
        assert not list(store.paths.root.glob("*.partial-*"))
    assert not store.paths.holder_of(store.paths.lock).exists()


@pytest.mark.parametrize("way", ["store", "open store", "condition"])
def test_other_ways_to_select_look_as_little(
    folder: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    root, changes = folder / "store", {"selection.fraction": 0.3}
    where = "row IN (SELECT row FROM coresets WHERE version = 1)"
    recipe = tiny_recipe(folder, selection={"fraction": 0.5, "never_in_where": where})
    opened = Store.open(root)
    with looks(monkeypatch) as seen:
        if way == "store":
            made = gracekit.select(root, set=changes)
        elif way == "open store":
            made = gracekit.select(opened, set=changes)
        else:
            made = gracekit.select(recipe)
    assert made.version == 5
    require_few(seen, headers=5)
