"""The rows that a trainer feeds to its model: token ids, and which of them carry loss."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc

from gracekit.errors import DataError
from gracekit.samples.messages import MalformedRowError
from gracekit.samples.token_rows import LOSS_MASKS, NO_LOSS, require_known_loss
from gracekit.types import Bool, Int32, Int64, Json

BLOCK_ROWS = 1024
MOST_CHEAP = 1_000_000
"""Rows of which ids are read where nobody asked for all: 4 s for as many of 200 tokens."""


_JOINED = (
    ("prompt_ids", "chosen_ids"),
    ("prompt_ids", "completion_ids"),
    ("chosen_ids",),
    ("prompt_input_ids", "chosen_input_ids"),
    ("input_ids_chosen",),
)
"""Columns whose ids, one behind another, are a sample: TRL's of preferences, the last two of
older versions; of pairs the chosen side, as it is measured."""
_ATTENTION = "attention_mask"


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
            loss, which is what trainers make of it. Or rows of TRL's trainers of preferences:
            `chosen_ids`, perhaps with `prompt_ids` before them.
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
        named = (("input_ids",), *_JOINED)
        self._parts = next((names for names in named if {*names} <= {*self.columns}), ())
        self.knows_loss = len(self._parts) != 1 or self._parts == ("input_ids",)
        """Whether rows tell which of their tokens carry loss."""
        if len(self._parts) > 1 or not self.knows_loss:
            self._collate = collate = None  # it makes two rows of one
        if not self._parts and collate is None:
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
        return is_held and bool(self._parts) and len(self) <= MOST_CHEAP

    @property
    def _is_column(self) -> bool:
        """Whether the dataset holds ids in Arrow, and not only a transform of rows makes them."""
        held = getattr(self._dataset, "column_names", None) or ()
        kind = getattr(self._dataset, "format", None) or {}
        has_parts = bool(self._parts) and {*self._parts} <= {*held}
        return has_parts and kind.get("type") != "custom"

    def take(self, positions: Sequence[int]) -> list[FedRow]:
        """The rows at the given positions.

        Raises:
            DataError: One of them is not what a trainer feeds.
        """
        return [self._row(int(position)) for position in positions]

    def ids(self) -> Iterator[Int32]:
        """The ids of all rows in order."""
        if not self._parts:
            yield from (self._row(position).ids for position in range(len(self)))
            return
        if self._is_column:
            named = [*self._parts]
            if self._parts == ("input_ids",) and _ATTENTION in self._dataset.column_names:
                named.append(_ATTENTION)
            arrow = self._dataset.with_format("arrow", columns=named)
            for start in range(0, len(self), BLOCK_ROWS):
                block = arrow[start : start + BLOCK_ROWS]
                parts = [_split(block[name].combine_chunks()) for name in named]
                if _ATTENTION in named:
                    yield from map(_attended, *parts)
                else:
                    yield from map(np.concatenate, zip(*parts, strict=True))
            return
        for position in range(len(self)):
            try:
                yield self._ids(self._dataset[position])
            except (KeyError, TypeError, ValueError) as error:
                raise _incomparable(position, error) from error

    def _ids(self, row: Any) -> Int32:
        parts = [_ids(row[name]) for name in self._parts]
        if self._parts == ("input_ids",):
            return _attended(parts[0], row.get(_ATTENTION))
        return np.concatenate(parts)

    def _joined(self, row: Any) -> FedRow:
        ids = self._ids(row)
        mask = np.ones(len(ids), bool)
        if len(self._parts) > 1:
            mask[: len(row[self._parts[0]])] = False
        mask[:1] = False
        return FedRow(ids, mask)

    def _row(self, position: int) -> FedRow:
        row = self._dataset[position]
        try:
            if self._collate is None:
                return _fed(row) if "input_ids" in self._parts else self._joined(row)
            return _fed(_first(self._collate([row])))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            if self._collate is not None and "input_ids" in self.columns:
                with contextlib.suppress(KeyError, TypeError, ValueError):
                    return _fed(row)
            raise _incomparable(position, error) from error


def _split(lists: Any) -> list[Int32]:
    """The arrays of an Arrow array of lists."""
    flat = lists.flatten().to_numpy(zero_copy_only=False).astype(np.int32)
    ends = np.cumsum(pc.list_value_length(lists).to_numpy(zero_copy_only=False))
    return np.split(flat, ends[:-1])


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
    names = ("input_ids", "labels", _ATTENTION)
    return {name: np.asarray(batch[name])[0] for name in names if name in batch}


def _fed(row: Any) -> FedRow:
    ids = _ids(row["input_ids"])
    there = _is_attended(ids, row.get(_ATTENTION))
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


def _is_attended(ids: Int32, attention: Any) -> Bool:
    """[T] what is no padding; everything where the mask is missing or of another length."""
    if attention is None or np.shape(attention) != ids.shape:
        return np.ones(len(ids), bool)
    there: Bool = np.asarray(attention) != 0
    return there


def _attended(ids: Int32, attention: Any) -> Int32:
    return ids[_is_attended(ids, attention)]


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
