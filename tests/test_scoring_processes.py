"""The model pass in several processes, against the one in this process; and how they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gracekit import refresh
from gracekit.checkpoints.devices import devices_for
from gracekit.errors import MeasureError, RecipeError
from gracekit.model_pass.context import TargetSamples
from gracekit.model_pass.executors import LocalExecutor
from gracekit.model_pass.processes import ProcessExecutor
from gracekit.progress import Progress
from gracekit.protocols import Executor
from gracekit.recipe import ScoringSection
from gracekit.store import Store
from gracekit.types import Measurement
from tests.test_scoring_more_scores import Tokens
from tests.test_scoring_pass import make_samples, tiny
from tests.tiny import tiny_recipe, write_checkpoint, write_data

SCORING = ScoringSection(
    scores=("gradient-norm", "influence"), shard_rows=3, num_threads=2, device="cpu"
)


def load_tiny(device: str, name: str = "llama") -> tuple[torch.nn.Module, None]:
    assert device == "cpu"
    return tiny(name), None


def load_and_die(device: str) -> tuple[torch.nn.Module, None]:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def load_and_fail(device: str) -> tuple[torch.nn.Module, None]:
    raise MeasureError("the model does not fit")


def samples() -> list[Any]:
    return make_samples((17, 5, 13, 9, 9, 5, 3, 12, 7, 2, 6))


def target() -> TargetSamples:
    tokens: Any = Tokens(make_samples((7, 9, 5), seed=3))
    return TargetSamples(
        tokens=tokens,
        groups=np.zeros(3, np.int32),
        group_names=("t",),
        contents=np.zeros(3, object),
        is_followed=True,
        keeps_sketches=True,
    )


def whole(parts: Any) -> Measurement:
    measurement = Measurement.concatenate(list(parts))
    return measurement.take(np.argsort(measurement.rows))


def test_processes_measure_what_one_measures() -> None:
    tokens = Tokens(samples())
    rows = np.array([10, 0, 3, 4, 5, 8, 9, 1, 7])
    expected = whole(LocalExecutor(tiny("llama"), tokens, SCORING, target=target()).measure(rows))
    executor = ProcessExecutor(load_tiny, ["cpu", "cpu"], tokens, SCORING, target=target())
    with closing(executor):
        found = whole(executor.measure(rows))
        again = whole(executor.measure(rows[:2]))  # the processes are still there
        looked = whole(executor.look(rows))
        of_target = executor.target()
        assert len(executor._processes) == 2
    assert found.rows.tolist() == sorted(rows)
    for name, score in expected.scores.items():
        np.testing.assert_allclose(found.scores[name], score, rtol=1e-4)
    np.testing.assert_allclose(found.features, expected.features, rtol=2e-3, atol=1e-3)
    assert again.rows.tolist() == [0, 10]
    assert isinstance(executor, Executor)
    assert looked.scores == {}
    assert looked.rows.tolist() == sorted(rows)
    np.testing.assert_allclose(looked.features, expected.features, rtol=2e-3, atol=1e-3)
    assert found.sketches is not None and expected.sketches is not None
    np.testing.assert_allclose(found.sketches, expected.sketches, rtol=2e-2, atol=2e-3)
    assert of_target is not None and of_target.features.shape == (3, 32)
    assert of_target.losses is not None and np.isfinite(of_target.losses).all()
    assert of_target.sketches is not None
    np.testing.assert_allclose(np.linalg.norm(of_target.sketches, axis=1), 1, atol=1e-2)
    assert not executor._processes


def test_error_of_a_process_comes_through() -> None:
    tokens = Tokens(samples())
    executor = ProcessExecutor(load_and_fail, ["cpu"], tokens, SCORING)
    with closing(executor), pytest.raises(MeasureError, match="the model does not fit"):
        list(executor.measure(np.arange(3)))


def test_error_of_a_process_comes_through_while_a_large_shard_is_sent_to_it() -> None:
    """It ends before it has read the shard, which is larger than what a pipe holds."""
    tokens = Tokens(make_samples((60_000,) * 8))
    scoring = SCORING.model_copy(update={"shard_rows": 8})
    executor = ProcessExecutor(load_and_fail, ["cpu"], tokens, scoring)
    with closing(executor), pytest.raises(MeasureError, match="the model does not fit"):
        list(executor.measure(np.arange(8)))


def test_process_that_is_killed_is_reported() -> None:
    tokens = Tokens(samples())
    executor = ProcessExecutor(load_and_die, ["cpu"], tokens, SCORING)
    with (
        closing(executor),
        pytest.raises(
            MeasureError, match=r"on cpu ended by itself \(exit code -9.*as 3 processes did"
        ),
    ):
        list(executor.measure(np.arange(3)))


def test_unforeseen_error_brings_its_traceback() -> None:
    tokens = Tokens(samples())
    load = partial(load_tiny, name="no such model")
    executor = ProcessExecutor(load, ["cpu"], tokens, SCORING)
    with closing(executor), pytest.raises(RuntimeError, match="KeyError: 'no such model'"):
        list(executor.measure(np.arange(3)))


def test_refresh_in_two_processes_is_a_refresh_in_one(tmp_path: Path) -> None:
    stores = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        write_data(folder / "train.jsonl", num_samples=60)
        recipe = tiny_recipe(
            folder,
            scoring={"shard_rows": 8, "num_threads": 2, "device": "cpu", "processes": processes},
        )
        refresh(recipe, write_checkpoint(folder / "run", 100))
        stores.append(Store.open(recipe.store))
    one, two = (store.scores(1) for store in stores)
    np.testing.assert_allclose(one.scores["gradient-norm"], two.scores["gradient-norm"], rtol=1e-4)
    assert stores[0].header(1).recipe_digest == stores[1].header(1).recipe_digest


def test_processes_end_with_a_killed_parent(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    script = tmp_path / "parent.py"
    script.write_text(
        "import sys, time\n"
        "from pathlib import Path\n"
        "import numpy as np\n"
        "from gracekit.model_pass.processes import ProcessExecutor\n"
        "from tests.test_scoring_processes import SCORING, Tokens, load_tiny, samples, target\n"
        "if __name__ == '__main__':\n"
        "    executor = ProcessExecutor(load_tiny, ['cpu'], Tokens(samples()), SCORING,\n"
        "                               target=target())\n"
        "    next(executor.measure(np.arange(11)))\n"
        "    (process,) = executor._processes.values()\n"
        "    Path(sys.argv[1]).write_text(str(process.pid))\n"
        "    time.sleep(600)\n"
    )
    root = str(Path(__file__).parent.parent)
    parent = subprocess.Popen(
        [sys.executable, str(script), str(pids)], env={**os.environ, "PYTHONPATH": root}
    )
    try:
        while not pids.exists() or not pids.read_text():
            assert parent.poll() is None
            time.sleep(0.05)
    finally:
        parent.kill()
        parent.wait()
    pid = int(pids.read_text())
    while is_running(pid):  # the test's own timeout ends this
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_devices_of_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices_for("cpu", None) == ["cpu"]
    assert devices_for("cpu", 3) == ["cpu"] * 3
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert devices_for("auto", None) == [f"cuda:{i}" for i in range(4)]
    assert devices_for("cuda", 2) == ["cuda:0", "cuda:1"]
    assert devices_for("cuda:2", None) == ["cuda:2"]
    with pytest.raises(RecipeError, match="processes is 5, and torch finds 4 GPUs"):
        devices_for("auto", 5)


def test_a_stop_reaches_every_process_after_its_batch() -> None:
    """Each has one shard with all its rows, a batch a row."""
    num, scoring = 60, SCORING.model_copy(update={"shard_rows": 30, "batch_tokens": 64})
    tokens = Tokens(samples() * 6)
    rows = np.arange(num)
    whole_of = whole(LocalExecutor(tiny("llama"), tokens, scoring, target=target()).measure(rows))
    stop = threading.Event()

    class StopSoon(Progress):
        def advance(self, num_rows: int, num_tokens: int) -> None:
            super().advance(num_rows, num_tokens)
            stop.set()

    progress = StopSoon(stop)
    executor = ProcessExecutor(load_tiny, ["cpu", "cpu"], tokens, scoring, target=target())
    with closing(executor):
        parts = list(executor.measure(rows, progress))
        assert progress.to_json()["num_done"] == sum(len(part.rows) for part in parts)
        stop.clear()
        done = np.concatenate([part.rows for part in parts])
        rest = list(executor.measure(np.setdiff1d(rows, done)))  # still at work
    assert len(done) > 0
    found = whole([*parts, *rest])
    assert found.rows.tolist() == rows.tolist()
    for name, score in whole_of.scores.items():
        np.testing.assert_allclose(found.scores[name], score, rtol=1e-4)
