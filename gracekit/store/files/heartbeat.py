"""What the daemon of a store does, as its heartbeat file tells, and whether that is well."""

from __future__ import annotations

import socket
import time
from pathlib import Path

from gracekit.files import read_json
from gracekit.store.files.lock import is_alive
from gracekit.store.files.paths import StorePaths
from gracekit.types import Json

_TOLD = (
    "state", "pid", "host", "started_at", "checkpoint_dir", "checkpoint", "version", "error",
    "num_tries", "next_try_at", "num_published", "num_skipped", "progress",
)  # fmt: skip
_AILING = {
    "absent": "no daemon has run on this store",
    "stopped": "the daemon has stopped",
    "dead": "the process of the daemon has ended without saying so",
    "failing": "the daemon meets errors",
    "stuck": "the work of the daemon hangs",
}


def read_heartbeat(root: Path | str, *, now: float | None = None) -> Json:
    """The heartbeat, and in `seconds_since_beat` how long ago it was.

    `state` is starting, waiting, refreshing, blocked (another process writes), failing (the last
    checkpoint could not be used, or the disk not written), stuck, or stopped, as the daemon says;
    `absent` when no daemon ever ran here; `dead` when its process ended without saying so, which
    can be told only on the host that it ran on.

    Args:
        root: The store, which need not exist yet.
        now: Seconds since the epoch; default: the clock.
    """
    try:
        beat = read_json(StorePaths(Path(root)).heartbeat)
        last = float(beat["unix_time"])
    except (OSError, ValueError, KeyError, TypeError):
        return {"state": "absent"}
    found: Json = {key: beat[key] for key in _TOLD if key in beat}
    pid, is_here = found.get("pid"), found.get("host") == socket.gethostname()
    if found.get("state") != "stopped" and is_here and isinstance(pid, int) and not is_alive(pid):
        found["state"] = "dead"
    now = time.time() if now is None else now
    return found | {"seconds_since_beat": round(max(now - last, 0.0), 1)}


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
        reason += f" (try {heartbeat['num_tries']}, next at {heartbeat['next_try_at']})"
    return " ".join(reason.split())
