"""Atomic writes, put-if-absent, and errors that say what to do."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from gracekit import files
from gracekit.errors import StoreWriteError
from tests.faults import Killed, count_operations, failing_at, killed_at


def names(directory: Path) -> list[str]:
    return sorted(p.name for p in directory.rglob("*"))


def write(content: str) -> Callable[[Path], None]:
    def into(path: Path) -> None:
        path.write_text(content)

    return into


def test_write_atomic_makes_parents_and_replaces(tmp_path: Path) -> None:
    final = tmp_path / "a" / "b" / "file.txt"
    files.write_text_atomic(final, "one ü\n")
    files.write_text_atomic(final, "two")
    assert final.read_text() == "two"
    assert names(tmp_path) == ["a", "b", "file.txt"]


def test_content_is_synced_before_the_rename_and_the_directory_after(tmp_path: Path) -> None:
    work = count_operations(lambda: files.write_text_atomic(tmp_path / "f", "x"))
    assert work == ["make_directory", "fill", "sync_file", "replace", "sync_directory"]


def test_a_kill_anywhere_leaves_the_old_or_the_new_file(tmp_path: Path) -> None:
    final = tmp_path / "file"
    for k in range(1, 6):
        for torn in (False, True):
            files.write_text_atomic(final, "old")
            with pytest.raises(Killed), killed_at(k, torn=torn):
                files.write_text_atomic(final, "new")
            assert final.read_text() == ("new" if k == 5 else "old")
            files.remove_leftovers(tmp_path)
            assert names(tmp_path) == ["file"]


def test_an_error_leaves_nothing_behind(tmp_path: Path) -> None:
    final = tmp_path / "file"
    for k in (2, 3, 4):
        with pytest.raises(StoreWriteError, match="disk is full"), failing_at(k, errno.ENOSPC):
            files.write_text_atomic(final, "new")
        assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "check the owner"),
        (errno.EIO, "check the disk"),
    ],
)
def test_errors_name_the_file_and_the_way_out(tmp_path: Path, number: int, says: str) -> None:
    with pytest.raises(StoreWriteError, match=says) as caught, failing_at(2, number):
        files.write_text_atomic(tmp_path / "scores.parquet", "x")
    assert str(tmp_path / "scores.parquet") in str(caught.value)


def test_directory_is_whole_or_as_before(tmp_path: Path) -> None:
    final = tmp_path / "cache" / "v1"

    def build(content: str) -> Callable[[Path], None]:
        def into(directory: Path) -> None:
            (directory / "inner").mkdir()
            (directory / "inner" / "x").write_text(content)

        return into

    steps = count_operations(lambda: files.write_directory_atomic(final, build("one")))
    assert steps.index("replace") > max(i for i, s in enumerate(steps) if s == "sync_file")
    for k in range(1, len(steps) + 1):
        with pytest.raises(Killed), killed_at(k):
            files.write_directory_atomic(final, build("two"))
        if final.exists():  # between removing the old and renaming the new there is none
            assert (final / "inner" / "x").read_text() in {"one", "two"}
        files.remove_leftovers(tmp_path)
        files.write_directory_atomic(final, build("one"))
    assert names(tmp_path) == ["cache", "inner", "v1", "x"]


def test_link_new_never_replaces(tmp_path: Path) -> None:
    first, second, final = tmp_path / "1", tmp_path / "2", tmp_path / "final"
    first.write_text("first")
    second.write_text("second")
    assert files.link_new(first, final)
    assert not files.link_new(second, final)
    assert final.read_text() == "first"


def test_link_new_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(source: Path, final: Path) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(files, "link", no_links)
    test_link_new_never_replaces(tmp_path)


def test_link_new_tells_other_errors(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_text("x")
    with pytest.raises(StoreWriteError, match="disk is full"), failing_at(1, errno.ENOSPC):
        files.link_new(source, tmp_path / "final")
    assert not (tmp_path / "final").exists()


def test_remove_follows_no_links(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("x")
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "link").symlink_to(outside)
    files.remove(inside)
    files.remove(inside)
    (tmp_path / "link").symlink_to(outside)
    files.remove(tmp_path / "link")
    assert names(tmp_path) == ["kept", "outside"]


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert files.sha256(tmp_path / "abc").startswith("ba7816bf8f01cfea414140de5dae2223")
