"""Which versions someone keeps from gc: pinned ones, and those that a trainer draws from."""

from __future__ import annotations

from gracekit.errors import StoreFormatError
from gracekit.store.files.formats import unreadable
from gracekit.store.files.leases import followed, followers
from gracekit.store.files.paths import StorePaths
from gracekit.store.files.pinned import pinned


def held_versions(paths: StorePaths) -> dict[int, str]:
    """Versions that someone keeps from gc, and who that is, in words; without those of leases that
    cannot be read.

    Raises `UnreadableError` where the pins cannot be listed.
    """
    try:
        pins = {v: f"pinned: {p.note}" if p.note else "pinned" for v, p in pinned(paths).items()}
    except OSError as error:
        raise unreadable(paths.pinned, error) or error from None
    trained = {version: f"{who} trains on it" for version, who in followed(paths).items()}
    return {**trained, **pins}


def all_held_versions(paths: StorePaths) -> dict[int, str]:
    """The same for whoever removes the others: `UnreadableError` where a lease cannot be read, for
    it may hold any.
    """
    held = held_versions(paths)
    if (obstacle := obstacle_of(paths)) is not None:
        raise obstacle
    return held


def obstacle_of(paths: StorePaths) -> StoreFormatError | None:
    """Why it cannot be told which versions trainers hold, so that gc removes none; None: it can."""
    obstacles = (lease.obstacle for lease in followers(paths) if lease.holds)
    return next((obstacle for obstacle in obstacles if obstacle is not None), None)
