"""Progress: what others read of a refresh, and the stop that they ask for."""

from __future__ import annotations

import threading

import pytest

from gracekit.errors import RefreshStoppedError
from gracekit.progress import Progress


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_estimate_goes_by_tokens() -> None:
    clock = Clock()
    progress = Progress(clock=clock)
    progress.enter("measure")
    progress.plan(num_rows=100, num_tokens=1000)
    assert progress.to_json() == {
        "stage": "measure", "stage_s": 0.0, "num_done": 0, "num_planned": 100,
    }  # fmt: skip
    clock.now += 10
    progress.advance(5, 250)  # the longest rows first
    assert progress.to_json() == {
        "stage": "measure", "stage_s": 10.0, "num_done": 5, "num_planned": 100,
        "seconds_left": 30.0,
    }  # fmt: skip
    clock.now += 7
    assert progress.silent_s == 7.0
    progress.enter("graph")
    assert progress.to_json() == {"stage": "graph", "stage_s": 0.0} and progress.silent_s == 0.0


def test_a_stop_ends_it_before_the_next_stage() -> None:
    stop = threading.Event()
    progress = Progress(stop)
    progress.enter("measure")
    stop.set()
    assert progress.is_stopping
    with pytest.raises(RefreshStoppedError, match="before the stage 'graph'"):
        progress.enter("graph")
