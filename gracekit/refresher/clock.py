"""Wall time of a refresh by stages."""

from __future__ import annotations

import time
from collections.abc import Mapping

from gracekit.version.header import Timings


class StageClock:
    """Wall seconds of each stage; the model pass is kept apart from everything else.

    Args:
        before: Seconds of stages that came before the clock starts, and count.
    """

    def __init__(self, before: Mapping[str, float] | None = None) -> None:
        self._seconds: dict[str, float] = dict(before or {})
        self._last = time.perf_counter()
        self._started = self._last - sum(self._seconds.values())
        self._stage: str | None = None

    def enter(self, stage: str) -> None:
        """End the stage before, if there is one, and begin another."""
        now = time.perf_counter()
        if self._stage is not None:
            self._seconds[self._stage] = self._seconds.get(self._stage, 0.0) + now - self._last
        self._stage, self._last = stage, now

    def elapsed_s(self) -> float:
        """Seconds so far."""
        return time.perf_counter() - self._started

    def timings(self, *, model_pass_s: float = 0.0) -> Timings:
        """Seconds up to now; of the stage `measure` without those of the model pass."""
        self.enter("commit")
        total = time.perf_counter() - self._started
        stages = {**self._seconds}
        if "measure" in stages:
            stages["measure"] -= model_pass_s
        return Timings(
            model_pass_s=round(model_pass_s, 3),
            other_s=round(total - model_pass_s, 3),
            total_s=round(total, 3),
            stages={stage: round(seconds, 3) for stage, seconds in stages.items()},
        )
