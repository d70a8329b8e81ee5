"""Checkpoints in: find complete ones, pin them, and (in `model`, which imports torch) load them.

A checkpoint directory goes through three hands:

    find / check / watch  ->  Checkpoint          layouts.py, weights.py, discover.py, watch.py
    describe_architecture  ->  kind and sizes     config.py, adapters.py
    pin                   ->  PinnedCheckpoint    pins.py
    read_pace             ->  TrainerPace         pace.py
    load                  ->  model, tokenizer    model.py, to be imported by its full name
"""

from gracekit.checkpoints.config import describe_architecture, model_identity
from gracekit.checkpoints.discover import check_checkpoint, find_checkpoints
from gracekit.checkpoints.layouts import LAYOUTS, OPTIMIZER_FILES
from gracekit.checkpoints.pace import TrainerPace, read_pace
from gracekit.checkpoints.pins import pin
from gracekit.checkpoints.trainer import is_of_trl_sft
from gracekit.checkpoints.watch import watch_checkpoints

__all__ = [
    "LAYOUTS",
    "OPTIMIZER_FILES",
    "TrainerPace",
    "check_checkpoint",
    "describe_architecture",
    "find_checkpoints",
    "is_of_trl_sft",
    "model_identity",
    "pin",
    "read_pace",
    "watch_checkpoints",
]
