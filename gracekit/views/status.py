"""`gracekit status`: what the store holds, how far to trust it, and what the daemon does."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from gracekit.store import StorePaths, StoreReader, ailment
from gracekit.tabular import html_table
from gracekit.types import Json
from gracekit.views.status_words import contents_in_words, daemon_in_words, next_step
from gracekit.views.store_contents import LatestVersion, StoreContents, contents_of


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Status:
    """What a store holds, how fresh it is, how far to trust it, and what the daemon does."""

    store: str
    contents: StoreContents | None
    """None where a daemon waits for the first checkpoint: it makes no store before that."""
    daemon: Json
    """The daemon's heartbeat; at least `state`."""

    @property
    def latest(self) -> LatestVersion | None:
        """The newest version; None where there is none yet."""
        return None if self.contents is None else self.contents.latest

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong, as far as can be seen without reading every file."""
        return () if self.contents is None else self.contents.problems

    @property
    def doing(self) -> str:
        """What the daemon does now, for people."""
        return daemon_in_words(self.daemon)

    def sentences(self) -> list[str]:
        """The same for people, a paragraph an entry; the last one says what to do next."""
        return [
            *contents_in_words(self.store, self.contents),
            *(f"Problem: {problem}." for problem in self.problems),
            self.doing,
            f"Next: {next_step(self.store, self.contents, self.daemon)}",
        ]

    def to_json(self) -> Json:
        """As a JSON object."""
        contents, latest = self.contents, self.latest
        if contents is None:
            return {"store": self.store, "num_versions": 0, "daemon": self.daemon}
        found: Json = {
            "store": self.store,
            "data": contents.data,
            "num_samples": contents.num_samples,
            "num_removed_samples": contents.num_removed_samples,
            "num_skipped_rows": contents.num_skipped_rows,
            "num_unrendered": contents.num_unrendered,
            "num_versions": contents.num_versions,
            "num_removed_versions": contents.num_removed_versions,
            "held_versions": {str(v): why for v, why in contents.held_versions.items()},
            "latest_version": latest and latest.version,
        }
        if latest is not None:
            found |= {
                "operation": latest.operation,
                "step": latest.step,
                "created_at": latest.created_at,
                "age_s": latest.age_s,
                "num_selected": latest.num_selected,
                "num_measured": latest.num_measured,
                "data_changes": latest.data_changes,
                "scores": latest.origins,
                "audit": latest.audit,
                "worth": list(latest.worth),
                "trust": list(latest.trust),
            }
        return found | {
            "daemon": self.daemon,
            "uses": contents.uses,
            "num_unfinished_shards": contents.num_unfinished_shards,
            "size_bytes": contents.size_bytes,
            "published": contents.published and asdict(contents.published),
            "problems": list(contents.problems),
        }

    def __repr__(self) -> str:
        if self.contents is None:
            return f"Status({self.store!r}: no store yet, daemon {self.daemon.get('state')})"
        latest = self.latest
        newest = (
            "no version yet"
            if latest is None
            else (f"version {latest.version} of step {latest.step}")
        )
        return (
            f"Status({self.store!r}: {newest}, {self.contents.num_samples:,} samples, daemon "
            f"{self.daemon.get('state')}, {len(self.problems)} problems)"
        )

    def __str__(self) -> str:
        return "\n".join(self.sentences())

    def _repr_html_(self) -> str:
        return html_table(["Status"], [[sentence] for sentence in self.sentences()])


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """Whether the daemon of a store is well."""

    is_healthy: bool
    reason: str | None
    """Why it is not; None: it is."""
    daemon: Json
    """Its heartbeat; at least `state`."""

    def to_json(self) -> Json:
        """As a JSON object."""
        return {"healthy": self.is_healthy, "reason": self.reason, "daemon": self.daemon}


def health(heartbeat: Json, *, max_age_s: float) -> Health:
    """Whether the daemon is well, by its heartbeat.

    Args:
        heartbeat: As `read_heartbeat` gives it.
        max_age_s: Seconds without a sign of the daemon that are too long.
    """
    reason = ailment(heartbeat, max_age_s=max_age_s)
    return Health(is_healthy=reason is None, reason=reason, daemon=heartbeat)


def status(root: Path, store: StoreReader | None, heartbeat: Json, *, now: float) -> Status:
    """The status of a store.

    Args:
        root: Its directory.
        store: The store; None where a daemon waits and has made none yet.
        heartbeat: What `read_heartbeat` tells of the daemon.
        now: Seconds since the epoch.

    Raises:
        StoreError: The store is damaged.
    """
    if store is None:
        return Status(store=str(StorePaths(root).root), contents=None, daemon=heartbeat)
    return Status(store=str(store.paths.root), contents=contents_of(store, now), daemon=heartbeat)
