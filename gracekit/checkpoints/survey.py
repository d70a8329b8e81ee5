"""What is in a folder, in words: each checkpoint with its layout, and why one cannot be used.

The words are those that `watch_checkpoints` says, because both ask the same layouts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gracekit.checkpoints.adapters import model_directory
from gracekit.checkpoints.config import describe_checkpoint
from gracekit.checkpoints.discover import (
    Obstacle,
    among_others,
    candidates_below,
    followed,
    look,
    name_below,
)
from gracekit.checkpoints.distributed import shards_directory
from gracekit.checkpoints.layouts import LAYOUTS
from gracekit.checkpoints.model_files import CONFIG, base_of, config_in, uses_command
from gracekit.checkpoints.places import Sight, nothing_there, real_path, run_of
from gracekit.checkpoints.vocabulary import has_vocabulary
from gracekit.checkpoints.weights import ADAPTER_CONFIG, has_weights, is_adapter, read_header
from gracekit.errors import CheckpointError, CheckpointIncompleteError, CheckpointVanishedError
from gracekit.foreign import foreign
from gracekit.protocols import CheckpointLayout
from gracekit.recipe import CheckpointSection
from gracekit.types import Checkpoint, Json

State = Literal["complete", "waiting", "cannot be used"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one checkpoint is, and whether it can be used."""

    name: str
    """Its path below the folder that was looked at."""
    path: Path
    run: Path
    """Folder of the run that it belongs to."""
    layout: str
    state: State
    step: int | None = None
    """None where it cannot be told."""
    reason: str | None = None
    """Why it is not complete or cannot be used; None for a complete one."""
    needs_command: bool = False
    """Whether `checkpoints.convert_cmd` makes the model of it."""
    weights: str | None = None
    """The form of its weights, in words."""
    base: str | None = None
    """Where config or tokenizer come from, or the base of an adapter; None: all is in it."""
    lacks_tokenizer: bool = False
    """Whether there is no tokenizer, in it or set, which rows of text need."""
    architecture: Json | None = None
    """Kind and sizes of the model, where its config can be read."""
    checkpoint: Checkpoint | None = None
    """What a refresh takes, of a complete one."""

    def to_json(self) -> Json:
        """As a JSON object."""
        left_out = ("checkpoint", "path", "run", "needs_command")
        own = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in left_out
        }
        return {**own, "path": str(self.path), "run": str(self.run)}


def survey(root: Path, settings: CheckpointSection) -> list[Finding]:
    """Every checkpoint of a folder and below it, complete or not, by run and step.

    Raises `CheckpointError` where the folder cannot be listed.
    """
    found = []
    for path in candidates_below(root, settings, LAYOUTS):
        outcome = look(path, settings, LAYOUTS)
        if isinstance(outcome, Checkpoint) and path == real_path(root):
            outcome = among_others(outcome, settings, LAYOUTS)
        if outcome is not None:
            found.append(_finding(path, real_path(root), outcome, settings))
    return sorted(found, key=lambda f: (f.run, -1 if f.step is None else f.step, f.name))


def newest_usable(found: list[Finding], root: Path) -> Finding | None:
    """The complete one with the highest step of the run that is followed; None: there is none."""
    complete = [f.checkpoint for f in found if f.state == "complete" and f.checkpoint is not None]
    runs, chosen, _ = followed(complete, root)
    if chosen is None:
        return None
    newest = runs[chosen][-1]
    named = next(f for f in found if f.path == newest.path)
    return dataclasses.replace(named, step=newest.step, checkpoint=newest)


def loaded_alike(found: Finding, settings: CheckpointSection) -> Hashable:
    """Equal for checkpoints of which loading says the same: configs, and names and shapes.

    The path itself where its weights are in another form than safetensors. Raises `CheckpointError`
    where it cannot be read.
    """
    with foreign(found.path, CheckpointError):
        layout = _layout(found.path, settings)
        files = layout.weight_files(found.path)
        if not files or any(file.suffix != ".safetensors" for file in files):
            return found.path
        tensors = {
            (name, entry["dtype"], *entry["shape"])
            for file in files
            for name, entry in read_header(file).items()
        }
        configs = [
            (part / name).read_bytes() if (part / name).is_file() else b""
            for part in layout.parts(found.path)
            for name in (CONFIG, ADAPTER_CONFIG)
        ]
        return frozenset(tensors), tuple(configs)


def asked_again(found: Finding, refusal: str, settings: CheckpointSection) -> Finding | None:
    """A complete checkpoint that could not be read, as it is now; None: it was deleted meanwhile.

    Where it is still complete, `refusal` is why it cannot be used.
    """
    outcome = look(found.path, settings, LAYOUTS)
    if isinstance(outcome, Checkpoint):
        return dataclasses.replace(found, state="cannot be used", reason=refusal)
    if outcome is None or outcome.error is CheckpointVanishedError:
        return None
    state: State = "waiting" if outcome.error is CheckpointIncompleteError else "cannot be used"
    return dataclasses.replace(found, state=state, reason=outcome.reason, checkpoint=None)


def why_none(root: Path, settings: CheckpointSection) -> str:
    """Why a folder has no complete checkpoint: what each of those that are there lacks.

    Raises `CheckpointError` where the folder cannot be listed.
    """
    sight = Sight()
    reasons = []
    for path in candidates_below(root, settings, LAYOUTS, sight):
        outcome = look(path, settings, LAYOUTS)
        if isinstance(outcome, Obstacle):
            reasons.append(_in_one_line(f"{name_below(path, root)}: {outcome.reason}"))
    if not reasons:
        return nothing_there(root, sight, settings.depth)
    return f"there is no complete checkpoint in {root} yet:\n  " + "\n  ".join(reasons)


def _in_one_line(text: str) -> str:
    """A folder's name may hold anything, also what would look like another line of ours."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _finding(
    path: Path, root: Path, outcome: Checkpoint | Obstacle, settings: CheckpointSection
) -> Finding:
    layout = _layout(path, settings)
    step = outcome.step if isinstance(outcome, Checkpoint) else _step(layout, path)
    is_complete = isinstance(outcome, Checkpoint)
    guess = Checkpoint(step=step or 0, path=path, layout=layout.name, completed_at=0.0)
    finding = Finding(
        name=name_below(path, root) if path != root else path.name,
        path=path,
        run=run_of(guess, root),
        layout=outcome.layout if isinstance(outcome, Checkpoint) else layout.name,
        step=step,
        state="complete",
        checkpoint=outcome if isinstance(outcome, Checkpoint) else None,
    )
    if isinstance(outcome, Obstacle):
        is_waiting = outcome.error is CheckpointIncompleteError
        finding = dataclasses.replace(
            finding, state="waiting" if is_waiting else "cannot be used", reason=outcome.reason
        )
    try:
        with foreign(path, CheckpointError):
            parts = layout.parts(path)
            finding = dataclasses.replace(
                finding,
                weights=_form(parts, settings),
                needs_command=uses_command(parts, settings),
            )
            base = _base(path, parts, settings)
            lacks = base is None and settings.tokenizer is None and not _has_tokenizer(parts)
            finding = dataclasses.replace(finding, base=base, lacks_tokenizer=lacks)
            if is_complete:
                facts = describe_checkpoint(guess, settings)
                finding = dataclasses.replace(finding, architecture=facts)
    except CheckpointError as error:
        if is_complete and not (finding.needs_command and settings.base_model is None):
            return dataclasses.replace(finding, state="cannot be used", reason=str(error))
    return finding


def _layout(path: Path, settings: CheckpointSection) -> CheckpointLayout:
    """The first that matches; the most general one where even that fails."""
    layouts = [kind(settings) for kind in LAYOUTS.values()]
    try:
        with foreign(path, CheckpointError):
            return next(layout for layout in layouts if layout.matches(path))
    except CheckpointError:
        return layouts[-1]


def _step(layout: CheckpointLayout, path: Path) -> int | None:
    try:
        with foreign(path, CheckpointError):
            return layout.step(path)
    except CheckpointError:
        return None


def _form(parts: list[Path], settings: CheckpointSection) -> str:
    """What form the weights are in."""
    if uses_command(parts, settings):
        return "converted by checkpoints.convert_cmd"
    if parts[0].is_file():
        return "tensors in a file of torch.save, converted when they are read"
    if is_adapter(parts[0]):
        return "an adapter"
    if shards_directory(parts[0]) is not None and not has_weights(parts[0]):
        return "torch distributed shards, converted when they are read"
    return "safetensors" if next(parts[0].glob("*.safetensors"), None) else "not there yet"


def _base(path: Path, parts: list[Path], settings: CheckpointSection) -> str | None:
    """Where from what is not in the checkpoint comes."""
    if is_adapter(parts[0]):
        return str(model_directory(parts[0], settings))
    folders = [part for part in parts if part.is_dir()]
    if config_in(folders) is None:
        return str(base_of(path, settings))
    if not _has_tokenizer(parts) and (settings.tokenizer or settings.base_model):
        return f"{settings.tokenizer or settings.base_model} (tokenizer)"
    return None


def _has_tokenizer(parts: list[Path]) -> bool:
    return any(has_vocabulary(part) for part in parts if part.is_dir())
