"""Real SIGKILLs at random moments of whole refreshes, each followed by a clean restart."""

from __future__ import annotations

import multiprocessing
import random
import time
from pathlib import Path

from gracekit.store import Store
from gracekit.store.verify import verify
from tests.tiny import tiny_recipe, write_checkpoint, write_data

NUM_KILLS = 10
MAX_DRAWS = 20
"""Draws of a moment; one that falls after the end of the refresh kills nobody."""
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
    refresh(tiny_recipe(folder, scoring={"shard_rows": 2}), checkpoint)


def run(folder: Path, checkpoint: Path, *, kill_at: float | int | None = None) -> int:
    """One refresh in a process of its own; returns its exit code.

    Args:
        folder: With the data and the store.
        checkpoint: To refresh from.
        kill_at: Kill it after so many seconds (float) or so many finished shards (int).
    """
    child = PROCESSES.Process(target=refresh_in_child, args=(folder, checkpoint))
    child.start()
    if isinstance(kill_at, int):
        while child.is_alive() and num_shards(folder) < kill_at:
            time.sleep(0.001)
    else:
        child.join(kill_at)
    if kill_at is not None:
        child.kill()
        child.join()
    assert child.exitcode is not None
    return child.exitcode


def num_shards(folder: Path) -> int:
    return len(list((folder / "store" / "shards").glob("*/*.shard")))


def test_killed_at_random_moments_every_restart_verifies(tmp_path: Path) -> None:
    """A refresh is killed, its restart too, and the one after that finishes; ten kills in all."""
    write_data(tmp_path / "train.jsonl")
    checkpoint = write_checkpoint(tmp_path / "run", 10)
    assert run(tmp_path, checkpoint) == 0
    checkpoint = write_checkpoint(tmp_path / "run", 20)
    started = time.monotonic()
    assert run(tmp_path, checkpoint) == 0
    duration_s = time.monotonic() - started

    rng = random.Random(SEED)
    num_killed = num_killed_with_shards = 0
    for draw in range(MAX_DRAWS):
        if draw % 2 == 0:
            step = 100 + 10 * draw
            checkpoint = write_checkpoint(tmp_path / "run", step)
            before = Store.open(tmp_path / "store").versions()
        by_shards = draw % 4 == 1
        kill_at = rng.randrange(1, 20) if by_shards else rng.uniform(0, 0.9 * duration_s)
        num_killed += run(tmp_path, checkpoint, kill_at=kill_at) != 0
        num_killed_with_shards += num_shards(tmp_path) > 0
        left = Store.open(tmp_path / "store").versions()
        assert left in (before, [*before, len(before) + 1]), "a version was lost or invented"
        if draw % 2 == 0:
            continue

        assert run(tmp_path, checkpoint) == 0, "the restart failed"
        store = Store.open(tmp_path / "store")
        assert store.versions() == [*before, len(before) + 1]
        assert store.header(len(before) + 1).checkpoint["step"] == step
        assert verify(store) == []
        assert not list(store.paths.shards.glob("*/*"))
        assert not list(store.paths.pins.glob("*"))
        if num_killed >= NUM_KILLS and num_killed_with_shards:
            break
    assert num_killed >= NUM_KILLS, "too few children were killed while they worked"
    assert num_killed_with_shards, "no child was killed in the middle of the model pass"


def test_killed_in_the_first_version_the_next_start_makes_it(tmp_path: Path) -> None:
    write_data(tmp_path / "train.jsonl")
    checkpoint = write_checkpoint(tmp_path / "run", 10)
    for kill_at in (0.3, 0.8, 5):
        run(tmp_path, checkpoint, kill_at=kill_at)
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
