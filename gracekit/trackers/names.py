"""The trackers that a recipe or the command line can name, and the class of each."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any, cast

from gracekit.errors import RecipeError
from gracekit.plugins import load_class
from gracekit.protocols import Tracker


@dataclass(frozen=True, slots=True)
class KnownTracker:
    """A tracker that gracekit brings."""

    class_name: str
    """As `package.module:Class`; loaded in the tracker's own process."""
    library: str
    """What it imports. The extra of gracekit that installs it has the same name."""


TRACKERS = {
    "tensorboard": KnownTracker(
        "gracekit.trackers.tensorboard_files:TensorBoardFiles", "tensorboard"
    ),
    "wandb": KnownTracker("gracekit.trackers.wandb_run:WandbRun", "wandb"),
    "trackio": KnownTracker("gracekit.trackers.trackio_run:TrackioRun", "trackio"),
}

_MEMBERS = ("log", "close")


def require_tracker(name: str) -> None:
    """Check a name before anything is started.

    Args:
        name: A name of `TRACKERS`, or `package.module:Class`.

    Raises:
        RecipeError: There is no such tracker, its library is not installed, or the class lacks a
            method.
    """
    known = TRACKERS.get(name)
    if known is not None:
        if importlib.util.find_spec(known.library) is None:
            raise RecipeError(
                f"the tracker {name} needs the library {known.library}, which is not installed: "
                f"pip install 'gracekit[{name}]'"
            )
    else:
        tracker_class(name)


def tracker_class(name: str) -> type[Tracker]:
    """The class behind a name, imported now; raises as `require_tracker`."""
    known = TRACKERS.get(name)
    if known is None and ":" not in name:
        raise RecipeError(
            f"there is no tracker {name!r}; use {', '.join(TRACKERS)}, or package.module:Class for "
            "one of your own"
        )
    found: Any = load_class(name if known is None else known.class_name, "the tracker")
    missing = [member for member in _MEMBERS if not hasattr(found, member)]
    if missing:
        raise RecipeError(
            f"{name!r} is not a tracker: it lacks {', '.join(missing)}; see "
            "gracekit.protocols.Tracker"
        )
    return cast(type[Tracker], found)
