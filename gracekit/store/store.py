"""`Store`: the one door to a store's files; above 400 lines, so that there is no second one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa

from gracekit import files
from gracekit.errors import (
    StoreError,
    StoreFormatError,
    VersionNotFoundError,
)
from gracekit.store.commit import VersionDraft, commit
from gracekit.store.files.cache import StoreCache, load_cache
from gracekit.store.files.formats import NewerFormatError
from gracekit.store.files.history import read_scores, scores_for
from gracekit.store.files.info import StoreInfo
from gracekit.store.files.lock import lock_store
from gracekit.store.files.manifests import read_header, with_version
from gracekit.store.files.migrations import migrate
from gracekit.store.files.parquet import read_table
from gracekit.store.files.paths import (
    MANIFEST_NAME,
    MANIFESTS,
    REMOVAL_NAME,
    StorePaths,
    manifest_name,
    versions_in,
)
from gracekit.store.files.removals import read_removal
from gracekit.store.files.samples import dataset_info, read_samples, write_samples
from gracekit.store.files.shards import ShardFiles
from gracekit.store.recover import recover
from gracekit.store.version_facts import KnownFacts, Stamp, VersionFacts
from gracekit.types import Origin, SampleTable, ScoreTable
from gracekit.version import FORMAT_VERSION, __version__
from gracekit.version.header import DataDescription, DatasetInfo, Header

_NUM_HEADERS = 16
"""Headers that are kept."""


class Store:
    """A store, open for reading; `lock`, `recover`, `commit` and `shards` write.

    Versions that another process commits meanwhile are seen: only what cannot change is kept.
    Who opens the same store again and again hands over the `facts` that the last `Store` had read.
    """

    def __init__(self, paths: StorePaths, info: StoreInfo, facts: KnownFacts | None = None) -> None:
        self.paths = paths
        self.info = info
        self._samples: tuple[Path, SampleTable] | None = None
        self._facts: KnownFacts = {} if facts is None else facts
        self._headers: dict[int, tuple[Stamp, Header]] = {}

    @staticmethod
    def exists(root: Path | str) -> bool:
        """Whether there is a store."""
        return StorePaths(Path(root)).info.is_file()

    @classmethod
    def open(cls, root: Path | str, *, facts: KnownFacts | None = None) -> Store:
        """Open an existing store.

        Args:
            root: Its directory.
            facts: What an earlier `Store` of the same directory read; it is added to.

        Raises:
            StoreNotFoundError: There is none.
            StoreFormatError: It is damaged, or of a newer gracekit.
        """
        paths = StorePaths(Path(root))
        return cls(paths, StoreInfo.load(paths.info), facts)

    @staticmethod
    def check_place(root: Path | str) -> None:
        """Raise `StoreError` where a new store cannot be: before anything is written there."""
        _check_place(StorePaths(Path(root)))

    @classmethod
    def create(cls, root: Path | str, *, samples: SampleTable, dataset: DataDescription) -> Store:
        """Make a new store of the samples; `store.json`, written last, makes it exist.

        Args:
            root: A directory that is absent, empty, or left by a killed `create`.
            samples: The sample table.
            dataset: Where the data comes from.

        Raises:
            StoreError: There is a store, or other files, or DuckDB could not open the path.
            StoreWriteError: It cannot be written.
        """
        paths = StorePaths(Path(root))
        cls.check_place(root)
        info = StoreInfo(
            format_version=FORMAT_VERSION,
            gracekit_version=__version__,
            created_at=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
            dataset=dataset_info(dataset, samples, path=paths.samples.name, sources={}),
        )
        with lock_store(paths.root):
            with files.clear_write_errors(paths.root):
                files.make_directory(paths.manifests)
                files.make_directory(paths.history)
            write_samples(paths.samples, samples)
            files.write_text_atomic(paths.info, info.to_text())
        return cls(paths, info)

    def dataset(self, version: int | None = None) -> DatasetInfo:
        """What is known of the data of a version; default: of the latest, or as it was first."""
        version = self.latest() if version is None else version
        return self.info.dataset if version is None else self.header(version).dataset

    def samples(self, version: int | None = None) -> SampleTable:
        """The sample table of a version; default: of the latest, or as it was first.

        Raises `StoreFormatError` when it is damaged.
        """
        dataset = self.dataset(version)
        path = self.paths.root / dataset.samples_file
        if self._samples is None or self._samples[0] != path:
            samples = read_samples(path)
            if len(samples) != dataset.num_rows:
                raise StoreFormatError(
                    f"{path} has {len(samples)} rows, {dataset.num_rows} were written; restore "
                    "it from a backup"
                )
            self._samples = (path, samples)
        return self._samples[1]

    # --- versions ---

    def versions(self) -> list[int]:
        """Versions that verify, ascending: the manifest opens, its header parses, the history
        files that it names are there in the right size, and gc did not remove it.

        Raises `StoreFormatError` for a manifest of a newer format.
        """
        return list(self._kept())

    def removed(self) -> dict[int, str]:
        """Versions that gc removed and when, ascending; a damaged record is passed over.

        What was measured at them, and their headers, are still there.
        """
        return {v: str(facts.removed_at) for v, facts in self._removed_facts().items()}

    def all_versions(self) -> list[int]:
        """Those that verify and those that gc removed, ascending: all that have a header."""
        return list(self.all_facts())

    def all_facts(self) -> dict[int, VersionFacts]:
        """The same, with the facts of each."""
        return dict(sorted({**self._kept(), **self._removed_facts()}.items()))

    def latest(self) -> int | None:
        """The highest version that verifies; None when there is none yet."""
        return next((v for v in reversed(self.manifests()) if self._whole(v) is not None), None)

    def next_version(self) -> int:
        """One above the highest number ever given, whether damaged or removed since."""
        return max([*self.manifests(), *self._removal_numbers()], default=0) + 1

    def newest_scores(self, *, before: int | None = None) -> int | None:
        """The newest version that made scores of its own (or the one before a version).

        A refresh and a selection build on these scores, also after a rollback.
        """
        found = {facts.scores_version for facts in self.all_facts().values()}
        return max((v for v in found if before is None or v < before), default=None)

    def header(self, version: int) -> Header:
        """What a version says about itself, also when gc removed it.

        Raises:
            VersionNotFoundError: There never was such a version.
            StoreFormatError: Its manifest is damaged, or of a newer format.
        """
        stamp = _stamp(f"{self.paths.root}/{MANIFESTS}/{manifest_name(version)}")
        if stamp is None:
            removal = self.paths.removal(version)
            if removal.exists():
                return read_removal(removal).header
            raise self._no_such(version)
        known = self._headers.get(version)
        if known is None or known[0] != stamp:
            known = (stamp, read_header(self.paths.manifest(version)))
            self._headers[version] = known
            self._facts[version] = (stamp, VersionFacts.of(known[1]))
            if len(self._headers) > _NUM_HEADERS:
                del self._headers[next(iter(self._headers))]
        return known[1]

    def require_kept(self, version: int) -> None:
        """Raise `VersionNotFoundError` where there never was such a version, or gc removed it."""
        if self.paths.removal(version).exists():
            kept = self.manifests()
            raise VersionNotFoundError(
                f"{read_removal(self.paths.removal(version)).in_words} from {self.paths.root}; "
                f"of those kept the latest is {kept[-1] if kept else 'lost'}"
            )
        if not self.paths.manifest(version).exists():
            raise self._no_such(version)

    def coreset(self, version: int) -> pa.Table:
        """The manifest's table, sorted by row (columns: `store.manifests.SCHEMA`).

        Raises:
            VersionNotFoundError: There is no such version, or gc removed it.
            StoreFormatError: Its manifest is damaged.
        """
        self.require_kept(version)
        return with_version(read_table(self.paths.manifest(version)), version)

    def scores(self, version: int) -> ScoreTable:
        """The scores of all rows at a version; a reselect or rollback has those of another.

        Where the data changed since that one, samples that joined are never measured in them, and
        those that left are removed.

        Raises as `coreset`; a removed version has its scores as long as another needs them.
        """
        header = self.header(version)
        path = self.paths.scores(header.scores_version)
        if not path.exists():
            self.require_kept(version)
        scores = read_scores(path)
        if header.rollback_of is None:
            return scores
        samples = self.samples(version)
        forgotten = ~samples.present
        forgotten[: len(scores)] |= scores.origin == Origin.REMOVED  # some may be back
        forgotten[len(scores) :] = True
        return scores_for(scores, samples, forgotten)

    def measurement(self, version: int) -> pa.Table:
        """What was measured at a version, kept or removed: row, reason, scores, step; by row.

        Raises `VersionNotFoundError` where nothing was measured (a reselect or rollback).
        """
        path = self.paths.measured(version)
        if self.paths.relative(path) not in self.header(version).files:
            raise VersionNotFoundError(
                f"version {version} of {self.paths.root} measured nothing: it is a "
                f"{self.header(version).operation} of version "
                f"{self.header(version).scores_version}"
            )
        return read_table(path)

    def find_refresh(self, refresh_id: str) -> int | None:
        """The latest version that this refresh made, if any; also one that gc removed."""
        return self.find(lambda facts: facts.refresh_id == refresh_id)

    def find(self, is_sought: Callable[[VersionFacts], bool]) -> int | None:
        """The latest version of which that is true, if any; also one that gc removed."""
        found = reversed(self.all_facts().items())
        return next((version for version, facts in found if is_sought(facts)), None)

    # --- writing ---

    @contextmanager
    def lock(self, *, timeout_s: float | None = None) -> Iterator[None]:
        """Be the only writer; see `lock_store`."""
        with lock_store(self.paths.root, timeout_s=timeout_s):
            yield

    def recover(self) -> list[str]:
        """Bring an old store up to date, clean up after a killed process, publish what it did not.

        See `migrate` and `recover`.
        """
        with self.lock():
            done = migrate(self.paths)
            if done:
                self.info = StoreInfo.load(self.paths.info)
            return done + recover(self)

    def commit(self, draft: VersionDraft, *, keep: int | None = None) -> int:
        """Make the draft the next version, and keep the newest so many; see `commit`."""
        with self.lock():
            return commit(self, draft, keep=keep)

    def shards(self, measure_id: str) -> ShardFiles:
        """Finished shards of a measurement in progress."""
        return ShardFiles(self.paths.shards_of(measure_id))

    def load_cache(self, version: int) -> StoreCache | None:
        """Features and index that belong to a version's scores; None when they must be rebuilt."""
        return load_cache(self.paths, self.header(version).scores_version)

    def manifests(self) -> list[int]:
        """Versions with a manifest, ascending, whether it can be read or not; not removed ones."""
        removed = set(self._removal_numbers())
        found = versions_in(self.paths.manifests, MANIFEST_NAME, ".parquet")
        return [version for version in found if version not in removed]

    # --- inside ---

    def _removal_numbers(self) -> list[int]:
        return versions_in(self.paths.manifests, REMOVAL_NAME)

    def _kept(self) -> dict[int, VersionFacts]:
        """The facts of `versions`, ascending."""
        found = ((version, self._whole(version)) for version in self.manifests())
        return {version: facts for version, facts in found if facts is not None}

    def _whole(self, version: int) -> VersionFacts | None:
        """The facts of a version that verifies."""
        try:
            stamp = _stamp(f"{self.paths.root}/{MANIFESTS}/{manifest_name(version)}")
            known = self._facts.get(version)
            if known is None or known[0] != stamp:
                facts = VersionFacts.of(self.header(version))
            else:
                facts = known[1]
            # Text, because each commit does this to each file: paths would take most of its time.
            root = f"{self.paths.root}/"
            is_whole = all(os.stat(root + name).st_size == size for name, size in facts.sizes)
        except NewerFormatError:
            raise
        except (VersionNotFoundError, StoreFormatError, OSError):
            return None
        return facts if is_whole else None

    def _removed_facts(self) -> dict[int, VersionFacts]:
        """Of the versions that gc removed and whose record can be read, ascending."""
        found = {}
        for version in self._removal_numbers():
            path = self.paths.removal(version)
            stamp, known = _stamp(path), self._facts.get(version)
            if known is None or known[0] != stamp:
                try:
                    removal = read_removal(path)
                except NewerFormatError:
                    raise
                except StoreFormatError:
                    continue
                known = (stamp, VersionFacts.of(removal.header, removed_at=removal.removed_at))
                self._facts[version] = known
            found[version] = known[1]
        return found

    def _no_such(self, version: int) -> VersionNotFoundError:
        versions = self.manifests()
        found = f"{versions[0]} to {versions[-1]}" if versions else "none yet"
        return VersionNotFoundError(
            f"the store {self.paths.root} has no version {version}; found {found}"
        )


def _stamp(path: Path | str) -> Stamp | None:
    """What changes when a file is replaced; None where there is none."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _check_place(paths: StorePaths) -> None:
    if paths.info.exists():
        raise StoreError(f"there is a store at {paths.root} already; open it, or name another")
    if any(sign in str(paths.root) for sign in "?\\"):
        raise StoreError(
            f"the path {paths.root} contains ? or \\, which DuckDB cannot open; name another store"
        )
    if paths.root.is_dir():
        own = {path.name for path in _own(paths)}
        strange = [
            p.name
            for p in paths.root.iterdir()
            if p.name not in own and files.TEMPORARY_MARK not in p.name
        ]
        if strange:
            raise StoreError(
                f"{paths.root} is not empty and not a store (found {sorted(strange)[0]!r}); "
                "name a directory of its own for the store"
            )
    elif paths.root.exists():
        raise StoreError(f"{paths.root} is a file; name a directory for the store")


def _own(paths: StorePaths) -> list[Path]:
    return [
        paths.samples, paths.history, paths.manifests, paths.cache, paths.pins, paths.shards,
        paths.lock, paths.holder_of(paths.lock), paths.heartbeat,
        paths.daemon_lock, paths.holder_of(paths.daemon_lock),
    ]  # fmt: skip
