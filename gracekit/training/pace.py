"""How fast a run trains, noted in the trainer's log: a budget for selection is a share of it."""

from __future__ import annotations

import time
from typing import Any

from gracekit.pace_log import MACHINE, SAMPLES_A_STEP, SECONDS_A_STEP, this_machine


class PaceClock:
    """Times the steps of a run, on the rank that asks."""

    def __init__(self) -> None:
        self._num_steps = 0
        self._seconds = 0.0
        self._began: float | None = None

    def begin(self) -> None:
        """An optimizer step begins."""
        self._began = time.perf_counter()

    def end(self) -> None:
        """It has ended."""
        if self._began is not None:
            self._seconds += time.perf_counter() - self._began
            self._num_steps += 1
        self._began = None

    def note(
        self, log: list[dict[str, Any]], *, samples_a_step: int, epoch: Any, step: int
    ) -> None:
        """Put the pace so far into a trainer's `log_history`, in the place of what was there.

        Args:
            log: The history, which a checkpoint holds.
            samples_a_step: Of all ranks and accumulated batches.
            epoch: As the trainer counts it.
            step: That was done last.
        """
        log[:] = [entry for entry in log if SAMPLES_A_STEP not in entry]
        entry: dict[str, Any] = {SAMPLES_A_STEP: samples_a_step, "epoch": epoch, "step": step}
        if self._num_steps:
            entry[SECONDS_A_STEP] = round(self._seconds / self._num_steps, 6)
            entry[MACHINE] = this_machine()
        log.append(entry)
