"""The rows that a trainer feeds to its model: token ids, and which of them carry loss."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from gracekit.errors import DataError
from gracekit.samples.messages import MalformedRowError
from gracekit.samples.token_rows import LOSS_MASKS, NO_LOSS, require_known_loss
from gracekit.types import Bool, Int32, Int64, Json

BLOCK_ROWS = 1024
MOST_CHEAP = 1_000_000
"""Rows of which ids are read where nobody asked for all: 4 s for as many of 200 tokens."""


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
        if collate is None and self.columns:
            try:
                require_known_loss(first)
            except MalformedRowError as error:
                raise DataError(f"row 0 of the dataset cannot be compared: {error}") from None

    def __len__(self) -> int:
        return self._num_rows

    @property
    def has_cheap_ids(self) -> bool:
        """Whether the ids of all rows can be read at once, without the collator: they stand in a
        list or in a column of `datasets`, and are at most `MOST_CHEAP` rows.
        """
        is_held = self._is_column or isinstance(self._dataset, list | tuple)
        return is_held and "input_ids" in self.columns and len(self) <= MOST_CHEAP

    @property
    def _is_column(self) -> bool:
        """Whether the dataset holds ids in Arrow, and not only a transform of rows makes them."""
        held = getattr(self._dataset, "column_names", None) or ()
        kind = getattr(self._dataset, "format", None) or {}
        return "input_ids" in held and kind.get("type") != "custom"

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
        if self._is_column:
            arrow = self._dataset.with_format("arrow", columns=["input_ids"])
            for start in range(0, len(self), BLOCK_ROWS):
                block = arrow[start : start + BLOCK_ROWS]["input_ids"].combine_chunks()
                flat = block.flatten().to_numpy(zero_copy_only=False).astype(np.int32)
                ends = np.cumsum(block.value_lengths().to_numpy(zero_copy_only=False))
                yield from np.split(flat, ends[:-1])
            return
        for position in range(len(self)):
            try:
                yield _ids(self._dataset[position]["input_ids"])
            except (KeyError, TypeError, ValueError) as error:
                raise _incomparable(position, error) from error

    def _row(self, position: int) -> FedRow:
        row = self._dataset[position]
        try:
            if self._collate is None:
                return _fed(row)
            return _fed(_first(self._collate([row])))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            if self._collate is not None and "input_ids" in self.columns:
                with contextlib.suppress(KeyError, TypeError, ValueError):
                    return _fed(row)
            raise _incomparable(position, error) from error


def _incomparable(position: int, error: Exception) -> DataError:
    return DataError(
        f"row {position} of the trainer's dataset has no tokens that can be compared: {error}. "
        "Give each row's input_ids as integers, as trainer.train_dataset has them"
    )


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
        raise ValueError(
            f"input_ids of a row is {values!r:.40} (shape {ids.shape}), expected a list of integers"
        )
    if len(ids) and ids.dtype.kind not in "iu":
        raise ValueError(f"input_ids of a row holds {ids.dtype}, expected integers: {values!r:.40}")
    return ids.astype(np.int32)


def hashes_of_ids(rows: TrainerRows, hash_ids: Callable[[Int32], int]) -> tuple[Int64, Int64]:
    """[m] hash of the ids of each row, and [m] how many they are."""
    found = [(hash_ids(ids), len(ids)) for ids in rows.ids()]
    hashes, lengths = np.array(found, np.int64).reshape(-1, 2).T
    return hashes, lengths
