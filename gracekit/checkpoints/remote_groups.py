"""Which objects of a remote run are wanted on this disk: those of the newest checkpoints.

By names alone, before anything is downloaded. A group is what lies below a folder whose name says a
step (`run-1/checkpoint-20`), or one file `*.ckpt`; the rest is loose.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from gracekit.checkpoints.distributed import INNER
from gracekit.checkpoints.model_files import is_step_folder
from gracekit.checkpoints.places import History, followed_by_times
from gracekit.remote import RemoteObject

NUM_COPIES = 2
"""Checkpoints that are kept on this disk: one that is read, and one that is being uploaded."""
SMALL_BYTES = 16 << 20
"""Of what is no checkpoint's: logs and data of a run are not downloaded."""

_FILE_SUFFIX = ".ckpt"
_WEIGHTS = (".safetensors", ".ckpt", ".distcp")
_PICKLED = (".bin", ".pt", ".pth")
_PART = re.compile(
    r"pytorch_model_fsdp.*\.bin|model_world_size_\d+_rank_\d+\.pt"
    rf"|(?:{'|'.join(INNER)})/(?:[^/]+\.distcp|\.metadata)"
)
"""Weights of FSDP, within the folder of a checkpoint."""
_TOKENIZER = re.compile(r"(?:tokenizer|vocab|spiece|sentencepiece).*|.*\.(?:model|tiktoken)")
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
    def has_weights(self) -> bool:
        """Whether a part of a model is there; results of an evaluation have none."""
        return any(
            o.name.endswith((*_WEIGHTS, *_PICKLED)) and not _OPTIMIZER.fullmatch(self.inner(o))
            for o in self.objects
        )

    def inner(self, found: RemoteObject) -> str:
        """The name of an object within the checkpoint; empty for one that is a file."""
        return found.name.removeprefix(self.name).removeprefix("/")

    def holds(self, name: str) -> bool:
        """Whether a name is its own, or of something in it."""
        return not self.name or name == self.name or name.startswith(f"{self.name}/")

    @property
    def began_at(self) -> float:
        """When the first of its objects was written: an upload that goes on does not change it."""
        return min(found.modified_at for found in self.objects)

    @property
    def modified_at(self) -> float:
        """When the last of its objects was written, in seconds since the epoch."""
        return max(found.modified_at for found in self.objects)

    @property
    def signature(self) -> str:
        """Hash that is another one when any object is new or was replaced."""
        tags = sorted(f"{o.name} {o.num_bytes} {o.etag} {o.modified_at}" for o in self.objects)
        return hashlib.sha256("\n".join(tags).encode()).hexdigest()[:16]


def split(
    objects: Objects, depth: int, url_name: str = ""
) -> tuple[list[Group], list[RemoteObject]]:
    """The groups of a listing by the time of their last object, and loose objects.

    All objects of a URL that is that of a checkpoint are one group, whose name is empty.

    Args:
        objects: Name -> object. Objects that stand for a folder are left out.
        depth: How many folders below the watched one checkpoints may lie.
        url_name: The last part of the URL, which may say a step.
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
    top = [name for name in objects if "/" not in name]
    has_model = any(name.endswith(_WEIGHTS) and not name.endswith(_FILE_SUFFIX) for name in top)
    has_model |= any(map(_PART.fullmatch, objects))
    is_step = is_step_folder(url_name)
    if (is_step and (has_model or "config.json" in top)) or (has_model and not grouped):
        whole = tuple(found for name, found in objects.items() if name not in folders)
        return [Group(name="", objects=whole)], []
    groups = [Group(name=name, objects=tuple(found)) for name, found in grouped.items()]
    return sorted(groups, key=lambda group: (group.modified_at, group.name)), loose


def _group_of(name: str, depth: int) -> str | None:
    parts = name.split("/")
    for at, part in enumerate(parts[:-1][: depth + 1]):
        if is_step_folder(part):
            return "/".join(parts[: at + 1])
    is_file = parts[-1].endswith(_FILE_SUFFIX) and len(parts) <= depth + 1
    return name if is_file else None


def followed_groups(groups: list[Group], history: History) -> tuple[list[Group], list[str], str]:
    """Those of the run that is followed, the names of the other runs, and why it is followed.

    As on a disk (`places.followed_run`). Where any group has weights, runs without any are none.

    Args:
        groups: Of all runs.
        history: Kept up.
    """
    written: dict[str, list[float]] = {}
    for group in [g for g in groups if g.has_weights] or groups:
        written.setdefault(group.run, []).append(group.began_at)
    if not written:
        return [], [], ""
    path, why = followed_by_times({Path(r): t for r, t in written.items()}, history, Path())
    chosen = "" if path == Path() else path.as_posix()
    others = sorted({g.run for g in groups} - {chosen})
    return [g for g in groups if g.run == chosen], others, why


def wanted_groups(
    groups: list[Group],
    handled: Collection[str],
    incomplete: Collection[str] = (),
    *,
    in_turn: bool,
) -> list[Group]:
    """The checkpoints to have on this disk, of one run, by time.

    Args:
        groups: By time.
        handled: Signatures of those that a version was made of, or that were passed over.
        incomplete: Of those that were here and cannot be used as they are; they take no place of
            one that may be complete.
        in_turn: Whether each is to be taken in turn (`on_backlog: all`), not the newest only.
    """
    if not in_turn:
        whole = [group for group in groups if group.signature not in incomplete]
        wanted = [*groups[-NUM_COPIES:], *whole[-1:]]
    else:
        waiting = [group for group in groups if group.signature not in handled]
        done = [group for group in groups if group.signature in handled]
        whole = [group for group in waiting if group.signature not in incomplete]
        half = [group for group in waiting if group.signature in incomplete]
        wanted = [*done[-1:], *whole[:NUM_COPIES], *half[-NUM_COPIES:]]
    return [group for group in groups if group in wanted]


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
            if with_all or with_optimizer or not _OPTIMIZER.fullmatch(group.inner(one)):
                found[one.name] = one
    models = {home for one in loose if (home := _home_of_weights(one.name)) is not None}
    for one in loose:
        if any(one.name.startswith(f"{run}/") for run in others if run):
            continue
        is_weights = _home_of_weights(one.name) is not None
        is_part = is_weights or one.num_bytes <= SMALL_BYTES
        last = one.name.rpartition("/")[2]
        is_part |= one.name.rpartition("/")[0] in models and _TOKENIZER.fullmatch(last) is not None
        if is_part and (with_optimizer or not _OPTIMIZER.fullmatch(one.name)):
            found[one.name] = one
    return found


def _home_of_weights(name: str) -> str | None:
    """The folder of the model whose weights an object holds; None for one that holds none."""
    parts = name.split("/")
    for at in range(max(0, len(parts) - 2), len(parts)):
        if _PART.fullmatch("/".join(parts[at:])):
            return "/".join(parts[:at])
    return "/".join(parts[:-1]) if name.endswith(_WEIGHTS) else None
