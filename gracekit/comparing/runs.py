"""One run of one arm with one seed, from nothing to its result file."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gracekit.comparing.arms import Arm
from gracekit.comparing.bed import Bed
from gracekit.comparing.course import Course
from gracekit.comparing.external import Command, run_command, steps_of_command
from gracekit.comparing.metrics import metric_of, metric_values
from gracekit.comparing.recipes import recipe_of
from gracekit.comparing.run_result import RunResult
from gracekit.comparing.trainer import train
from gracekit.errors import RecipeError
from gracekit.files import make_directory, remove, sha256
from gracekit.recipe import Recipe
from gracekit.samples import load_samples
from gracekit.types import Json
from gracekit.version.program import own_code, program

RUNNING = ".running"
"""Ends the name of the folder of a run that goes on."""
_OF_ALL = (
    "epochs", "batch_size", "learning_rate", "schedule", "warmup", "lora_rank", "evaluations",
    "metric", "metric_rows", "marks",
)  # fmt: skip
"""Keys of the section `compare` that decide what every run is."""
_LATER = {"held_out_rows", "target", "code", "start_besides"}
"""Settings that came later: a result without them is believed."""
_OF_START = ("config.json", "generation_config.json", "*.bin", "*.py")
"""Files of the start that make the model besides `*.safetensors`; tokens tell of its tokenizer."""
_OF_RANKINGS = ("rds", "loss-top", "longest")
"""Arms that `keep_share` concerns."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run, done or not."""

    arm: Arm
    seed: int
    folder: Path
    """Of the comparison."""
    settings: Json
    num_steps: int

    @property
    def file(self) -> Path:
        """Its result."""
        return self.folder / f"{self.arm.file_name}-seed{self.seed}.json"

    @property
    def work(self) -> Path:
        """Checkpoints and the store, while it goes on."""
        return self.folder / f"{self.arm.file_name}-seed{self.seed}{RUNNING}"

    def result(self) -> RunResult | None:
        """What is there of it.

        Raises:
            RecipeError: The result is of other settings.
            StoreFormatError: It cannot be read.
        """
        found = RunResult.read(self.file)
        if found is None:
            return None
        if found.arm != self.arm.name:
            raise RecipeError(
                f"the result {self.file} is of the arm {found.arm!r}, and {self.arm.name!r} would "
                "have the same file: name another --output for one of them"
            )
        differing = [
            f"{key} (then {found.settings.get(key)}, now {self.settings.get(key)})"
            for key in sorted({*found.settings, *self.settings} - _LATER.difference(found.settings))
            if found.settings.get(key) != self.settings.get(key)
        ]
        if differing:
            raise RecipeError(
                f"the result {self.file} was made with other settings: {'; '.join(differing)}. "
                "Runs of both cannot be compared: name another --output, or remove the results"
            )
        if found.num_steps != self.num_steps:
            raise RecipeError(
                f"the result {self.file} took {found.num_steps} steps, the others take "
                f"{self.num_steps}: arms with different steps cannot be compared. Remove it, and "
                "its run is done again"
            )
        return found


def runs_of(bed: Bed, arms: list[Arm], folder: Path, command: Command | None) -> list[Run]:
    """All runs: every arm with seed 0, then with seed 1, and so on."""
    common = _common_settings(bed, command)
    return [
        Run(
            arm=arm,
            seed=seed,
            folder=folder,
            settings={**common, **_own_settings(bed, arm)},
            num_steps=_num_steps(bed, arm, command),
        )
        for seed in range(bed.recipe.compare.seeds)
        for arm in arms
    ]


def _num_steps(bed: Bed, arm: Arm, command: Command | None) -> int:
    if command is not None:
        return steps_of_command(bed, arm)
    return bed.num_full_steps if arm.is_full else bed.num_steps


def do_run(bed: Bed, run: Run, command: Command | None, on_point: Callable[[int], None]) -> (
    RunResult
):  # fmt: skip
    """Train, judge, write the result; what a killed run left is removed first."""
    settings = bed.recipe.compare
    program = code_of(bed.recipe, command)  # a script may be edited while the run goes on
    remove(run.work)
    make_directory(run.work)
    if command is None:
        course = train(bed, run.arm, run.seed, run.work, on_point)
    else:
        course = run_command(bed, run.arm, run.seed, run.work, command, on_point)
    metric = None
    if settings.metric is not None:
        metric = metric_values(
            course.model,
            bed.judges,
            bed.tokenizer,
            metric_of(settings.metric),
            settings.metric_rows,
        )
    result = _result(bed, run, course, metric, program)
    result.write(run.file)
    remove(run.work)
    return result


def _result(
    bed: Bed, run: Run, course: Course, metric: list[float] | None, program: dict[str, str]
) -> RunResult:
    uses = course.uses(len(bed.raw))
    total = int(uses.sum())
    batch_size = bed.recipe.compare.batch_size
    points = [
        dataclasses.replace(
            point, trained_tokens=course.tokens_at(point.step, bed.tokens.lengths, batch_size)
        )
        for point in course.points
    ]
    return RunResult(
        arm=run.arm.name,
        seed=run.seed,
        settings=run.settings,
        num_steps=run.num_steps,
        points=points,
        num_targets=bed.judges.num_targets.tolist(),
        groups=bed.judges.groups.tolist(),
        group_names=list(bed.judges.group_names),
        metric=metric,
        ended_at=course.ended_at,
        num_trained=total,
        num_distinct=int((uses > 0).sum()),
        most_uses=int(uses.max(initial=0)),
        marked={
            name: round(float(uses[marked].sum() / max(total, 1)), 6)
            for name, marked in bed.marks.items()
        },
        weights_digest=digest_of(course.model),
        rows_digest=_digest(*(rows.astype("<i8").tobytes() for rows in course.trained)),
        aims=course.aims,
        worths=course.worths,
        program=program,
    )


def code_of(recipe: Recipe, command: Command | None) -> dict[str, str]:
    """Which code makes a result: gracekit and what trains, files of classes of the user's, and
    scripts that a training command names.

    Raises:
        RecipeError: The recipe names a class that is not there.
    """
    metric = recipe.compare.metric
    names = [*recipe.scoring.scores, *([] if metric is None else [metric])]
    return {**program(), **own_code(names), **({} if command is None else command.scripts())}


def _digest(*parts: str | bytes) -> str:
    joined = b"".join(part.encode() if isinstance(part, str) else part for part in parts)
    return hashlib.sha256(joined).hexdigest()[:16]


def digest_of(model: Any) -> str:
    """Short hash of the weights that a run moved."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().to(torch.float32).cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _common_settings(bed: Bed, command: Command | None) -> Json:
    settings = bed.recipe.compare.model_dump(mode="json")
    weights = sorted(bed.start.glob("*.safetensors"))
    besides = sorted({file for pattern in _OF_START for file in bed.start.glob(pattern)})
    return {
        **{key: settings[key] for key in _OF_ALL},
        "data": bed.raw.fingerprint,
        "tokens": bed.tokens.key,
        "held_out": bed.judges.tokens.key + f", {len(bed.judges.rows)} rows",
        "held_out_rows": _digest("\0".join(bed.judges.contents)),
        "start": " ".join(sha256(file)[:16] for file in weights),
        "start_besides": _digest(*(f"{file.name} {sha256(file)}" for file in besides)),
        "num_drawn": bed.num_drawn,
        "command": None if command is None else command.text,
    }


def _own_settings(bed: Bed, arm: Arm) -> Json:
    if arm.overlay is not None:
        recipe = recipe_of(bed, arm, 0, Path("store"))
        # Where the tokenizer lies does not matter: its tokens are among the settings of all.
        digest = recipe.override({"checkpoints.tokenizer": None}).digest()
        names = {recipe.selection.selector, *recipe.scoring.scores}
        code = own_code(name for name in sorted(names) if not name.startswith("gracekit."))
        return {
            "recipe": digest,
            "redraw": arm.overlay.redraw,
            **({"code": code} if code else {}),
            **_target_of(recipe),
        }
    if arm.name in _OF_RANKINGS:
        target = _target_of(bed.recipe) if arm.name == "rds" else {}
        return {"keep_share": bed.recipe.compare.keep_share, **target}
    return {}


def _target_of(recipe: Recipe) -> Json:
    """What the target's samples are, which a file may change in the middle of a comparison."""
    if recipe.target is None or recipe.target.group is not None:
        return {}
    return {"target": load_samples(recipe.target).fingerprint}


def alike(result: RunResult, before: list[RunResult]) -> str | None:
    """In words: with which earlier run of other rows, or another seed, the trained weights are the
    same; None: with none.
    """
    for other in before:
        is_same_work = result.rows_digest == other.rows_digest != "" and result.seed == other.seed
        if is_same_work:  # two arms may choose the same rows
            continue
        if other.weights_digest and other.weights_digest == result.weights_digest:
            what = "seed" if other.arm == result.arm else "subset"
            return (
                f"{result.arm} with seed {result.seed} ended with the very weights of {other.arm} "
                f"with seed {other.seed}: the training ignores the {what}"
            )
    return None
