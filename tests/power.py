"""A power cut: what a disk may hold after one, made up from the file operations before it.

Every change of a directory counts as volatile until that directory is synced, and every content
until its file is. After a power cut each volatile change of a name is there or not, by itself (so
later ones may be there without earlier ones), but those of one name in order; a rename within a
directory is one change, as on every file system with a journal. Content that was not synced is the
old one, nothing, a beginning, zeros or noise. So SQLite tests its file layer.

The disk is looked at before each operation of `gracekit.files`, and its changes are read off from
what is there then, so that nothing that is done past the file layer is forgotten.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gracekit import files
from tests.faults import OPERATIONS

Name = tuple[str, str]
"""Directory, relative to the disk, and name in it."""
Entry = int | None
"""What a name leads to, an inode; None: nothing."""


@dataclass
class Change:
    """Of one or, in a rename, two names: what they lead to from then on."""

    entries: dict[Name, Entry]


@dataclass
class Inode:
    """A file, or a directory."""

    is_directory: bool
    content: bytes = b""
    time_ns: int = 0
    durable: bytes | None = None
    """As it was synced last; None: never."""

    @property
    def is_synced(self) -> bool:
        return self.is_directory or self.durable == self.content


@dataclass
class Moment:
    """The disk at one moment: what is durable, what is not, and what had been promised."""

    names: dict[Name, Entry]
    changes: list[Change]
    inodes: dict[int, Inode]
    operation: str
    promised: list[str] = field(default_factory=list)


class Disk:
    """What is durable of a directory while it is worked on.

    Args:
        root: All that is in it now is durable.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.moments: list[Moment] = []
        self.promised: list[str] = []
        """Names of what was reported as done so far."""
        self._inodes: dict[int, Inode] = {}
        self._changes: list[Change] = []
        self._aliases: dict[tuple[int, int], int] = {}
        self._kept_open: list[int] = []
        self._seen = self._look()
        self._names = dict(self._seen)
        for inode in self._inodes.values():
            inode.durable = inode.content

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Look before each operation, and take syncs for what they are."""
        originals = {name: getattr(files, name) for name in OPERATIONS}
        syncs = {"sync": files._sync}

        def wrap(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
            def operation(*arguments: Any) -> Any:
                self._note(name)
                result = original(*arguments)
                if name in ("replace", "link"):
                    self._note(f"after {name}", is_one=name == "replace")
                return result

            return operation

        def sync(path: Path) -> None:
            self._note(f"before a sync of {path.name}")
            syncs["sync"](path)
            self._synced(path)

        for name, original in originals.items():
            setattr(files, name, wrap(name, original))
        files._sync = sync
        try:
            yield
            self._note("the end")
        finally:
            for name, original in originals.items():
                setattr(files, name, original)
            files._sync = syncs["sync"]
            for descriptor in self._kept_open:
                os.close(descriptor)

    def promise(self, what: str) -> None:
        """From here on a caller knows that this is done."""
        self.promised.append(what)
        self._note(f"{what} was reported")

    def _note(self, operation: str, *, is_one: bool = False) -> None:
        now = self._look()
        changed = {
            name: now.get(name)
            for name in {*now, *self._seen}
            if now.get(name) != self._seen.get(name)
        }
        if is_one and changed:
            self._changes.append(Change(changed))
        else:
            self._changes += [Change({name: entry}) for name, entry in sorted(changed.items())]
        self._seen = now
        self.moments.append(
            Moment(
                dict(self._names),
                list(self._changes),
                {number: Inode(**vars(inode)) for number, inode in self._inodes.items()},
                operation,
                list(self.promised),
            )
        )

    def _synced(self, path: Path) -> None:
        if not path.is_relative_to(self.root):
            return
        if not path.is_dir():
            inode = self._inodes[self._number(os.stat(path))]
            inode.durable = inode.content = path.read_bytes()
            return
        directory = path.relative_to(self.root).as_posix()
        self._note("a sync of a directory")
        rest = []
        for change in self._changes:
            if any(parent == directory for parent, _ in change.entries):
                self._names.update(change.entries)
            else:
                rest.append(change)
        self._changes = rest

    def _look(self) -> dict[Name, Entry]:
        found: dict[Name, Entry] = {}
        for folder, folders, names in os.walk(self.root):
            parent = Path(folder).relative_to(self.root).as_posix()
            for name in [*folders, *names]:
                path = Path(folder, name)
                stat = path.lstat()
                number = self._number(stat)
                inode = self._inodes.get(number)
                if inode is None:
                    # Held open, so that its number is not given to another file.
                    self._kept_open.append(os.open(path, os.O_RDONLY))
                    inode = self._inodes[number] = Inode(path.is_dir())
                if not inode.is_directory and stat.st_mtime_ns != inode.time_ns:
                    inode.content, inode.time_ns = path.read_bytes(), stat.st_mtime_ns
                found[parent, name] = number
        return found

    @staticmethod
    def _number(stat: os.stat_result) -> int:
        return stat.st_ino


def after_a_power_cut(moment: Moment, target: Path, rng: random.Random) -> None:
    """Make at `target`, which does not exist, one of the disks that a power cut may leave."""
    names = dict(moment.names)
    is_lost: set[Name] = set()
    keep = rng.choice((0.0, 0.5, 0.5, 0.9, 1.0))
    for change in moment.changes:
        # Of one name a later change is there only with the earlier ones.
        if not is_lost.isdisjoint(change.entries) or rng.random() >= keep:
            is_lost |= change.entries.keys()
        else:
            names.update(change.entries)
    children: dict[str, list[tuple[str, int]]] = {}
    for (parent, name), entry in names.items():
        if entry is not None:
            children.setdefault(parent, []).append((name, entry))
    _fill(target, ".", children, moment.inodes, rng)


def _fill(
    target: Path,
    directory: str,
    children: dict[str, list[tuple[str, int]]],
    inodes: dict[int, Inode],
    rng: random.Random,
) -> None:
    (target / directory).mkdir(parents=True)
    for name, entry in sorted(children.get(directory, ())):
        path, inode = target / directory / name, inodes[entry]
        if inode.is_directory:
            below = name if directory == "." else f"{directory}/{name}"
            _fill(target, below, children, inodes, rng)
            continue
        path.write_bytes(inode.content if inode.is_synced else _unsynced(inode, rng))
        os.utime(path, ns=(inode.time_ns, inode.time_ns))


def _unsynced(inode: Inode, rng: random.Random) -> bytes:
    content, n = inode.content, len(inode.content)
    half = rng.randrange(n + 1)
    return rng.choice(
        [
            content,
            inode.durable or b"",
            b"",
            content[:half],
            bytes(n),
            content[:half] + bytes(n - half),
            rng.randbytes(n),
        ]
    )


def clear(path: Path) -> None:
    """Remove a made-up disk."""
    shutil.rmtree(path, ignore_errors=True)
