"""A plugin for ms-swift: its trainer draws from the newest coreset of a store.

ms-swift takes a file as a plugin, so write one of two lines:

    from gracekit.training.swift_plugin import register
    register("gracekit-store")

and train with `swift sft --external_plugins that_file.py --callbacks gracekit`. This module imports
ms-swift, so it is loaded only there.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from accelerate.data_loader import skip_first_batches
from swift.callbacks import callbacks_map
from transformers import Trainer

from gracekit.training.callback import CoresetCallback
from gracekit.training.drawn import unknown_ids

logger = logging.getLogger("gracekit.training")

NAME = "gracekit"
"""Of the callback, for `--callbacks`."""


def register(store: str | Path, **options: Any) -> None:
    """Make `--callbacks gracekit` known to ms-swift.

    ms-swift shuffles the data, so rows are told by their tokens (docs/trainers/ms-swift.md). Its
    trainer batches by itself, so it gets the data loader of transformers instead, with a sampler
    that draws from the coreset. A streamed dataset, sequences that are split over ranks and rows
    that no coreset can be drawn for keep ms-swift's own. Rows count alike in the loss.

    Args:
        store: Directory of the store.
        options: Any other argument of `CoresetCallback` but `weigh_loss`; `num_samples` is the
            length of an epoch.
    """

    def make(args: Any, trainer: Any) -> CoresetCallback:
        callback = CoresetCallback(store, weigh_loss=False, **options)
        callback.log_to(trainer)
        _take_loader(trainer, callback)
        return callback

    callbacks_map[NAME] = make


def _take_loader(trainer: Any, callback: CoresetCallback) -> None:
    """Let the trainer load by a sampler, which is the callback's where there is one."""
    own_loader = trainer.get_train_dataloader
    own_sampler = trainer._get_train_sampler
    made: list[Any] = []

    def get_train_sampler(train_dataset: Any = None) -> Any:
        dataset = trainer.train_dataset if train_dataset is None else train_dataset
        if callback.sampler is not None:  # a resumed run asks again for what it skips
            return callback.sampler
        if made:
            return made[0]
        callback.tell_rows(dataset, trainer.data_collator, trainer.processing_class)
        is_known = callback.sample_ids is None or callback.sample_ids != unknown_ids(len(dataset))
        sampler = callback.make_sampler(len(dataset), callback.num_samples) if is_known else None
        made.append(sampler)
        return sampler

    def get_train_dataloader(skip_batches: int = 0) -> Any:
        why = _why_own(trainer)
        if not why and get_train_sampler() is None:
            why = "no coreset can be drawn for its rows"
        if why:
            logger.warning("the trainer keeps its own data loader, without coresets: %s", why)
            callback.keeps_loader = True
            trainer._get_train_sampler = own_sampler
            return own_loader(skip_batches)
        loader = Trainer.get_train_dataloader(trainer)
        return skip_first_batches(loader, skip_batches) if skip_batches else loader

    trainer._get_train_sampler = get_train_sampler
    trainer.get_train_dataloader = get_train_dataloader


def _why_own(trainer: Any) -> str:
    """Why no other data loader can take the place of the trainer's own; empty: one can."""
    if not hasattr(trainer.train_dataset, "__len__"):
        return "it streams its data"
    template = getattr(trainer, "template", None)
    if (getattr(template, "sequence_parallel_size", 1) or 1) > 1:
        return "it splits sequences over ranks (sequence_parallel_size)"
    return ""
