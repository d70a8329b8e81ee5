"""The rows that a trainer feeds to its model: token ids, and which of them carry loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from gracekit.errors import DataError
from gracekit.samples.token_rows import LOSS_MASKS, NO_LOSS
from gracekit.types import Bool, Int32, Int64, Json

BLOCK_ROWS = 1024


class FedRow(NamedTuple):
    """One row as the trainer has it."""

    ids: Int32
    """[T] without padding."""
    mask: Bool
    """[T] tokens that carry loss; the first never does, since nothing predicts it."""


class TrainerRows:
    """The rows of a trainer's dataset.

    Args:
        dataset: A `datasets.Dataset`, or a list of rows: `input_ids`, and `labels` or
            `completion_mask` and `assistant_masks`. Without any of these three all tokens carry
            loss, which is what trainers make of it.
        collate: The trainer's data collator; each row is asked for as a batch of its own.

    Raises:
        DataError: There are no rows with `input_ids`.
    """

    def __init__(self, dataset: Any, collate: Callable[[list[Any]], Any] | None = None) -> None:
        self._dataset = dataset
        self._collate = collate
        try:
            self._num_rows = len(dataset)
        except TypeError as error:
            raise DataError(
                "the dataset is streamed; its rows cannot be compared with those of a store"
            ) from error
        if not self._num_rows:
            raise DataError("the dataset has no rows to compare")
        first = dataset[0]
        self.columns: tuple[str, ...] = tuple(first) if hasattr(first, "keys") else ()
        if "input_ids" not in self.columns and collate is None:
            found = ", ".join(self.columns) or type(first).__name__
            raise DataError(
                f"the dataset has no column input_ids; found {found}. Give it as the trainer has "
                "tokenised it, such as trainer.train_dataset"
            )

    def __len__(self) -> int:
        return self._num_rows

    def take(self, positions: Sequence[int]) -> list[FedRow]:
        """The rows at the given positions.

        Raises:
            DataError: One of them is not what a trainer feeds.
        """
        return [self._row(int(position)) for position in positions]

    def ids(self) -> Iterator[Int32]:
        """The ids of all rows in order."""
        if "input_ids" not in self.columns:
            yield from (self._row(position).ids for position in range(len(self)))
            return
        if hasattr(self._dataset, "with_format"):
            arrow = self._dataset.with_format("arrow", columns=["input_ids"])
            for start in range(0, len(self), BLOCK_ROWS):
                block = arrow[start : start + BLOCK_ROWS]["input_ids"].combine_chunks()
                flat = block.flatten().to_numpy(zero_copy_only=False).astype(np.int32)
                ends = np.cumsum(block.value_lengths().to_numpy(zero_copy_only=False))
                yield from np.split(flat, ends[:-1])
            return
        for position in range(len(self)):
            yield _ids(self._dataset[position]["input_ids"])

    def _row(self, position: int) -> FedRow:
        row = self._dataset[position]
        try:
            if self._collate is None:
                return _fed(row)
            return _fed(_first(self._collate([row])))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            if self._collate is not None and "input_ids" in self.columns:
                return _fed(row)
            raise DataError(
                f"row {position} of the trainer's dataset has no tokens that can be compared: "
                f"{error}"
            ) from error


def _first(batch: Any) -> Json:
    """The only row of a batch."""
    ids = np.asarray(batch["input_ids"])
    if ids.ndim != 2 or len(ids) != 1:
        raise ValueError(f"input_ids of a batch of one row has the shape {ids.shape}")
    names = ("input_ids", "labels", "attention_mask")
    return {name: np.asarray(batch[name])[0] for name in names if name in batch}


def _fed(row: Any) -> FedRow:
    ids = _ids(row["input_ids"])
    there = np.ones(len(ids), bool)
    attention = row.get("attention_mask")
    if attention is not None and np.shape(attention) == ids.shape:
        there = np.asarray(attention) != 0
    mask = np.ones(len(ids), bool)
    if row.get("labels") is not None:
        mask = np.asarray(row["labels"]) != NO_LOSS
    else:
        for name in LOSS_MASKS:
            if row.get(name) is not None:
                mask &= np.asarray(row[name]) != 0
    if mask.shape != ids.shape:
        raise ValueError(f"{len(ids)} input_ids, and labels of the shape {mask.shape}")
    mask[:1] = False
    return FedRow(ids[there], mask[there])


def _ids(values: Any) -> Int32:
    ids = np.asarray(values)
    if ids.ndim != 1:
        raise ValueError(f"input_ids of a row has the shape {ids.shape}, expected one dimension")
    return ids.astype(np.int32)


def hashes_of_ids(rows: TrainerRows, hash_ids: Callable[[Int32], int]) -> tuple[Int64, Int64]:
    """[m] hash of the ids of each row, and [m] how many they are."""
    found = [(hash_ids(ids), len(ids)) for ids in rows.ids()]
    hashes, lengths = np.array(found, np.int64).reshape(-1, 2).T
    return hashes, lengths
