"""LLaMA-Factory's `dataset_info.json` beside an export, where the export is entered.

The file may hold datasets of others, and several exports may go into one folder at once: each
change is read, made and put in place under a lock, and what is not ours stays as it is.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from gracekit import files
from gracekit.documents import read_json
from gracekit.errors import ExportError, StoreWriteError
from gracekit.foreign import reason_of
from gracekit.types import Json

DATASET_INFO = "dataset_info.json"
_WAIT_S = 30.0
"""Seconds for which an export waits for others, which take milliseconds."""
_LOOK_S = 0.01


@contextmanager
def entered(out: Path, *, is_asked: bool) -> Iterator[None]:
    """The block puts an export into its place, or leaves the earlier one there.

    What is there then is entered in the parent's `dataset_info.json`, where there is one. Within
    the block no entry is there, so that a kill leaves none that points to nothing or tells the
    columns of other rows. Exports of other formats than this are left out of it, but for the entry
    of the earlier export that they replace.

    Args:
        out: The place.
        is_asked: Whether it is an export in this format.

    Raises:
        ExportError: The file is not ours to write to, or cannot be written; the message tells
            whether the export is in its place.
    """
    if not is_asked and not (out / DATASET_INFO).is_file():
        yield
        return
    shared = out.parent / DATASET_INFO
    files.remove_left_files(shared)
    try:
        with (
            suppress(ExportError),
            _alone(shared),
        ):  # of what is no such file; the format refuses it
            known = known_datasets(shared, out.name) if shared.exists() else {}
            if known.pop(out.name, None) is not None:
                files.write_text_atomic(shared, dump(known))
        yield
    except BaseException:
        with suppress(ExportError):
            enter(out)
        raise
    enter(out)


def enter(out: Path) -> None:
    """Enter a finished export in the parent's `dataset_info.json`, unless there is none.

    Raises `ExportError`. An export of another format is not entered.
    """
    own, shared = out / DATASET_INFO, out.parent / DATASET_INFO
    if not own.is_file() or not shared.exists():
        return
    files.remove_left_files(shared)
    try:
        found = read_json(own)[out.name]
        entry = {**found, "file_name": f"{out.name}/{found['file_name']}"}
    except (OSError, ValueError, KeyError, TypeError):  # it was renamed, or is no file of ours
        return
    try:
        with _alone(shared):
            known = known_datasets(shared, out.name)
            if known.get(out.name) != entry:
                files.write_text_atomic(shared, dump({**known, out.name: entry}))
    except (ExportError, StoreWriteError) as error:
        raise ExportError(
            f"{out} is written, but not entered in {shared}: {error}. Then export again with "
            "--force, or use the export itself as dataset_dir"
        ) from error


@contextmanager
def _alone(shared: Path) -> Iterator[None]:
    """Be the only export that changes a file, which is read and replaced meanwhile.

    What is locked is the file itself, so that nothing else has to lie beside it: whoever got the
    lock of one that was replaced by then takes that of its successor. On a file system without
    such locks (`flock`) exports go on without.

    Raises `ExportError` where another process holds it for `_WAIT_S`.
    """
    deadline = time.monotonic() + _WAIT_S
    with ExitStack() as opened:
        while (held := _open(shared)) is not None:
            opened.callback(os.close, held)
            if _lock(held, shared, deadline) and not _is(shared, held):
                opened.close()  # it was replaced meanwhile
                continue
            break
        yield


def _open(shared: Path) -> int | None:
    """For writing where that is allowed: NFS locks no other; None where it cannot be opened."""
    for flags in (os.O_RDWR, os.O_RDONLY):
        with suppress(OSError):
            return os.open(shared, flags | os.O_NONBLOCK | os.O_CLOEXEC)
    return None


def _lock(held: int, shared: Path, deadline: float) -> bool:
    """Whether it is locked now; False where nothing can be."""
    while True:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise ExportError(
                    f"another process has held {shared} for {_WAIT_S:.0f} s; end it, or wait for it"
                ) from None
            time.sleep(_LOOK_S)
        except OSError:
            return False
        else:
            return True


def _is(shared: Path, held: int) -> bool:
    try:
        return os.path.samestat(os.stat(shared), os.fstat(held))
    except OSError:  # it is gone
        return True


def known_datasets(shared: Path, name: str) -> Json:
    """What a `dataset_info.json` holds; `ExportError` where we must not write to it."""
    try:
        known = read_json(shared)
        dump(known).encode()  # JSON can hold what no file of UTF-8 can
    except OSError as error:
        raise ExportError(
            f"cannot read {shared}, where the export is to be entered: {reason_of(error)}; correct "
            "it, or export to a directory elsewhere"
        ) from None
    except (ValueError, RecursionError) as error:
        raise ExportError(
            f"{shared} is not valid JSON ({reason_of(error)}), so the export cannot be entered "
            "there; correct it, or export to a directory elsewhere"
        ) from None
    if not isinstance(known, dict):
        raise ExportError(f"{shared} should hold one JSON object; correct it, or export elsewhere")
    present = known.get(name, {})
    is_ours = isinstance(present, dict) and str(present.get("file_name", "")).startswith(f"{name}/")
    if present and not is_ours:
        raise ExportError(
            f"{shared} already has a dataset {name!r} with other data; name the export otherwise"
        )
    return known


def dump(value: Json) -> str:
    """The text of such a file."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
