"""What a run went through: its points, what it trained on, what selection cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerCallback

from gracekit.comparing.bed import Bed
from gracekit.comparing.evaluation import row_losses
from gracekit.comparing.run_result import AimPoint, Point, WorthPoint
from gracekit.types import Int64, Rows


@dataclass(kw_only=True)
class Course:
    """Of one run; it grows while the run goes on."""

    points: list[Point] = field(default_factory=list)
    trained: list[Rows] = field(default_factory=list)
    """Rows of each epoch, in order."""
    selection_tokens: float = 0.0
    versions: int = 0
    aims: list[AimPoint] = field(default_factory=list)
    """What each version said of its target set."""
    worths: list[WorthPoint] = field(default_factory=list)
    """What the meter of each version said."""
    ended_at: int | None = None
    """The last step, where the training ended before the others, as a version advised."""
    model: Any = None
    """The trained model."""

    def uses(self, n: int) -> Int64:
        """[n] times that each row was trained on."""
        return np.bincount(np.concatenate([np.zeros(0, np.int64), *self.trained]), minlength=n)

    def tokens_at(self, step: int, lengths: Int64, batch_size: int) -> float:
        """Tokens of the rows that were trained on up to a step.

        Args:
            step: Optimizer steps.
            lengths: [n] tokens of each row.
            batch_size: Rows of a step.
        """
        return float(
            sum(int(lengths[rows].sum()) for rows in rows_of_steps(self.trained, step, batch_size))
        )


def rows_of_steps(epochs: list[Rows], num_steps: int, batch_size: int) -> list[Rows]:
    """Rows of the first steps, by epochs; an epoch ends with a short batch.

    Args:
        epochs: Rows of each epoch, in order.
        num_steps: Optimizer steps.
        batch_size: Rows of a step.
    """
    taken, left = [], num_steps
    for rows in epochs:
        if left <= 0:
            break
        taken.append(rows[: left * batch_size])
        left -= -(-len(rows) // batch_size)
    return taken


class Watch(TrainerCallback):  # type: ignore[misc]
    """Looks at the held-out rows at equal distances, and keeps the accounts of CPU time apart.

    Args:
        bed: The held-out rows.
        model: That is trained.
        num_steps: Of the run.
        on_point: Called with the step after each look.
    """

    def __init__(
        self, bed: Bed, model: Any, num_steps: int, on_point: Callable[[int], None]
    ) -> None:
        self.course = Course()
        self.num_steps = num_steps
        self.cache = Path()
        """Directory for tokens of the target."""
        self._bed, self._model, self._on_point = bed, model, on_point
        number = bed.recipe.compare.evaluations
        self._looks_at = {round(k * num_steps / number) for k in range(1, number + 1)}
        self._began = time.process_time()
        self._away_s = self._selection_s = 0.0
        self._look(0)

    @contextmanager
    def selecting(self, tokens: float) -> Iterator[None]:
        """What is done here is selection, and costs so many tokens of training."""
        began = time.process_time()
        yield
        self._selection_s += time.process_time() - began
        self.course.selection_tokens += tokens

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look, where it is time."""
        if state.global_step in self._looks_at:
            self._look(int(state.global_step))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Where a version has ended the training: every look that is left sees the model as it is.

        So all runs have looks at the same steps, and curves over seeds can be drawn.
        """
        left = sorted(step for step in self._looks_at if step > state.global_step)
        if not left:
            return
        self.course.ended_at = int(state.global_step)
        self._look(self.course.ended_at)
        seen = self.course.points.pop()
        self.course.points += [replace(seen, step=step) for step in left]

    def _look(self, step: int) -> None:
        began = time.process_time()
        judges = self._bed.judges
        pad = self._bed.tokenizer.pad_token_id
        losses = row_losses(self._model, judges.tokens, judges.rows, pad)
        training_s = began - self._began - self._away_s - self._selection_s
        self.course.points.append(
            Point(
                step=step,
                losses=[round(loss, 6) for loss in losses.tolist()],
                trained_tokens=0.0,
                selection_tokens=self.course.selection_tokens,
                training_s=round(training_s, 3),
                selection_s=round(self._selection_s, 3),
            )
        )
        self._away_s += time.process_time() - began
        self._on_point(step)
