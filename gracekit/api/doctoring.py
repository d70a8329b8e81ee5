"""The verb that looks at checkpoints before anything is measured: `doctor`."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Hashable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from gracekit import checkpoints, refresher
from gracekit.api.remote_runs import downloaded
from gracekit.api.stores import Changes, RecipeLike, StoreLike, load_recipe, values_of
from gracekit.checkpoints import (
    Finding,
    asked_again,
    loaded_alike,
    newest_usable,
    survey,
    why_none,
)
from gracekit.errors import CheckpointError, GracekitError, RecipeError, StoreWriteError
from gracekit.recipe import CheckpointSection, Recipe
from gracekit.refresher import PlanPreview
from gracekit.tabular import ShortRepr
from gracekit.types import Json
from gracekit.words import count_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Diagnosis(ShortRepr):
    """What a folder, or one checkpoint, holds, and whether a refresh can be made of it."""

    path: str
    checkpoints: tuple[Finding, ...]
    """By run and step."""
    newest: str | None
    """The checkpoint that `watch --once` would take, below the path; None: there is none."""
    reason: str | None
    """Why there is none."""
    plan: PlanPreview | None = None
    """What a refresh of the newest would measure and cost; None without a recipe, and where a
    command of the user's has to make the model first."""
    plan_error: str | None = None
    """Why that cannot be told."""

    needs_command: bool = False
    """Whether a plan was left out because `checkpoints.convert_cmd` would have to be run."""

    @property
    def ok(self) -> bool:
        """Whether a refresh can be made now."""
        return self.newest is not None and self.plan_error is None

    def sentences(self) -> list[str]:
        """The same in words, those of `watch`, without the plan."""
        if self.reason is not None and not self.checkpoints:
            return [self.reason]
        said = [f"{found.name}: {found.state}: {_why(found)}" for found in self.checkpoints
                if found.reason is not None]  # fmt: skip
        for found in self.checkpoints:
            if found.name == self.newest:
                said += _of_newest(found)
                is_planned = self.plan is not None or self.plan_error is not None
                if found.lacks_tokenizer and not (found.needs_command or is_planned):
                    said.append(
                        "it holds no tokenizer, which a refresh needs for rows of text: name a "
                        "directory with one as checkpoints.tokenizer in the recipe, or let the "
                        "trainer save it (processing_class)"
                    )
        runs = {found.run for found in self.checkpoints}
        if len(runs) > 1:
            said.append(
                f"these are {count_of(len(runs), 'run')}; watch follows that of {self.newest}"
            )
        if self.needs_command:
            said.append(
                "a refresh is not planned here: that takes the model that checkpoints.convert_cmd "
                "makes; `gracekit plan` runs the command"
            )
        if self.plan_error is not None:
            first, *more = self.plan_error.splitlines()
            said += [f"a refresh cannot be planned: {first}", *more]
        return said

    def to_json(self) -> Json:
        """As a JSON object."""
        return {
            "path": self.path,
            "ok": self.ok,
            "newest": self.newest,
            "reason": self.reason,
            "checkpoints": [found.to_json() for found in self.checkpoints],
            "plan": None if self.plan is None else self.plan.to_json(),
            "plan_error": self.plan_error,
            "needs_command": self.needs_command,
        }


def _why(found: Finding) -> str:
    return (found.reason or "").removeprefix(f"{found.path} ")


def _of_newest(found: Finding) -> list[str]:
    facts = found.architecture or {}
    size = f" of {facts['num_layers']} layers" if "num_layers" in facts else ""
    model = f", a {facts['model_type']}{size}" if "model_type" in facts else ""
    said = [f"{found.name} can be used: step {found.step}, {found.weights}{model}"]
    if found.base is not None:
        said.append(f"what it lacks comes from {found.base}")
    return said


def doctor(
    checkpoint_dir: str | Path,
    recipe: RecipeLike | None = None,
    *,
    store: StoreLike | None = None,
    set: Changes | None = None,
) -> Diagnosis:
    """Say what a folder holds: each checkpoint, its layout, and whether it can be used.

    Reads names, headers and tables; loads no weights and writes nothing. What is complete is put
    together without memory for its numbers, so that loading would refuse it for no more than
    these. With a recipe the newest checkpoint's tokenizer is loaded, to tell what a refresh would
    measure and cost.

    Args:
        checkpoint_dir: The trainer's output directory, one above it, or a checkpoint; or the URL
            of one in an object store, of which the newest checkpoints are downloaded.
        recipe: A `Recipe`, or the path of one; None: only the checkpoints are looked at.
        store: A store to use instead of the recipe's.
        set: Changes to the recipe; without a recipe those of its section `checkpoints`, such as
            `{"checkpoints.base_model": "models/base"}`.

    Raises:
        CheckpointError: There is nothing at the path, or it cannot be listed.
        RecipeError: The recipe or a change is wrong.

    Example:
        >>> gracekit.doctor("runs/sft").newest
        'checkpoint-300'
    """
    loaded = None if recipe is None else load_recipe(recipe, set, store)
    settings = _section(set) if loaded is None else loaded.checkpoints
    with downloaded(checkpoint_dir, loaded, "checkpoint_dir", settings) as root:
        return _diagnosis(root, settings, loaded)


def _diagnosis(root: Path, settings: CheckpointSection, loaded: Recipe | None) -> Diagnosis:
    if not root.exists():
        raise CheckpointError(f"there is nothing at {root}")
    found = _tried(survey(root, settings), settings)
    newest = newest_usable(found, root)
    reason = None
    if newest is None:
        spoiled = next((f for f in reversed(found) if f.checkpoint is not None), None)
        reason = why_none(root, settings) if spoiled is None else spoiled.reason
    plan, plan_error = _plan(loaded, newest)
    return Diagnosis(
        path=os.fspath(root),
        checkpoints=tuple(found),
        newest=None if newest is None else newest.name,
        reason=reason,
        plan=plan,
        plan_error=plan_error,
        needs_command=loaded is not None and newest is not None and newest.needs_command,
    )


def _tried(found: list[Finding], settings: CheckpointSection) -> list[Finding]:
    """The same, where loading would refuse a complete one with that reason; no weights are read."""
    refusals: dict[Hashable, tuple[Path, str | None]] = {}
    told = []
    for finding in found:
        if finding.state != "complete" or finding.checkpoint is None or finding.needs_command:
            told.append(finding)
            continue
        try:
            key = loaded_alike(finding, settings)
            if key not in refusals:
                checkpoints.require_loadable(finding.checkpoint, settings)
                refusals[key] = finding.path, None
        except StoreWriteError as error:
            logger.warning("what loading would refuse is not told: %s", error)
            return found
        except CheckpointError as error:
            now = asked_again(finding, str(error), settings)
            if now is not None:
                told.append(now)
            if now is not None and now.checkpoint is not None:
                with suppress(CheckpointError):
                    refusals[loaded_alike(finding, settings)] = finding.path, str(error)
            continue
        path, reason = refusals[key]
        if reason is not None:
            reason = reason.replace(str(path), str(finding.path))
            finding = dataclasses.replace(finding, state="cannot be used", reason=reason)
        told.append(finding)
    return told


def _plan(recipe: Recipe | None, newest: Finding | None) -> tuple[PlanPreview | None, str | None]:
    """What a refresh would do, or why it cannot be told."""
    if recipe is None or newest is None or newest.checkpoint is None:
        return None, None
    if newest.needs_command:
        return None, None
    try:
        return refresher.preview(recipe, newest.checkpoint), None
    except GracekitError as error:
        return None, str(error)


def _section(changes: Changes | None) -> CheckpointSection:
    """The section `checkpoints` by changes alone."""
    values = values_of(changes or {})
    others = [key for key in values if not key.startswith("checkpoints.")]
    if others:
        raise RecipeError(
            f"there is no recipe in which {others[0]} could be changed; name one, or change "
            "checkpoints.… alone"
        )
    try:
        return CheckpointSection.model_validate(
            {key.removeprefix("checkpoints."): value for key, value in values.items()}
        )
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = ".".join(map(str, problem["loc"]))
        raise RecipeError(f"checkpoints.{place}: {problem['msg']}") from None
