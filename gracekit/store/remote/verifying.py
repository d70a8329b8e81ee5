"""What is wrong with the copy of a store at a URL: every object is downloaded and checked.

A copy is laid out as a store is, so it is checked as one, in a folder for temporary files. Sample
tables, manifests and headers are there at once; the other files of a version come before it is
checked and go afterwards, so that the folder needs no more room than one version.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from gracekit import files
from gracekit.errors import (
    RemoteChangedError,
    RemoteNotFoundError,
    StoreFormatError,
    StoreNotFoundError,
)
from gracekit.leftovers import scratch_folder
from gracekit.remote import RemoteFolder, RemoteObject
from gracekit.store.checks import (
    check_hints,
    check_removed,
    check_samples,
    check_version,
    missing_versions,
)
from gracekit.store.file_checks import check_named, check_unversioned
from gracekit.store.files.formats import NewerFormatError
from gracekit.store.files.paths import StorePaths
from gracekit.store.problems import LOOK, Problem
from gracekit.store.reader import StoreReader

PUBLISH = "remove it there, and `gracekit publish` writes it again"
_PUBLISH_ALL = "remove it and LATEST there, and `gracekit publish` writes both again"
_PUBLISH_HINT = "`gracekit publish` writes it anew"
_PUBLISH_MISSING = "`gracekit publish` writes them, or says why it does not"
_AT_ONCE = re.compile(
    r"store\.json|LATEST|samples\.parquet|samples/v\d{6,}\.parquet|"
    r"manifests/v\d{6,}\.parquet|(?:headers|removed)/v\d{6,}\.json"
)
_NUM_TRIES = 3
"""Of a check amid which something was replaced or removed, as by a publish."""


def verify_published(url: str) -> tuple[list[int], list[Problem]]:
    """The versions that can be read at a URL, ascending, and all that is wrong there.

    Objects that no version names are passed over: a publish may be in progress.

    Raises:
        StoreNotFoundError: Nothing is published there.
        NewerFormatError: A newer gracekit wrote it.
        RemoteError: It cannot be reached, or changes again and again.
        StoreWriteError: There is no room for temporary files.
    """
    folder = RemoteFolder.open(url)
    for _ in range(_NUM_TRIES - 1):
        with suppress(RemoteChangedError, RemoteNotFoundError):
            return _verify_once(folder)
    return _verify_once(folder)


def _verify_once(folder: RemoteFolder) -> tuple[list[int], list[Problem]]:
    with scratch_folder("verify") as place:
        copy = _Copy(folder, StorePaths(place))
        versions, problems = copy.verify()
        advised = (replace(found, advice=_advice(found)) for found in problems)
        told = [replace(p, what=p.what.replace(f"{place}/", f"{folder.url}/")) for p in advised]
        return versions, told


class _Copy:
    def __init__(self, folder: RemoteFolder, paths: StorePaths) -> None:
        self._folder = folder
        self._paths = paths
        self._listed: dict[str, RemoteObject] = {}

    def verify(self) -> tuple[list[int], list[Problem]]:
        """Versions and problems, with advice as for a store of this machine."""
        self._listed = self._folder.list()
        if self._paths.info.name not in self._listed:
            raise StoreNotFoundError(
                f"no store is published at {self._folder.url}; correct the URL, or publish one "
                "with `gracekit publish`"
            )
        self._bring(filter(_AT_ONCE.fullmatch, self._listed))
        try:
            store = StoreReader.open(self._paths.root)
        except NewerFormatError:
            raise
        except StoreFormatError as error:
            return [], [Problem(path=self._paths.info.name, what=str(error), advice="")]
        versions: list[int] = []
        problems = list(self._problems(store, versions))
        return versions, problems

    def _problems(self, store: StoreReader, whole: list[int]) -> Iterator[Problem]:
        """What is wrong; versions of which all is there are added to `whole`."""
        versions, removed = store.manifests(), sorted(store.look().records)
        yield from check_samples(store, versions)
        for version in versions:
            with self._files_of(store, version):
                found = list(check_version(store, version))
            yield from found
            whole += [] if found else [version]
        for version in removed:
            with self._files_of(store, version) as there:
                yield from check_removed(store, version)
                named = store.header(version).files if there else {}
                left = ((path, named[store.paths.relative(path)]) for path in there)
                measured = store.paths.measured(version)
                yield from check_named(store, (pair for pair in left if pair[0] != measured))
        if (what := missing_versions({*versions, *removed})) is not None:
            yield Problem(path="manifests", what=what, advice="")
        yield from check_unversioned(store)
        yield from check_hints(store, [v for v in versions if self._has_header(store, v)])

    def _has_header(self, store: StoreReader, version: int) -> bool:
        try:
            return store.header(version).version == version
        except StoreFormatError:
            return False

    @contextmanager
    def _files_of(self, store: StoreReader, version: int) -> Iterator[list[Path]]:
        """The files that a version names and that are there, as long as the block runs."""
        names: list[str] = []
        with suppress(StoreFormatError):  # which the check tells
            names = [name for name in store.header(version).files if name in self._listed]
        mine = [name for name in names if not _AT_ONCE.fullmatch(name)]
        try:
            self._bring(mine)
            yield [self._paths.root / name for name in mine]
        finally:
            for name in mine:
                files.remove(self._paths.root / name)

    def _bring(self, names: Iterable[str]) -> None:
        for name in names:
            self._folder.download(self._listed[name], self._paths.root / name)


def _advice(found: Problem) -> str:
    """What to do about a problem of the copy."""
    if found.advice == LOOK:
        return LOOK
    return {
        "store.json": _PUBLISH_ALL,
        "LATEST": _PUBLISH_HINT,
        "manifests": _PUBLISH_MISSING,
    }.get(found.path, PUBLISH)
