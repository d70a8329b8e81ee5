"""Where everything lies in a store, and where stores of older formats keep it.

Formats 1 and 2 kept the history's two tables together in `history/version=000012/`, and the JSON
of headers and removal records beside the manifests. Such a store is read as it is until the next
writer migrates it: names in headers are mapped to the present ones when they are read
(`present_name`), and a file that is not where it should be is looked for in the old place
(`StorePaths.find`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from gracekit.errors import StoreFormatError

Content = TypeVar("Content")

TABLE_NAME = re.compile(r"v(\d{6,})\.parquet")
"""A manifest, or the sample table of a version that met changed data."""
JSON_NAME = re.compile(r"v(\d{6,})\.json")
"""A header beside its manifest, a removal record, or the marker of a pinned version."""
PARTITION_NAME = re.compile(r"version=(\d{6,})")
CACHE_NAME = re.compile(r"v(\d{6,})")
OLD_REMOVAL_NAME = re.compile(r"v(\d{6,})\.removed\.json")
"""A removal record of formats 1 and 2, in `manifests/`."""
_OLD_HISTORY = re.compile(r"history/(version=\d{6,})/(scores|measured)\.parquet")
_HISTORY = re.compile(
    r"(?:score_history|measurements)/(version=\d{6,}/(?:scores|measured)\.parquet)"
)
_TABLE_OF = {"scores": "score_history", "measured": "measurements"}


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
    def score_history(self) -> Path:
        """Directory of all rows' scores, a hive partition for each version that made its own."""
        return self.root / "score_history"

    def scores(self, version: int) -> Path:
        """All rows' scores at a version; absent after a reselect or rollback."""
        return self.score_history / f"version={version:06d}" / "scores.parquet"

    @property
    def measurements(self) -> Path:
        """Directory of what was measured, a hive partition for each version that measured."""
        return self.root / "measurements"

    def measured(self, version: int) -> Path:
        """What was measured at a version; absent after a reselect or rollback."""
        return self.measurements / f"version={version:06d}" / "measured.parquet"

    @property
    def draws(self) -> Path:
        """Directory of how each version was drawn, a hive partition for each."""
        return self.root / "draws"

    def draw(self, version: int) -> Path:
        """Probabilities and uses of all rows; versions of older releases have none."""
        return self.draws / f"version={version:06d}" / "draw.parquet"

    def places(self, version: int) -> Path:
        """What a version was to be trained on, beside how it was drawn."""
        return self.draw(version).with_name("places.parquet")

    @property
    def uses(self) -> Path:
        """Directory of what trainers log of the rows that they trained on, a directory a run."""
        return self.root / "uses"

    @property
    def manifests(self) -> Path:
        """Directory of the manifests; since format 3 it holds nothing else."""
        return self.root / "manifests"

    def manifest(self, version: int) -> Path:
        """The coreset of a version, its header in the metadata; its presence makes the version."""
        return self.manifests / f"v{version:06d}.parquet"

    @property
    def headers(self) -> Path:
        """Directory of the manifests' headers as JSON."""
        return self.root / "headers"

    def sidecar(self, version: int) -> Path:
        """The manifest's header as JSON."""
        return self.headers / f"v{version:06d}.json"

    @property
    def removals(self) -> Path:
        """Directory of the records of removed versions."""
        return self.root / "removed"

    def removal(self, version: int) -> Path:
        """The record that gc removed a version."""
        return self.removals / f"v{version:06d}.json"

    @property
    def old_history(self) -> Path:
        """Formats 1 and 2: directory of both tables of the history."""
        return self.root / "history"

    def find(self, path: Path) -> Path:
        """Where a path of the present format lies: there, or in the place of older formats.

        Where it is in neither, the path itself.
        """
        if is_there(path):
            return path
        old = self._old_place(path)
        return old if old is not None and is_there(old) else path

    def read(self, path: Path, read: Callable[[Path], Content]) -> Content:
        """What `read` makes of a path of the present format, wherever it lies.

        A migration may move the file between looking and reading: then it is read in its new place.
        """
        place = self.find(path)
        try:
            return read(place)
        except (OSError, StoreFormatError):
            again = self.find(path)
            if again == place:
                raise
            return read(again)

    def _old_place(self, path: Path) -> Path | None:
        """Where formats 1 and 2 kept what has this path now; None where that is the same."""
        if path.parent == self.headers:
            return self.manifests / path.name
        if path.parent == self.removals:
            return self.manifests / f"{path.stem}.removed.json"
        found = _HISTORY.fullmatch(self.relative(path))
        return self.old_history / found[1] if found else None

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
    def published(self) -> Path:
        """Where the versions are published besides, and how the last try went, as JSON."""
        return self.root / "published.json"

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

    @property
    def trackers(self) -> Path:
        """A directory for each experiment tracker: what its run has, and its own files."""
        return self.root / "trackers"

    def relative(self, path: Path) -> str:
        """A path below the store as it is written into headers."""
        return path.relative_to(self.root).as_posix()


def is_there(path: Path) -> bool:
    """Whether there is something that can be seen; who reads it is told why it cannot be."""
    try:
        return path.exists()
    except OSError:
        return False


def present_name(name: str) -> str:
    """The path, relative to the store, of a file that a header of any format names."""
    found = _OLD_HISTORY.fullmatch(name)
    return f"{_TABLE_OF[found[2]]}/{found[1]}/{found[2]}.parquet" if found else name


def numbers_in(names: Iterable[str], pattern: re.Pattern[str]) -> list[int]:
    """The versions in those names that match as a whole, ascending."""
    matches = (pattern.fullmatch(name) for name in names)
    return sorted(int(match[1]) for match in matches if match)


def names_in(directory: Path) -> list[str]:
    """Names of the entries of a directory; none where there is no such directory."""
    try:
        return os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []


def numbered(directory: Path, pattern: re.Pattern[str]) -> dict[Path, int]:
    """Entries of a directory whose whole name matches, ascending -> the version in the name."""
    matches = {name: pattern.fullmatch(name) for name in sorted(names_in(directory))}
    return {directory / name: int(match[1]) for name, match in matches.items() if match}
