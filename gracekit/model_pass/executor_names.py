"""The executors that a recipe can name in `scoring.executor`, and how one is made.

To add one, implement `protocols.Executor` with a class method `open` that takes `PassInputs`, and
put the class into `EXECUTORS`. A recipe may also name a class of the user's own as
`package.module:Class`.
"""

from __future__ import annotations

from typing import Any, Protocol, cast

from gracekit.errors import RecipeError
from gracekit.model_pass.executors import LocalExecutor
from gracekit.model_pass.pass_inputs import PassInputs
from gracekit.model_pass.processes import ProcessExecutor
from gracekit.model_pass.ray_executor import RayExecutor
from gracekit.plugins import load_class
from gracekit.protocols import Executor


class ExecutorClass(Protocol):
    """A class whose instances are `protocols.Executor`s."""

    def open(self, inputs: PassInputs) -> Executor:
        """An executor for one checkpoint; a class method. It may wait for the first call of
        `measure` with loading the model.
        """


EXECUTORS: dict[str, ExecutorClass] = {
    "local": LocalExecutor,
    "processes": ProcessExecutor,
    "ray": RayExecutor,
}

_MEMBERS = ("open", "measure", "look", "target", "optimizer", "close")


def executor_class(name: str, num_devices: int = 1) -> ExecutorClass:
    """The class behind `auto`, a name of `EXECUTORS` or a `package.module:Class`.

    Args:
        name: As the recipe has it.
        num_devices: Devices that may be used here; for `auto`, which is a process for each of
            several devices, else this process.

    Raises `RecipeError` when there is none, or when it lacks a method.
    """
    if name == "auto":
        name = "processes" if num_devices > 1 else "local"
    if name in EXECUTORS:
        return EXECUTORS[name]
    if ":" not in name:
        raise RecipeError(
            f"scoring.executor is {name!r}; use auto, {', '.join(EXECUTORS)}, or "
            "package.module:Class for one of your own"
        )
    found: Any = load_class(name, "the executor")
    missing = [member for member in _MEMBERS if not hasattr(found, member)]
    if missing:
        raise RecipeError(
            f"{name!r} is not an executor: it lacks {', '.join(missing)}; see "
            "gracekit.protocols.Executor, and PassInputs for what its class method `open` gets"
        )
    return cast(ExecutorClass, found)


def open_executor(inputs: PassInputs) -> Executor:
    """The executor that `scoring.executor` names.

    Raises `RecipeError` as `executor_class`, and whatever `open` of the class raises.
    """
    return executor_class(inputs.scoring.executor, len(inputs.devices)).open(inputs)
