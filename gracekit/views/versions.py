"""`gracekit versions`: one record per version, read from the store."""

from __future__ import annotations

from pathlib import Path

from gracekit.store import StoreReader, version_row
from gracekit.types import Json


def versions_table(root: Path | str) -> list[Json]:
    """One record per version, ascending, also of those that gc removed.

    Keys: those of `store.summary.version_row`, and measured_percent, churn_percent, state (why gc
    leaves it, or when it was removed; None: nothing of both), removed_at.
    """
    store = StoreReader.open(root)
    removed, held = store.removed(), store.held_versions()
    state = {**held, **{v: f"removed {when[:10]}" for v, when in removed.items()}}
    rows = [version_row(store.header(version)) for version in store.all_versions()]
    return [
        {
            **row,
            "measured_percent": _percent(row["measured_fraction"]),
            "churn_percent": _percent(row["churn"]),
            "state": state.get(row["version"]),
            "removed_at": removed.get(row["version"]),
        }
        for row in rows
    ]


def _percent(share: float | None) -> float | None:
    return None if share is None else round(100 * share, 2)
