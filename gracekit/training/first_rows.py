"""The check that a trainer makes as it begins: some rows whole, and the ids of all where these
are at hand or where some differ.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gracekit.errors import DataError, GracekitError
from gracekit.training.drawn import unknown_ids
from gracekit.training.loader import count_rows
from gracekit.training.ranks import decide_on_rank_zero

NUM_COMPARED = 64
"""Rows that are compared with their loss, evenly spread."""
NUM_SPREAD = 512
"""The same where rows between them are not looked at: a trainer that tokenises as it goes."""

NOT_COMPARED = (
    "the trainer's rows cannot be compared with what was measured, so it is not known which sample "
    "each of them is, and no coreset is drawn from: {}. Give the sample id of each row "
    "(CoresetCallback(sample_ids=...))"
)

logger = logging.getLogger("gracekit.training")


class FirstRows:
    """Compares what a trainer feeds with what a store holds, once; it never stops a training.

    Args:
        store: Directory of the store. While it has no samples yet, the check waits for them.
    """

    def __init__(self, store: Path) -> None:
        self._store = store
        self.is_done = False
        """Whether it was made; False while the store has no samples."""

    def check(
        self, dataset: Any, collate: Any, tokenizer: Any, sample_ids: Any = None
    ) -> list[str] | None:
        """Sample ids of the dataset's rows where these had to be told by their tokens, else None.

        A difference is one warning. In a distributed job all ranks must call it.
        """
        if self.is_done:
            return None
        self.is_done, ids, told = decide_on_rank_zero(
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
        except DataError as error:
            logger.debug("the trainer's tokens are not compared: %s", error)
            return True, None, ""
        except GracekitError as error:
            logger.debug("the trainer's tokens are not compared yet: %s", error)
            return False, None, ""
        try:
            with _same_random_numbers():
                rows = TrainerRows(dataset, collate)
                most = NUM_COMPARED if rows.has_cheap_ids else NUM_SPREAD
                found = check_rows(
                    rows, measured, sample_ids=sample_ids, tokenizer=tokenizer, most=most
                )
        except Exception as error:  # a dataset or collator of any kind; the training goes on
            num_rows = count_rows(dataset)
            if sample_ids is not None or not num_rows:
                logger.debug("the trainer's tokens are not compared: %r", error)
                return True, None, ""
            why = str(error) if isinstance(error, GracekitError) else repr(error)
            return True, unknown_ids(num_rows), NOT_COMPARED.format(why)
        if found.ok:
            logger.info("%s", "\n".join(found.lines()))
        told = "" if found.ok else "\n".join(["the trainer's tokens:", *found.lines()])
        ids = found.sample_ids
        if found.matched_by == "nothing":  # so that none is drawn by its position
            ids = unknown_ids(found.num_rows)
        return True, ids, told


@contextlib.contextmanager
def _same_random_numbers() -> Iterator[None]:
    """A collator that draws random numbers takes none from the training."""
    import torch

    with torch.random.fork_rng(devices=[]):
        yield
