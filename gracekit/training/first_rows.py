"""The check that a trainer makes as it begins: of some rows, and of all where these differ."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gracekit.errors import DataError, GracekitError
from gracekit.training.ranks import decide_on_rank_zero

NUM_COMPARED = 64
"""Rows that are compared, evenly spread."""

logger = logging.getLogger("gracekit.training")


class FirstRows:
    """Compares what a trainer feeds with what a store holds, once; it never stops a training.

    Args:
        store: Directory of the store. While it has no samples yet, the check waits for them.
    """

    def __init__(self, store: Path) -> None:
        self._store = store
        self._is_done = False

    def check(
        self, dataset: Any, collate: Any, tokenizer: Any, sample_ids: Any = None
    ) -> list[str] | None:
        """Sample ids of the dataset's rows where these had to be told by their tokens, else None.

        A difference is one warning. In a distributed job all ranks must call it.
        """
        if self._is_done:
            return None
        self._is_done, ids, told = decide_on_rank_zero(
            lambda: self._check(dataset, collate, tokenizer, sample_ids)
        )
        if told:
            logger.warning("%s", told)
        return ids

    def _check(
        self, dataset: Any, collate: Any, tokenizer: Any, sample_ids: Any
    ) -> tuple[bool, list[str] | None, str]:
        # What reads whole stores is loaded only here.
        from gracekit.store import StoreReader
        from gracekit.training.measured import Measured
        from gracekit.training.parity import check_rows
        from gracekit.training.trainer_rows import TrainerRows

        if not StoreReader.exists(self._store):
            return False, None, ""
        try:
            measured = Measured.of_store(StoreReader.open(self._store))
            with _same_random_numbers():
                rows = TrainerRows(dataset, collate)
                found = check_rows(
                    rows, measured, sample_ids=sample_ids, tokenizer=tokenizer, most=NUM_COMPARED
                )
        except DataError as error:
            logger.debug("the trainer's tokens are not compared: %s", error)
            return True, None, ""
        except GracekitError as error:
            logger.debug("the trainer's tokens are not compared yet: %s", error)
            return False, None, ""
        except Exception as error:  # a dataset or collator of any kind; the training goes on
            logger.warning("the trainer's tokens cannot be compared: %r", error)
            return True, None, ""
        told = "" if found.ok else "\n".join(["the trainer's tokens:", *found.lines()])
        return True, found.sample_ids, told


@contextlib.contextmanager
def _same_random_numbers() -> Iterator[None]:
    """A collator that draws random numbers takes none from the training."""
    import torch

    with torch.random.fork_rng(devices=[]):
        yield
