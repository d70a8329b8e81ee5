"""A plugin for ms-swift: its trainer draws from the newest coreset of a store.

ms-swift takes a file as a plugin, so write one of two lines:

    from gracekit.training.swift_plugin import register
    register("gracekit-store")

and train with `swift sft --external_plugins that_file.py --callbacks gracekit`. This module imports
ms-swift only when it registers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gracekit.training.callback import CoresetCallback

NAME = "gracekit"
"""Of the callback, for `--callbacks`."""


def register(store: str | Path, **options: Any) -> None:
    """Make `--callbacks gracekit` known to ms-swift.

    ms-swift shuffles the data, so rows are told by their tokens (docs/trainers.md); it batches
    packed and streamed data by itself, which no coreset can be drawn from.

    Args:
        store: Directory of the store.
        options: Any other argument of `CoresetCallback`. `num_samples` has no effect: the trainer
            has fixed its steps.
    """
    from swift.callbacks import callbacks_map

    def make(args: Any, trainer: Any) -> CoresetCallback:
        callback = CoresetCallback(store, **options)
        callback.log_to(trainer)
        return callback

    callbacks_map[NAME] = make
