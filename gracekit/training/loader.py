"""The data loader of a Hugging Face trainer: where a sampler goes in, and how it cuts an epoch."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.utils.data import BatchSampler

from gracekit.training.iterable import CoresetIterableDataset
from gracekit.training.sampler import CoresetSampler
from gracekit.training.weighted_data import WeighedDataset

logger = logging.getLogger("gracekit.training")


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochSize:
    """How a loader cuts an epoch into batches."""

    batches: int = 0
    """Of one rank."""
    batch_size: int = 0
    """Samples of all ranks together; 0: not known."""
    whole_batches: bool = False
    """Whether the last batch is as large as the others, filled up or left out."""

    def num_trained(self, num_samples: int, done: float = 1.0) -> int:
        """Samples trained on after an epoch or a part of it.

        Args:
            num_samples: That the sampler draws for the epoch.
            done: Share of the epoch, as the trainer counts it: batches done of all batches.
        """
        batches = round(done * self.batches)
        if batches < self.batches or self.whole_batches:
            return min(batches, self.batches) * self.batch_size
        return num_samples


def epoch_size(loader: Any, num_processes: int) -> EpochSize:
    """How many samples an epoch and a batch have, over all ranks."""
    batches = loader.batch_sampler
    inner = getattr(batches, "batch_sampler", batches)
    num_ranks = getattr(batches, "num_processes", 1)
    is_split = getattr(batches, "split_batches", False)
    # Streams, and what rank 0 reads for all, accelerate shares out without a batch sampler.
    is_shared_by_loader = stream_of(loader.dataset) is not None or hasattr(loader, "_fetch_batches")
    if is_shared_by_loader:
        num_ranks = num_processes
        is_split = any(getattr(b, "split_batches", False) for b in (loader, loader.dataset))
    is_filled_up = num_ranks > 1 and (
        is_shared_by_loader or getattr(batches, "even_batches", False)
    )
    return EpochSize(
        batches=len(loader),
        batch_size=inner.batch_size * (1 if is_split else num_ranks),
        whole_batches=bool(inner.drop_last or is_filled_up),
    )


def put_sampler(
    loader: Any, make_sampler: Callable[[int], CoresetSampler | None], num_samples: int | None
) -> CoresetSampler | None:
    """A sampler of ours in the loader; None, with a warning, where none can be.

    Args:
        loader: Of the trainer. One that has a sampler of ours, or goes over a stream of ours,
            keeps it.
        make_sampler: Makes one for so many rows; None, with a warning, where it cannot.
        num_samples: Draws an epoch that were asked for.
    """
    batches = getattr(loader, "batch_sampler", None)
    inner = getattr(batches, "batch_sampler", batches)
    dataset = getattr(loader, "dataset", None)
    num_rows = count_rows(dataset)
    stream = stream_of(dataset)
    if stream is not None:
        logger.info("the stream draws from the coreset by itself, as it was told to")
        return stream.sampler
    if num_rows is None or type(inner) is not BatchSampler:
        logger.warning(
            "the trainer streams its data or batches it by itself (%s), so no coreset can be "
            "drawn from: training goes on without. Give it a CoresetIterableDataset, or export "
            "coresets and train on those",
            type(inner).__name__,
        )
        return None
    if draws_groups(inner.sampler):
        logger.warning(
            "the trainer draws each row several times in a row, for answers that it compares with "
            "each other (%s), which a coreset's draws are not: training goes on without coresets. "
            "Train it on an export",
            type(inner.sampler).__name__,
        )
        return None
    if isinstance(inner.sampler, CoresetSampler):
        sampler: CoresetSampler | None = inner.sampler
    else:
        sampler = make_sampler(num_rows)
        if num_samples not in (None, num_rows):
            logger.warning(
                "num_samples=%s has no effect, an epoch has %d: the trainer has already fixed "
                "its steps. Use `class MyTrainer(CoresetTrainerMixin, Trainer)`",
                num_samples,
                num_rows,
            )
    if sampler is not None:
        loader.set_sampler(sampler)
    return sampler


def draws_groups(sampler: Any) -> bool:
    """Whether it repeats rows for groups of answers, as TRL's sampler of GRPO and RLOO does."""
    return any(kind.__name__ == "RepeatSampler" for kind in type(sampler).__mro__)


def weights_reach_loss(loader: Any) -> bool:
    """Whether rows get their weights, and the loader's batches still have them."""
    stream = stream_of(loader.dataset)
    if stream is None:
        return isinstance(loader.dataset, WeighedDataset)
    return stream.weighs and not drops_weights(loader)


def drops_weights(loader: Any) -> bool:
    """Whether the trainer removes the weights that a stream of ours gives rows, as it does with all
    columns that its model does not name (`remove_unused_columns`).
    """
    stream = stream_of(loader.dataset)
    kept = getattr(getattr(loader, "collate_fn", None), "signature_columns", None)
    if stream is None or not stream.weighs or kept is None:
        return False
    return stream.weight_key not in kept


def stream_of(dataset: Any) -> CoresetIterableDataset | None:
    """The stream that is trained on; accelerate wraps it to share it out over ranks."""
    inner = getattr(dataset, "dataset", None)
    return next((d for d in (dataset, inner) if isinstance(d, CoresetIterableDataset)), None)


def count_rows(dataset: Any) -> int | None:
    """Length of a dataset; None for a streamed one."""
    try:
        return len(dataset)
    except TypeError:
        return None
