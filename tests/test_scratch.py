"""Large arrays: in memory, or in a file without a name."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from gracekit import scratch
from gracekit.refresher import refresh
from gracekit.scratch import room, scratch_in
from gracekit.store import Store, verify
from tests.test_no_second_copy import is_mapped
from tests.tiny import tiny_recipe, write_checkpoint, write_data


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch, "LARGE", 1000)


def test_a_large_array_is_a_file_that_has_no_name(tmp_path: Path) -> None:
    with scratch_in(tmp_path):
        large, small = room((300, 2), np.float16), room((250, 2), np.float16)
    assert is_mapped(large) and not is_mapped(small) and not any(tmp_path.iterdir())
    assert type(large) is np.ndarray and large.shape == (300, 2) and not large.any()
    large[7] = 3  # also after the block
    assert large.sum() == 6 and large.flags.c_contiguous


def test_without_a_directory_all_is_in_memory(tmp_path: Path) -> None:
    assert not is_mapped(room((300, 2), np.float32))
    with scratch_in(tmp_path):
        pass
    assert not is_mapped(room((300, 2), np.float32))


def test_a_disk_without_room_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with scratch_in(tmp_path / "missing"):
        assert not is_mapped(room((300, 2), np.float16))
    monkeypatch.setattr(os, "posix_fallocate", full)
    with scratch_in(tmp_path):
        found = room((300, 2), np.float16)
    assert not is_mapped(found) and found.shape == (300, 2) and not any(tmp_path.iterdir())


def test_room_is_left_for_what_is_written_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_bytes, usage = 300 * 2 * 2, shutil.disk_usage(tmp_path)
    for factor, is_file in ((4.5, False), (5.5, True)):
        free = int(factor * num_bytes)
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage._replace(free=free))
        with scratch_in(tmp_path):
            assert is_mapped(room((300, 2), np.float16)) == is_file


@pytest.mark.parametrize("backend", ["exact", "descent"])
def test_a_refresh_is_the_same_wherever_its_arrays_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    for step in (10, 20, 30):
        write_checkpoint(tmp_path / "run", step)
    found = []
    for name, large in (("memory", 1 << 30), ("files", 100)):
        monkeypatch.setattr(scratch, "LARGE", large)
        folder = tmp_path / name
        folder.mkdir()
        write_data(folder / "train.jsonl")
        recipe = tiny_recipe(folder, graph={"backend": backend})
        for step in (10, 20, 30):
            refresh(recipe, tmp_path / f"run/checkpoint-{step}")
        store = Store.open(folder / "store")
        assert verify(store) == []
        cache = store.load_cache(3)
        assert cache is not None
        scores, chosen = store.scores(3), store.coreset(3)
        found.append([
            cache.features.tobytes(),
            scores.importance.tobytes(),
            scores.origin.tobytes(),
            chosen.column("row").to_numpy().tobytes(),
            chosen.column("weight").to_numpy().tobytes(),
        ])  # fmt: skip
    assert found[0] == found[1]
