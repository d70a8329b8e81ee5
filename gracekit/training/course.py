"""Where the draws of a training run stand: what was trained on, and the draw in progress.

A course is a value. `taken` gives the next samples and the course after them, so that an epoch can
be gone through again, as far as it was trained on, from the course at its start.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from gracekit.draw.over_time import settled
from gracekit.training.stream import Drawing, Stream
from gracekit.types import DrawState, Float32, Float64, Int32, Int64


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """Samples that were drawn one after another."""

    positions: Int64
    """[m] in the trainer's dataset."""
    weights: Float32
    """[m] in the draw that each is from."""
    begins: tuple[int, ...]
    """Indices at which another draw begins; the first is 0."""

    @classmethod
    def none(cls) -> Taken:
        """Nothing."""
        return cls(positions=np.empty(0, np.int64), weights=np.empty(0, np.float32), begins=())

    def then(self, following: Taken) -> Taken:
        """These and then others, which begin with another draw."""
        return Taken(
            positions=np.concatenate([self.positions, following.positions]),
            weights=np.concatenate([self.weights, following.weights]),
            begins=(*self.begins, *(len(self.positions) + i for i in following.begins)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """Where the draws stand, of the n rows of the trainer's dataset."""

    state: DrawState
    """What was trained on before the draw in progress."""
    drawing: Drawing | None = None
    """The draw in progress."""
    num_taken: int = 0
    """Samples taken of it, over all passes."""
    uses: Int32
    """[n] times that rows were trained on since `state`."""
    is_repeated: bool = False
    """Whether the draw in progress repeats its rows by weight."""
    numbers: dict[int, int] = field(default_factory=dict)
    """Version -> draws that were begun."""

    @classmethod
    def none(cls, n: int) -> Course:
        """Before the first draw."""
        return cls(state=DrawState.none(n), uses=np.zeros(n, np.int32))

    def due(self) -> Float64:
        """[n] what the draw in progress gives every row, as far as it was trained on.

        The sum is that of the uses. Where rows are repeated by weight, their repetition is due as
        it is, and only that they were drawn is to be made up for.
        """
        if self.drawing is None or self.drawing.probabilities is None:
            return self.uses.astype(np.float64)
        total = int(self.uses.sum())
        due = self.drawing.probabilities * (total / float(self.drawing.probabilities.sum()))
        if self.is_repeated:
            due += self.uses
            due[self.drawing.positions] -= total / len(self.drawing.positions)
        return due

    def now(self) -> DrawState:
        """The state with what was trained on of the draw in progress."""
        if not self.uses.any():
            return self.state
        if self.drawing is None or self.drawing.probabilities is None:  # what is used is due
            return replace(self.state, uses=self.state.uses + self.uses)
        return settled(self.state, self.due(), self.uses)

    def at_epoch_start(self, stream: Stream) -> Course:
        """The course when an epoch begins with a stream: a draw that does not go on is settled."""
        if self._is_of(stream) and not stream.is_drawn_each_epoch:
            return self
        return self._settled()

    def taken(self, stream: Stream, count: int, num_trained: int) -> tuple[Course, Taken]:
        """The next samples of a stream, and the course after them.

        Args:
            stream: What to draw from.
            count: Samples to take.
            num_trained: Of these, the first ones that are trained on.
        """
        course: Course = self
        parts: list[Int64] = []
        weights: list[Float32] = []
        begins: list[int] = []
        done, trained = 0, max(num_trained, 0)
        while done < count:
            course = course._with_draw(stream)
            drawing = course.drawing
            assert drawing is not None
            begins.append(done)
            positions = np.concatenate(list(course._passes(stream, count - done)))
            counted = positions[: max(trained - done, 0)]
            used = np.bincount(counted, minlength=len(self.uses)).astype(np.int32)
            course = replace(
                course,
                num_taken=course.num_taken + len(positions),
                uses=course.uses + used,
            )
            parts.append(positions)
            weights.append(stream.weights_of(drawing)[positions])
            done += len(positions)
        return course, Taken(
            positions=np.concatenate([np.empty(0, np.int64), *parts]),
            weights=np.concatenate([np.empty(0, np.float32), *weights]),
            begins=tuple(begins),
        )

    def used_again(self, positions: Int64) -> Course:
        """The course where these were trained on once more than they were drawn."""
        more = np.bincount(positions, minlength=len(self.uses))
        return replace(self, uses=self.uses + more.astype(np.int32))

    def _with_draw(self, stream: Stream) -> Course:
        """The course with a draw of the stream in progress that is not over."""
        if self._is_of(stream) and not self._is_over(stream):
            return self
        course = self._settled()
        number = course.numbers.get(stream.version, 0)
        return replace(
            course,
            drawing=stream.draw(number, course.state),
            is_repeated=stream.repeats,
            numbers={**course.numbers, stream.version: number + 1},
        )

    def _passes(self, stream: Stream, count: int) -> Iterator[Int64]:
        """The next samples of the draw in progress, up to so many, a pass or part of one each."""
        assert self.drawing is not None
        size = len(self.drawing.positions)
        start, stop = self.num_taken, self.num_taken + count
        if stream.is_drawn_each_pass:
            stop = min(stop, size)
        for number in range(start // size, -(-stop // size)):
            order = stream.order(self.drawing, number)
            yield order[max(start - number * size, 0) : stop - number * size]

    def _is_of(self, stream: Stream) -> bool:
        return self.drawing is not None and self.drawing.version == stream.version

    def _is_over(self, stream: Stream) -> bool:
        assert self.drawing is not None
        return stream.is_drawn_each_pass and self.num_taken >= len(self.drawing.positions)

    def _settled(self) -> Course:
        return Course(state=self.now(), uses=np.zeros_like(self.uses), numbers=self.numbers)
