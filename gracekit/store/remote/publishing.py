"""Copy the versions of a store to an object store, where others read them.

    store.json                               whose store this is, put if absent
      for each version that is not there, in order:
        headers/v000012.json                 put if absent: nobody else makes version 12 there
          → samples, scores, measurements, draws     files that never change, as they are here
            → manifests/v000012.parquet      put if absent: THE commit point; readers list these
      LATEST                                 a hint
      for each that gc removed here, and that a newer one there makes up for:
        removed/v000003.json → its manifest → its header, scores and draws go

Everything follows from a listing of what is there, so it may be repeated, killed at any moment, and
done by two processes at once: the same content put twice is one object. A version is there whole or
not at all; what it lacks all the same, because somebody removed a damaged object, is written again.
A store of other versions is refused at `store.json`, or at a header or a removal record that
differs, before anything is removed; where no `store.json` was there, no object is written over. A
version that cannot be published is passed over, and is an error once the others are there.
Nothing here locks the store: a file that gc removes meanwhile makes its version be passed over.

Above 400 lines, as each request relies on what those before it have found or put there.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from gracekit import files
from gracekit.errors import (
    GracekitError,
    RemoteConflictError,
    RemoteError,
    RemoteNotFoundError,
    StoreFormatError,
)
from gracekit.remote import RemoteFolder
from gracekit.store.files.parquet import is_sealed
from gracekit.store.reader import StoreReader
from gracekit.store.remote.objects import (
    PublishReport,
    files_of,
    is_whole_manifest,
    newest_of,
    newest_version,
)
from gracekit.store.retention import files_of_removed
from gracekit.store.version_facts import VersionFacts
from gracekit.version.header import FileInfo, Header
from gracekit.version.identity import identity_of_store, identity_of_version

logger = logging.getLogger(__name__)

_WAY_OUT = "publish to another URL, or remove what is there"


def publish_versions(
    store: StoreReader, url: str, *, between: Callable[[], None] = lambda: None
) -> PublishReport:
    """Bring the object store at `url` in line with the store; what is there already stays.

    Args:
        store: The store, on a fresh snapshot.
        url: Such as `s3://bucket/prefix`.
        between: Called before each request; what it raises ends the work, which the next call goes
            on with.

    Raises:
        RemoteConflictError: Another store is published there, or a copy of this one removed a
            version there that is kept here; the other versions are published.
        RemoteError: It cannot be reached or written; the versions there are whole.
        StoreFormatError: A file of the store is damaged; its version is not published, and those
            that do not need the file are.
    """
    return _Publisher(store, RemoteFolder.open(url, create=True), between).run()


@dataclass
class _Publisher:
    store: StoreReader
    folder: RemoteFolder
    between: Callable[[], None]
    there: dict[str, int] = field(default_factory=dict)
    """Name of each object that is there -> bytes."""
    made_with: Mapping[int, VersionFacts] = field(default_factory=dict)
    is_claimed_now: bool = False
    """No store.json was there: what else is there may be anybody's."""
    num_objects: int = 0
    num_bytes: int = 0
    errors: list[GracekitError] = field(default_factory=list)
    """Why versions could not be published."""

    def run(self) -> PublishReport:
        paths, snapshot = self.store.paths, self.store.snapshot
        self.made_with = snapshot.kept
        self.between()
        self.there = {name: found.num_bytes for name, found in self.folder.list().items()}
        self._require_ours()
        samples = self._name(paths.samples)
        self._copy(samples, self.store.info.files.get(samples), "nothing is")
        # With both a record and a manifest a version may yet stay: nothing of it is removed.
        gone = [v for v in snapshot.removed if v not in snapshot.unfinished]
        published = []
        for version in sorted([*snapshot.kept, *gone]):
            if version not in gone:
                published += [version] * self._publish_if_whole(version)
            elif self._name(paths.manifest(version)) not in self.there:
                self._leave_record_if_whole(version)
        latest = self._point_to_latest()
        # Only now, and only what is older than a version there: else readers might find none.
        removed = self._remove([v for v in gone if latest is not None and v < latest])
        if self.errors:
            raise self.errors[0]
        return PublishReport(
            url=self.folder.url,
            latest=latest,
            published=tuple(published),
            removed=tuple(removed),
            num_objects=self.num_objects,
            num_bytes=self.num_bytes,
        )

    def _require_ours(self) -> None:
        """Claim the folder, or see that it is this store's."""
        info, name = self.store.paths.info, self._name(self.store.paths.info)
        latest = self._name(self.store.paths.latest)
        if name not in self.there and latest in self.there:  # ours comes after store.json
            raise RemoteConflictError(
                f"{self.folder.url} has an object {latest} of others, such as that of exports: "
                f"{_WAY_OUT}"
            )
        if name not in self.there:
            self.is_claimed_now = True
            self._require_same_history()
            if self._put_new(name, info.read_bytes()):
                return
        theirs = self._read_json(name)
        ours = json.loads(info.read_bytes())
        if identity_of_store(theirs) != identity_of_store(ours):
            raise RemoteConflictError(
                f"{self.folder.url} has the versions of another store (made at "
                f"{theirs.get('created_at')}; {self.store.paths.root} was made at "
                f"{ours.get('created_at')}): {_WAY_OUT}"
            )
        self._require_same_history()

    def _require_same_history(self) -> None:
        """Copies of a store have the same versions up to one, and none after it: compare the newest
        version that is, or was, both there and here.
        """
        paths, snapshot = self.store.paths, self.store.snapshot
        for version in sorted([*snapshot.kept, *snapshot.removed], reverse=True):
            for name in map(self._name, (paths.sidecar(version), paths.removal(version))):
                if name in self.there:
                    self._require_same(name, self.store.header(version))
                    return

    def _publish_if_whole(self, version: int) -> bool:
        """`_publish`; what is wrong with this version alone is told at the end."""
        try:
            if self._name(self.store.paths.removal(version)) not in self.there:
                return self._publish(version)
            if version in self.store.renew().versions():
                self.errors.append(
                    RemoteConflictError(
                        f"version {version} was removed at {self.folder.url}, and is kept in "
                        f"{self.store.paths.root}: a copy of the store published there; {_WAY_OUT}"
                    )
                )
        except FileNotFoundError as error:
            if version in self.store.renew().versions():
                self.errors.append(
                    StoreFormatError(
                        f"{error.filename} is missing, which version {version} needs; run "
                        "`gracekit verify`"
                    )
                )
        except StoreFormatError as error:
            self.errors.append(error)
        return False

    def _publish(self, version: int) -> bool:
        """Copy one version; False where it was there."""
        paths = self.store.paths
        manifest = self._name(paths.manifest(version))
        if manifest in self.there:
            if self._lacks(version):
                self._mend(version)
            if not self._is_whole_manifest(manifest, paths.manifest(version)):
                self._tell_damaged(manifest)
                self._put(manifest, paths.manifest(version))
            return False
        header = self.store.header(version)
        if not self._put_new(self._name(paths.sidecar(version)), header.to_text().encode()):
            self._require_same(self._name(paths.sidecar(version)), header)
        self._require_not_removed(version, header)
        for name, entry in files_of(header, self.store).items():
            self._copy(name, entry, f"version {version} is not")
        is_sealed(paths.manifest(version))  # compares it with its checksum
        if not self._put_new(manifest, paths.manifest(version)):
            # The claim before it was ours: another release wrote the same version.
            self._require_same(self._name(paths.sidecar(version)), header)
        return True

    def _is_whole_manifest(self, name: str, own: Path) -> bool:
        """Whether one that is there is whole; it is read only where it has another size than ours,
        as that of an earlier release may have.
        """
        if self.there[name] == own.stat().st_size:
            return True
        self.between()
        return is_whole_manifest(self.folder, name)

    def _lacks(self, version: int) -> bool:
        """Whether a version that is there lacks a file, or has half of one; reads no header for
        that.
        """
        sizes = self.made_with[version].sizes
        sidecar = self._name(self.store.paths.sidecar(version))
        is_there = all(self.there.get(name) == num_bytes for name, num_bytes in sizes)
        return self._lacks_samples or sidecar not in self.there or not is_there

    @cached_property
    def _lacks_samples(self) -> bool:
        tables = self.store.paths.changed_samples.glob("v*.parquet")
        return any(self.there.get(self._name(t)) != t.stat().st_size for t in tables)

    def _mend(self, version: int) -> None:
        """Write again what a version lacks."""
        header = self.store.header(version)
        self._put_new(self._name(self.store.paths.sidecar(version)), header.to_text().encode())
        for name, entry in files_of(header, self.store).items():
            self._copy(name, entry, f"what version {version} lacks at {self.folder.url} is not")

    def _copy(self, name: str, entry: FileInfo | None, what: str) -> None:
        """Copy a file unless it is there; `what` says what is not published without it."""
        path = self.store.paths.find(self.store.paths.root / name)
        num_bytes = path.stat().st_size
        if self.there.get(name) == num_bytes:
            return
        if entry is not None and files.sha256(path) != entry.sha256:
            raise StoreFormatError(
                f"{path} is damaged, so {what} is published; run `gracekit verify`"
            )
        if name in self.there:
            self._tell_damaged(name)
        self._put(name, path)

    def _tell_damaged(self, name: str) -> None:
        """Versions there are ours by their headers, so an object of another size is damaged.

        Where nothing said that the folder is ours, raises `RemoteConflictError` instead.
        """
        if self.is_claimed_now:
            raise RemoteConflictError(
                f"{self.folder.url} has an object {name} of others, of {self.there[name]:,} bytes: "
                f"{_WAY_OUT}"
            )
        logger.warning(
            "%s at %s has %s bytes, which is not what was written: it is written again",
            name, self.folder.url, f"{self.there[name]:,}",
        )  # fmt: skip

    def _require_not_removed(self, version: int, header: Header) -> None:
        """Let go of the claim where a copy of the store recorded a removal since the listing."""
        record = self._name(self.store.paths.removal(version))
        self.between()
        if self.folder.look_up(record) is None:
            return
        try:
            self._require_same(record, header)
        except RemoteConflictError:
            self.folder.remove(self._name(self.store.paths.sidecar(version)))
            raise

    def _leave_record_if_whole(self, version: int) -> bool:
        try:
            self._leave_record(version)
        except StoreFormatError as error:
            self.errors.append(error)
            return False
        return True

    def _leave_record(self, version: int) -> None:
        """What stays of a version that gc removed: what was measured at it, the record, and scores
        that others need, or the next refresh.
        """
        paths = self.store.paths
        record = self._name(paths.removal(version))
        names = [name for name, _ in self.store.snapshot.removed[version].sizes]
        is_told = record in self.there
        if is_told and all(name in self.there or not self._has(name) for name in names):
            return
        for name, entry in self.store.header(version).files.items():
            if self._has(name):
                self._copy(name, entry, f"what is left of version {version} is not")
        if is_told:
            return
        self._put_new(record, paths.find(paths.removal(version)).read_bytes())
        self._require_not_taken(version, record)

    def _has(self, name: str) -> bool:
        """Whether the store has a file."""
        return self.store.paths.find(self.store.paths.root / name).exists()

    def _require_not_taken(self, version: int, record: str) -> None:
        """Withdraw the record where a copy of the store claimed the version since the listing."""
        claim = self._name(self.store.paths.sidecar(version))
        if claim in self.there:
            return
        self.between()
        if self.folder.look_up(claim) is None:
            return
        try:
            self._require_same(claim, self.store.header(version))
        except RemoteConflictError:
            self.folder.remove(record)
            raise

    def _remove(self, gone: list[int]) -> list[int]:
        """Remove what gc removed here; the record comes first, so that no reader misses it."""
        paths = self.store.paths
        kept = {*self.store.manifests(), *self.store.snapshot.unfinished}
        removed = [v for v in gone if self._name(paths.manifest(v)) in self.there]
        stays = [version for version in removed if not self._leave_record_if_whole(version)]
        removed = [version for version in removed if version not in stays]
        gone = [version for version in gone if version not in stays]
        names = [self._name(p) for p in files_of_removed(self.store, gone, {*kept, *stays})]
        doomed = [name for name in names if name in self.there]
        for name in sorted(doomed, key=lambda name: not name.startswith("manifests/")):
            self.between()
            self.folder.remove(name)
            del self.there[name]
        return removed

    def _point_to_latest(self) -> int | None:
        """Write LATEST where it is behind; returns the newest version that is there."""
        paths = self.store.paths
        ours = [v for v in self.store.versions() if self._name(paths.manifest(v)) in self.there]
        if not ours:
            return None
        name, newest = self._name(paths.latest), ours[-1]
        told = f"{newest}\n".encode()
        if name in self.there:
            self.between()
            content = self.folder.read(name)
            found = newest_of(content)
            if content == told or (found > newest and self._has_later(found)):
                return newest
        self._put(name, told)
        self.between()
        later = newest_version(self.folder)
        if later > newest:  # another publisher was faster, and so was its LATEST
            self._put(name, f"{later}\n".encode())
        return newest

    def _has_later(self, version: int) -> bool:
        """Whether a version is there that another publisher put since the listing."""
        self.between()
        return self.folder.look_up(self._name(self.store.paths.manifest(version))) is not None

    def _require_same(self, name: str, header: Header) -> None:
        """The header that is there has to be of the same version as ours."""
        theirs, ours = self._read_json(name), header.to_json()
        if name == self._name(self.store.paths.removal(header.version)):
            theirs = theirs["header"] if isinstance(theirs.get("header"), dict) else {}
        if identity_of_version(theirs) != identity_of_version(ours):
            raise RemoteConflictError(
                f"version {header.version} at {self.folder.url} is another one (made at "
                f"{theirs.get('created_at')}; that of {self.store.paths.root} at "
                f"{header.created_at}): a copy of the store has gone on by itself; {_WAY_OUT}"
            )

    def _read_json(self, name: str) -> dict[str, Any]:
        self.between()
        try:
            text = self.folder.read(name)
        except RemoteNotFoundError:
            raise RemoteConflictError(
                f"{name} at {self.folder.url} vanished: somebody removes what is there; run again"
            ) from None
        try:
            content = json.loads(text)
        except (ValueError, RecursionError):
            self._require_all_came(name, text)
            content = None
        if not isinstance(content, dict):
            raise RemoteConflictError(
                f"{name} at {self.folder.url} is not what gracekit writes: {_WAY_OUT}"
            )
        return content

    def _require_all_came(self, name: str, content: bytes) -> None:
        self.between()
        found = self.folder.look_up(name)
        if found is not None and found.num_bytes != len(content):
            raise RemoteError(
                f"cannot read {name} at {self.folder.url}: {len(content):,} bytes came of "
                f"{found.num_bytes:,}; run again"
            )

    def _put_new(self, name: str, content: bytes | Path) -> bool:
        if name in self.there:
            return False
        self.between()
        is_ours = self.folder.write_new(name, content)
        if is_ours:
            self._require_written(name, content)
        self._note(name, content)
        return is_ours

    def _put(self, name: str, content: bytes | Path) -> None:
        self.between()
        self.folder.write(name, content)
        if name != self._name(self.store.paths.latest):  # a hint; others may write it as well
            self._require_written(name, content)
        self._note(name, content)

    def _require_written(self, name: str, content: bytes | Path) -> None:
        """Raise where an object that was told as written is not there."""
        self.between()
        num_bytes, found = _num_bytes(content), self.folder.look_up(name)
        if found is None or found.num_bytes != num_bytes:
            there = "it is not there" if found is None else f"it has {found.num_bytes:,} bytes"
            raise RemoteError(
                f"{self.folder.url} told {name} ({num_bytes:,} bytes) as written, and {there}: "
                "somebody removes or replaces what is there, or the object store fails; run again"
            )

    def _note(self, name: str, content: bytes | Path) -> None:
        self.there[name] = _num_bytes(content)
        self.num_objects += 1
        self.num_bytes += self.there[name]

    def _name(self, path: Path) -> str:
        return self.store.paths.relative(path)


def _num_bytes(content: bytes | Path) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size
