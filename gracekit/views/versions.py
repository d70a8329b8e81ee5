"""`gracekit versions`: one record per version, read from the store."""

from __future__ import annotations

from pathlib import Path

from gracekit.store import Store
from gracekit.store.retention import held_versions
from gracekit.types import Json
from gracekit.version.columns import version_record
from gracekit.version.sources import ListedVersion


def versions_table(root: Path | str) -> list[Json]:
    """One record per version, ascending, also of those that gc removed.

    Keys: the columns of the table `versions` without the header itself, and measured_percent,
    churn_percent, state (why gc leaves it, or when it was removed; None: nothing of both).
    """
    store = Store.open(root)
    removed, held = store.removed(), held_versions(store)
    state = {**held, **{v: f"removed {when[:10]}" for v, when in removed.items()}}
    rows = [
        version_record(ListedVersion(store.header(version), removed.get(version)))
        for version in store.all_versions()
    ]
    return [
        {
            **row,
            "measured_percent": _percent(row["measured_fraction"]),
            "churn_percent": _percent(row["churn"]),
            "state": state.get(row["version"]),
        }
        for row in rows
    ]


def _percent(share: float | None) -> float | None:
    return None if share is None else round(100 * share, 2)
