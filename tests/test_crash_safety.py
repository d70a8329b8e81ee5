"""Real SIGKILLs at random moments of whole refreshes, each followed by a clean restart."""

from __future__ import annotations

import multiprocessing
import random
import time
from pathlib import Path

import pytest

from gracekit.store import Store
from gracekit.store.verify import verify
from tests.tiny import tiny_recipe, write_checkpoint, write_data

NUM_KILLS = 10
SEED = 20260411

# Children are forked from a server that has imported everything, so that they start at once.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    ["gracekit.refresher", "gracekit.checkpoints.model", "gracekit.scoring.executors",
     "gracekit.selection", "gracekit.samples", "gracekit.propagation", "gracekit.graph",
     "gracekit.store.database", "transformers.models.llama.modeling_llama", "tests.tiny"]
)  # fmt: skip


def refresh_in_child(folder: Path, checkpoint: Path) -> None:
    """What the child runs until it ends or is killed."""
    import torch

    from gracekit.refresher import refresh

    torch.set_num_threads(1)
    refresh(tiny_recipe(folder), checkpoint)


def run(folder: Path, checkpoint: Path, *, kill_after_s: float | None = None) -> int:
    """One refresh in a process of its own; returns its exit code."""
    child = PROCESSES.Process(target=refresh_in_child, args=(folder, checkpoint))
    child.start()
    child.join(kill_after_s)
    if kill_after_s is not None:
        child.kill()
        child.join()
    assert child.exitcode is not None
    return child.exitcode


def test_killed_at_random_moments_every_restart_verifies(tmp_path: Path) -> None:
    write_data(tmp_path / "train.jsonl")
    checkpoints = [write_checkpoint(tmp_path / "run", 10 * (i + 1)) for i in range(3)]
    assert run(tmp_path, checkpoints[0]) == 0
    started = time.monotonic()
    assert run(tmp_path, checkpoints[1]) == 0
    duration_s = time.monotonic() - started

    rng = random.Random(SEED)
    killed = 0
    for attempt in range(NUM_KILLS):
        step = 100 + 10 * attempt
        checkpoint = write_checkpoint(tmp_path / "run", step)
        before = Store.open(tmp_path / "store").versions()
        code = run(tmp_path, checkpoint, kill_after_s=rng.uniform(0, duration_s))
        killed += code != 0
        store = Store.open(tmp_path / "store")
        left = store.versions()
        assert left in (before, [*before, len(before) + 1]), "a version was lost or invented"

        assert run(tmp_path, checkpoint) == 0, "the restart failed"
        store = Store.open(tmp_path / "store")
        assert store.versions() == [*before, len(before) + 1]
        assert store.header(len(before) + 1).checkpoint["step"] == step
        assert verify(store) == []
        assert not list(store.paths.shards.glob("*/*"))
        assert not list(store.paths.pins.glob("*"))
    if not killed:
        pytest.fail("no child was killed while it worked: the test proved nothing")


def test_killed_in_the_first_version_the_next_start_makes_it(tmp_path: Path) -> None:
    write_data(tmp_path / "train.jsonl")
    checkpoint = write_checkpoint(tmp_path / "run", 10)
    for kill_after_s in (0.3, 0.8, 1.3):
        run(tmp_path, checkpoint, kill_after_s=kill_after_s)
        assert run_is_clean(tmp_path)
    assert run(tmp_path, checkpoint) == 0
    store = Store.open(tmp_path / "store")
    assert store.versions() == [1]
    assert verify(store) == []


def run_is_clean(folder: Path) -> bool:
    """No store yet, or one whose versions all verify."""
    if not Store.exists(folder / "store"):
        return True
    store = Store.open(folder / "store")
    return store.versions() in ([], [1])
