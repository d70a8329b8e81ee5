"""What a trainer's callback notes of its pace in the trainer's log, and a refresh reads there."""

from __future__ import annotations

import hashlib
import platform

SAMPLES_A_STEP = "coreset_samples_a_step"
SECONDS_A_STEP = "coreset_seconds_a_step"
MACHINE = "coreset_machine"
RUN = "coreset_run"
"""Keys of an entry of `log_history` in `trainer_state.json`."""


def this_machine() -> str:
    """A short hash that tells machines apart."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:12]
