"""Where below a folder checkpoints may be: a walk to a depth, and which run each belongs to."""

from __future__ import annotations

import dataclasses
import fnmatch
import heapq
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from gracekit.checkpoints.base_layout import step_directory
from gracekit.checkpoints.model_files import OTHER_SAVES, is_step_folder
from gracekit.errors import CheckpointError
from gracekit.types import Checkpoint
from gracekit.words import count_of

_UNFINISHED_NAMES = ("tmp-*", "*-tmp", "*.tmp", "*.incomplete", "*-unfinished")
_FILE_SUFFIX = ".ckpt"
"""Checkpoints that are single files."""
_STEP_NAME = re.compile(r"(?!global_step|optimizer|pytorch_model).*[-_=]\d+")
"""Folders that may be checkpoints within a checkpoint: one of several is saved where they all are,
and what trainers put into one is none."""
_PART_NAME = re.compile(r"pytorch_model_fsdp|optimizer(?:$|[-_.\d])")
"""Parts of a checkpoint, which trainers write before the rest of it."""
_LAST_SAVE = re.compile(r"(?:^|[-_.])(?:final|best|last|latest|merged|end)(?:$|[-_.])", re.I)
"""Names of models without a number that belong to the run beside whose checkpoints they lie."""
_TELL_NO_RUN = ("pretrained", "hf-trainer")
"""Layouts of which any model may be, such as a reward model: their name has to tell a step."""
_KNOW_THEIR_STEP = ("hf-trainer", "lightning")
"""Layouts whose files tell the step."""
_MODEL_FILES = (
    "*.safetensors", "pytorch_model_fsdp*.bin", "*/.metadata", "*/*_states.pt",
    "*/adapter_config.json",
)  # fmt: skip
_MOST_FOLDERS = 5_000
"""A run's folder has fewer; what is below a home or a data folder is not looked through."""
_MOST_SHOWN = 4
_MOST_TIMES = 100
"""Checkpoints of a run whose times are kept, besides the first."""


@dataclass(slots=True)
class Sight:
    """What a walk came by."""

    num_folders: int = 0
    num_files: int = 0
    names: tuple[str, ...] = ()
    """The first names in the folder itself."""
    is_cut: bool = False
    """Whether there are more folders than are looked at."""

    def __str__(self) -> str:
        if not (self.num_folders or self.num_files):
            return "it is empty"
        folders = count_of(self.num_folders, "folder")
        shown = ", ".join(self.names)
        return f"it holds {folders} and {count_of(self.num_files, 'file')} ({shown})"


EXPECTED = "a folder such as checkpoint-N with config.json and *.safetensors, or a file *.ckpt"


def nothing_there(root: Path, sight: Sight, depth: int) -> str:
    """That nothing of a folder looks like a checkpoint, what there is, and what is expected."""
    deep = f", nor down to {count_of(depth, 'folder')} below it (--depth)" if depth else ""
    cut = ""
    if sight.is_cut:
        cut = (
            f"; only {_MOST_FOLDERS:,} folders were looked at, those named as checkpoints first: "
            "name the folder of the run itself"
        )
    return f"there is no checkpoint in {root} yet{deep}: {sight}{cut}; expected {EXPECTED}"


def unfinished_name(name: str) -> str | None:
    """The pattern by which a name says that it is being written."""
    return next((p for p in _UNFINISHED_NAMES if fnmatch.fnmatchcase(name, p)), None)


def candidates(
    root: Path, depth: int, is_one: Callable[[Path], bool], sight: Sight | None = None
) -> Iterator[Path]:
    """What may be a checkpoint: `root` itself, and what lies below it, by name.

    Folders directly below `root` and files `*.ckpt` are all given; deeper ones where `is_one` says
    that they look like a checkpoint. Below a checkpoint only what is named like one is looked at.
    At most 5,000 folders are looked at, those with names of steps first.
    Links into `root` (`latest -> checkpoint-20`) are left out: the target is there itself. So are
    stores of ours.
    What cannot be told from a directory (a loop of links) is not: a look at it says what is wrong.

    Args:
        root: The folder that is watched, or a checkpoint.
        depth: How many folders below it to look; 0: at it alone.
        is_one: Whether a directory looks like a checkpoint; never raises.
        sight: Told what there is.

    Raises `CheckpointError` when `root` cannot be listed.
    """
    root = real_path(root)
    if root.suffix == _FILE_SUFFIX and root.is_file():
        yield root
        return
    listed = list(_listed(root, sight))
    if is_one(root):
        yield root
        is_model = any(True for pattern in _MODEL_FILES for _ in root.glob(pattern))
        if is_model or is_step_folder(root.name):
            listed = _named_like_steps(root, listed)
    waiting: list[tuple[bool, int, int, Path]] = []
    num_found = num_seen = 0
    for path in listed if depth > 0 else []:
        heapq.heappush(waiting, (not is_step_folder(path.name), 1, num_found, path))
        num_found += 1
    while waiting:
        if num_seen == _MOST_FOLDERS:
            if sight is not None:
                sight.is_cut = True
            return
        _, level, _, path = heapq.heappop(waiting)
        num_seen += 1
        is_checkpoint = is_one(path)
        if is_checkpoint or level == 1 or path.suffix == _FILE_SUFFIX:
            yield path
        if level >= depth or unfinished_name(path.name) or path.suffix == _FILE_SUFFIX:
            continue
        try:
            inner = list(_listed(path, sight, root))
        except CheckpointError:
            continue
        if is_checkpoint:
            inner = _named_like_steps(path, inner)
        for child in inner:
            entry = (not is_step_folder(child.name), level + 1, num_found, child)
            heapq.heappush(waiting, entry)
            num_found += 1


def _named_like_steps(checkpoint: Path, inner: list[Path]) -> list[Path]:
    """Of the folders in a checkpoint those named as checkpoints; `expert_1` in one of a step is an
    adapter of it.
    """
    is_of_step = is_step_folder(checkpoint.name)
    return [
        path
        for path in inner
        if path.name in OTHER_SAVES
        or (_STEP_NAME.fullmatch(path.name) and not (is_of_step and not is_step_folder(path.name)))
    ]


def _listed(folder: Path, sight: Sight | None, root: Path | None = None) -> Iterator[Path]:
    """Its directories, and files that may be checkpoints, by name, without links into the root."""
    root = root or folder
    try:
        with os.scandir(folder) as entries:
            listed = sorted((e for e in entries if not e.name.startswith(".")), key=_name)
    except OSError as error:
        raise CheckpointError(
            f"cannot list the checkpoint directory {folder}: {error.strerror}"
        ) from error
    if sight is not None and folder == root:
        more = ("…",) if len(listed) > _MOST_SHOWN else ()
        sight.names = (*(entry.name for entry in listed[:_MOST_SHOWN]), *more)
    for entry in listed:
        try:
            is_directory = entry.is_dir()
        except OSError:
            is_directory = True
        if is_directory and _is_store(Path(entry.path)):
            continue
        if sight is not None:
            sight.num_folders += is_directory
            sight.num_files += not is_directory
        is_wanted = is_directory or entry.name.endswith(_FILE_SUFFIX)
        is_wanted &= _PART_NAME.match(entry.name) is None
        if is_wanted and not (entry.is_symlink() and _leads_into(Path(entry.path), root)):
            yield Path(entry.path)


def _is_store(path: Path) -> bool:
    """A store of ours, which holds pinned and converted checkpoints, also before its first version.

    Nothing in it is a trainer's.
    """
    try:
        is_one = (path / "store.json").is_file() and (path / "manifests").is_dir()
        return is_one or ((path / ".lock").exists() and (path / "pins").is_dir())
    except OSError:
        return False


def real_path(path: Path) -> Path:
    """The path without links; one that loops stays as it is, and fails where it is read."""
    return Path(os.path.realpath(path))


def _leads_into(link: Path, root: Path) -> bool:
    """Whether the target of a link is below the root, or the root or a folder above it."""
    target = real_path(link)
    return target != link and (root in target.parents or target == root or target in root.parents)


def _name(entry: os.DirEntry[str]) -> str:
    return entry.name


# --- runs


def run_of(checkpoint: Checkpoint, root: Path) -> Path:
    """The folder of the run that a checkpoint belongs to: that of its siblings.

    For `sft/run-2/checkpoint-10` that is `sft/run-2`; the inner folders of trainers that nest the
    model, such as `global_step_10/actor/huggingface`, belong to the step.
    """
    path = checkpoint.path
    return path if path == root else step_directory(path).parent


def by_run(checkpoints: Iterable[Checkpoint], root: Path) -> dict[Path, list[Checkpoint]]:
    """Run -> its checkpoints, ascending by step.

    A run is a folder with checkpoints whose layout or name tells a step. To it belong a model that
    is saved into the run's own folder, and one whose name says that it is the last or the best
    (`final`); they have the step of the last checkpoint before them. Other models are left out,
    but where there is no run at all: then each folder that holds some is one.
    """
    found: dict[Path, list[Checkpoint]] = {}
    for checkpoint in checkpoints:
        found.setdefault(run_of(checkpoint, root), []).append(checkpoint)
    for checkpoint in [c for run in found.values() for c in run if c.path in found]:
        outer = run_of(checkpoint, root)
        if outer != checkpoint.path:
            found[outer].remove(checkpoint)
            found[checkpoint.path].append(checkpoint)
    of_steps = {
        run: [c for c in members if _is_of_run(c, run)]
        for run, members in found.items()
        if any(map(_tells_step, members))
    }
    return {
        run: in_order(with_step(c, run, members) for c in members)
        for run, members in (of_steps or found).items()
        if members
    }


def _tells_step(checkpoint: Checkpoint) -> bool:
    name = step_directory(checkpoint.path).name
    return checkpoint.layout not in _TELL_NO_RUN or is_step_folder(name)


def _is_of_run(checkpoint: Checkpoint, run: Path) -> bool:
    is_last = _LAST_SAVE.search(checkpoint.path.name) is not None
    return _tells_step(checkpoint) or checkpoint.path == run or is_last


def with_step(checkpoint: Checkpoint, run: Path, members: list[Checkpoint]) -> Checkpoint:
    """The checkpoint; where nothing tells its step, with that of the last of the run before it."""
    name = step_directory(checkpoint.path).name.removesuffix(_FILE_SUFFIX)
    is_named = name[-1:].isdigit() and checkpoint.path != run
    if is_named or checkpoint.layout in _KNOW_THEIR_STEP:
        return checkpoint
    before = [
        c.step
        for c in members
        if c != checkpoint and c.completed_at <= checkpoint.completed_at
    ]  # fmt: skip
    return dataclasses.replace(checkpoint, step=max(before, default=checkpoint.step))


def in_order(checkpoints: Iterable[Checkpoint]) -> list[Checkpoint]:
    """Ascending by step, then by time, then by path."""
    return sorted(checkpoints, key=lambda c: (c.step, c.completed_at, c.path))


History = dict[Path, list[float]]
"""Run -> when its checkpoints were written, ascending, as far as they were seen."""


def followed_run(
    runs: dict[Path, list[Checkpoint]], history: History, root: Path
) -> tuple[Path, str]:
    """The run that is followed, and why in words.

    The one in `root` itself, else the one that began last: of those side by side always the same
    one, and a restart. Where it is silent, one that goes on is taken: one with two checkpoints that
    are newer than its newest, the last of them by twice the longest time that it took for one.

    Args:
        runs: Each with at least one checkpoint.
        history: Kept up.
        root: The folder that is watched.
    """
    written = {}
    for run, checkpoints in runs.items():
        # A model that is saved at the end does not tell that a run goes on.
        of_steps = [c for c in checkpoints if _tells_step(c) and c.path != run] or checkpoints
        written[run] = [c.completed_at for c in of_steps]
    return followed_by_times(written, history, root)


def followed_by_times(
    written: Mapping[Path, Iterable[float]], history: History, root: Path
) -> tuple[Path, str]:
    """`followed_run`, of run -> when each of its checkpoints was written, at least one."""
    for run, times in written.items():
        seen = sorted({*history.get(run, ()), *times})
        history[run] = [*seen[:1], *seen[1:][-_MOST_TIMES:]]
    order = sorted(written, key=lambda run: (run == root, history[run][0], run), reverse=True)
    chosen, why = order[0], "which began last"
    if chosen == root:
        why = "which is in the folder itself"
    for other in order[1:]:
        if _goes_on_after(history[other], history[chosen]):
            chosen, why = other, "which goes on while the others are silent"
    return chosen, why


def _goes_on_after(other: list[float], times: list[float]) -> bool:
    longest = max((b - a for a, b in itertools.pairwise(times)), default=0.0)
    newer = [time for time in other if time > times[-1]]
    return len(newer) > 1 and newer[-1] - times[-1] >= 2 * longest


def words_of_runs(runs: dict[Path, list[Checkpoint]], chosen: Path, why: str, root: Path) -> str:
    """That there are several runs, and which one is followed."""
    names = sorted(str(run.relative_to(root)) if root in run.parents else "." for run in runs)
    name = str(chosen.relative_to(root)) if root in chosen.parents else "."
    return (
        f"{root} holds checkpoints of {len(runs)} runs ({', '.join(names)}); following {name}, "
        f"{why}; to follow another one, name its folder"
    )
