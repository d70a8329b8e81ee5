"""Executors by name: all give the same bytes, and a process that dies takes no result with it."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gracekit.errors import RecipeError
from gracekit.model_pass.executor_names import EXECUTORS, executor_class, open_executor
from gracekit.model_pass.executors import LocalExecutor
from gracekit.model_pass.pass_inputs import Load, PassInputs, cut_shards
from gracekit.model_pass.processes import ProcessExecutor
from gracekit.progress import Progress
from gracekit.protocols import Executor
from gracekit.recipe import Recipe, ScoringSection
from gracekit.types import Measurement, Rows
from tests.test_scoring_more_scores import Tokens
from tests.test_scoring_pass import tiny
from tests.test_scoring_processes import load_tiny, samples, target, whole

ROWS = np.array([10, 0, 3, 4, 5, 8, 9, 1, 7])


class Backwards(LocalExecutor):
    """A user's own executor: it measures the last shard first."""

    def measure(self, rows: Rows, progress: Progress | None = None) -> Iterator[Measurement]:
        for part in cut_shards(rows, self._tokens.lengths[rows], self._scoring.shard_rows)[::-1]:
            yield from super().measure(part, progress)


class Half:
    """No executor: it cannot be opened."""

    def measure(self, rows: Rows) -> None:
        return None


def load_and_die_once(device: str, marker: Path) -> tuple[torch.nn.Module, None]:
    """A model that kills the first process that runs a second batch of it."""
    model, num_batches = tiny("llama"), 0

    def die(*_: Any) -> None:
        nonlocal num_batches
        num_batches += 1
        if num_batches == 2 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    model.get_submodule("model").register_forward_pre_hook(die)
    return model, None


def inputs(executor: str, load: Load = load_tiny, num_devices: int = 1) -> PassInputs:
    """As many threads for each process, whatever their number."""
    scoring = ScoringSection(
        scores=("gradient-norm", "influence"),
        shard_rows=4,
        batch_tokens=64,
        num_threads=num_devices,
        device="cpu",
        executor=executor,
    )
    devices = ("cpu",) * num_devices
    return PassInputs(
        load=load, devices=devices, tokens=Tokens(samples()), scoring=scoring, target=target()
    )


def measured(executor: Executor, progress: Progress | None = None) -> list[bytes]:
    with closing(executor):
        found = whole(executor.measure(ROWS, progress))
        of_target = executor.target()
    assert found.rows.tolist() == sorted(ROWS)
    assert of_target is not None and of_target.losses is not None and found.sketches is not None
    arrays = (*found.scores.values(), found.features, found.sketches, of_target.losses)
    return [array.tobytes() for array in arrays]


def test_every_executor_gives_the_same_bytes_and_a_killed_process_takes_nothing_with_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = measured(open_executor(inputs("local")))
    own = open_executor(inputs(f"{__name__}:Backwards"))
    assert isinstance(own, Backwards)
    assert measured(own) == expected

    marker, progress = tmp_path / "killed", Progress()
    load = partial(load_and_die_once, marker=marker)
    several = open_executor(inputs("processes", load, 2))
    assert isinstance(several, ProcessExecutor)
    with caplog.at_level(logging.WARNING):
        assert measured(several, progress) == expected
    assert marker.exists()
    assert "ended by itself (exit code -9); what it worked on is measured again" in caplog.text
    assert "try 2 of 3" in caplog.text
    assert progress.to_json()["num_done"] == len(ROWS)  # of the dead process nothing is counted


def test_auto_is_this_process_or_one_for_each_of_several_devices() -> None:
    assert executor_class("auto", 1) is LocalExecutor
    assert executor_class("auto", 2) is ProcessExecutor
    assert set(EXECUTORS) >= {"local", "processes"}


def test_names_that_are_no_executor_are_refused() -> None:
    with pytest.raises(RecipeError, match="'spark'; use auto, local, processes"):
        executor_class("spark")
    with pytest.raises(RecipeError, match="cannot import the executor 'no_such:Thing'"):
        executor_class("no_such:Thing")
    with pytest.raises(RecipeError, match="lacks open, look, target, optimizer, close"):
        executor_class(f"{__name__}:Half")
    with pytest.raises(RecipeError, match="executor is 'local', this process alone"):
        Recipe.from_dict({"data": {"path": "x"}, "scoring": {"executor": "local", "processes": 2}})


def test_who_measures_changes_no_digest() -> None:
    plain = Recipe.from_dict({"data": {"path": "x"}})
    for name in ("local", "processes", "mine:Own"):
        assert plain.override({"scoring.executor": name}).digest() == plain.digest()
