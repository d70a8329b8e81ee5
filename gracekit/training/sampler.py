"""`CoresetSampler`: a sampler for a torch `DataLoader` that follows the versions of a store.

It is duck-typed, so that torch is not needed to import it. Its length never changes: trainers
compute the number of steps and the learning-rate schedule from it once. What is drawn depends on
the seed, the version log and what was trained on before, so a resumed run that gets these back
draws the same batches.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from gracekit.errors import GracekitError, RecipeError, StoreError, StoreFormatError
from gracekit.store import Lease, LoggedUses, StorePaths, list_versions
from gracekit.training.course import Course, Taken
from gracekit.training.drawn import Drawn
from gracekit.training.ranks import decide_on_rank_zero, is_rank_zero
from gracekit.training.reading import Mode, Redraw, read_stream, whole_dataset
from gracekit.training.stream import StoreRows, Stream
from gracekit.training.uses_log import UsesLog, course_of, new_run
from gracekit.types import Float32, Int64, Json

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

    A version whose selector draws with known probabilities (`balanced`) is drawn from anew, by the
    sampler itself: each row's turns follow its probabilities, given what this run has trained on,
    so that rows do not come again before those that are owed a turn. The positions that it yields
    are of the type `Drawn`, which carries the weight of the sample in the draw.

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
        redraw: draw anew whenever a draw was gone over once (`pass`), at each `epoch`, where a draw
            is gone over again when the epoch is longer, or `never`: the version's own coreset.
            Versions without probabilities are always their own coreset.

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
    ) -> None:
        num_rows = dataset if isinstance(dataset, int) else len(dataset)
        if num_rows < 1:
            raise RecipeError("CoresetSampler: the trainer's dataset is empty")
        if num_samples is not None and num_samples < 1:
            raise RecipeError(f"CoresetSampler: num_samples should be >= 1, found {num_samples}")
        check_choice("mode", mode, get_args(Mode))
        check_choice("follow", follow, get_args(Follow))
        check_choice("redraw", redraw, get_args(Redraw))
        self.store = Path(store)
        self.num_samples = num_samples or num_rows
        self.seed = seed
        self.mode = mode
        self.follow = follow
        self.wait_s = wait_s
        self.redraw = redraw
        self.trained_per_epoch = self.num_samples
        """Samples that a whole epoch trains on: fewer than `num_samples` where the data loader
        drops the last, incomplete batch; more where it fills it up from the epoch's start. To be
        set before training begins, the same on all ranks."""
        self.expected_step = -1
        """Step of the last checkpoint that the trainer saved; a loop that waits keeps it."""
        self.num_drawn = 0
        """Draws of the present epoch so far."""
        self.epoch = 0
        self.dataset_ids = None if isinstance(dataset, int) else [str(i) for i in dataset]
        """Sample id of each row of the trainer's dataset, where they were given."""
        self._num_rows = num_rows
        self._everything = whole_dataset(num_rows, seed)
        self._log: list[Turn] = []
        self._streams: dict[int, Stream] = {0: self._everything}
        self._warned: set[str] = set()
        self._lease = Lease(self.store)
        self._starts: dict[int, Course] = {}  # epoch -> where the draws stood when it began
        self._whole: tuple[tuple[int, int], Taken] | None = None  # (epoch, turns) -> its samples
        self._weights: tuple[tuple[int, int, int], Float32] | None = None
        self._run: str | None = None
        self._uses_step: int | None = None

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[Drawn]:
        self.set_epoch(self.epoch)
        epoch, num_turns, drawn = self.epoch, len(self._log), self._drawn(self.epoch)
        turns = self._turns(epoch)[::-1]
        self.num_drawn = 0
        for index in range(self.num_samples):
            if len(self._log) != num_turns and self.epoch == epoch:  # a swap: only what is ahead
                num_turns, drawn = len(self._log), self._drawn(epoch)
                turns = self._turns(epoch)[::-1]
            self.num_drawn = index + 1
            self._lease.keep()
            version = next(turn.version for turn in turns if turn.start <= index)
            yield Drawn(int(drawn.positions[index]), float(drawn.weights[index]), version)

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

    @property
    def run(self) -> str | None:
        """Name of this run in the log of uses; None before training begins."""
        return self._run

    @property
    def uses_step(self) -> int | None:
        """Training step at which uses were last logged, or taken up from; None: never."""
        return self._uses_step

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch: take the newest version, or the logged one if it was begun before.

        All ranks must call it; calling it again for the same epoch changes nothing.
        """
        if epoch != self.epoch:
            self.epoch, self.num_drawn = epoch, 0
        if all(turn.epoch != epoch for turn in self._log):
            stream = decide_on_rank_zero(self._find_at_epoch_start)
            self._begin_turn(0, stream or self._streams[self.version])
        if self._run is None:
            self._run = decide_on_rank_zero(new_run)
        for turn in self._turns(epoch):
            if turn.version not in self._streams:
                self._replay(turn)
        self._start_of(epoch)
        newest = {epoch, self._log[-1].epoch}
        self._starts = {e: course for e, course in self._starts.items() if e in newest}
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
        return self._drawn(self.epoch if epoch is None else epoch).positions

    def weights(self) -> Float32:
        """Weight [dataset rows] of a use of each row in the draw in force, mean about 1.

        1 for rows that the version does not have, without a version, and with `mode="weighted"`,
        where samples are repeated by weight instead.
        """
        if not self._turns(self.epoch):
            return np.ones(self._num_rows, np.float32)
        begins = self._drawn(self.epoch).begins
        number = int(np.searchsorted(begins, max(self.num_drawn, 1), side="left")) - 1
        key = (self.epoch, len(self._log), number)
        if self._weights is None or self._weights[0] != key:
            course, _ = self._through(self._start_of(self.epoch), self.epoch, begins[number] + 1)
            assert course.drawing is not None
            stream = self._streams[course.drawing.version]
            self._weights = (key, stream.weights_of(course.drawing))
        return self._weights[1]

    def weight_of(self, position: int) -> float:
        """Weight of a row of the trainer's dataset in the draw in force; see `weights`."""
        return float(self.weights()[position])

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
        if not self._log or self._run is None or where is None:
            return
        self._uses_step = step
        if not is_rank_zero():
            return
        num_trained = self.num_drawn if num_trained is None else num_trained
        start = self._start_of(self.epoch)
        now, _ = self._through(start, self.epoch, min(num_trained, self.num_samples), num_trained)
        try:
            self._uses_log(self._run).write(
                step,
                self.epoch,
                start=start,
                now=now,
                num_trained=num_trained,
                versions=tuple(turn.version for turn in self._turns(self.epoch)),
                where=where,
            )
        except StoreError as error:
            self._warn_once(
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
            "version_log": [list(turn) for turn in self._log],
        }

    def load_state_dict(self, state: Json) -> None:
        """Take up a `state_dict`; raises RecipeError when it is of a sampler with other settings.

        In a distributed job all ranks must call it with the same state.
        """
        for name in ("num_samples", "seed", "mode", "redraw"):
            saved = state.get(name, getattr(self, name))  # earlier releases had no redraw
            if saved != getattr(self, name):
                raise RecipeError(
                    f"the saved sampler state has {name} {saved!r} and this sampler "
                    f"{getattr(self, name)!r}: it would not draw the same batches"
                )
        self._log = [Turn(*entry) for entry in state["version_log"]]
        self._streams = {0: self._everything}
        self._starts, self._whole, self._weights = {}, None, None
        self.epoch = state["epoch"]
        self.num_drawn = 0
        log = list(self._log)
        for turn in [*self._log[-1:], *self._turns(self.epoch)]:
            if turn.version not in self._streams:
                self._replay(turn)
        self._run, self._uses_step = state.get("run"), state.get("uses_step")
        if self._run is not None:
            self._take_up_uses(self._run, log)

    # --- inside ---

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
            return read_stream(
                self.store,
                version,
                self.dataset_ids or self._num_rows,
                seed=self.seed,
                mode=self.mode,
                redraw=self.redraw,
                warn=self._warn_once,
            )
        except GracekitError as error:
            self._warn_once(f"coreset version {version} is not used: {error}")
            return None

    # --- the course of the draws ---

    def _drawn(self, epoch: int) -> Taken:
        """All samples of an epoch, as far as it is known which versions they are from."""
        key = (epoch, len(self._log))
        if self._whole is None or self._whole[0] != key:
            start = self._start_of(epoch)
            self._whole = (key, self._through(start, epoch, self.num_samples)[1])
        return self._whole[1]

    def _start_of(self, epoch: int) -> Course:
        """Where the draws stood when an epoch of the log began."""
        epochs = list(dict.fromkeys(turn.epoch for turn in self._log))
        index = epochs.index(epoch)
        known = max((i for i in range(index + 1) if epochs[i] in self._starts), default=None)
        if known is None:
            known, self._starts[epochs[0]] = 0, Course.none(self._num_rows)
        course = self._starts[epochs[known]]
        for number, following in pairwise(epochs[known : index + 1]):
            course, _ = self._through(course, number, self.num_samples, self.trained_per_epoch)
            stream = self._stream(self._turns(following)[0].version)
            course = course if stream is None else course.at_epoch_start(stream)
        self._starts[epoch] = course
        return course

    def _through(
        self, course: Course, epoch: int, count: int, num_trained: int | None = None
    ) -> tuple[Course, Taken]:
        """The first samples of an epoch, and the course after them.

        Args:
            course: When the epoch begins.
            epoch: An epoch of the log.
            count: Samples to draw, up to `num_samples`.
            num_trained: Of these, the first ones that are trained on; where they are more, the
                epoch's first are trained on again. Default: all.
        """
        num_trained = count if num_trained is None else num_trained
        turns, taken = self._turns(epoch), Taken.none()
        stops = [*(turn.start for turn in turns[1:]), self.num_samples]
        for turn, stop in zip(turns, stops, strict=True):
            wanted = min(stop, count) - turn.start
            stream = self._stream(turn.version)
            if stream is None:
                self._warn_once(
                    f"what was trained on of coreset version {turn.version} is not known any more, "
                    "since it cannot be read: later draws do not make up for it"
                )
                continue
            if wanted > 0:
                course, part = course.taken(stream, wanted, num_trained - turn.start)
                taken = taken.then(part)
                self._tell_if_short(stream, course)
        if num_trained > count and len(taken.positions):
            course = course.used_again(np.resize(taken.positions, num_trained - count))
        return course, taken

    def _stream(self, version: int) -> Stream | None:
        """What is drawn from a version of the log; read again where it is not in use any more."""
        if version in self._streams:
            return self._streams[version]
        return decide_on_rank_zero(lambda: self._read(version))

    def _tell_if_short(self, stream: Stream, course: Course) -> None:
        """Say so once where `selection.max_uses` leaves too few rows for a draw."""
        if stream.chances is None or course.drawing is None:
            return
        found, wanted = len(course.drawing.positions), stream.chances.size
        limit = stream.chances.max_uses
        if limit is not None and stream.chances.is_used_up(course.state.uses):
            self._warn_once(
                f"every row that coreset version {stream.version} may draw was used {limit} times "
                "(selection.max_uses): training goes on with all of them. End it, or raise the "
                "limit",
                key="used up",
            )
        elif limit is not None and found < wanted - 1:
            self._warn_once(
                f"only {found} rows that coreset version {stream.version} may draw were used fewer "
                f"than {limit} times (selection.max_uses), and its coreset has {wanted}: each "
                "draw has only these from now on",
                key="max_uses",
            )

    # --- the log of uses ---

    def _store_rows(self) -> StoreRows | None:
        """The newest that is known of which row of the store each row of the dataset is."""
        known = [s.store_rows for s in self._streams.values() if s.store_rows is not None]
        return max(known, key=lambda where: where.version, default=None)

    def _uses_log(self, run: str) -> UsesLog:
        return UsesLog(StorePaths(self.store), run)

    def _take_up_uses(self, run: str, log: list[Turn]) -> None:
        """Go on from what the run had logged, as far as it can be read."""
        where, step = self._store_rows(), self._uses_step
        if is_rank_zero():
            try:
                self._uses_log(run).remove_ahead(-1 if step is None else step)
            except StoreError as error:
                self._warn_once(f"uses that were logged later than the checkpoint stay: {error}")
        if step is None or where is None:
            return
        logged = decide_on_rank_zero(lambda: self._read_uses(run, step, log, where))
        if logged is None:
            return
        first = next(turn for turn in self._log if turn.epoch == logged.facts.epoch)
        stream = self._stream(first.version)
        if stream is not None:
            course = course_of(logged, where, stream, self._num_rows)
            self._starts[logged.facts.epoch] = course

    def _read_uses(
        self, run: str, step: int, log: list[Turn], where: StoreRows
    ) -> LoggedUses | None:
        try:
            logged = self._uses_log(run).read(step, where)
            drawn = tuple(turn.version for turn in log if turn.epoch == logged.facts.epoch)
            if (
                logged.facts.epoch > self.epoch
                or not logged.facts.versions
                or (drawn[: len(logged.facts.versions)] != logged.facts.versions)
            ):
                raise StoreFormatError(
                    f"the log of uses of run {run} at step {step} is of epoch "
                    f"{logged.facts.epoch + 1}, drawn from versions {logged.facts.versions}; the "
                    f"checkpoint is of epoch {self.epoch + 1}, drawn from {drawn}: it is ahead of "
                    "the checkpoint, or of another run"
                )
        except StoreError as error:
            self._warn_once(
                "what was trained on before the checkpoint is made anew from the version log, as "
                f"far as that can be read: {error}"
            )
            return None
        return logged

    def _warn_once(self, message: str, key: str | None = None) -> None:
        """Warn, unless the same (or something of the same key) was told before."""
        if (key or message) not in self._warned:
            self._warned.add(key or message)
            logger.warning("%s", message)


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise RecipeError unless the value is one of the choices."""
    if value not in choices:
        raise RecipeError(f"{name} should be one of {', '.join(choices)}; found {value!r}")
