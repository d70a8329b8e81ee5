"""Where everything lies in a store."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

MANIFEST_NAME = re.compile(r"v(\d{6,})\.(?:parquet|json)")
MANIFESTS = "manifests"
HISTORY_NAME = re.compile(r"version=(\d{6,})")
CACHE_NAME = re.compile(r"v(\d{6,})")
SAMPLES_NAME = re.compile(r"v(\d{6,})\.parquet")
REMOVAL_NAME = re.compile(r"v(\d{6,})\.removed\.json")
PINNED_NAME = re.compile(r"v(\d{6,})\.json")


@dataclass(frozen=True, slots=True)
class StorePaths:
    """Every path of a store, by what it holds. Nothing is opened or created here."""

    root: Path

    def __post_init__(self) -> None:
        # A store outlives a change of directory; `..` and links are resolved for DuckDB's checks.
        object.__setattr__(self, "root", Path(os.path.realpath(self.root)))

    @property
    def info(self) -> Path:
        """`store.json`; its presence makes the directory a store."""
        return self.root / "store.json"

    @property
    def samples(self) -> Path:
        """The sample table that the store was made with."""
        return self.root / "samples.parquet"

    @property
    def changed_samples(self) -> Path:
        """Directory of the sample tables of versions that met changed data."""
        return self.root / "samples"

    def samples_of(self, version: int) -> Path:
        """The sample table of a version that met changed data; later ones go on with it."""
        return self.changed_samples / f"v{version:06d}.parquet"

    @property
    def history(self) -> Path:
        """Directory of the score history, one hive partition a version."""
        return self.root / "history"

    def history_of(self, version: int) -> Path:
        """Directory of one version's history."""
        return self.history / f"version={version:06d}"

    def measured(self, version: int) -> Path:
        """What was measured at a version; absent after a reselect."""
        return self.history_of(version) / "measured.parquet"

    def scores(self, version: int) -> Path:
        """All rows' scores at a version; absent after a reselect."""
        return self.history_of(version) / "scores.parquet"

    @property
    def manifests(self) -> Path:
        """Directory of the manifests and their sidecars."""
        return self.root / MANIFESTS

    def manifest(self, version: int) -> Path:
        """The coreset of a version; its presence makes the version."""
        return self.manifests / manifest_name(version)

    def sidecar(self, version: int) -> Path:
        """The manifest's header as JSON."""
        return self.manifests / f"v{version:06d}.json"

    def removal(self, version: int) -> Path:
        """The record that gc removed a version; beside the manifests, so a copy of them tells."""
        return self.manifests / f"v{version:06d}.removed.json"

    @property
    def pinned(self) -> Path:
        """Directory of the markers of versions that gc never removes."""
        return self.root / "pinned"

    def pinned_marker(self, version: int) -> Path:
        """Its presence pins the version."""
        return self.pinned / f"v{version:06d}.json"

    @property
    def leases(self) -> Path:
        """Directory of what running trainers say they draw from."""
        return self.root / "leases"

    @property
    def latest(self) -> Path:
        """A hint: the number of the latest version."""
        return self.root / "LATEST"

    @property
    def database(self) -> Path:
        """The published DuckDB file."""
        return self.root / "scores.duckdb"

    @property
    def cache(self) -> Path:
        """What can be rebuilt: features and index by version, tokens."""
        return self.root / "cache"

    def cache_of(self, version: int) -> Path:
        """Features and index of a version."""
        return self.cache / f"v{version:06d}"

    @property
    def pins(self) -> Path:
        """Hard links to the checkpoint being read."""
        return self.root / "pins"

    @property
    def shards(self) -> Path:
        """Finished shards of refreshes in progress."""
        return self.root / "shards"

    def shards_of(self, measure_id: str) -> Path:
        """Shards of one measurement."""
        assert re.fullmatch(r"[\w-]+", measure_id), f"{measure_id!r} is no plain name"
        return self.shards / measure_id

    @property
    def lock(self) -> Path:
        """Held by the process that writes."""
        return self.root / ".lock"

    @property
    def daemon_lock(self) -> Path:
        """Held by the daemon for as long as it runs."""
        return self.root / ".daemon.lock"

    def holder_of(self, lock: Path) -> Path:
        """Who holds a lock, as JSON; beside it because taking a lock may truncate its file."""
        return lock.with_name(f"{lock.name}.json")

    @property
    def heartbeat(self) -> Path:
        """What the daemon does, as JSON."""
        return self.root / "heartbeat.json"

    def relative(self, path: Path) -> str:
        """A path below the store as it is written into headers."""
        return path.relative_to(self.root).as_posix()


def manifest_name(version: int) -> str:
    """File name of a version's manifest."""
    return f"v{version:06d}.parquet"


def versions_in(directory: Path, pattern: re.Pattern[str], ending: str = "") -> list[int]:
    """`numbered` without the paths, ascending: there may be thousands at each commit."""
    try:
        names = os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []
    matches = (pattern.fullmatch(name) for name in names if name.endswith(ending))
    return sorted(int(match[1]) for match in matches if match)


def numbered(directory: Path, pattern: re.Pattern[str]) -> dict[Path, int]:
    """Entries of a directory whose whole name matches, with the version in the name."""
    if not directory.is_dir():
        return {}
    matches = {path: pattern.fullmatch(path.name) for path in sorted(directory.iterdir())}
    return {path: int(match[1]) for path, match in matches.items() if match}
