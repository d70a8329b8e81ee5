"""What a callback keeps in a trainer's `state.log_history`, which every checkpoint holds.

So a resumed run knows which version each stretch of its epochs was drawn from, and under which name
it logs its uses.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gracekit.pace_log import RUN
from gracekit.training.epochs import Turn


def turns_in(state: Any) -> list[tuple[int, int, int]]:
    """(epoch, first draw, version) of each stretch that was noted, in order."""
    return [
        (entry["coreset_epoch"], entry["coreset_start"], entry["coreset_version"])
        for entry in state.log_history
        if "coreset_version" in entry
    ]


def note_turns(state: Any, turns: Iterable[Turn]) -> None:
    """Note stretches of epochs and the versions that they are drawn from."""
    for turn in turns:
        _note(
            state,
            coreset_version=turn.version,
            coreset_epoch=turn.epoch,
            coreset_start=turn.start,
        )


def run_in(state: Any) -> str | None:
    """The name of the run that was noted last; None: there is none."""
    runs = [entry[RUN] for entry in state.log_history if RUN in entry]
    return runs[-1] if runs else None


def note_run(state: Any, run: str | None) -> None:
    """Name the run, once, as soon as it has a name: a resumed run takes up its log of uses."""
    if run is not None and all(entry.get(RUN) != run for entry in state.log_history):
        _note(state, **{RUN: run})


def _note(state: Any, **values: Any) -> None:
    state.log_history.append({**values, "epoch": state.epoch, "step": state.global_step})


def whole_epochs(state: Any) -> int:
    """Number of whole epochs trained; the trainer keeps it as a fraction."""
    return int((state.epoch or 0.0) + 1e-6)
