"""Disks that lie, and file systems that lack something: works, or is refused with the reason."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gracekit import files
from gracekit.errors import StoreWriteError
from gracekit.store import Store, verify
from gracekit.store.files.pinned import pinned
from gracekit.store.retention import collect
from tests.faults import count_operations, idle_at, lying_at
from tests.stores import make_draft, make_reselect, make_store


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = make_store(tmp_path_factory.mktemp("prepared") / "store", n=6)
    for name in ("one", "two"):
        store.commit(make_draft(store, name))
    return store.paths.root


@pytest.fixture
def root(prepared: Path, tmp_path: Path) -> Path:
    return shutil.copytree(prepared, tmp_path / "store")


def refreshes(store: Store) -> None:
    assert store.commit(make_draft(store, "three")) == 3


def selects(store: Store) -> None:
    assert store.commit(make_reselect(store, "three")) == 3


def collects(store: Store) -> None:
    with store.lock():
        assert collect(store, 1).removed == (1,)


def pins(store: Store) -> None:
    store.pin(1, "a note")


WORK: dict[str, tuple[Callable[[Store], None], Callable[[Store], bool]]] = {
    "refresh": (refreshes, lambda s: s.versions() == [1, 2, 3]),
    "select": (selects, lambda s: s.versions() == [1, 2, 3]),
    "gc": (collects, lambda s: s.versions() == [2]),
    "pin": (pins, lambda s: 1 in pinned(s.paths)),
}


# --- outcomes that are not what was reported ---


@pytest.mark.parametrize("name", WORK)
@pytest.mark.parametrize("number", [errno.EIO, errno.EEXIST, None])
def test_what_is_reported_is_what_happened(
    prepared: Path, tmp_path: Path, name: str, number: int | None
) -> None:
    """Each link and rename, and some other operations, told as failed though done, or (None) the
    reverse: an operation is never told as done that was not; a version and a pin never as not made
    that were made.
    """
    work, is_done = WORK[name]
    counted = Store.open(shutil.copytree(prepared, tmp_path / "counted"))
    operations = count_operations(lambda: work(counted))
    for k, operation in enumerate(operations, 1):
        is_name = operation in ("link", "replace")
        if not (is_name or (number == errno.EIO and k % 7 == 0)):
            continue
        root = shutil.copytree(prepared, tmp_path / str(k))
        told = True
        with idle_at(k) if number is None else lying_at(k, number):
            try:
                work(Store.open(root))
            except StoreWriteError:
                told = False
        after = Store.open(root)
        assert is_done(after) >= told, f"{operation} {k} of {len(operations)} was believed"
        if name != "gc":  # which goes on from wherever it was
            assert is_done(after) == told, f"{operation} {k} of {len(operations)}"
        after.recover()
        if not is_done(after):
            work(after)
        assert is_done(after) and verify(after) == []
        shutil.rmtree(root)


def test_a_link_whose_outcome_cannot_be_looked_up_is_told_as_unclear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, final = tmp_path / "source", tmp_path / "final"
    source.write_text("content")
    real = Path.lstat

    def lstat(path: Path) -> os.stat_result:
        if path == final:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return real(path)

    monkeypatch.setattr(Path, "lstat", lstat)
    with lying_at(1, errno.EIO), pytest.raises(StoreWriteError, match="it is unclear whether"):
        files.link_new(source, final)


def test_a_copy_of_the_same_content_counts_as_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some file systems give a hard link another inode, or copy the file."""
    source, final = tmp_path / "source", tmp_path / "final"
    source.write_text("content")

    def copy(source: Path, final: Path) -> None:
        if final.exists():
            _raise(errno.EEXIST)
        shutil.copy(source, final)
        _raise(errno.EIO)

    monkeypatch.setattr(files, "link", copy)
    assert files.link_new(source, final)
    source.write_text("CONTENT")
    assert not files.link_new(source, final)
    assert final.read_text() == "content"


def test_a_removal_that_is_told_as_failed_is_looked_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real = tmp_path / "file", Path.unlink

    def unlink(path: Path, missing_ok: bool = False) -> None:
        real(path, missing_ok)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    path.write_text("x")
    monkeypatch.setattr(Path, "unlink", unlink)
    files.remove(path)
    assert not path.exists()


# --- file systems that lack something ---


def whole_life(root: Path) -> None:
    """A store from its first file to a start, with every operation in between."""
    store = make_store(root, n=6)
    store.commit(make_draft(store, "one"))
    store.commit(make_draft(store, "two"))
    store.pin(2)
    store.commit(make_reselect(store, "three"))
    store.gc(1)
    assert store.unpin(2)
    assert store.recover() == [] and verify(store) == []
    assert store.versions() == [2, 3]


@pytest.mark.parametrize("number", sorted({errno.EINVAL, errno.EOPNOTSUPP, errno.EBADF}))
def test_without_syncs_of_directories(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    whole_life(tmp_path / "store")


def test_a_sync_that_fails_is_no_file_system_without_one(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failing disk is told, before the commit point; the sync of a file is never done without."""
    store = Store.open(root)
    for number in (errno.EIO, errno.ENOSPC):
        monkeypatch.setattr(os, "fsync", lambda descriptor, number=number: _raise(number))
        with pytest.raises(StoreWriteError):
            refreshes(store)
    assert Store.open(root).versions() == [1, 2]


@pytest.mark.parametrize("number", sorted({errno.EPERM, errno.EOPNOTSUPP, errno.EXDEV}))
def test_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(os, "link", lambda *names, **options: _raise(number))
    whole_life(tmp_path / "store")


@pytest.mark.parametrize("number", sorted({errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK}))
def test_without_locks_nothing_is_written_and_all_is_read(
    root: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    import fcntl

    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    monkeypatch.setattr(fcntl, "flock", lambda descriptor, how: _raise(number))
    store = Store.open(root)
    for work in (refreshes, selects, collects):
        with pytest.raises(StoreWriteError, match="has no locks"):
            work(store)
    after = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert before.items() <= after.items()
    assert store.versions() == [1, 2] and verify(store) == []


def test_another_file_system_below_a_store(root: Path, tmp_path: Path) -> None:
    """A directory of a store may lie elsewhere, behind a link: temporary names are beside the
    files that they become.
    """
    elsewhere = tmp_path / "elsewhere"
    for name in ("score_history", "cache"):
        shutil.move(root / name, elsewhere / name)
        (root / name).symlink_to(elsewhere / name)
    store = Store.open(root)
    refreshes(store)
    assert verify(store) == [] and (elsewhere / "score_history" / "version=000003").is_dir()


def test_a_file_on_another_file_system_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "replace", lambda source, final: _raise(errno.EXDEV))
    with pytest.raises(StoreWriteError, match="keep a store on one"):
        files.write_text_atomic(tmp_path / "file", "x")


# --- what cannot be read ---


def test_no_permission_is_told_from_damage(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, store = Path.open, Store.open(root)
    hidden = (store.paths.manifest(1), store.paths.measured(2), store.paths.samples)

    def open_file(path: Path, *how: Any, **options: Any) -> Any:
        return _raise(errno.EACCES) if path in hidden else real(path, *how, **options)

    monkeypatch.setattr(Path, "open", open_file)
    problems = {p.path: p for p in verify(store)}
    for path in hidden:
        found = problems[store.paths.relative(path)]
        assert "Permission denied" in found.what and "need not be damaged" in found.advice
        assert "restore" not in found.what + found.advice


def _raise(number: int) -> bytes:
    raise OSError(number, os.strerror(number))
