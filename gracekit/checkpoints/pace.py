"""How fast the trainer of a checkpoint goes, as far as its `trainer_state.json` says so.

Hugging Face's trainers write the state with each checkpoint. It has the number of steps that are
planned, the batch size of one process without accumulation, and sometimes the tokens seen so far.
What it lacks, the samples of a whole step and the seconds spent, `CoresetCallback`
notes in its log.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gracekit.checkpoints.layouts import TRAINER_STATE
from gracekit.documents import read_json
from gracekit.foreign import finite_number
from gracekit.pace_log import MACHINE, RUN, SAMPLES_A_STEP, SECONDS_A_STEP, this_machine

_MOST = 1e15
"""Numbers above are no count of anything here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerPace:
    """What a trainer says of its own pace; None for what it does not say."""

    num_steps: int | None = None
    """Optimizer steps that the run takes in all."""
    samples_a_step: float | None = None
    """Samples of an optimizer step."""
    is_whole_step: bool = False
    """Whether that counts all processes and accumulated batches; else it is the least it can be."""
    tokens_seen: float | None = None
    """Tokens that the run has trained on so far, padding included."""
    run: str | None = None
    """Name of the run, as `CoresetCallback` has it; a resumed run keeps it."""
    seconds_a_step: float | None = None
    """Wall seconds of an optimizer step on this machine, mean over the run so far; None also where
    it trains on another machine."""


def read_pace(checkpoint: Path) -> TrainerPace:
    """The pace of the trainer that wrote a checkpoint; nothing is known where it does not say it.

    What is in the file and is no sensible number counts as not there.
    """
    try:
        state = read_json(checkpoint / TRAINER_STATE)
    except (OSError, ValueError):
        return TrainerPace()
    if not isinstance(state, dict):
        return TrainerPace()
    log = state.get("log_history")
    entries = [entry for entry in log if isinstance(entry, dict)] if isinstance(log, list) else []
    step, num_steps = _positive(state.get("global_step")), _positive(state.get("max_steps"))
    # What an earlier part of the run noted may hold no longer: the callback notes it at each save.
    now = [entry for entry in entries if entry.get("step") == state.get("global_step")]
    whole = _last(now, SAMPLES_A_STEP)
    here = [entry for entry in now if entry.get(MACHINE) == this_machine()]
    return TrainerPace(
        num_steps=None if num_steps is None else int(num_steps),
        samples_a_step=whole or _positive(state.get("train_batch_size")),
        is_whole_step=whole is not None,
        tokens_seen=None if step is None else _positive(state.get("num_input_tokens_seen")),
        run=_run(entries),
        seconds_a_step=_last(here, SECONDS_A_STEP),
    )


def _last(entries: list[dict[Any, Any]], key: str) -> float | None:
    """The last number of that name in a log."""
    found = (_positive(entry.get(key)) for entry in reversed(entries))
    return next((value for value in found if value is not None), None)


def _run(entries: list[dict[Any, Any]]) -> str | None:
    """The last name of a run in a log."""
    names = [entry[RUN] for entry in entries if isinstance(entry.get(RUN), str)]
    return names[-1] if names else None


def _positive(value: Any) -> float | None:
    """A finite number above 0; None for anything else."""
    number = finite_number(value)
    return number if number is not None and 0 < number < _MOST else None
