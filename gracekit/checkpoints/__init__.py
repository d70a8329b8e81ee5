"""Checkpoints in: find complete ones, pin them, and (in `model`, which imports torch) load them.

A checkpoint directory goes through three hands:

    find / check / watch  ->  Checkpoint          layouts, weights, places, discover, watch
    describe_architecture  ->  kind and sizes     config.py, adapters.py
    pin                   ->  PinnedCheckpoint    pins.py, assembly.py
    read_pace             ->  TrainerPace         pace.py
    load                  ->  model, tokenizer    model.py and convert.py, to be imported by name

A run in an object store is first brought to this disk (`remote_run.py`, `remote_groups.py`,
`remote_home.py`). A trainer's layout (`layouts.py`, `other_layouts.py`) says which directories hold
a checkpoint and when it is complete, whatever the form of its weights, which `model_files.py`
knows.

What needs torch is loaded when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from gracekit.checkpoints.config import (
    describe_architecture,
    describe_checkpoint,
    model_identity,
)
from gracekit.checkpoints.discover import check_checkpoint, find_checkpoints
from gracekit.checkpoints.layouts import (
    LAYOUTS,
    LAYOUTS_AT_REST,
    OPTIMIZER_FILES,
    layout_of,
)
from gracekit.checkpoints.pace import TrainerPace, read_pace
from gracekit.checkpoints.pins import pin
from gracekit.checkpoints.remote_run import RemoteRun
from gracekit.checkpoints.survey import (
    Finding,
    asked_again,
    loaded_alike,
    newest_usable,
    survey,
    why_none,
)
from gracekit.checkpoints.trainer import is_of_trl_sft
from gracekit.checkpoints.watch import watch_checkpoints

if TYPE_CHECKING:
    from gracekit.checkpoints.model import require_loadable

__all__ = [
    "LAYOUTS",
    "LAYOUTS_AT_REST",
    "OPTIMIZER_FILES",
    "Finding",
    "RemoteRun",
    "TrainerPace",
    "asked_again",
    "check_checkpoint",
    "describe_architecture",
    "describe_checkpoint",
    "find_checkpoints",
    "is_of_trl_sft",
    "layout_of",
    "loaded_alike",
    "model_identity",
    "newest_usable",
    "pin",
    "read_pace",
    "require_loadable",
    "survey",
    "watch_checkpoints",
    "why_none",
]


def __getattr__(name: str) -> Any:
    if name != "require_loadable":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module("gracekit.checkpoints.model").require_loadable
