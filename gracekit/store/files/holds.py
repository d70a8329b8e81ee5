"""Which versions someone keeps from gc: pinned ones, and those that a trainer draws from."""

from __future__ import annotations

from gracekit.store.files.leases import followed
from gracekit.store.files.paths import StorePaths
from gracekit.store.files.pinned import pinned


def held_versions(paths: StorePaths) -> dict[int, str]:
    """Versions that someone keeps from gc, and who that is, in words."""
    pins = {v: f"pinned: {p.note}" if p.note else "pinned" for v, p in pinned(paths).items()}
    trained = {version: f"{who} trains on it" for version, who in followed(paths).items()}
    return {**trained, **pins}
