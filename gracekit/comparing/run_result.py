"""What one run of one arm came to: a JSON file that is there when the run is done, and not before.

A run that was killed leaves no file, and is done again.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gracekit.documents import read_json
from gracekit.errors import StoreFormatError
from gracekit.files import write_text_atomic
from gracekit.types import Float64, Json
from gracekit.version.outcomes import Aim, Meter

FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One look at the held-out rows."""

    step: int
    losses: list[float]
    """[k] mean loss of each held-out row, in nats."""
    trained_tokens: float
    """Tokens trained on so far, the unit of counted compute."""
    selection_tokens: float
    """What selection cost so far, in the same unit."""
    training_s: float
    """CPU seconds of training so far."""
    selection_s: float
    """CPU seconds of selection so far."""

    @property
    def compute(self) -> float:
        """Training and selection, in tokens of training."""
        return self.trained_tokens + self.selection_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class AimPoint:
    """What a version of a selection said of its target set; None: not known."""

    step: int
    """Of the checkpoint that the version was made of."""
    target_loss: float | None
    """Mean loss over the target set, in nats a token."""
    predicted_fall: float | None
    """Mean cosine of the target's gradient with those of the rows trained on from here on, less
    that of all rows (`versions.predicted_fall`)."""
    advice: str | None
    """Why the training should end; None: it should go on."""

    @classmethod
    def of(cls, step: int, aim: Aim) -> AimPoint:
        """What a version's header says."""
        return cls(
            step=step,
            target_loss=_known(aim.target_loss),
            predicted_fall=_known(aim.predicted_fall),
            advice=aim.advice,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class WorthPoint:
    """What a version's meter said (`version.outcomes.Meter`); None: not known."""

    step: int
    """Of the checkpoint that the version was made of."""
    value: float | None
    """How many random samples are worth one that was drawn like the coreset."""
    low: float | None
    high: float | None
    """Of its interval by bootstrap, nominally 90 %."""
    best: float | None
    """The value of a draw by perfect norms."""
    share_measured: float | None
    """Of the rows that may be drawn."""

    @classmethod
    def of(cls, step: int, meter: Meter) -> WorthPoint:
        """What a version's header says."""
        return cls(
            step=step,
            value=_known(meter.value),
            low=_known(meter.value_low),
            high=_known(meter.value_high),
            best=_known(meter.best),
            share_measured=_known(meter.share_measured),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """One run."""

    arm: str
    seed: int
    settings: Json
    """All that decides what the run is: a result with other settings is not its result."""
    num_steps: int
    points: list[Point]
    num_targets: list[int]
    """[k] target tokens of the held-out rows."""
    groups: list[int]
    """[k] index into `group_names`."""
    group_names: list[str]
    metric: list[float] | None
    """Value for each of the first held-out rows that are not cut off; None: none was asked for."""
    num_trained: int
    """Rows trained on, repeats included; -1: not known, as of a command of the user's."""
    num_distinct: int
    most_uses: int
    marked: dict[str, float]
    """Column of marks -> share of the trained rows that have one."""
    ended_at: int | None = None
    """Step at which a version's advice ended the training; None: it took all steps."""
    weights_digest: str = ""
    """Of the trained weights; empty where they were not looked at."""
    rows_digest: str = ""
    """Of the rows trained on, in their order; empty: a release that did not note it."""
    remarks: list[str] = dataclasses.field(default_factory=list)
    aims: list[AimPoint] = dataclasses.field(default_factory=list)
    """Of each version of a selection with a target."""
    worths: list[WorthPoint] = dataclasses.field(default_factory=list)
    """Of each version of a selection whose meter told something."""
    program: dict[str, str] = dataclasses.field(default_factory=dict)
    """The code that made it (`version.program`); empty: a release that did not note it."""

    def losses(self, point: int = -1) -> Float64:
        """[k] mean losses of the held-out rows at a point, the last by default."""
        return np.asarray(self.points[point].losses, np.float64)

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        content = {"format": FORMAT, **dataclasses.asdict(self)}
        write_text_atomic(path, json.dumps(content, ensure_ascii=False) + "\n", tidy=True)

    @classmethod
    def read(cls, path: Path) -> RunResult | None:
        """The result in a file; None where there is no file.

        Raises:
            StoreFormatError: It is damaged, or of another release.
        """
        try:
            content: Any = read_json(path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise StoreFormatError(_damaged(path, str(error))) from None
        if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
            raise StoreFormatError(_damaged(path, f"expected a result of format {FORMAT}"))
        try:
            points = [Point(**point) for point in content.pop("points")]
            aims = [AimPoint(**aim) for aim in content.pop("aims", [])]
            worths = [WorthPoint(**worth) for worth in content.pop("worths", [])]
            result = cls(points=points, aims=aims, worths=worths, **content)
            of_rows: list[list[Any]] = [result.num_targets, result.groups]
            of_rows += [point.losses for point in points]
            lengths = {len(values) for values in of_rows}
        except (TypeError, KeyError, AttributeError) as error:
            raise StoreFormatError(_damaged(path, str(error))) from None
        if len(lengths) > 1 or 0 in lengths:
            raise StoreFormatError(_damaged(path, "its lists are not of the same held-out rows"))
        if not points or not all(math.isfinite(loss) for loss in points[-1].losses):
            raise StoreFormatError(_damaged(path, "its losses are not finite"))
        return result


def _known(number: float) -> float | None:
    return round(number, 6) if math.isfinite(number) else None


def _damaged(path: Path, reason: str) -> str:
    return f"the result {path} cannot be read ({reason}); remove it, and its run is done again"
