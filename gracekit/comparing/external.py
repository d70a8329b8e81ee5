"""Runs by a training command of the user's own: what it is given, and how it is checked.

The command is run once for each arm and seed. `{subset}` is a JSON-lines file of all rows that the
run trains on, in the order of the draws and with repeats, so the command goes over it once;
`{output}` is the directory in which it leaves a model; `{seed}` is a number. Rows come without
weights, so selections draw rows that count alike.
"""

from __future__ import annotations

import json
import logging
import resource
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from gracekit.checkpoints import LAYOUTS_AT_REST, check_checkpoint, find_checkpoints
from gracekit.checkpoints.layouts import CHECKPOINT_NAME, TRAINER_STATE
from gracekit.comparing.arms import Arm, Overlay
from gracekit.comparing.bed import Bed
from gracekit.comparing.course import Course
from gracekit.comparing.evaluation import row_losses
from gracekit.comparing.processes import last_lines, run_words
from gracekit.comparing.recipes import recipe_of
from gracekit.comparing.run_result import Point
from gracekit.documents import read_json
from gracekit.errors import CheckpointError, MeasureError, RecipeError
from gracekit.files import sha256
from gracekit.foreign import foreign
from gracekit.refresher import refresh
from gracekit.samples import open_records
from gracekit.training import CoresetSampler
from gracekit.types import Float32, Float64, Rows

logger = logging.getLogger("gracekit.comparing")

PLACES = ("subset", "output", "seed")
_LARGEST_SCRIPT = 1_000_000
"""Bytes; a larger file that a command names is data, or a program of the system's."""
_WITHOUT_END = 1_000_000
"""Epochs that a trainer names where it counts steps alone, at least (`sys.maxsize` is usual)."""


@dataclass(frozen=True, slots=True)
class Command:
    """A training command with places to fill in."""

    text: str

    @classmethod
    def parse(cls, text: str) -> Command:
        """Check that the command has the places that a comparison needs.

        Raises:
            RecipeError: One is missing, unknown, or the text is no command.
        """
        missing = [name for name in PLACES if "{" + name + "}" not in text]
        if missing:
            raise RecipeError(
                f"--train: the command lacks {', '.join('{' + name + '}' for name in missing)}; "
                "expected such as 'python train.py --subset {subset} --output {output} --seed "
                "{seed}'"
            )
        try:
            shlex.split(text)
        except ValueError as error:
            raise RecipeError(f"--train: cannot read the command: {error}") from None
        return cls(text)

    def filled(self, **values: object) -> list[str]:
        """The words of the command; what is filled in stays one word."""
        words = shlex.split(self.text)
        for name, value in values.items():
            words = [word.replace("{" + name + "}", str(value)) for word in words]
        return words

    def scripts(self) -> dict[str, str]:
        """A hash of each small file that the command names; what those import is not looked at."""
        words = {word for word in shlex.split(self.text) if _is_script(Path(word))}
        return {word: sha256(Path(word))[:16] for word in sorted(words)}


def _is_script(path: Path) -> bool:
    try:
        return path.is_file() and path.stat().st_size <= _LARGEST_SCRIPT
    except (OSError, ValueError):  # a word that cannot be a name
        return False


def run_command(
    bed: Bed, arm: Arm, seed: int, folder: Path, command: Command, on_point: Callable[[int], None]
) -> Course:
    """Train one arm with the command, and judge what it leaves.

    Raises:
        MeasureError: The command fails, or leaves no model, or one that is not trained.
        RecipeError: The arm needs the model in training, which a command does not show.
    """
    if arm.is_full:
        epochs = [bed.pool[np.random.default_rng([4, seed, e]).permutation(len(bed.pool))]
                  for e in range(bed.recipe.compare.epochs)]  # fmt: skip
        selection = (0.0, 0.0)
    elif arm.draws is not None:
        draws = arm.draws(bed, seed)
        looks = _NoLooks(arm.name)
        epochs = [draws.draw(e, looks).rows for e in range(bed.recipe.compare.epochs)]
        selection = (0.0, 0.0)
    else:
        epochs, selection = _selected(bed, arm, seed, folder)
    rows = np.concatenate(epochs)
    course = Course(trained=[rows], selection_tokens=selection[0])
    course.points.append(_point(bed, bed.start, 0, (0.0, 0.0, 0.0)))
    subset, output = folder / "subset.jsonl", folder / "output"
    _write_subset(bed, rows, subset)
    output.mkdir()
    words = command.filled(subset=subset.absolute(), output=output.absolute(), seed=seed)
    before = _children_s()
    code = run_words(words, folder, f"the arm {arm.name!r}, seed {seed}")
    training_s = _children_s() - before
    if code:
        how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        raise MeasureError(
            f"the arm {arm.name!r}, seed {seed}: the training command {how}: {shlex.join(words)}\n"
            f"{last_lines(folder)}\n"
            "Correct it and run the comparison again; runs that are done stay done"
        )
    place = _model_in(output, bed, arm, seed)
    num_steps = steps_of_command(bed, arm)
    _check_steps(output, place, num_steps, len(rows), arm, seed)
    course.points.append(_point(bed, place, num_steps, (selection[0], training_s, selection[1])))
    course.model = _load(bed, place)
    if not np.isfinite(course.points[-1].losses).all():
        raise MeasureError(
            f"the arm {arm.name!r}, seed {seed}: the held-out loss of the trained model is not "
            "finite; lower the learning rate of the command"
        )
    if course.points[0].losses == course.points[1].losses:
        raise MeasureError(
            f"the arm {arm.name!r}, seed {seed}: the model in {place} has the losses of the start: "
            "the command has trained nothing, or has saved what it started from"
        )
    on_point(num_steps)
    return course


def steps_of_command(bed: Bed, arm: Arm) -> int:
    """Optimizer steps of one pass over all draws, written one after another."""
    settings = bed.recipe.compare
    if not arm.is_full:
        return bed.num_steps_at_once
    return -(-settings.epochs * len(bed.pool) // settings.batch_size)


def check_arm(bed: Bed, arm: Arm) -> None:
    """`RecipeError` where an arm needs the model in training, which a command does not show."""
    if arm.draws is not None and not arm.is_full:
        arm.draws(bed, 0).draw(0, _NoLooks(arm.name))
    if arm.overlay is not None and arm.overlay.ends_early:
        raise RecipeError(
            f"the arm {arm.name!r} ends where versions of later checkpoints advise it, and a "
            "command of your own has none; leave it out, or compare without --train"
        )


class _NoLooks:
    """For commands: nobody sees the model while it is trained."""

    def __init__(self, arm: str) -> None:
        self._arm = arm

    def seen(self) -> Float64:
        """Refused."""
        raise self._refusal()

    def losses(self, rows: Rows) -> Float64:
        """Refused."""
        raise self._refusal()

    def states(self, rows: Rows) -> Float32:
        """Refused."""
        raise self._refusal()

    def target_states(self) -> Float32:
        """Refused."""
        raise self._refusal()

    def _refusal(self) -> RecipeError:
        return RecipeError(
            f"the arm {self._arm!r} looks at the model in training, which a command of your own "
            "does not show; leave it out, or compare without --train"
        )


def _selected(bed: Bed, arm: Arm, seed: int, folder: Path) -> (
    tuple[list[Rows], tuple[float, float]]
):  # fmt: skip
    """Draws of the version that the start gives, and what selection cost in tokens and seconds."""
    assert arm.overlay is not None
    alike = Overlay(
        about=arm.overlay.about,
        changes={**arm.overlay.changes, "selection.weights": "none"},
        redraw=arm.overlay.redraw,
    )
    changed = Arm(name=arm.name, about=arm.about, overlay=alike)
    recipe = recipe_of(bed, changed, seed, folder / "store")
    began = time.process_time()
    header = refresh(recipe, bed.start).header
    sampler = CoresetSampler(
        recipe.store,
        bed.raw.sample_ids.tolist(),
        num_samples=bed.num_drawn,
        seed=seed,
        redraw=arm.overlay.redraw,
        weighs=False,
    )
    epochs = []
    for epoch in range(bed.recipe.compare.epochs):
        sampler.set_epoch(epoch)
        epochs.append(np.array([int(position) for position in sampler], np.int64))
    cost = 0.0 if header.cost is None else float(header.cost.cost_in_all)
    return epochs, (cost, time.process_time() - began)


def _write_subset(bed: Bed, rows: Rows, path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        for record in open_records(bed.recipe.data, bed.raw.source_rows[rows]):
            file.write(json.dumps(record, ensure_ascii=False, default=str) + "\n")


def _model_in(output: Path, bed: Bed, arm: Arm, seed: int) -> Path:
    """The model that the command left: at `output` itself, in a folder of another name that was
    written after the last checkpoint, or that checkpoint.

    The command has ended, so nothing is waited for; and where its last checkpoint cannot be used,
    an earlier one does not stand for it.
    """
    if (output / "config.json").is_file() or (output / "adapter_config.json").is_file():
        check_checkpoint(output, bed.recipe.checkpoints, LAYOUTS_AT_REST)
        return output
    found, last = [], None
    if output.is_dir():  # which the command may have removed
        found = find_checkpoints(output, bed.recipe.checkpoints, LAYOUTS_AT_REST)
        last = _last_numbered(output)
    if last is not None and not (found and _is_later(found[-1].path, last)):
        try:
            return check_checkpoint(last, bed.recipe.checkpoints, LAYOUTS_AT_REST).path
        except CheckpointError as error:
            raise MeasureError(
                f"the arm {arm.name!r}, seed {seed}: the last checkpoint that the training command "
                f"left cannot be used: {error}"
            ) from None
    if not found:
        raise MeasureError(
            f"the arm {arm.name!r}, seed {seed}: the training command left no model in {output}; "
            "expected config.json and *.safetensors there or in a checkpoint-N below it. Let it "
            "save to {output}"
        )
    return found[-1].path


def _last_numbered(output: Path) -> Path | None:
    """The checkpoint-N of the highest N right below; None: there is none."""
    named = [(CHECKPOINT_NAME.fullmatch(path.name), path) for path in output.iterdir()]
    numbered = [(int(name[1]), path) for name, path in named if name and path.is_dir()]
    return max(numbered)[1] if numbered else None


def _is_later(place: Path, last: Path) -> bool:
    """Whether a model in a folder of another name, such as `final`, was written after `last`."""
    is_numbered = CHECKPOINT_NAME.fullmatch(place.name) is not None
    return not is_numbered and place.stat().st_mtime_ns >= last.stat().st_mtime_ns


def _check_steps(
    output: Path, place: Path, num_steps: int, num_rows: int, arm: Arm, seed: int
) -> None:
    """Compare with what the trainer's state says, where it has one.

    Where the model lies at `output` itself, as `save_model` leaves it, the state of the last
    checkpoint below says how many steps and epochs were to be taken.
    """
    below = _last_numbered(output) if place == output else None
    is_below = below is not None and not (place / TRAINER_STATE).is_file()
    try:
        state: Any = read_json((below if is_below and below else place) / TRAINER_STATE)
        taken = int(state["global_step"])
        if is_below:
            taken = max(taken, int(state.get("max_steps") or 0))
        epochs = float(state.get("num_train_epochs") or 1)
    except (OSError, ValueError, TypeError, KeyError, OverflowError):
        logger.warning(
            "%s, seed %d: the command leaves no trainer_state.json, so what it trained on cannot "
            "be told", arm.name, seed,
        )  # fmt: skip
        return
    if 1 < epochs < _WITHOUT_END:
        raise MeasureError(
            f"the arm {arm.name!r}, seed {seed}: the command went over the subset {epochs:g} "
            "times; the subset holds all draws already, so let it train one epoch"
        )
    if taken != num_steps:
        raise MeasureError(
            f"the arm {arm.name!r}, seed {seed}: the command took {taken} steps, expected "
            f"{num_steps} for {num_rows} rows: it ignores the subset, or has another batch size "
            "than compare.batch_size. Arms with different steps cannot be compared"
        )


def _load(bed: Bed, place: Path) -> Any:
    with foreign(place, CheckpointError):
        return AutoModelForCausalLM.from_pretrained(
            place,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=bed.recipe.checkpoints.trust_remote_code,
        )


def _point(bed: Bed, place: Path, step: int, spent: tuple[float, float, float]) -> Point:
    judges = bed.judges
    losses = row_losses(_load(bed, place), judges.tokens, judges.rows, bed.tokenizer.pad_token_id)
    return Point(
        step=step,
        losses=[round(loss, 6) for loss in losses.tolist()],
        trained_tokens=0.0,
        selection_tokens=spent[0],
        training_s=round(spent[1], 3),
        selection_s=round(spent[2], 3),
    )


def _children_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
