"""What the daemon of a store does, as its heartbeat file tells, and whether that is well."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Any

from gracekit.documents import read_json
from gracekit.errors import StoreFormatError
from gracekit.foreign import finite_number, foreign, whole_number
from gracekit.process import is_alive
from gracekit.store.files.paths import StorePaths
from gracekit.types import Json

_TEXTS = ("state", "host", "started_at", "checkpoint_dir", "checkpoint", "error", "next_try_at")
_NUMBERS = ("pid", "version", "num_tries", "num_published", "num_skipped")
_AILING = {
    "absent": "no daemon has run on this store",
    "stopped": "the daemon has stopped",
    "dead": "the process of the daemon has ended without saying so",
    "unreadable": "the daemon's heartbeat cannot be read",
    "failing": "the daemon meets errors",
    "stuck": "the work of the daemon hangs",
}


def read_heartbeat(root: Path | str, *, now: float | None = None) -> Json:
    """The heartbeat, and in `seconds_since_beat` how long ago it was.

    `state` is starting, waiting, refreshing, blocked (another process writes), failing (the last
    checkpoint could not be used, or the disk not written), stuck, or stopped, as the daemon says;
    `absent` when no daemon ever ran here; `dead` when its process ended without saying so, which
    can be told only on the host that it ran on; `unreadable` when the file is there and makes no
    sense. What has another type than a daemon writes is left out. A beat from the future, by a
    clock that was set back or another host's, was 0 seconds ago.

    Args:
        root: The store, which need not exist yet.
        now: Seconds since the epoch; default: the clock.
    """
    path = StorePaths(Path(root)).heartbeat
    try:
        with foreign(path, StoreFormatError):
            try:
                beat = read_json(path)
            except FileNotFoundError:
                return {"state": "absent"}
            found = _checked(beat, path)
    except StoreFormatError as error:
        return {"state": "unreadable", "error": str(error)}
    is_here = found.get("host") == socket.gethostname()
    if found["state"] != "stopped" and is_here and "pid" in found:
        found["state"] = found["state"] if is_alive(found["pid"], beat.get("birth")) else "dead"
    now = time.time() if now is None else now
    return found | {"seconds_since_beat": round(max(now - float(beat["unix_time"]), 0.0), 1)}


def _checked(beat: Any, path: Path) -> Json:
    """What a daemon's file tells, as far as it is of the types that a daemon writes."""
    is_beat = isinstance(beat, dict) and isinstance(beat.get("state"), str)
    if not is_beat or finite_number(beat.get("unix_time")) is None:
        raise StoreFormatError(
            f"{path} is no heartbeat: expected an object with state and unix_time; the next "
            "`gracekit watch` writes it anew"
        )
    found: Json = {key: beat[key] for key in _TEXTS if isinstance(beat.get(key), str)}
    found |= {key: beat[key] for key in _NUMBERS if whole_number(beat.get(key)) is not None}
    progress = beat.get("progress")
    if isinstance(progress, dict) and isinstance(progress.get("stage"), str):
        found["progress"] = {
            key: value
            for key, value in progress.items()
            if key == "stage" or finite_number(value) is not None
        }
    return found


def ailment(heartbeat: Json, *, max_age_s: float) -> str | None:
    """Why a daemon is not well, in one line; None: it is. Says only what is certain.

    Args:
        heartbeat: As `read_heartbeat` gives it.
        max_age_s: Seconds without a beat that are too long; there should be one every ten.
    """
    reason = _AILING.get(str(heartbeat.get("state")))
    age_s = heartbeat.get("seconds_since_beat")
    if reason is None and age_s is not None and age_s > max_age_s:
        reason = f"the daemon has given no sign for {age_s:.0f} s (more than {max_age_s:g} s)"
    if reason is None:
        return None
    if "error" in heartbeat:
        reason += f": {heartbeat['error']}"
    if "num_tries" in heartbeat:
        reason += f" (try {heartbeat['num_tries']}, next at {heartbeat.get('next_try_at')})"
    return " ".join(reason.split())
