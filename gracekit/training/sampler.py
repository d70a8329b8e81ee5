"""`CoresetSampler`: a sampler for a torch `DataLoader` that follows the versions of a store.

It is duck-typed, so that torch is not needed to import it. Its length never changes: trainers
compute the number of steps and the learning-rate schedule from it once. What is drawn depends on
the seed and the version log alone, so a resumed run that gets the log back draws the same batches.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from gracekit.errors import DataError, GracekitError, RecipeError, StoreError
from gracekit.store import Lease, list_versions
from gracekit.training.coreset import Coreset
from gracekit.training.ranks import decide_on_rank_zero
from gracekit.training.stream import Stream
from gracekit.types import Int64, Json

Mode = Literal["cycle", "weighted"]
Follow = Literal["epoch", "step", "never"]

WAIT_INTERVAL_S = 0.2

logger = logging.getLogger("gracekit.training")


class Turn(NamedTuple):
    """An entry of the version log: from here on, samples are drawn from this version."""

    epoch: int
    """Counted from 0, as `set_epoch` does."""
    start: int
    """Draws of the epoch before this turn."""
    version: int
    """0: the whole dataset, because there is no version yet."""


class CoresetSampler:
    """Draws positions of the trainer's dataset from the newest coreset of a store.

    Until the store has a version, the whole dataset is drawn from. A store that is missing, or a
    manifest that is damaged or does not fit the dataset, never stops the training: it is logged as
    a warning and the present version stays in use. In a distributed job every rank gets the same
    order (rank 0 reads the store); let accelerate or the trainer share it out as usual.

    A lease in the store, where it can be written, keeps `gracekit gc` from the versions in use,
    until `release` or the end of the process.

    Args:
        store: directory of the store; it may come into being later.
        dataset: the sample id of each row of the trainer's dataset, in order; or only the number
            of rows, when it holds all rows of the data file in their order.
        num_samples: draws an epoch; default: as many as the dataset has rows, so an epoch keeps
            its length and goes over the coreset several times.
        seed: of the order.
        mode: `cycle` draws every sample of the coreset once before any again, across epochs too;
            `weighted` draws each in proportion to its weight, the fraction rounded at random.
        follow: take a new version at each `epoch`; also within one, when `swap` is called
            (`step`); or keep the first version found (`never`).
        wait_s: longest time in seconds that an epoch's start waits for a version whose checkpoint
            is at least `expected_step`; 0 never waits, and after a rollback none does.

    Raises:
        RecipeError: an argument is not one of the above or out of range.
    """

    def __init__(
        self,
        store: str | Path,
        dataset: int | Sequence[Any],
        *,
        num_samples: int | None = None,
        seed: int = 0,
        mode: Mode = "cycle",
        follow: Follow = "epoch",
        wait_s: float = 0.0,
    ) -> None:
        num_rows = dataset if isinstance(dataset, int) else len(dataset)
        if num_rows < 1:
            raise RecipeError("CoresetSampler: the trainer's dataset is empty")
        if num_samples is not None and num_samples < 1:
            raise RecipeError(f"CoresetSampler: num_samples should be >= 1, found {num_samples}")
        check_choice("mode", mode, get_args(Mode))
        check_choice("follow", follow, get_args(Follow))
        self.store = Path(store)
        self.num_samples = num_samples or num_rows
        self.seed = seed
        self.mode = mode
        self.follow = follow
        self.wait_s = wait_s
        self.expected_step = -1
        """Step of the last checkpoint that the trainer saved; a loop that waits keeps it."""
        self.num_drawn = 0
        """Draws of the present epoch so far."""
        self.epoch = 0
        self.dataset_ids = None if isinstance(dataset, int) else [str(i) for i in dataset]
        """Sample id of each row of the trainer's dataset, where they were given."""
        self._num_rows = num_rows
        self._everything = Stream(
            version=0, step=-1, positions=np.arange(num_rows), weights=None, seed=seed
        )
        self._log: list[Turn] = []
        self._streams: dict[int, Stream] = {0: self._everything}
        self._warned: set[str] = set()
        self._lease = Lease(self.store)

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[int]:
        self.set_epoch(self.epoch)
        epoch, num_turns, order = self.epoch, len(self._log), self.order()
        self.num_drawn = 0
        for index in range(self.num_samples):
            if len(self._log) != num_turns and self.epoch == epoch:  # a swap: only what is ahead
                num_turns, order = len(self._log), self.order()
            self.num_drawn = index + 1
            self._lease.keep()
            yield int(order[index])

    @property
    def version(self) -> int:
        """Version that is drawn from now; 0 is the whole dataset."""
        return self._log[-1].version if self._log else 0

    @property
    def step(self) -> int:
        """Training step of that version's checkpoint; -1 for the whole dataset."""
        return self._streams[self.version].step

    @property
    def version_log(self) -> list[Turn]:
        """Which version was drawn from since when, oldest first."""
        return list(self._log)

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch: take the newest version, or the logged one if it was begun before.

        All ranks must call it; calling it again for the same epoch changes nothing.
        """
        if epoch != self.epoch:
            self.epoch, self.num_drawn = epoch, 0
        if all(turn.epoch != epoch for turn in self._log):
            stream = decide_on_rank_zero(self._find_at_epoch_start)
            self._begin_turn(0, stream or self._streams[self.version])
        for turn in self._turns(epoch):
            if turn.version not in self._streams:
                self._replay(turn)
        kept = {turn.version for turn in self._turns(epoch)} | {0, self.version}
        self._streams = {v: s for v, s in self._streams.items() if v in kept}
        self._lease.limit(kept)

    def swap(self) -> bool:
        """Draw from the newest version from the next sample on; whether it is a new one.

        Does something only with `follow="step"` and once an epoch has begun. All ranks must call
        it at the same step, from the process that iterates. Batches that the data loader has
        prefetched are still the old version's.
        """
        if self.follow != "step" or not self._log:
            return False
        found = decide_on_rank_zero(self._find_within_epoch)
        if found is None:
            return False
        self._begin_turn(*found)
        return True

    def release(self) -> None:
        """Leave all versions to gc again; to be called when training has ended."""
        self._lease.release()

    def order(self, epoch: int | None = None) -> Int64:
        """Positions int64 [num_samples] that an epoch (default: the present one) draws, in order.

        It may change from `num_drawn` on when `swap` takes a new version.
        """
        epoch = self.epoch if epoch is None else epoch
        used: dict[int, int] = {}  # draws taken from each version's stream so far
        parts = []
        for index, turn in enumerate(self._log):
            following = self._log[index + 1] if index + 1 < len(self._log) else None
            same_epoch = following is not None and following.epoch == turn.epoch
            stop = following.start if following and same_epoch else self.num_samples
            start = used.get(turn.version, 0)
            used[turn.version] = start + stop - turn.start
            if turn.epoch == epoch:
                parts.append(self._streams[turn.version].take(start, used[turn.version]))
        return np.concatenate(parts)

    def state_dict(self) -> Json:
        """What a resumed run needs to draw the same samples, as JSON."""
        return {
            "epoch": self.epoch,
            "num_samples": self.num_samples,
            "seed": self.seed,
            "mode": self.mode,
            "version_log": [list(turn) for turn in self._log],
        }

    def load_state_dict(self, state: Json) -> None:
        """Take up a `state_dict`; raises RecipeError when it is of a sampler with other settings.

        In a distributed job all ranks must call it with the same state.
        """
        for name in ("num_samples", "seed", "mode"):
            if state[name] != getattr(self, name):
                raise RecipeError(
                    f"the saved sampler state has {name} {state[name]!r} and this sampler "
                    f"{getattr(self, name)!r}: it would not draw the same batches"
                )
        self._log = [Turn(*entry) for entry in state["version_log"]]
        self._streams = {0: self._everything}
        self.epoch = state["epoch"]
        self.num_drawn = 0
        for turn in [*self._log[-1:], *self._turns(self.epoch)]:
            if turn.version not in self._streams:
                self._replay(turn)

    def _turns(self, epoch: int) -> list[Turn]:
        return [turn for turn in self._log if turn.epoch == epoch]

    def _begin_turn(self, start: int, stream: Stream) -> None:
        self._streams[stream.version] = stream
        self._log.append(Turn(self.epoch, start, stream.version))

    def _replay(self, turn: Turn) -> None:
        """Load the version of a logged turn again; the whole dataset where it cannot be."""
        stream: Stream | None = decide_on_rank_zero(lambda: self._read(turn.version))
        if stream is None:
            logger.warning(
                "epoch %d was drawn from version %d, which cannot be read any more: it is "
                "replayed from all samples, with other batches than before",
                turn.epoch + 1,
                turn.version,
            )
            stream = self._everything
            self._log = [
                logged._replace(version=0) if logged.version == turn.version else logged
                for logged in self._log
            ]
        self._streams[stream.version] = stream

    def _find_at_epoch_start(self) -> Stream | None:
        if self.follow == "never" and self.version > 0:
            return None
        deadline = time.monotonic() + self.wait_s
        found = self._find_newer()
        while self.wait_s > 0 and self._is_behind(found):
            if time.monotonic() >= deadline:
                logger.warning(
                    "waited %.0f s for a coreset of the checkpoint at step %d, none came "
                    "(is `gracekit watch` running?); going on with what there is",
                    self.wait_s,
                    self.expected_step,
                )
                break
            time.sleep(WAIT_INTERVAL_S)
            found = self._find_newer()
        return found

    def _is_behind(self, found: Stream | None) -> bool:
        """Whether a version of a later checkpoint is to come; a rollback is meant to be old."""
        newest = found or self._streams[self.version]
        return newest.step < self.expected_step and not newest.is_rollback

    def _find_within_epoch(self) -> tuple[int, Stream] | None:
        """Where the swap happens (rank 0's place counts) and to what."""
        if self.num_drawn >= self.num_samples:
            return None
        stream = self._find_newer()
        return None if stream is None else (self.num_drawn, stream)

    def _find_newer(self) -> Stream | None:
        """The highest version above the present one that can be read and fits, if any."""
        try:
            versions = list_versions(self.store)
        except StoreError as error:
            self._warn_once(f"no new coreset is looked for: {error}")
            return None
        if not versions:
            self._warn_once(
                f"there is no coreset in {self.store} yet: drawing from the whole dataset"
            )
        for version in reversed(versions):
            if version <= self.version:
                break
            if (stream := self._read(version)) is not None:
                return stream
        return None

    def _read(self, version: int) -> Stream | None:
        self._lease.add(version)  # before reading: gc looks for it after it marked a version
        try:
            coreset = Coreset.load(self.store, version)
            positions = coreset.locate(self.dataset_ids or self._num_rows)
            there = positions >= 0
            if not there.any():
                raise DataError(f"coreset version {version} is empty")
        except GracekitError as error:
            self._warn_once(f"coreset version {version} is not used: {error}")
            return None
        if not there.all():
            self._warn_once(
                f"coreset version {version}: {int((~there).sum())} of its {len(there)} samples are "
                "not in the trainer's dataset and are left out"
            )
        weights = None
        if self.mode == "weighted":
            weights = coreset.weights[there].astype(np.float64)
            weights *= len(weights) / weights.sum()
        return Stream(
            version=version,
            step=coreset.step,
            positions=positions[there],
            weights=weights,
            seed=self.seed,
            is_rollback=coreset.view.rollback_of is not None,
        )

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            logger.warning("%s", message)


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise RecipeError unless the value is one of the choices."""
    if value not in choices:
        raise RecipeError(f"{name} should be one of {', '.join(choices)}; found {value!r}")
