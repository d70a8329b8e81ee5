"""What a run draws, epoch by epoch: its version log, gone through from where the draws stood."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from gracekit.training.course import Course, Taken
from gracekit.training.reading import VersionReader
from gracekit.training.stream import StoreRows, Stream
from gracekit.types import Float32


class Turn(NamedTuple):
    """An entry of the version log: from here on, samples are drawn from this version."""

    epoch: int
    """Counted from 0, as `set_epoch` does."""
    start: int
    """Draws of the epoch before this turn."""
    version: int
    """0: the whole dataset, because there is no version yet."""


class Epochs:
    """The version log of a run, and the samples that its epochs draw.

    Where the draws stood when an epoch began follows from the epochs before it. It is kept for the
    present one, so that versions that are not in use any more need not be read again.
    """

    def __init__(
        self,
        everything: Stream,
        num_samples: int,
        versions: VersionReader,
    ) -> None:
        """Before the first epoch.

        Args:
            everything: What is drawn from while there is no version.
            num_samples: Samples of an epoch.
            versions: Reads what is drawn from a version.
        """
        self.num_samples = num_samples
        self.trained_per_epoch = num_samples
        self.log: list[Turn] = []
        self.streams: dict[int, Stream] = {0: everything}
        """Version -> what is drawn from it, of the versions in use."""
        self._everything, self._versions = everything, versions
        self._starts: dict[int, Course] = {}
        self._whole: tuple[tuple[int, int], Taken] | None = None  # (epoch, turns) -> its samples
        self._weights: tuple[tuple[int, int, int], Float32] | None = None

    def take_up(self, log: list[Turn]) -> None:
        """Go on from a version log of which nothing else is known."""
        self.log, self.streams = log, {0: self._everything}
        self._starts, self._whole, self._weights = {}, None, None

    def turns(self, epoch: int) -> list[Turn]:
        """Of an epoch, in order."""
        return [turn for turn in self.log if turn.epoch == epoch]

    def begin_turn(self, epoch: int, start: int, stream: Stream) -> None:
        """Draw from a stream from here on."""
        self.streams[stream.version] = stream
        self.log.append(Turn(epoch, start, stream.version))

    def begin_at(self, epoch: int, course: Course) -> None:
        """Where the draws stood when an epoch of the log began, as it is known from elsewhere."""
        self._starts[epoch] = course

    def limit(self, epoch: int) -> set[int]:
        """Forget all but an epoch and the last one; returns the versions that are still in use."""
        self.start_of(epoch)
        newest = {epoch, self.log[-1].epoch}
        self._starts = {e: course for e, course in self._starts.items() if e in newest}
        kept = {turn.version for turn in self.turns(epoch)} | {0, self.log[-1].version}
        self.streams = {v: stream for v, stream in self.streams.items() if v in kept}
        return kept

    def samples(self, epoch: int) -> Taken:
        """All samples of an epoch, as far as it is known which versions they are from."""
        key = (epoch, len(self.log))
        if self._whole is None or self._whole[0] != key:
            self._whole = (key, self.through(self.start_of(epoch), epoch, self.num_samples)[1])
        return self._whole[1]

    def weights_at(self, epoch: int, index: int) -> Float32:
        """[dataset rows] weights in the draw that a sample of an epoch is from."""
        begins = self.samples(epoch).begins
        number = int(np.searchsorted(begins, index, side="right")) - 1
        key = (epoch, len(self.log), number)
        if self._weights is None or self._weights[0] != key:
            course, _ = self.through(self.start_of(epoch), epoch, begins[number] + 1)
            assert course.drawing is not None
            stream = self.streams[course.drawing.version]
            self._weights = (key, stream.weights_of(course.drawing))
        return self._weights[1]

    def store_rows(self) -> StoreRows | None:
        """The newest that is known of which row of the store each row of the dataset is."""
        known = [s.store_rows for s in self.streams.values() if s.store_rows is not None]
        return max(known, key=lambda where: where.version, default=None)

    def start_of(self, epoch: int) -> Course:
        """Where the draws stood when an epoch of the log began."""
        epochs = list(dict.fromkeys(turn.epoch for turn in self.log))
        index = epochs.index(epoch)
        known = max((i for i in range(index + 1) if epochs[i] in self._starts), default=None)
        if known is None:
            known, self._starts[epochs[0]] = 0, Course.none(len(self._everything.weights))
        course = self._starts[epochs[known]]
        for number, following in pairwise(epochs[known : index + 1]):
            course, _ = self.through(course, number, self.num_samples, self.trained_per_epoch)
            stream = self.stream(self.turns(following)[0].version)
            course = course if stream is None else course.at_epoch_start(stream)
        self._starts[epoch] = course
        return course

    def through(
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
        turns, taken = self.turns(epoch), Taken.none()
        stops = [*(turn.start for turn in turns[1:]), self.num_samples]
        for turn, stop in zip(turns, stops, strict=True):
            wanted = min(stop, count) - turn.start
            stream = self.stream(turn.version)
            if stream is None:
                self._versions.warn_once(
                    f"what was trained on of coreset version {turn.version} is not known any more, "
                    "since it cannot be read: later draws do not make up for it"
                )
            elif wanted > 0:
                course, part = course.taken(stream, wanted, num_trained - turn.start)
                taken = taken.then(part)
                self._tell_if_short(stream, course)
        if num_trained > count and len(taken.positions):
            course = course.used_again(np.resize(taken.positions, num_trained - count))
        return course, taken

    def stream(self, version: int) -> Stream | None:
        """What is drawn from a version of the log; read again where it is not in use any more.

        All ranks must ask for the same.
        """
        if version in self.streams:
            return self.streams[version]
        return self._versions.read_together(version)

    def _tell_if_short(self, stream: Stream, course: Course) -> None:
        """Say so once where `selection.max_uses` leaves too few rows for a draw."""
        chances, drawing = stream.chances, course.drawing
        if chances is None or chances.max_uses is None or drawing is None:
            return
        limit, found = chances.max_uses, len(drawing.positions)
        if chances.is_used_up(course.state.uses):
            self._versions.warn_once(
                f"every row that coreset version {stream.version} may draw was used {limit} times "
                "(selection.max_uses): training goes on with all of them. End it, or raise the "
                "limit",
                key="used up",
            )
        elif found < chances.size - 1:
            self._versions.warn_once(
                f"only {found} rows that coreset version {stream.version} may draw were used fewer "
                f"than {limit} times (selection.max_uses), and its coreset has {chances.size}: "
                "each draw has only these from now on",
                key="max_uses",
            )
