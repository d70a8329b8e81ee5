"""`CoresetSampler`: a sampler for a torch `DataLoader` that follows the versions of a store.

It is duck-typed, so that torch is not needed to import it. Its length never changes: trainers
compute the number of steps and the learning-rate schedule from it once. What is drawn depends on
the seed, the version log and what was trained on before, so a resumed run that gets these back
draws the same batches.

(Longer than other modules, because the interface of the one object that a training loop holds is
here; what it draws is in `epochs`, `course`, `stream` and `chances`.)
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from gracekit.errors import (
    RecipeError,
    RemoteError,
    StoreError,
    StoreNotFoundError,
    VersionNotFoundError,
)
from gracekit.store import (
    Lease,
    LoggedUses,
    StorePaths,
    bring,
    list_versions,
    local_store,
    url_of_mirror,
)
from gracekit.training.drawn import Drawn
from gracekit.training.epochs import Epochs, Turn
from gracekit.training.ranks import decide_on_rank_zero, is_rank_zero
from gracekit.training.reading import Mode, Redraw, VersionReader, whole_dataset
from gracekit.training.stream import StoreRows, Stream
from gracekit.training.uses_log import UsesLog, course_of, losses_of, new_run, require_before
from gracekit.types import Float32, Int64, Json, TrainedLosses

Follow = Literal["epoch", "step", "never"]

WAIT_INTERVAL_S = 0.2
REMOTE_INTERVAL_S = 5.0
"""Seconds between two looks at the URL of a published store within an epoch, and while it waits."""
REMOTE_PAUSE_S = 300.0
"""The same after a look that failed: it may have taken a minute, in which nothing was trained."""

logger = logging.getLogger("gracekit.training")


class CoresetSampler:
    """Draws positions of the trainer's dataset from the newest coreset of a store.

    Until the store has a version, the whole dataset is drawn from. A store that is missing, or a
    manifest that is damaged or does not fit the dataset, never stops the training: it is logged as
    a warning and the present version stays in use. In a distributed job every rank gets the same
    order (rank 0 reads the store); let accelerate or the trainer share it out as usual.

    A version whose selector draws with known probabilities (`balanced`) is drawn from anew, by the
    sampler itself: each row's turns follow its probabilities, given what this run has trained on,
    so that rows do not come again before those that are owed a turn. The positions that it yields
    are of the type `Drawn`, which carries the weight of the sample in the draw.

    A lease in the store, where it can be written, keeps `gracekit gc` from the versions in use,
    until `release` or the end of the process.

    Args:
        store: directory of the store, or the URL that it is published at, such as
            `s3://bucket/run`; it may come into being later.
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
        redraw: draw anew whenever a draw was gone over once (`pass`), at each `epoch`, where a draw
            is gone over again when the epoch is longer, or `never`: the version's own coreset.
            Versions without probabilities are always their own coreset.
        weighs: whether the loss of each position is multiplied by its weight (`.weight`). With
            False what is drawn anew is drawn in proportion to what is to be trained on, whatever
            the norms are, and all weights are 1: without weights in the loss, rows drawn by norm
            would teach what they were drawn for.

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
        redraw: Redraw = "pass",
        weighs: bool = True,
    ) -> None:
        if isinstance(dataset, Integral):  # also one of NumPy
            dataset = int(dataset)
        num_rows = dataset if isinstance(dataset, int) else len(dataset)
        if num_rows < 1:
            raise RecipeError("CoresetSampler: the trainer's dataset is empty")
        if num_samples is not None:
            num_samples = whole_number("CoresetSampler: num_samples", num_samples, 1)
        seed = whole_number("CoresetSampler: seed", seed, 0)
        check_choice("mode", mode, get_args(Mode))
        check_choice("follow", follow, get_args(Follow))
        check_choice("redraw", redraw, get_args(Redraw))
        self.store = local_store(store)
        self.num_samples = num_samples or num_rows
        self.seed = seed
        self.mode = mode
        self.follow = follow
        self.wait_s = wait_s
        self.is_led = False
        """Whether `begin_epoch` alone begins an epoch: while a `CoresetCallback` trains, and after
        a training that an error broke off; a loop of your own then calls `begin_epoch`.
        """
        self.redraw = redraw
        self.expected_step = -1
        """Step of the last checkpoint that the trainer saved; a loop that waits keeps it."""
        self.num_drawn = 0
        """Draws of the present epoch so far."""
        self.epoch = 0
        self.dataset_ids = None if isinstance(dataset, int) else [str(i) for i in dataset]
        """Sample id of each row of the trainer's dataset, where they were given."""
        self._num_rows = num_rows
        self._lease = Lease(self.store)
        self._versions = VersionReader(
            self.store,
            self.dataset_ids or num_rows,
            self._lease,
            seed=seed,
            mode=mode,
            redraw=redraw,
            weighs=weighs,
        )
        self._epochs = Epochs(whole_dataset(num_rows, seed), self.num_samples, self._versions)
        self._next_look = 0.0
        self._gone_over: int | None = None  # an epoch, to its end
        self._run: str | None = None
        self._uses_step: int | None = None
        self._losses = TrainedLosses.none(num_rows)
        self._content_version: int | None = None  # whose contents this process trains on

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[Drawn]:
        if not self.is_led and self._gone_over == self.epoch:
            self._versions.warn_once(
                f"CoresetSampler: epoch {self.epoch} was gone over and is iterated over again, "
                "with the same draw and no new version. Call set_epoch(epoch) before each epoch",
                key="gone over",
            )
        epoch = self.epoch  # the next one may be begun before this is at its end
        yield from self.go_over()
        self._gone_over = epoch

    def go_over(self) -> Iterator[Drawn]:
        """What iterating over it yields, for what says itself where an epoch comes again."""
        self.begin_epoch(self.epoch)
        epoch, epochs = self.epoch, self._epochs
        num_turns, drawn = len(epochs.log), epochs.samples(epoch)
        turns = epochs.turns(epoch)[::-1]
        self.num_drawn = 0
        for index in range(self.num_samples):
            if len(epochs.log) != num_turns and self.epoch == epoch:  # a swap: only what is ahead
                num_turns, drawn = len(epochs.log), epochs.samples(epoch)
                turns = epochs.turns(epoch)[::-1]
            self.num_drawn = index + 1
            self._lease.keep()
            version = next(turn.version for turn in turns if turn.start <= index)
            yield Drawn(int(drawn.positions[index]), float(drawn.weights[index]), version)

    @property
    def version(self) -> int:
        """Version that is drawn from now; 0 is the whole dataset."""
        return self._epochs.log[-1].version if self._epochs.log else 0

    @property
    def is_drawn_anew(self) -> bool:
        """Whether draws are made here from the present version's probabilities."""
        return self._epochs.streams[self.version].chances is not None

    @property
    def num_rows(self) -> int:
        """Rows of the trainer's dataset."""
        return self._num_rows

    @property
    def num_drawable(self) -> int:
        """Rows that the present version's draws can have."""
        stream = self._epochs.streams[self.version]
        if stream.chances is None:
            return len(stream.positions)
        return int((stream.chances.probabilities > 0).sum())

    @property
    def step(self) -> int:
        """Training step of that version's checkpoint; -1 for the whole dataset."""
        return self._epochs.streams[self.version].step

    @property
    def version_log(self) -> list[Turn]:
        """Which version was drawn from since when, oldest first."""
        return list(self._epochs.log)

    @property
    def trained_per_epoch(self) -> int:
        """Samples that a whole epoch trains on; `num_samples`, unless set before training begins.

        To be set, on all ranks, where the data loader drops the last, incomplete batch (fewer), or
        fills it up from the epoch's start (more).
        """
        return self._epochs.trained_per_epoch

    @trained_per_epoch.setter
    def trained_per_epoch(self, num_samples: int) -> None:
        self._epochs.trained_per_epoch = num_samples

    @property
    def run(self) -> str | None:
        """Name of this run in the log of uses; None before training begins."""
        return self._run

    @property
    def uses_step(self) -> int | None:
        """Training step at which uses were last logged, or taken up from; None: never."""
        return self._uses_step

    def name_rows(self, sample_ids: Sequence[Any]) -> None:
        """Say which sample each row of the dataset is, for versions that are read from now on.

        Raises:
            RecipeError: there are not as many ids as rows.
        """
        if len(sample_ids) != self._num_rows:
            raise RecipeError(
                f"CoresetSampler: {len(sample_ids)} sample ids for {self._num_rows} rows"
            )
        self.dataset_ids = [str(sample_id) for sample_id in sample_ids]
        self._versions.dataset = self.dataset_ids

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch: take the newest version, or the logged one if it was begun before.

        All ranks must call it; calling it again for the same epoch changes nothing. While a
        `CoresetCallback` trains with this sampler nothing does: the callback knows the epoch, and
        Accelerate before 1.15 takes an epoch that is resumed in its middle for the first.
        """
        if not self.is_led:
            self._gone_over = None
            self.begin_epoch(epoch)

    def begin_epoch(self, epoch: int) -> None:
        """As `set_epoch`, for what leads the sampler."""
        epoch = int(epoch)  # it becomes JSON
        if epoch != self.epoch:
            self.epoch, self.num_drawn = epoch, 0
        if not self._epochs.turns(epoch):
            stream = decide_on_rank_zero(self._find_at_epoch_start)
            self._epochs.begin_turn(epoch, 0, stream or self._epochs.streams[self.version])
        if self._run is None:
            self._run = decide_on_rank_zero(new_run)
        for turn in self._epochs.turns(epoch):
            self._replay(turn)
        self._store_rows()
        self._lease.limit(self._epochs.limit(epoch))

    def swap(self) -> bool:
        """Draw from the newest version from the next sample on; whether it is a new one.

        Does something only with `follow="step"` and once an epoch has begun. All ranks must call
        it at the same step, from the process that iterates. Batches that the data loader has
        prefetched are still the old version's.
        """
        if self.follow != "step" or not self._epochs.log:
            return False
        found = decide_on_rank_zero(self._find_within_epoch)
        if found is None:
            return False
        self._epochs.begin_turn(self.epoch, *found)
        return True

    def release(self) -> None:
        """Leave all versions to gc again; to be called when training has ended."""
        self._lease.release()

    def order(self, epoch: int | None = None) -> Int64:
        """Positions int64 [num_samples] that an epoch (default: the present one) draws, in order.

        It may change from `num_drawn` on when `swap` takes a new version.
        """
        return self._epochs.samples(self.epoch if epoch is None else epoch).positions

    def draws(self) -> Iterator[Drawn]:
        """What the present epoch draws, in order, without drawing it: `num_drawn` stays."""
        samples, turns = self._epochs.samples(self.epoch), self._epochs.turns(self.epoch)[::-1]
        for index, position in enumerate(samples.positions.tolist()):
            version = next((turn.version for turn in turns if turn.start <= index), 0)
            yield Drawn(position, float(samples.weights[index]), version)

    def weights(self) -> Float32:
        """Weight [dataset rows] of a use of each row in the draw in force, mean about 1.

        1 for rows that the version does not have, without a version, and with `mode="weighted"`,
        where samples are repeated by weight instead.
        """
        if not self._epochs.turns(self.epoch):
            return np.ones(self._num_rows, np.float32)
        return self._epochs.weights_at(self.epoch, max(self.num_drawn - 1, 0))

    def weight_of(self, position: int) -> float:
        """Weight of a row of the trainer's dataset in the draw in force; see `weights`."""
        return float(self.weights()[position])

    def note_losses(self, positions: Int64, losses: Float32, steps: Int64) -> None:
        """Keep the losses of rows that were trained on, for the log: of each row the newest.

        What one rank has seen suffices to be noted there; rank 0 has to be told all, since it
        writes.

        Args:
            positions: [m] in the trainer's dataset; may repeat.
            losses: [m] mean over the row's target tokens, before any weight; those that are not
                finite are passed over.
            steps: [m] training steps that were done when each was seen.
        """
        self._losses = self._losses.noted(positions, losses, steps)

    def log_uses(self, step: int, *, num_trained: int | None = None) -> None:
        """Log in the store what this run has trained on, for the daemon and a resumed run.

        To be called before a checkpoint is saved, and at the end of training. Only rank 0 writes.
        Nothing is logged before a first version is known. A store that cannot be written is one
        warning.

        Args:
            step: Training step that was done last, 0 or more.
            num_trained: Samples of the present epoch that were trained on, by all ranks together;
                default: those that were drawn. A data loader may have drawn more ahead.
        """
        where = self._store_rows()
        if step < 0:
            raise RecipeError(f"log_uses: step should be >= 0, found {step}")
        if not self._epochs.log or self._run is None or where is None:
            return
        self._uses_step = step
        num_trained = self.num_drawn if num_trained is None else num_trained
        start, count = self._epochs.start_of(self.epoch), min(num_trained, self.num_samples)
        now, _ = self._epochs.through(start, self.epoch, count, num_trained)
        if not is_rank_zero():
            return
        try:
            self._uses_log(self._run).write(
                step,
                self.epoch,
                start=start,
                now=now,
                num_trained=num_trained,
                versions=tuple(turn.version for turn in self._epochs.turns(self.epoch)),
                where=where,
                losses=self._losses,
                content_version=self._content_version or where.version,
            )
        except StoreError as error:
            self._versions.warn_once(
                f"what is trained on is not logged ({error}), so coresets to come go by what was "
                "handed out",
                key="uses",
            )

    def state_dict(self) -> Json:
        """What a resumed run needs to draw the same samples, as JSON."""
        return {
            "epoch": self.epoch,
            "num_samples": self.num_samples,
            "seed": self.seed,
            "mode": self.mode,
            "redraw": self.redraw,
            "run": self._run,
            "uses_step": self._uses_step,
            "version_log": [list(turn) for turn in self._epochs.log],
        }

    def load_state_dict(self, state: Json) -> None:
        """Take up a `state_dict`; raises RecipeError when it is none, or of a sampler with other
        settings.

        In a distributed job all ranks must call it with the same state.
        """
        try:
            log, epoch = [Turn(*entry) for entry in state["version_log"]], int(state["epoch"])
        except (KeyError, TypeError, ValueError):
            raise RecipeError(
                f"{state!r:.80} is no state of a CoresetSampler: expected what its state_dict gave"
            ) from None
        for name in ("num_samples", "seed", "mode", "redraw"):
            saved = state.get(name, getattr(self, name))  # earlier releases had no redraw
            if saved != getattr(self, name):
                raise RecipeError(
                    f"the saved sampler state has {name} {saved!r} and this sampler "
                    f"{getattr(self, name)!r}: it would not draw the same batches"
                )
        self._epochs.take_up(list(log))
        self._losses, self._content_version = TrainedLosses.none(self._num_rows), None
        self.epoch = epoch
        self.num_drawn, self._gone_over = 0, None
        for turn in [*log[-1:], *self._epochs.turns(self.epoch)]:
            self._replay(turn)
        self._run, self._uses_step = state.get("run"), state.get("uses_step")
        if self._run is not None:
            self._take_up_uses(self._run, log)

    # --- inside ---

    def _store_rows(self) -> StoreRows | None:
        """Which row of the store each row is; the first that is known says which contents are here:
        a dataset that was loaded before the data changed still has the old ones.
        """
        where = self._epochs.store_rows()
        if self._content_version is None and where is not None:
            self._content_version = where.version
        return where

    def _replay(self, turn: Turn) -> None:
        """Load the version of a logged turn again; the whole dataset where it cannot be."""
        if turn.version in self._epochs.streams:
            return
        stream = self._versions.read_together(turn.version)
        if stream is not None:
            self._epochs.streams[turn.version] = stream
            return
        logger.warning(
            "epoch %d was drawn from version %d, which cannot be read any more: it is replayed "
            "from all samples, with other batches than before",
            turn.epoch + 1,
            turn.version,
        )
        self._epochs.log = [
            logged._replace(version=0) if logged.version == turn.version else logged
            for logged in self._epochs.log
        ]

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
            is_local = url_of_mirror(self.store) is None
            time.sleep(WAIT_INTERVAL_S if is_local else REMOTE_INTERVAL_S)
            found = self._find_newer()
        return found

    def _is_behind(self, found: Stream | None) -> bool:
        """Whether a version of a later checkpoint is to come; a rollback is meant to be old."""
        newest = found or self._epochs.streams[self.version]
        return newest.step < self.expected_step and not newest.is_rollback

    def _find_within_epoch(self) -> tuple[int, Stream] | None:
        """Where the swap happens (rank 0's place counts) and to what."""
        if self.num_drawn >= self.num_samples:
            return None
        stream = self._find_newer(within_epoch=True)
        return None if stream is None else (self.num_drawn, stream)

    def _look_at_url(self, *, within_epoch: bool) -> None:
        """Download the newest version of a published store; goes on with what there is."""
        if within_epoch and time.monotonic() < self._next_look:
            return
        try:
            bring(self.store)
            self._next_look = time.monotonic() + REMOTE_INTERVAL_S
        except (StoreNotFoundError, VersionNotFoundError) as error:  # the look did not fail
            self._next_look = time.monotonic() + REMOTE_INTERVAL_S
            self._versions.warn_once(str(error))
        except (RemoteError, StoreError) as error:
            self._next_look = time.monotonic() + REMOTE_PAUSE_S
            self._versions.warn_once(f"no new coreset is looked for: {error}")

    def _find_newer(self, *, within_epoch: bool = False) -> Stream | None:
        """The highest version above the present one that can be read and fits, if any."""
        self._look_at_url(within_epoch=within_epoch)
        try:
            versions = list_versions(self.store)
        except StoreError as error:
            self._versions.warn_once(f"no new coreset is looked for: {error}")
            return None
        if not versions:
            self._versions.warn_once(
                f"there is no coreset in {self.store} yet: drawing from the whole dataset"
            )
        for version in reversed(versions):
            if version <= self.version:
                break
            if (stream := self._versions.read(version)) is not None:
                return stream
        return None

    # --- the log of uses ---

    def _uses_log(self, run: str) -> UsesLog:
        return UsesLog(StorePaths(self.store), run)

    def _take_up_uses(self, run: str, log: list[Turn]) -> None:
        """Go on from what the run had logged, as far as it can be read."""
        where, step = self._store_rows(), self._uses_step
        if is_rank_zero():
            try:
                self._uses_log(run).remove_ahead(-1 if step is None else step)
            except StoreError as error:
                self._versions.warn_once(
                    f"uses that were logged later than the checkpoint stay: {error}"
                )
        if step is None or where is None:
            return
        logged = decide_on_rank_zero(lambda: self._read_uses(run, step, log, where))
        if logged is None:
            return
        self._losses = losses_of(logged, where, self._num_rows)
        epoch = logged.facts.epoch
        stream = self._epochs.stream(self._epochs.turns(epoch)[0].version)
        if stream is not None:
            self._epochs.begin_at(epoch, course_of(logged, where, stream, self._num_rows))

    def _read_uses(
        self, run: str, step: int, log: list[Turn], where: StoreRows
    ) -> LoggedUses | None:
        try:
            logged = self._uses_log(run).read(step, where)
            drawn = tuple(turn.version for turn in log if turn.epoch == logged.facts.epoch)
            require_before(logged.facts, self.epoch, drawn)
        except StoreError as error:
            self._versions.warn_once(
                "what was trained on before the checkpoint is made anew from the version log, as "
                f"far as that can be read: {error}"
            )
            return None
        return logged


def whole_number(name: str, value: Any, least: int) -> int:
    """The number; raises RecipeError unless it is a whole one, of Python or NumPy, from `least`."""
    if not isinstance(value, Integral):
        raise RecipeError(f"{name} should be a whole number, found {value!r}")
    if value < least:
        raise RecipeError(f"{name} should be >= {least}, found {value}")
    return int(value)


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise RecipeError unless the value is one of the choices."""
    if value not in choices:
        raise RecipeError(f"{name} should be one of {', '.join(choices)}; found {value!r}")
