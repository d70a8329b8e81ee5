"""`Store`: the only writer of a store's files; everything that it reads is in `StoreReader`."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from gracekit import files
from gracekit.errors import StoreError, UsageError
from gracekit.store.commit import VersionDraft, commit
from gracekit.store.files.info import StoreInfo
from gracekit.store.files.lock import holds_lock, lock_store
from gracekit.store.files.migrations import is_old, migrate
from gracekit.store.files.paths import StorePaths, names_in
from gracekit.store.files.pinned import Pinned
from gracekit.store.files.samples import dataset_info, file_info, write_samples
from gracekit.store.files.shards import LOOKS, ShardFiles, left_over_rows
from gracekit.store.pinning import pin, unpin
from gracekit.store.publish import is_published
from gracekit.store.reader import StoreReader
from gracekit.store.recover import clean_up, recover
from gracekit.store.retention import GcReport, collect, examine
from gracekit.store.version_argument import VersionArgument
from gracekit.types import Rows, SampleTable
from gracekit.version import FORMAT_VERSION, __version__
from gracekit.version.header import DataDescription

if TYPE_CHECKING:
    from gracekit.store.problems import Problem

logger = logging.getLogger(__name__)


class Store(StoreReader):
    """A store, open for reading and writing. It locks itself for as long as it writes.

    Its snapshot of the versions is renewed when it takes the lock, and shows its own changes.
    """

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
        with lock_store(paths.root):
            with files.clear_write_errors(paths.root):
                for directory in _directories_of_versions(paths):
                    files.make_directory(directory)
            write_samples(paths.samples, samples)
            info = StoreInfo(
                format_version=FORMAT_VERSION,
                gracekit_version=__version__,
                created_at=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
                dataset=dataset_info(dataset, samples, path=paths.samples.name, sources={}),
                files={paths.samples.name: file_info(paths.samples)},
            )
            files.write_text_atomic(paths.info, info.to_text())
        return cls(paths, info)

    @contextmanager
    def lock(self, *, timeout_s: float | None = None) -> Iterator[bool]:
        """Be the only writer, with a fresh snapshot; may be nested within a thread.

        Yields whether the writer before was killed or failed, so that there may be something to
        clean up; see `lock_store` for the rest. Raises `UnreadableError` where a version cannot be
        read for lack of permission or for its disk: what is built on the others would be lost
        work once it can, and gc would not know what it needs.
        """
        is_nested = holds_lock(self.paths.root)
        with lock_store(self.paths.root, timeout_s=timeout_s) as is_unfinished:
            if not is_nested:
                self.info = StoreInfo.load(self.paths.info)  # another release may have migrated it
                self.renew()
                self.require_readable()
            yield is_unfinished

    def require_readable(self) -> None:
        """Raise `UnreadableError` where a version cannot be read; see `lock`."""
        for error in self.look().unreadable.values():
            raise error

    @contextmanager
    def writing(self, *, timeout_s: float | None = None) -> Iterator[None]:
        """`lock`, and first finish what an earlier writer did not; see `tidy`."""
        with self.lock(timeout_s=timeout_s) as is_unfinished:
            for action in self.tidy(always=is_unfinished):
                logger.info("clean-up: %s", action)
            yield

    def tidy(self, *, always: bool = False) -> list[str]:
        """`recover` where it is needed: the store is of an older format, or not all of its last
        version was published. It is needed too when the last writer was killed or failed, which
        only `lock` knows (`always`).

        Returns what was done, a sentence each. To find out takes no listing of directories.
        """
        if always or is_old(self.info) or not is_published(self):
            return self.recover()
        return []

    def recover(self) -> list[str]:
        """Bring an old store up to date, clean up after a killed process, publish what it did not.

        Looks through the whole store; returns what was done, a sentence each. See `migrate` and
        `recover`.
        """
        with self.lock():
            return self._migrate() + recover(self)

    def commit(self, draft: VersionDraft, *, keep: int | None = None) -> int:
        """Make the draft the next version, and keep the newest so many; see `commit`."""
        with self.lock() as is_unfinished:
            if is_unfinished:
                self.recover()
            self._migrate()
            return commit(self, draft, keep=keep)

    def gc(self, keep: int, *, dry_run: bool = False) -> GcReport:
        """Remove the coresets and scores of all but the newest versions and those that are held.

        Args:
            keep: Number of newest versions to keep, at least 1.
            dry_run: Only tell what would be removed; changes nothing and needs no lock.

        Raises:
            UsageError: `keep` is less than 1.
            StoreWriteError: The disk failed; each version is whole or removed, and the next gc or
                start goes on.
        """
        if isinstance(keep, bool) or not isinstance(keep, int) or keep < 1:
            raise UsageError(
                f"keep, the number of newest versions to keep, is 1 or more; found {keep!r}"
            )
        if dry_run:
            return examine(self, keep)
        with self.lock():
            self._migrate()
            clean_up(self)
            return collect(self, keep)

    def pin(self, version: VersionArgument, note: str = "") -> Pinned:
        """Keep a version from gc until `unpin`; a pinned one gets the new note. Needs no lock, but
        in a store of an older format, which it brings up to date first.

        Raises:
            VersionNotFoundError: There is no such version, or gc removed it.
            UsageError: It is neither a whole number nor `"latest"`.
            StoreWriteError: The marker cannot be written.
        """
        self._require_migrated()
        return pin(self, self.resolve(version), note)

    def unpin(self, version: VersionArgument) -> bool:
        """Leave a version to gc again; False when it was not pinned. Raises as `pin`."""
        self._require_migrated()
        return unpin(self, self.number_of(version))

    def verify(self, *, deep: bool = False) -> list[Problem]:
        """All that is wrong with the store, worst first; empty when it is whole.

        Reads every file. Nothing is changed. `deep` also makes again what other files tell.
        """
        from gracekit.store.checks import verify  # loads DuckDB

        return verify(self, deep=deep)

    def shards(self, measure_id: str, *, looks: bool = False) -> ShardFiles:
        """Finished shards of a measurement in progress; with `looks` those of features alone."""
        return ShardFiles(self.paths.shards_of(measure_id + (LOOKS if looks else "")))

    def left_over(self, measure_id: str) -> tuple[Rows, Rows]:
        """Rows measured, and rows looked at, by other refreshes that have made no version yet."""
        return left_over_rows(self.paths, measure_id)

    def _require_migrated(self) -> None:
        """From here on no migration writes to this store, not even in another process."""
        if is_old(self.info):
            with self.writing():
                pass

    def _migrate(self) -> list[str]:
        """Bring an old store up to date; the caller holds the lock."""
        if not is_old(self.info):
            return []
        done = migrate(self.paths)
        self.info = StoreInfo.load(self.paths.info)
        self.renew()
        return done


def _check_place(paths: StorePaths) -> None:
    if paths.info.exists():
        raise StoreError(f"there is a store at {paths.root} already; open it, or name another")
    if any(sign in str(paths.root) for sign in "?\\"):
        raise StoreError(
            f"the path {paths.root} contains ? or \\, which DuckDB cannot open; name another store"
        )
    if paths.root.is_dir():
        ours = {path.name for path in _made_before_the_store(paths)}
        strange = [
            name
            for name in sorted(names_in(paths.root))
            if name not in ours and files.TEMPORARY_MARK not in name
        ]
        if strange:
            raise StoreError(
                f"{paths.root} is not empty and not a store (found {strange[0]!r}); "
                "name a directory of its own for the store"
            )
    elif paths.root.exists():
        raise StoreError(f"{paths.root} is a file; name a directory for the store")


def _directories_of_versions(paths: StorePaths) -> tuple[Path, ...]:
    return paths.manifests, paths.headers, paths.score_history, paths.measurements, paths.removals


def _made_before_the_store(paths: StorePaths) -> list[Path]:
    """What a daemon that waits for its first checkpoint, or a killed `create`, leaves."""
    return [
        paths.samples,
        *_directories_of_versions(paths),
        paths.old_history,
        paths.cache,
        paths.pins,
        paths.shards,
        paths.lock,
        paths.holder_of(paths.lock),
        paths.heartbeat,
        paths.trackers,
        paths.daemon_lock,
        paths.holder_of(paths.daemon_lock),
    ]
