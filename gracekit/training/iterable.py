"""`CoresetIterableDataset`: the samples of a store's newest coreset as a stream.

For trainers that take a stream and no sampler. What it yields is what a `CoresetSampler` draws, in
its order.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from torch.utils.data import IterableDataset, get_worker_info

from gracekit.errors import RecipeError
from gracekit.training.drawn import Drawn
from gracekit.training.reading import Mode, Redraw
from gracekit.training.sampler import CoresetSampler
from gracekit.types import Json

logger = logging.getLogger("gracekit.training")


class CoresetIterableDataset(IterableDataset[Any]):
    """Yields the rows of a dataset that the newest coreset of a store says, epoch after epoch.

    Workers of a data loader share the samples out among themselves. Ranks do so where they are
    told who they are (`rank`, `num_ranks`); with Hugging Face trainers, and wherever accelerate
    shares out a stream, leave these alone. `set_epoch` is to be called before each epoch, by all
    ranks; trainers do so. With workers a loader must not keep them between epochs
    (`persistent_workers`), since they would not see the new version.

    Args:
        store: directory of the store, or the URL that it is published at; it may come into being
            later.
        dataset: rows by position, with a length: a `datasets.Dataset`, a list.
        sample_ids: the sample id of each row, in order. Not needed when the dataset has all rows of
            the data file in their order.
        num_samples: samples an epoch, of all ranks together; default: as many as there are rows.
        weight_key: the key under which a row, which is a mapping, gets its weight for the loss (the
            mean is 1). None: rows are drawn so that they may count alike.
        rank: this process, from 0.
        num_ranks: processes that share the samples; each gets `num_samples // num_ranks`.
        seed: of the order.
        mode: `cycle` draws each sample equally often, `weighted` by its weight.
        follow: take a new version at each `epoch`, or keep the first one found (`never`).
        wait_s: longest time in seconds that an epoch's start waits for the coreset of
            `sampler.expected_step`.
        redraw: when to draw anew: as `CoresetSampler`.

    Raises:
        RecipeError: an argument is not one of the above or out of range.
    """

    def __init__(
        self,
        store: str | Path,
        dataset: Any,
        *,
        sample_ids: Sequence[Any] | None = None,
        num_samples: int | None = None,
        weight_key: str | None = None,
        rank: int = 0,
        num_ranks: int = 1,
        seed: int = 0,
        mode: Mode = "cycle",
        follow: Literal["epoch", "never"] = "epoch",
        wait_s: float = 0.0,
        redraw: Redraw = "pass",
    ) -> None:
        if not 0 <= rank < num_ranks:
            raise RecipeError(
                "CoresetIterableDataset: rank should be from 0 to num_ranks - 1, found rank "
                f"{rank} of {num_ranks}"
            )
        if sample_ids is not None and len(sample_ids) != len(dataset):
            raise RecipeError(
                f"CoresetIterableDataset: {len(sample_ids)} sample_ids for {len(dataset)} rows"
            )
        self.sampler = CoresetSampler(
            store,
            len(dataset) if sample_ids is None else sample_ids,
            num_samples=num_samples,
            seed=seed,
            mode=mode,
            follow=follow,
            wait_s=wait_s,
            redraw=redraw,
            weighs=weight_key is not None,
        )
        """What is drawn; `log_uses(step, num_trained=...)` logs it for the coresets to come."""
        self._dataset, self._weight_key = dataset, weight_key
        self._rank, self._num_ranks = rank, num_ranks
        self._num_yielded = self._start = 0
        self._done_in_worker: int | None = None
        self._gone_over: int | None = None  # an epoch, to its end
        self._has_warned = False

    def __len__(self) -> int:
        """Samples of an epoch on this rank."""
        return self.sampler.num_samples // self._num_ranks

    @property
    def weighs(self) -> bool:
        """Whether rows get their weights (`weight_key`)."""
        return self._weight_key is not None

    @property
    def weight_key(self) -> str | None:
        """The key under which a row has its weight."""
        return self._weight_key

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch with the newest version; all ranks must call it."""
        if epoch != self.sampler.epoch:
            self._start = 0
        self.sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[Any]:
        start, self._start = self._start, 0
        self._num_yielded = start
        worker = get_worker_info()
        share, shares = self._rank, self._num_ranks
        if worker is not None:
            self._require_begun()
            share += shares * worker.id  # so that each rank has as many, whatever its workers
            shares *= worker.num_workers
        elif self._gone_over == self.sampler.epoch and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "CoresetIterableDataset: epoch %d was gone over and is iterated over again, with "
                "the same draw and no new version. Call set_epoch(epoch) before each epoch",
                self.sampler.epoch,
            )
        epoch = self.sampler.epoch  # the next one may be begun before this is at its end
        draws = self.sampler.go_over() if worker is None else self.sampler.draws()
        stop = len(self) * self._num_ranks
        mine = range(share, stop, shares)[start:]
        for index, drawn in enumerate(draws):
            if index >= stop:
                break
            if index not in mine:
                continue
            self._num_yielded += 1
            yield self._row(drawn)
        if worker is None:
            self._gone_over = epoch

    def _row(self, drawn: Drawn) -> Any:
        row = self._dataset[int(drawn)]
        if self._weight_key is None:
            return row
        return {**row, self._weight_key: drawn.weight}

    def _require_begun(self) -> None:
        """`RecipeError` in a worker that does not know what to draw."""
        epoch = self.sampler.epoch
        if self._done_in_worker == epoch:
            raise RecipeError(
                "CoresetIterableDataset: a worker is asked for an epoch that it has gone over. Use "
                "a data loader without persistent_workers, and call set_epoch before each epoch"
            )
        if not any(turn.epoch == epoch for turn in self.sampler.version_log):
            raise RecipeError(
                f"CoresetIterableDataset: epoch {epoch} has not begun. With workers, call "
                "set_epoch(epoch) in the process that iterates over the data loader"
            )
        self._done_in_worker = epoch

    def state_dict(self) -> Json:
        """What a resumed run needs to go on with the next sample; also of a worker."""
        return {**self.sampler.state_dict(), "num_yielded": self._num_yielded}

    def load_state_dict(self, state: Json) -> None:
        """Take up a `state_dict`; raises RecipeError when it is of other settings.

        All ranks must call it, each with its own state.
        """
        self.sampler.load_state_dict(state)
        self._start = self._num_yielded = state.get("num_yielded", 0)
        self._gone_over = None
