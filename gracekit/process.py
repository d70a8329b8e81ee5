"""Whether a process that a file names still runs, and is the same one.

The number of a process is given again to another one, after a reboot soon. On Linux each process
has a birth besides: the boot that it belongs to, the container that its number counts in, and the
clock ticks from the one to the process.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

_HIGHEST_PID = 2**31 - 1
_START = 19
"""Place of the start among what stands behind the name in /proc/PID/stat, see proc(5)."""


def is_alive(pid: Any, birth: Any = None) -> bool:
    """Whether the process runs on this host; True where that cannot be told.

    Args:
        pid: Its number, as a file has it; what cannot be one is not alive.
        birth: As `birth_of` gave it when the file was written; with it a later process that was
            given the same number is told from it.
    """
    if not isinstance(pid, int) or isinstance(pid, bool) or not 0 < pid <= _HIGHEST_PID:
        return False
    then = birth.split() if isinstance(birth, str) else []
    if len(then) == 3 and then[1] != pid_namespace():
        return True  # its number counts in another container
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return len(then) != 3 or birth_of(pid) in (None, birth)


def birth_of(pid: int) -> str | None:
    """What tells a process from all that have or had its number here; None: unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    facts = status.rpartition(")")[2].split()  # the name, in brackets, may hold anything
    return f"{boot} {pid_namespace()} {facts[_START]}" if len(facts) > _START else None


def is_of_this_boot(birth: Any) -> bool:
    """Whether a process of this birth ran since this host was started; True where that is unknown.

    Hosts may have the same name; no two boots have the same id.
    """
    then = birth.split() if isinstance(birth, str) else []
    own = (birth_of(os.getpid()) or "").split()
    return len(then) != 3 or len(own) != 3 or then[0] == own[0]


def pid_namespace() -> str:
    """Where this process's number counts: containers of one host may share its name."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""
