"""What `gracekit verify` tells: a problem, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gracekit.store.files.formats import UnreadableError
from gracekit.store.reader import StoreReader

RESTORE = "restore it from a backup; other versions are not affected"
RESTORE_ALL = "restore the whole store from one backup"
RECOVER = "the next `gracekit watch` or `gracekit refresh` repairs it"
LOOK = "see that it can be read and verify again: it need not be damaged"


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something wrong in a store."""

    path: str
    """Relative to the store."""
    what: str
    advice: str


def problem(store: StoreReader, path: Path, what: str, advice: str) -> Problem:
    """A problem with a file of the store."""
    return Problem(path=store.paths.relative(path), what=what, advice=advice)


def told(store: StoreReader, path: Path, error: Exception, advice: str = RESTORE) -> Problem:
    """The problem that an error tells of; `advice` is for what is damaged."""
    return problem(store, path, str(error), LOOK if isinstance(error, UnreadableError) else advice)
