"""`pin` and `unpin`: versions that gc never removes.

Pinning needs no lock, so it works while a daemon writes. The order of steps decides between a pin
and a gc at the same moment: a pin writes its marker and then looks for a removal record; gc writes
the record and then looks for a marker. At least one of them sees the other, and a version that both
touched is kept. No migration may run meanwhile (`Store.pin`), for it writes the markers anew.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from gracekit import files
from gracekit.errors import StoreWriteError
from gracekit.store.files.pinned import Pinned
from gracekit.store.files.sealing import sealed_json
from gracekit.store.reader import StoreReader
from gracekit.version.json_text import clean_text

_NUM_TRIES = 5


def pin(store: StoreReader, version: int, note: str = "") -> Pinned:
    """Keep a version from gc until `unpin`; a pinned one gets the new note.

    Raises:
        VersionNotFoundError: There is no such version, or gc removed it.
        StoreWriteError: The marker cannot be written.
    """
    store.require_kept(version)
    now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    marker = store.paths.pinned_marker(version)
    text = sealed_json({"note": clean_text(note), "pinned_at": now})
    was_pinned = marker.exists()

    def write(path: Path) -> None:
        path.write_text(text, encoding="utf-8")

    try:
        _write_whole(marker, write)
        store.require_kept(version)
    except Exception:
        if not was_pinned:
            with suppress(OSError):
                files.remove(marker)
        raise
    return Pinned(version=version, note=note, pinned_at=now)


def _write_whole(marker: Path, write: Callable[[Path], None]) -> None:
    """Old or new, whatever comes between. Without the lock a start-up may clear the temporary file
    away; then it is written again.
    """
    for _ in range(_NUM_TRIES - 1):
        try:
            return files.write_atomic(marker, write)
        except StoreWriteError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
    return files.write_atomic(marker, write)


def unpin(store: StoreReader, version: int) -> bool:
    """Leave a version to gc again; False when it was not pinned. Raises `StoreWriteError`."""
    marker = store.paths.pinned_marker(version)
    if not marker.exists():
        return False
    with files.clear_write_errors(marker):
        files.remove(marker)
        files.sync_directory(marker.parent)
    return True
