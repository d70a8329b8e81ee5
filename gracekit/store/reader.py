"""`StoreReader`: everything that can be read of a store, without a lock.

A reader works on one snapshot of the versions (see `Snapshot`). It is taken at the first question
and held until `renew`: what another process commits meanwhile is not seen before that.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

import pyarrow as pa

from gracekit.errors import StoreFormatError, VersionNotFoundError
from gracekit.scores.rows import scores_for
from gracekit.store.files.cache import StoreCache, load_cache
from gracekit.store.files.draws import read_draw
from gracekit.store.files.history import read_scores
from gracekit.store.files.holds import held_versions, obstacle_of
from gracekit.store.files.info import StoreInfo
from gracekit.store.files.manifest_reading import require_manifest
from gracekit.store.files.manifests import read_coreset, read_header
from gracekit.store.files.parquet import count_rows, is_sealed, read_table
from gracekit.store.files.paths import StorePaths
from gracekit.store.files.places import read_places
from gracekit.store.files.removals import Removal, read_removal
from gracekit.store.files.samples import read_samples
from gracekit.store.files.shards import count_shards
from gracekit.store.snapshot import Snapshot, stamp_of, take_snapshot
from gracekit.store.version_argument import VersionArgument, version_number
from gracekit.store.version_facts import KnownFacts, Stamp, VersionFacts
from gracekit.tabular import read_only
from gracekit.types import Origin, Places, SampleTable, ScoreTable
from gracekit.version.header import DatasetInfo, Header
from gracekit.version.sources import DrawnRows

_NUM_HEADERS = 256
"""Headers and removal records that a reader keeps in memory, about 30 KiB each."""

_Content = TypeVar("_Content")


class StoreReader:
    """A store, open for reading."""

    def __init__(self, paths: StorePaths, info: StoreInfo, facts: KnownFacts | None = None) -> None:
        self.paths = paths
        self.info = info
        self._facts: KnownFacts = {} if facts is None else facts
        self._headers: dict[Path, tuple[Stamp | None, Any]] = {}
        self._num_headers = _NUM_HEADERS
        self._samples: tuple[Path, SampleTable] | None = None
        self._snapshot: Snapshot | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.paths.root)!r})"

    @staticmethod
    def exists(root: Path | str) -> bool:
        """Whether there is a store."""
        return StorePaths(Path(root)).info.is_file()

    @classmethod
    def open(cls, root: Path | str, *, facts: KnownFacts | None = None) -> Self:
        """Open an existing store.

        Args:
            root: Its directory.
            facts: What an earlier reader of the same directory read; it is added to. Who opens a
                store again and again hands it on, so that no header is read again.

        Raises:
            StoreNotFoundError: There is none.
            StoreFormatError: It is damaged, or of a newer gracekit.
        """
        paths = StorePaths(Path(root))
        return cls(paths, StoreInfo.load(paths.info), facts)

    # --- which versions there are ---

    def look(self) -> Snapshot:
        """The snapshot that is held, taken now if there is none yet.

        Unlike `snapshot` it also shows a store in which a newer gracekit wrote something.
        """
        if self._snapshot is None:
            self._snapshot = take_snapshot(
                self.paths, self._facts, self._header_of_manifest, self._removal
            )
        return self._snapshot

    @property
    def snapshot(self) -> Snapshot:
        """The snapshot that is held, taken now if there is none yet.

        Raises `StoreFormatError` where a newer gracekit wrote one of the versions.
        """
        snapshot = self.look()
        if snapshot.newer is not None:
            raise snapshot.newer
        return snapshot

    @contextmanager
    def keeping_headers(self) -> Iterator[None]:
        """In the block, no header is read twice, however many there are.

        For who takes those of all versions: the snapshot has to read them as well.
        """
        self._num_headers = sys.maxsize
        try:
            yield
        finally:
            self._num_headers = _NUM_HEADERS
            for path in list(self._headers)[:-_NUM_HEADERS]:
                del self._headers[path]

    def renew(self) -> Self:
        """Forget the snapshot, so that the next question sees the store as it is then."""
        self._snapshot = None
        return self

    def versions(self) -> list[int]:
        """Versions that verify, ascending; see `Snapshot.kept`."""
        return list(self.snapshot.kept)

    def removed(self) -> dict[int, str]:
        """Versions that gc removed and when, ascending; a damaged record is passed over.

        What was measured at them, and their headers, are still there.
        """
        return {v: str(facts.removed_at) for v, facts in self.snapshot.removed.items()}

    def all_versions(self) -> list[int]:
        """Those that verify and those that gc removed, ascending: all that have a header."""
        return list(self.snapshot.facts)

    def all_facts(self) -> dict[int, VersionFacts]:
        """The same, with the facts of each."""
        return dict(self.snapshot.facts)

    def manifests(self) -> list[int]:
        """Versions with a manifest, ascending, whether it can be read or not; not removed ones."""
        return list(self.look().manifests)

    def unreadable(self) -> dict[int, str]:
        """Versions and removal records that cannot be read for lack of permission or for their
        disk, ascending -> why. They need not be damaged.
        """
        return {v: str(error) for v, error in sorted(self.look().unreadable.items())}

    def latest(self) -> int | None:
        """The highest version that verifies; None when there is none yet."""
        return self.snapshot.latest

    def next_version(self) -> int:
        """One above the highest number ever given, whether damaged or removed since."""
        return self.look().next_version

    def newest_scores(self, *, before: int | None = None) -> int | None:
        """The newest version that made scores of its own; see `Snapshot.newest_scores`."""
        return self.snapshot.newest_scores(before=before)

    def find_refresh(self, refresh_id: str) -> int | None:
        """The latest version that this refresh made, if any; also one that gc removed."""
        return self.find(lambda facts: facts.refresh_id == refresh_id)

    def find(self, is_sought: Callable[[VersionFacts], bool]) -> int | None:
        """The latest version, kept or removed, with such facts; None where there is none."""
        return self.snapshot.find(is_sought)

    def resolve(self, version: VersionArgument = "latest") -> int:
        """The number of a version as a caller names it: a whole number, `"latest"` or None.

        Raises:
            VersionNotFoundError: There is no such version, none yet, or gc removed it.
            UsageError: It is neither a whole number nor `"latest"`.
        """
        number = self.number_of(version)
        self.require_kept(number)
        return number

    def number_of(self, version: VersionArgument) -> int:
        """`resolve` without looking whether a version of that number is there.

        Raises `VersionNotFoundError` when the latest is asked for and there is none yet.
        """
        number = version_number(version)
        if number is None:
            number = self.latest()
        if number is None:
            raise VersionNotFoundError(
                f"the store {self.paths.root} has no version yet; make one with `gracekit watch` "
                "or `gracekit refresh`"
            )
        return number

    def require_kept(self, version: int) -> None:
        """Raise `VersionNotFoundError` where there never was such a version, or gc removed it.

        Looks at the disk, not at the snapshot: gc and who pins a version rely on it.
        """
        is_removed = self.paths.find(self.paths.removal(version)).exists()
        if is_removed or not self.paths.manifest(version).exists():
            require_manifest(self.paths, version)

    # --- what they hold ---

    def header(self, version: int) -> Header:
        """What a version says about itself, also when gc removed it.

        Raises:
            VersionNotFoundError: There never was such a version.
            StoreFormatError: Its manifest is damaged, or of a newer format.
        """
        if not self.paths.manifest(version).exists():
            if self.paths.find(self.paths.removal(version)).exists():
                return self._removal(version).header
            require_manifest(self.paths, version)
        return self._header_of_manifest(version)

    def dataset(self, version: int | None = None) -> DatasetInfo:
        """What is known of the data of a version; default: of the latest, or as it was first."""
        version = self.latest() if version is None else version
        return self.info.dataset if version is None else self.header(version).dataset

    def samples(self, version: int | None = None) -> SampleTable:
        """The sample table of a version; default: of the latest, or as it was first. Read-only.

        Raises `StoreFormatError` when it is damaged.
        """
        dataset = self.dataset(version)
        path = self.paths.root / dataset.samples_file
        if self._samples is None or self._samples[0] != path:
            samples = read_samples(path)
            if len(samples) != dataset.num_rows:
                raise _of_other_length(path, len(samples), dataset.num_rows)
            self._samples = (path, read_only(samples))
        return self._samples[1]

    def require_samples(self) -> None:
        """Raise `StoreFormatError` where the sample table of the latest version is damaged.

        A sealed one is compared with its checksum and not taken apart, which is many times cheaper.
        """
        dataset = self.dataset()
        path = self.paths.root / dataset.samples_file
        if not is_sealed(path):
            self.samples()
        elif (num_rows := count_rows(path)) != dataset.num_rows:
            raise _of_other_length(path, num_rows, dataset.num_rows)

    def coreset(self, version: int) -> pa.Table:
        """The manifest's table, sorted by row (columns: `store.files.manifests.SCHEMA`).

        Raises:
            VersionNotFoundError: There is no such version, or gc removed it.
            StoreFormatError: Its manifest is damaged.
        """
        self.require_kept(version)
        return read_coreset(self.paths.manifest(version), version)

    def scores(self, version: int) -> ScoreTable:
        """The scores of all rows at a version, read-only; a reselect or rollback has those of
        another.

        Where the data changed since that one, samples that joined are never measured in them, and
        those that left are removed.

        Raises as `coreset`; a removed version has its scores as long as another needs them.
        """
        header = self.header(version)
        path = self.paths.scores(header.scores_version)
        if not self.paths.find(path).exists():
            self.require_kept(version)
        scores = self.paths.read(path, read_scores)
        if header.rollback_of is None:
            return read_only(scores)
        samples = self.samples(version)
        forgotten = ~samples.present
        forgotten[: len(scores)] |= scores.origin == Origin.REMOVED  # some may be back
        forgotten[len(scores) :] = True
        return read_only(scores_for(scores, samples, forgotten))

    def drawn(self, version: int) -> DrawnRows | None:
        """How a version was drawn, of all rows; None where that is not known.

        Raises as `coreset`.
        """
        path = self.paths.draw(version)
        if self.paths.relative(path) not in self.header(version).files:
            return None
        self.require_kept(version)
        return read_draw(path)

    def places(self, version: int) -> Places | None:
        """What a version was to be trained on; None where all rows were alike.

        Raises as `coreset`.
        """
        path = self.paths.places(version)
        if self.paths.relative(path) not in self.header(version).files:
            return None
        self.require_kept(version)
        return read_places(path)

    def measurement(self, version: int) -> pa.Table:
        """What was measured at a version, kept or removed: row, reason, scores, step; by row.

        Raises `VersionNotFoundError` where nothing was measured (a reselect or rollback).
        """
        path, header = self.paths.measured(version), self.header(version)
        if self.paths.relative(path) not in header.files:
            raise VersionNotFoundError(
                f"version {version} of {self.paths.root} measured nothing: it is a "
                f"{header.operation} of version {header.scores_version}"
            )
        return self.paths.read(path, read_table)

    def held_versions(self) -> dict[int, str]:
        """Versions that are pinned or that a running trainer draws from now, and why, in words."""
        return held_versions(self.paths)

    def gc_obstacle(self) -> StoreFormatError | None:
        """Why it cannot be told what trainers draw from, so that gc removes none; None: it can."""
        return obstacle_of(self.paths)

    def num_unfinished_shards(self) -> int:
        """Finished shards of measurements that are in progress or were stopped."""
        return count_shards(self.paths)

    def load_cache(self, version: int) -> StoreCache | None:
        """Features and index that belong to a version's scores; None when they must be rebuilt."""
        return load_cache(self.paths, self.header(version).scores_version)

    # --- inside ---

    def hold(self, snapshot: Snapshot) -> None:
        """Go on with another snapshot: what an operation has just changed itself."""
        self._snapshot = snapshot

    def learn(self, version: int) -> VersionFacts:
        """Read the header of a version that was committed just now; returns its facts."""
        stamp = stamp_of(self.paths.manifest(version))
        facts = VersionFacts.of(self._header_of_manifest(version))
        self._facts[version] = (stamp, facts)
        return facts

    def _header_of_manifest(self, version: int) -> Header:
        return self._read_once(self.paths.manifest(version), read_header)

    def _removal(self, version: int) -> Removal:
        return self._read_once(self.paths.find(self.paths.removal(version)), read_removal)

    def _read_once(self, path: Path, read: Callable[[Path], _Content]) -> _Content:
        """What `read` makes of a file; from memory while the file is not replaced."""
        stamp, known = stamp_of(path), self._headers.get(path)
        if known is not None and known[0] == stamp:
            return known[1]  # type: ignore[no-any-return]
        content = read(path)
        self._headers[path] = (stamp, content)
        if len(self._headers) > self._num_headers:
            del self._headers[next(iter(self._headers))]
        return content


def _of_other_length(path: Path, found: int, expected: int) -> StoreFormatError:
    return StoreFormatError(
        f"{path} has {found} rows, {expected} were written; restore it from a backup"
    )
