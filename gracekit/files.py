"""The one file layer: atomic writes, checksums, directory syncs.

Every byte of a store goes through it. A file is complete or absent: it is written under a
temporary name in the same directory, synced, and renamed; a directory likewise. Operating-system
errors become `StoreWriteError` naming the file and the way out. What a link or a rename reports is
not believed: a server that lost its answer tells an error of what it has done, so whether the file
has its name is looked up.

The functions under "operations" are the only ones that change a disk. Everything else here calls
them by their module name, so a fault put in their place is met at every point of a commit.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gracekit.errors import StoreWriteError
from gracekit.leftovers import MARK, left_in, token

TEMPORARY_MARK = MARK
"""Part of every temporary name: what a start-up may delete."""

MAX_NAME_BYTES = 255
"""Of a file's name, on every common file system."""

_NO_HARD_LINKS = {
    errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EXDEV,
}  # fmt: skip
_NO_DIRECTORY_SYNC = {
    errno.EINVAL, errno.EBADF, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EISDIR,
}  # fmt: skip
"""Said by SMB and by some FUSE file systems, which order names in their own way."""

# --- operations ---------------------------------------------------------------------------------


def fill(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` make the new file or directory `path`."""
    write(path)


def create(path: Path, text: str) -> None:
    """Make a new file of that content; FileExistsError when `path` is already there."""
    with path.open("x", encoding="utf-8") as file:
        file.write(text)


def sync_file(path: Path) -> None:
    """Make the content of `path` durable."""
    _sync(path)


def sync_directory(directory: Path) -> None:
    """Make creations, renames and removals in `directory` durable.

    Does nothing on a file system that has no such thing: then a power cut may undo what was done
    last, as if it had not happened.
    """
    _sync_directory(directory)


def replace(source: Path, final: Path) -> None:
    """Rename, over what is there."""
    os.replace(source, final)


def link(source: Path, final: Path) -> None:
    """Hard link; FileExistsError when `final` is already there."""
    os.link(source, final)


def make_directory(directory: Path) -> None:
    """Create a directory and its parents, durably."""
    missing = [d for d in (directory, *directory.parents) if not d.exists()]
    for path in reversed(missing):
        try:
            path.mkdir(exist_ok=True)
        except OSError:
            if not path.is_dir():
                raise
        _sync_directory(path.parent)


def remove(path: Path) -> None:
    """Delete a file or a whole directory; what is already gone is fine. Never follows links."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError:
        if os.path.lexists(path):
            raise


def _sync_directory(directory: Path) -> None:
    try:
        _sync(directory)
    except OSError as error:
        if error.errno not in _NO_DIRECTORY_SYNC:
            raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- what the store uses ------------------------------------------------------------------------


@contextmanager
def clear_write_errors(target: Path) -> Iterator[None]:
    """Turn an OSError of the block into a `StoreWriteError` that says what to do."""
    try:
        yield
    except OSError as error:
        advice = {
            errno.ENOSPC: "the disk is full: free some space (`gracekit status` shows the size "
            "of the store) and run again",
            errno.EDQUOT: "the disk quota is used up: free some space and run again",
            errno.EFBIG: "the file is larger than the system allows: raise the limit (`ulimit -f`)",
            errno.EROFS: "the file system is read-only: remount it or move the store",
            errno.EACCES: "no permission: check the owner of the store",
            errno.EPERM: "not permitted: check the owner and the mount of the store",
            errno.EXDEV: "it lies on another file system than the rest: keep a store on one",
            errno.ENAMETOOLONG: "its name or path is too long: choose a shorter one",
            errno.EISDIR: "there is a directory of that name: choose another",
            errno.ENOTDIR: "a part of its path is a file: choose another place",
        }.get(error.errno or _errno_of_numpy(error), "check the disk and run again")
        raise StoreWriteError(
            f"cannot write {target}: {error.strerror or error}; {advice}. "
            "The last published version is unchanged"
        ) from error


def _errno_of_numpy(error: OSError) -> int:
    """NumPy tells a write that ended early, as on a full disk, in words only."""
    return errno.ENOSPC if "requested and" in str(error) else 0


def temporary_path(final: Path) -> Path:
    """A fresh name beside `final`, recognised by `TEMPORARY_MARK`; it tells who made it."""
    ending = f"{TEMPORARY_MARK}{token()}"
    return final.with_name(_cut(final.name, len(ending)) + ending)


def _cut(name: str, num_bytes: int) -> str:
    """A name with room for so many bytes behind it."""
    return os.fsencode(name)[: MAX_NAME_BYTES - num_bytes].decode("utf-8", "ignore")


def left_beside(final: Path) -> list[Path]:
    """Temporary files and directories for `final` of processes that have ended; see `leftovers`."""
    try:
        left = list(left_in(final.parent))
    except OSError:
        return []
    return [
        path
        for start, path in left
        if start == _cut(final.name, len(os.fsencode(path.name)) - len(os.fsencode(start)))
    ]


def remove_left_files(final: Path) -> None:
    """Remove the temporary files for `final` of processes that have ended; directories stay."""
    for path in left_beside(final):
        if path.is_symlink() or not path.is_dir():
            with suppress(OSError):  # the next one tries again
                remove(path)


def write_temporary(final: Path, write: Callable[[Path], None]) -> Path:
    """Let `write` fill a temporary file beside `final` and sync it; returns the temporary path."""
    with clear_write_errors(final):
        make_directory(final.parent)
        temporary = temporary_path(final)
        with _removed_on_error(temporary):
            fill(temporary, write)
            sync_file(temporary)
    return temporary


def write_atomic(final: Path, write: Callable[[Path], None], *, tidy: bool = False) -> None:
    """Let `write` fill a temporary file, then sync it and rename it to `final`.

    Args:
        final: The file.
        write: Given the path of the temporary one.
        tidy: First remove what killed processes left on the way to this file: for folders that no
            start of a store looks through.
    """
    if tidy:
        remove_left_files(final)
    temporary = write_temporary(final, write)
    with clear_write_errors(final):
        with _removed_on_error(temporary):
            replace_surely(temporary, final)
        sync_directory(final.parent)


def replace_surely(source: Path, final: Path) -> None:
    """Rename, over what is there; OSError only where that has not happened."""
    before = source.lstat()
    try:
        replace(source, final)
    except OSError:
        if not _has_moved(before, source, final):
            raise
    else:
        if not _has_moved(before, source, final):
            raise OSError(errno.EIO, "the rename was reported as done and was not", str(final))


def _has_moved(before: os.stat_result, source: Path, final: Path) -> bool:
    """Whether what was at `source` is at `final` now, by its inode, or by its size and time where a
    file system gives no lasting inodes.
    """
    if os.path.lexists(source) or not os.path.lexists(final):
        return False
    now = final.lstat()
    is_alike = (now.st_size, now.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    return os.path.samestat(before, now) or is_alike


def write_text_atomic(final: Path, text: str, *, tidy: bool = False) -> None:
    """`write_atomic` of UTF-8 text."""
    write_atomic(final, lambda path: _write_text(path, text), tidy=tidy)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def write_directory_atomic(final: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary directory, sync all of it, and rename it to `final`.

    What was at `final` is removed first: a directory cannot be replaced in one step.
    """
    with temporary_directory(final, write) as temporary:
        remove(final)
        replace_surely(temporary, final)
        sync_directory(final.parent)


@contextmanager
def temporary_directory(final: Path, write: Callable[[Path], None]) -> Iterator[Path]:
    """Let `write` fill a directory beside `final` and sync all of it; the block is to rename it.

    Raises `StoreWriteError`, also for an OSError of the block.
    """
    with clear_write_errors(final):
        make_directory(final.parent)
        temporary = temporary_path(final)
        with _removed_on_error(temporary):
            make_directory(temporary)
            fill(temporary, write)
            for path in sorted(temporary.rglob("*")):
                sync_directory(path) if path.is_dir() else sync_file(path)
            sync_directory(temporary)
            yield temporary


@contextmanager
def _removed_on_error(temporary: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with suppress(OSError):  # the first error is the one to tell
            remove(temporary)
        raise


def link_new(source: Path, final: Path) -> bool:
    """Give the finished file the name `final`, which must not exist yet: put-if-absent.

    Returns False, changing nothing, when another file is already there. Whatever the link reports,
    it counts as made when `final` is the same file or has the same content, so an error means that
    it was not made, unless it says that this cannot be told. Call `sync_directory` for durability.
    On a file system without hard links `source` is renamed, which needs the caller to hold a lock.

    Raises `StoreWriteError`.
    """
    with clear_write_errors(final):
        try:
            link(source, final)
        except OSError as error:
            if _is_same(source, final, error):
                return True
            if isinstance(error, FileExistsError):
                return False
            if error.errno not in _NO_HARD_LINKS:
                raise
            if os.path.lexists(final):
                return False
            replace_surely(source, final)
        else:
            if not _is_same(source, final, None):
                raise OSError(errno.EIO, "the link was reported as made and was not", str(final))
    return True


def _is_same(source: Path, final: Path, error: OSError | None) -> bool:
    """Whether `final` is the same file as `source`, or one of the same content; `error` is what
    made that doubtful. `StoreWriteError` where nobody can tell.
    """
    try:
        try:
            there = final.lstat()
        except FileNotFoundError:
            return False
        own = source.lstat()
        if os.path.samestat(own, there):
            return True
        return own.st_size == there.st_size and source.read_bytes() == final.read_bytes()
    except OSError as unclear:
        raise StoreWriteError(
            f"it is unclear whether {final} was made ({error or unclear}), and it cannot be looked "
            f"up now ({unclear}): check the disk and the mount, and run again, which makes nothing "
            "twice"
        ) from unclear


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def num_bytes_below(directory: Path) -> int:
    """Bytes of all files below a directory; files that vanish meanwhile count nothing."""
    total = 0
    for parent, _, names in os.walk(directory):
        for name in names:
            with suppress(OSError):
                total += (Path(parent) / name).lstat().st_size
    return total


def remove_leftovers(directory: Path) -> int:
    """Delete temporary files and directories below `directory` that a killed process left.

    Returns how many.
    """
    leftovers = list(directory.rglob(f"*{TEMPORARY_MARK}*"))
    for path in leftovers:
        remove(path)
    return len(leftovers)
