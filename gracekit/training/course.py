"""Where the draws of a training run stand: what was trained on, and the draw in progress.

A course is a value. `taken` gives the next samples and the course after them, so that an epoch can
be gone through again, as far as it was trained on, from the course at its start.
"""

from __future__ import annotations

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
    """[m]"""


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

        The sum is that of the uses. Where rows are repeated by weight, that they were drawn is due
        by their probabilities and the repetition is due as it is.
        """
        drawn = None if self.drawing is None else self.drawing.probabilities
        if drawn is None:
            return self.uses.astype(np.float64)
        once = np.minimum(self.uses, 1) if self.is_repeated else self.uses
        total = float(drawn.sum())
        return drawn * (int(once.sum()) / total if total else 0.0) + (self.uses - once)

    def now(self) -> DrawState:
        """The state with what was trained on of the draw in progress."""
        return settled(self.state, self.due(), self.uses)

    def at_epoch_start(self, stream: Stream) -> Course:
        """The course when an epoch begins with a stream: a draw that does not go on is settled."""
        goes_on = self.drawing is not None and self.drawing.version == stream.version
        if goes_on and not (stream.chances is not None and stream.once_an_epoch):
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
        trained = num_trained
        while count > 0:
            course, order = course._with_pass(stream)
            drawing = course.drawing
            assert drawing is not None
            start = course.num_taken % len(order)
            part = order[start : start + count]
            used = np.bincount(part[: max(trained, 0)], minlength=len(self.uses))
            course = replace(
                course,
                num_taken=course.num_taken + len(part),
                uses=course.uses + used.astype(np.int32),
            )
            parts.append(part)
            weights.append(stream.weights_of(drawing)[part])
            count, trained = count - len(part), trained - len(part)
        return course, Taken(
            positions=np.concatenate([np.empty(0, np.int64), *parts]),
            weights=np.concatenate([np.empty(0, np.float32), *weights]),
        )

    def used_again(self, positions: Int64) -> Course:
        """The course where these were trained on once more than they were drawn."""
        more = np.bincount(positions, minlength=len(self.uses))
        return replace(self, uses=self.uses + more.astype(np.int32))

    def drawing_of(self, stream: Stream) -> Drawing:
        """The draw of a stream that is in progress, or that would be next."""
        return self._with_pass(stream, goes_on=True)[0].drawing  # type: ignore[return-value]

    def _with_pass(self, stream: Stream, *, goes_on: bool = False) -> tuple[Course, Int64]:
        """The course with a draw of the stream in progress, and the order of its present pass."""
        if self.drawing is not None and self.drawing.version == stream.version:
            repetition = 0
            is_over = False
            order = stream.order(self.drawing)
            if self.num_taken >= len(order):
                is_over = stream.chances is None or not stream.once_an_epoch
                repetition = self.num_taken // len(order)
            if not is_over or goes_on:
                return self, stream.order(self.drawing, repetition) if repetition else order
        course = self._settled()
        number = course.numbers.get(stream.version, 0)
        drawing = stream.draw(number, course.state)
        course = replace(
            course,
            drawing=drawing,
            is_repeated=stream.repeats,
            numbers={**course.numbers, stream.version: number + 1},
        )
        return course, stream.order(drawing)

    def _settled(self) -> Course:
        return Course(state=self.now(), uses=np.zeros_like(self.uses), numbers=self.numbers)
