"""`gracekit versions`: one record per version, read from the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gracekit.store import StoreReader
from gracekit.tabular import Records, html_table
from gracekit.types import Json
from gracekit.version.columns import version_record
from gracekit.version.header import Header
from gracekit.version.sources import ListedVersion


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionRecord:
    """One version, kept or removed."""

    header: Header
    state: str | None
    """Why gc leaves it, or when it was removed; None: neither."""
    removed_at: str | None
    """When gc removed it (UTC, RFC 3339); None: it did not."""

    @property
    def version(self) -> int:
        """Its number."""
        return self.header.version

    def to_json(self) -> Json:
        """The columns of the table `versions`, and measured_percent, churn_percent, state,
        removed_at.
        """
        row = version_record(ListedVersion(self.header, self.removed_at))
        return {
            **row,
            "measured_percent": _percent(row["measured_fraction"]),
            "churn_percent": _percent(row["churn"]),
            "state": self.state,
            "removed_at": self.removed_at,
        }


class Versions(Records[VersionRecord]):
    """All versions of a store, ascending, also those that gc removed."""

    __slots__ = ()
    row_type = VersionRecord

    def to_json(self) -> list[Json]:
        """One JSON object a version."""
        return [record.to_json() for record in self]

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        records = self.to_json()
        return {name: [r[name] for r in records] for name in (records[0] if records else ())}

    def _repr_html_(self) -> str:
        records = self.to_json()[-_MOST_SHOWN:]
        rows = [[record[name] for name in _SHOWN] for record in records]
        return html_table([name.replace("_", " ") for name in _SHOWN], rows)

    def __repr__(self) -> str:
        if not self:
            return "Versions: none yet"
        last = self[-1].to_json()
        shown = ", ".join(f"{name} {last[name]}" for name in _SHOWN[1:5] if last[name] is not None)
        return f"Versions: {self[0].version} to {self[-1].version}; the newest: {shown}"


_MOST_SHOWN = 50
"""Versions that a notebook shows, the newest ones."""
_SHOWN = (
    "version", "operation", "step", "num_selected", "measured_percent", "value",
    "value_kept", "rank_correlation", "churn_percent", "total_s", "state",
)  # fmt: skip


def versions(store: StoreReader) -> Versions:
    """The versions of a store, ascending, also those that gc removed."""
    with store.keeping_headers():
        removed, held = store.removed(), store.held_versions()
        state = {**held, **{v: f"removed {when[:10]}" for v, when in removed.items()}}
        return Versions(
            VersionRecord(
                header=store.header(version),
                state=state.get(version),
                removed_at=removed.get(version),
            )
            for version in store.all_versions()
        )


def _percent(share: float | None) -> float | None:
    return None if share is None else round(100 * share, 2)
