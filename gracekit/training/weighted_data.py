"""The way of a row's weight from the sampler to the batch: `WeighedDataset`, `WeighingCollator`.

A sampler that draws `Drawn` positions, a dataset that hands them on with the item, and a collator
that takes them off before the user's own sees the examples, and leaves them in the batch. NumPy and
torch are not needed here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from gracekit.training.drawn import Drawn

BATCH_KEY = "coreset_rows"
"""Of the batch: its `BatchRows`."""


class WeighedItem(NamedTuple):
    """An example with the position that it was drawn by."""

    item: Any
    drawn: Drawn


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRows:
    """What the rows of a batch weigh. Plain numbers: nothing moves or casts them on their way."""

    weights: tuple[float, ...]
    """Of each example, in the order of the batch."""
    versions: tuple[int | None, ...]
    """That they were drawn from; None: the sampler's present one."""
    positions: tuple[int, ...] = ()
    """Of the examples in the trainer's dataset; none where they are not known."""
    lengths: tuple[int, ...] | None = None
    """Tokens of each, where the collator has joined them into one row."""
    problem: str | None = None
    """Why they cannot be applied to this batch, if they cannot."""

    def __len__(self) -> int:
        return len(self.weights)


class WeighedDataset:
    """A dataset whose items that are fetched with a `Drawn` come as `WeighedItem`.

    Args:
        dataset: with `len` and items by position; its `__getitems__` is used where it has one.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, Drawn):
            return WeighedItem(self.dataset[int(index)], index)
        return self.dataset[index]

    @property
    def column_names(self) -> list[str]:
        """Those of the dataset; none where it does not tell. Axolotl's trainer asks for them."""
        return list(getattr(self.dataset, "column_names", None) or [])

    def remove_columns(self, names: Sequence[str]) -> WeighedDataset:
        """The same of the dataset without these columns."""
        return WeighedDataset(self.dataset.remove_columns(names))

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """The items of a batch; what a data loader asks for."""
        positions = [int(index) for index in indices]
        fetch = getattr(self.dataset, "__getitems__", None)
        items = [self.dataset[p] for p in positions] if fetch is None else fetch(positions)
        return [
            WeighedItem(item, index) if isinstance(index, Drawn) else item
            for item, index in zip(items, indices, strict=True)
        ]


class WeighingCollator:
    """The user's collator, with what the rows weigh put into the batch under `BATCH_KEY`.

    Args:
        collator: makes a batch, a mapping with `input_ids` or `labels`, from a list of examples:
            padded, one row for each, or all joined into one row in their order.
    """

    def __init__(self, collator: Callable[[list[Any]], Any]) -> None:
        self.collator = collator

    def __call__(self, examples: list[Any]) -> Any:
        """The batch; without `BATCH_KEY` where not all examples came by a `Drawn`."""
        drawn = [e.drawn for e in examples if isinstance(e, WeighedItem)]
        items = [e.item if isinstance(e, WeighedItem) else e for e in examples]
        lengths = [_length(item) for item in items]  # before a collator that empties its examples
        packed = any(_is_pack(item) for item in items)
        batch = self.collator(items)
        if len(drawn) < len(items) or not hasattr(batch, "keys"):
            return batch
        joined, problem = None, None
        shape = _shape(batch)
        if packed:
            problem = "an example holds several rows (packing)"
        elif shape is None:
            problem = "the collator's batch has no labels"
        elif shape[0] != len(items):
            if shape[0] == 1 and None not in lengths and sum(lengths) <= shape[-1]:  # type: ignore[arg-type]
                joined = tuple(length for length in lengths if length is not None)
            else:
                problem = (
                    f"{len(items)} examples came out of the collator as {list(shape)} tokens, and "
                    "which are whose cannot be told"
                )
        batch[BATCH_KEY] = BatchRows(
            weights=tuple(float(d.weight) for d in drawn),
            versions=tuple(d.version for d in drawn),
            positions=tuple(int(d) for d in drawn),
            lengths=joined,
            problem=problem,
        )
        return batch


def _length(item: Any) -> int | None:
    tokens = item.get("input_ids") if isinstance(item, Mapping) else None
    return None if tokens is None else len(tokens)


def _is_pack(item: Any) -> bool:
    """Whether an example says that it holds several rows, as TRL's packing does."""
    lengths = item.get("seq_lengths") if isinstance(item, Mapping) else None
    return lengths is not None and len(lengths) > 1


def _shape(batch: Any) -> tuple[int, ...] | None:
    labels = batch.get("labels") if hasattr(batch, "get") else None
    shape = getattr(labels, "shape", None)
    return None if shape is None or len(shape) < 2 else tuple(shape)
