"""A disk that fails under a whole refresh: a clear error, and the last version intact."""

from __future__ import annotations

import errno
import shutil
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch

from gracekit import Coreset
from gracekit.api.reading import status, versions
from gracekit.errors import StoreWriteError
from gracekit.refresher import refresh
from gracekit.store import Store, verify
from gracekit.store.sql.ask import run_sql
from tests.faults import count_operations, failing_at
from tests.small_disks import fill_up, small_disk
from tests.tiny import tiny_recipe, write_checkpoint, write_data

NUMBERS = {
    errno.ENOSPC: "disk is full",
    errno.EACCES: "no permission",
    errno.EIO: "check the disk",
    errno.EROFS: "read-only",
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a store with two versions, and a third checkpoint."""
    folder = tmp_path_factory.mktemp("prepared")
    write_data(folder / "train.jsonl")
    torch.set_num_threads(1)
    for step in (10, 20):
        refresh(tiny_recipe(folder), write_checkpoint(folder / "run", step))
    write_checkpoint(folder / "run", 30)
    return folder


def snapshot(store: Store) -> dict[str, bytes]:
    """Every byte of the first two versions that must never change."""
    paths = [
        path
        for version in (1, 2)
        for path in (
            store.paths.manifest(version),
            *(store.paths.root / name for name in store.header(version).files),
        )
    ]
    return {str(path.relative_to(store.paths.root)): path.read_bytes() for path in paths}


def attempt(folder: Path, fault: Callable[[], AbstractContextManager[object]]) -> str | None:
    """The third refresh; the message of its error. It makes the version, or leaves two."""
    versions = [1, 2, 3]
    message = None
    try:
        with fault():
            refresh(tiny_recipe(folder), folder / "run" / "checkpoint-30")
    except StoreWriteError as error:
        message, versions = str(error), [1, 2]
    assert Store.open(folder / "store").versions() == versions
    return message


def fail_at_each(prepared: Path, folder: Path, ways: list[tuple[int, int]]) -> tuple[int, int]:
    """A refresh for each (operation, errno), then one on a healthy disk; (refused, published)."""
    num_refused = 0
    for k, number in ways:
        shutil.copytree(prepared, folder)
        recipe, checkpoint = tiny_recipe(folder), folder / "run" / "checkpoint-30"
        kept = snapshot(Store.open(folder / "store"))
        where = f"{errno.errorcode[number]} at operation {k}"
        refused = attempt(folder, partial(failing_at, k, number))
        assert refused is None or NUMBERS[number] in refused, where
        num_refused += refused is not None
        assert snapshot(Store.open(folder / "store")) == kept, where
        assert refresh(recipe, checkpoint).version == 3, where
        store = Store.open(folder / "store")
        assert snapshot(store) == kept and verify(store) == [], where
        shutil.rmtree(folder)
    return num_refused, len(ways) - num_refused


def num_operations(prepared: Path, folder: Path) -> int:
    shutil.copytree(prepared, folder)
    checkpoint = folder / "run" / "checkpoint-30"
    seen = count_operations(lambda: refresh(tiny_recipe(folder), checkpoint))
    shutil.rmtree(folder)
    return len(seen)


def test_a_disk_that_fails_at_some_operation_of_a_refresh(prepared: Path, tmp_path: Path) -> None:
    """A sample; `make torture` takes every operation with every error."""
    folder = tmp_path / "world"
    numbers = list(NUMBERS)
    operations = range(1, num_operations(prepared, folder) + 1, 13)
    ways = [(k, numbers[i % len(numbers)]) for i, k in enumerate(operations)]
    num_refused, num_published = fail_at_each(prepared, folder, ways)
    assert num_refused and num_published


@pytest.mark.torture
@pytest.mark.timeout(3600)
def test_a_disk_that_fails_at_any_operation_of_a_refresh(prepared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "world"
    operations = range(1, num_operations(prepared, folder) + 1)
    ways = [(k, number) for k in operations for number in NUMBERS]
    num_refused, num_published = fail_at_each(prepared, folder, ways)
    print(
        f"\n{len(ways)} refreshes with a failing disk ({len(operations)} operations, "
        f"{len(NUMBERS)} errors): {num_refused} refused with the last version intact, "
        f"{num_published} published all the same; all went on afterwards"
    )


def remount(place: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(place)], check=True)


def test_a_disk_that_is_really_full(prepared: Path, tmp_path: Path) -> None:
    """Full from the start, or at some point of the refresh or of what follows its commit."""
    place = tmp_path / "disk"
    num_refused = 0
    with small_disk(place, 64):
        folder, filler = place / "world", place / "filler"
        for free_bytes in range(0, 160_000, 24_000):
            shutil.copytree(prepared, folder)
            store = Store.open(folder / "store")
            kept, checkpoint = snapshot(store), folder / "run" / "checkpoint-30"
            fill_up(filler, free_bytes)
            refused = attempt(folder, nullcontext)
            assert refused is None or "disk is full" in refused
            num_refused += refused is not None
            assert snapshot(store) == kept
            assert Coreset.load(folder / "store").version == store.latest()
            assert run_sql(folder / "store", "SELECT count(*) FROM samples")[1] == [(160,)]
            filler.unlink()
            assert refresh(tiny_recipe(folder), checkpoint).version == 3
            assert verify(store) == []
            shutil.rmtree(folder)
    assert num_refused > 1


def test_a_read_only_store_is_read_and_not_written(prepared: Path, tmp_path: Path) -> None:
    place = tmp_path / "disk"
    with small_disk(place, 64):
        folder = place / "world"
        shutil.copytree(prepared, folder)
        recipe, checkpoint = tiny_recipe(folder), folder / "run" / "checkpoint-30"
        root = folder / "store"
        remount(place, "ro")
        with pytest.raises(StoreWriteError, match="read-only"):
            refresh(recipe, checkpoint)
        assert status(root).to_json()["latest_version"] == 2
        assert [record.version for record in versions(root)] == [1, 2]
        assert run_sql(root, "SELECT count(*) FROM versions")[1] == [(2,)]
        assert Coreset.load(root).version == 2
        assert verify(Store.open(root)) == []
        remount(place, "rw")
        assert refresh(recipe, checkpoint).version == 3
