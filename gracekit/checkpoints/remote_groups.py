"""Which objects of a remote run are wanted on this disk: those of the newest checkpoints.

By names alone, before anything is downloaded. A group is what lies below a folder whose name says a
step (`run-1/checkpoint-20`), or one file `*.ckpt`; the rest is loose.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from gracekit.checkpoints.model_files import is_step_folder
from gracekit.remote import RemoteObject

NUM_COPIES = 2
"""Checkpoints that are kept on this disk: one that is read, and one that is being uploaded."""
SMALL_BYTES = 16 << 20
"""Of what is no checkpoint's: logs and data of a run are not downloaded."""

_FILE_SUFFIX = ".ckpt"
_WEIGHTS = (".safetensors", ".ckpt", ".distcp")
_OPTIMIZER = re.compile(r"optimizer(?:\.(?:pt|bin|safetensors)|(?:[-_]\d+)?/.*)")

Objects = Mapping[str, RemoteObject]


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """One checkpoint, complete or not."""

    name: str
    """Below the watched folder."""
    objects: tuple[RemoteObject, ...]

    @property
    def run(self) -> str:
        """The folder above it; empty for the watched one."""
        return self.name.rpartition("/")[0]

    @property
    def modified_at(self) -> float:
        """When the last of its objects was written, in seconds since the epoch."""
        return max(found.modified_at for found in self.objects)

    @property
    def signature(self) -> str:
        """Hash that is another one when any object is new or was replaced."""
        tags = sorted(f"{o.name} {o.num_bytes} {o.etag} {o.modified_at}" for o in self.objects)
        return hashlib.sha256("\n".join(tags).encode()).hexdigest()[:16]


def split(objects: Objects, depth: int) -> tuple[list[Group], list[RemoteObject]]:
    """The groups of a listing by the time of their last object, and loose objects.

    Args:
        objects: Name -> object. Objects that stand for a folder are left out.
        depth: How many folders below the watched one checkpoints may lie.
    """
    folders = {name[:at] for name in objects for at, sign in enumerate(name) if sign == "/"}
    grouped: dict[str, list[RemoteObject]] = {}
    loose: list[RemoteObject] = []
    for name, found in objects.items():
        if name in folders:
            continue
        group = _group_of(name, depth)
        if group is None:
            loose.append(found)
        else:
            grouped.setdefault(group, []).append(found)
    groups = [Group(name=name, objects=tuple(found)) for name, found in grouped.items()]
    return sorted(groups, key=lambda group: (group.modified_at, group.name)), loose


def _group_of(name: str, depth: int) -> str | None:
    parts = name.split("/")
    for at, part in enumerate(parts[:-1][: depth + 1]):
        if is_step_folder(part):
            return "/".join(parts[: at + 1])
    is_file = parts[-1].endswith(_FILE_SUFFIX) and len(parts) <= depth + 1
    return name if is_file else None


def followed_groups(groups: list[Group]) -> tuple[list[Group], list[str]]:
    """Those of the run that is followed, and the names of the other runs.

    Of several runs it is the one that began last, as on a disk.
    """
    began: dict[str, float] = {}
    for group in groups:
        first = min(found.modified_at for found in group.objects)
        began[group.run] = min(began.get(group.run, first), first)
    if not began:
        return [], []
    chosen = max(began, key=lambda run: (began[run], run))
    return [g for g in groups if g.run == chosen], sorted(run for run in began if run != chosen)


def wanted_groups(groups: list[Group], handled: Collection[str], *, in_turn: bool) -> list[Group]:
    """The checkpoints to have on this disk, of one run, oldest first.

    Args:
        groups: By time.
        handled: Signatures of those that a version was made of, or that were passed over.
        in_turn: Whether each is to be taken in turn (`on_backlog: all`), not the newest only.
    """
    if not in_turn:
        return groups[-NUM_COPIES:]
    waiting = [group for group in groups if group.signature not in handled]
    done = [group for group in groups if group.signature in handled]
    return [*done[-1:], *waiting[:NUM_COPIES]]


def wanted_objects(
    groups: list[Group],
    loose: list[RemoteObject],
    *,
    others: Collection[str],
    with_optimizer: bool,
    with_all: bool,
) -> dict[str, RemoteObject]:
    """The objects to download.

    Args:
        groups: Wanted checkpoints.
        loose: What belongs to none.
        others: Folders of other runs, of which nothing is wanted.
        with_optimizer: Whether the optimizer's state is read.
        with_all: Whether a command of the user's reads the checkpoints, so that all is wanted.
    """
    found: dict[str, RemoteObject] = {}
    for group in groups:
        for one in group.objects:
            inner = one.name.removeprefix(group.name).removeprefix("/")
            if with_all or with_optimizer or not _OPTIMIZER.fullmatch(inner):
                found[one.name] = one
    for one in loose:
        if any(one.name.startswith(f"{run}/") for run in others if run):
            continue
        is_part = one.name.endswith(_WEIGHTS) or one.num_bytes <= SMALL_BYTES
        if is_part and (with_optimizer or not _OPTIMIZER.fullmatch(one.name)):
            found[one.name] = one
    return found
