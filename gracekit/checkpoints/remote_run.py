"""A run in an object store, on this disk: its newest checkpoints, each downloaded once.

    list → the newest checkpoints → objects that are new → a folder of this disk
                                                             → all that reads checkpoints

The objects of a checkpoint get their places together, with their times, when all that the listing
shows are here: so a look at the folder sees what one look at the object store saw, and the rules by
which a checkpoint is complete are those of a disk. Half an object is never seen; of a checkpoint
that is still being uploaded the parts that are there are, as on a disk.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Self

from gracekit import files
from gracekit.checkpoints.discover import candidates_below, look
from gracekit.checkpoints.layouts import LAYOUTS
from gracekit.checkpoints.places import History, real_path
from gracekit.checkpoints.remote_groups import (
    Group,
    followed_groups,
    split,
    wanted_groups,
    wanted_objects,
)
from gracekit.checkpoints.remote_home import RemoteHome
from gracekit.documents import read_json
from gracekit.errors import CheckpointError, RemoteError, RemoteNotFoundError, StoreWriteError
from gracekit.foreign import foreign
from gracekit.recipe import CheckpointSection
from gracekit.remote import RemoteFolder, RemoteObject, address_of
from gracekit.types import Checkpoint
from gracekit.words import count_of, size

logger = logging.getLogger(__name__)

_MOST_KNOWN = 1000


class RemoteRun:
    """The newest checkpoints below a URL, in `directory`. To be closed at the end.

    Args:
        url: Of a run, of a folder above, or of one checkpoint.
        cache: Folder of this disk; each URL has one of its own in it.
        settings: How checkpoints are found.
        with_optimizer: Whether the optimizer's state is read too.
        waits: Whether to wait for another process that uses what was downloaded of the URL, which
            keeps the paths of checkpoints the same; if not, a folder of its own is used then.

    Raises:
        UsageError: The address has `.` or `..` as a part.
    """

    def __init__(
        self,
        url: str,
        cache: Path,
        settings: CheckpointSection,
        *,
        with_optimizer: bool = False,
        waits: bool = False,
    ) -> None:
        address = address_of(url)
        assert address is not None, f"{url!r} is no URL"
        self.url = address
        self._home = RemoteHome(address, cache, waits=waits)
        self._settings = settings
        self._with_optimizer = with_optimizer
        self._folder: RemoteFolder | None = None
        self._tags: dict[str, str] = {}
        """Name of an object that is here -> what it was when it was downloaded."""
        self._handled: list[str] = []
        self._incomplete: list[str] = []
        """Signatures of checkpoints that were here and cannot be used as they are; not kept from
        one start to the next, where the recipe may be another."""
        self._groups: list[Group] = []
        self._history: History = {}
        self._told = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def directory(self) -> Path:
        """Where all that reads checkpoints looks; another one when `sync` had to take another."""
        return self._home.directory

    def close(self) -> None:
        """Let other processes use what was downloaded."""
        self._home.close()

    def sync(self, between: Callable[[], None] = lambda: None) -> None:
        """Bring the folder in line with the object store; what is no longer needed goes.

        Args:
            between: Called before each download, and while another process is waited for; what it
                raises ends the work.

        Raises:
            RemoteError: It cannot be listed or read; a look at the folder may then see a checkpoint
                without some of its files, so none is to be taken before this succeeds.
            StoreWriteError: The disk cannot be written.
        """
        is_unknown = self._home.open(between)
        if is_unknown:
            self._load()
        if self._folder is None:
            self._folder = RemoteFolder.open(self.url)
        groups, loose = split(self._folder.list(), self._settings.depth, self.directory.name)
        followed, others, why = followed_groups(groups, self._history)
        self._tell_runs(followed, others, why)
        self._groups = followed
        is_changed = True
        while is_changed:  # again where one turned out to be incomplete: another takes its place
            wanted = self._wanted()
            objects = wanted_objects(
                wanted,
                loose,
                others=others,
                with_optimizer=self._with_optimizer,
                with_all=self._settings.convert_cmd is not None,
            )
            with files.clear_write_errors(self.directory):
                files.make_directory(self.directory)
            self._drop(name for name in list(self._tags) if name not in objects)
            new = [one for one in objects.values() if not self._is_here(one)]
            self._bring(new, between)
            is_changed = (is_unknown or bool(new)) and self._learn_incomplete(wanted)

    def _wanted(self) -> list[Group]:
        in_turn = self._settings.on_backlog == "all"
        return wanted_groups(self._groups, self._handled, self._incomplete, in_turn=in_turn)

    def _learn_incomplete(self, groups: list[Group]) -> bool:
        """Keep in mind which checkpoints that are here cannot be used; whether that is new."""
        root = real_path(self.directory)
        usable = [
            path.relative_to(root).as_posix()
            for path in candidates_below(root, self._settings, LAYOUTS)
            if self._is_usable(path)
        ]
        learned = [
            group.signature
            for group in groups
            if group.signature not in self._incomplete and not any(map(group.holds, usable))
        ]
        self._incomplete = [*self._incomplete, *learned][-_MOST_KNOWN:]
        return bool(learned)

    def _is_usable(self, path: Path) -> bool:
        with suppress(CheckpointError), foreign(path, CheckpointError):
            return isinstance(look(path, self._settings, LAYOUTS), Checkpoint)
        return False

    def _is_here(self, one: RemoteObject) -> bool:
        place = self.directory / one.name
        is_same = self._tags.get(one.name) == _tag(one)
        return is_same and place.is_file() and place.stat().st_size == one.num_bytes

    def handled(self, checkpoint: Path) -> None:
        """A version was made of a checkpoint, or it cannot be used: it is not needed again."""
        with suppress(ValueError, StoreWriteError):  # on a full disk it is remembered until the end
            inside = checkpoint.relative_to(real_path(self.directory)).as_posix()
            for group in self._groups:
                if group.holds(inside) and group.signature not in self._handled:
                    self._handled = [*self._handled, group.signature][-_MOST_KNOWN:]
                    self._save()

    def _bring(self, new: list[RemoteObject], between: Callable[[], None]) -> None:
        """Download beside the folder, then give each its place."""
        beside = self._home.arriving
        places = {_place(one) for one in new}
        if beside.is_dir():
            with files.clear_write_errors(beside):
                for path in beside.iterdir():  # of an earlier try
                    if path.name not in places:
                        files.remove(path)
        if not new:
            return
        assert self._folder is not None, "it was listed"
        num_bytes = sum(one.num_bytes for one in new)
        logger.info(
            "downloading %s (%s) of %s", count_of(len(new), "file"), size(num_bytes), self.url
        )
        for one in new:
            between()
            place = beside / _place(one)
            if not (place.is_file() and place.stat().st_size == one.num_bytes):
                try:
                    self._folder.download(one, place)
                except RemoteNotFoundError as error:
                    raise RemoteError(f"{error}: the trainer removed it meanwhile") from None
        for one in new:
            final = self.directory / one.name
            with files.clear_write_errors(final):
                _make_room(final, self.directory)
                files.make_directory(final.parent)
                files.replace_surely(beside / _place(one), final)
            self._tags[one.name] = _tag(one)
        self._save()
        with files.clear_write_errors(beside):
            files.remove(beside)

    def _drop(self, names: Iterable[str]) -> None:
        """Remove what is no longer wanted, and folders that become empty."""
        dropped = list(names)
        for name in dropped:
            place = self.directory / name
            with files.clear_write_errors(place):
                files.remove(place)
                for parent in place.parents:
                    if parent == self.directory or (parent.is_dir() and any(parent.iterdir())):
                        break
                    files.remove(parent)
            del self._tags[name]
        if dropped:
            self._save()

    def _tell_runs(self, followed: list[Group], others: list[str], why: str) -> None:
        if not others:
            return
        told = (
            f"{self.url} has {count_of(len(others) + 1, 'run')}; "
            f"following {followed[0].run or '.'}, {why}"
        )
        if told != self._told:
            self._told = told
            logger.info("%s; to follow another one, name its folder", told)

    def _load(self) -> None:
        """What is here since an earlier start; a file that is gone is downloaded again."""
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            content = read_json(self._home.state)
            self._tags = {
                str(name): str(tag)
                for name, tag in content["tags"].items()
                if (self.directory / str(name)).is_file()
            }
            self._handled = [str(one) for one in content["handled"]]
        for place in self.directory.rglob("*") if self.directory.is_dir() else ():
            name = place.relative_to(self.directory).as_posix()
            if place.is_file() and name not in self._tags:  # a start before this one was killed
                with files.clear_write_errors(place):
                    files.remove(place)

    def _save(self) -> None:
        content = {"url": self.url, "tags": self._tags, "handled": self._handled}
        files.write_text_atomic(self._home.state, json.dumps(content))


def _tag(one: RemoteObject) -> str:
    return f"{one.num_bytes} {one.etag} {one.modified_at}"


def _place(one: RemoteObject) -> str:
    """A name for the download that another state of the object does not have."""
    return hashlib.sha256(f"{one.name} {_tag(one)}".encode()).hexdigest()[:24]


def _make_room(final: Path, root: Path) -> None:
    """Remove a file where a folder is to be, and a folder where a file is to be."""
    for parent in (*reversed(final.parents), final):
        if root not in parent.parents:
            continue
        if parent != final and parent.exists() and not parent.is_dir():
            files.remove(parent)
        if parent == final and parent.is_dir():
            files.remove(parent)
