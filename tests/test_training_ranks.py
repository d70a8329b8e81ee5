"""Data-parallel training: all ranks draw from the version that rank 0 found, and share it out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from gracekit.store import StorePaths, newest_run, read_uses
from gracekit.training import Coreset, CoresetSampler
from gracekit.training.ranks import decide_on_rank_zero
from tests.drawable import drawable_store
from tests.patience import LAST_RESORT_S
from tests.stores import N, make_store

NUM_ROWS = 2 * N
BATCH = 4
STEPS_PER_EPOCH = NUM_ROWS // (2 * BATCH)


def test_outside_a_job_the_decision_is_a_plain_call() -> None:
    assert decide_on_rank_zero(lambda: 5) == 5


def test_two_ranks_draw_one_order_from_one_version(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    (tmp_path / "run").mkdir()
    for split in (False, True):
        drawable_store(tmp_path / "dispatched" / str(split), N)
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
            "-m", "tests.training_two_ranks", str(store.paths.root), str(tmp_path / "run"),
            str(tmp_path / "dispatched"),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=Path(__file__).parent.parent,
        capture_output=True, text=True, timeout=LAST_RESORT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [
        json.loads((tmp_path / "run" / f"rank-{rank}.json").read_text(encoding="utf-8"))
        for rank in (0, 1)
    ]
    assert ranks[0]["log"] == ranks[1]["log"]
    log = [tuple(turn) for turn in ranks[0]["log"]]
    # Published after step 5, seen at step 6, the end of the epoch: taken by the next epoch.
    # Published after step 14, seen at step 15, the third of its epoch, when each rank had drawn
    # one batch more.
    assert log == [(0, 0, 0), (1, 0, 1), (2, 0, 1), (2, 4 * 2 * BATCH, 2)]

    assert [len(rank["fed"]) for rank in ranks] == [3 * STEPS_PER_EPOCH] * 2
    sampler = CoresetSampler(store.paths.root, NUM_ROWS, weighs=False)  # as the callback alone
    sampler.load_state_dict({**sampler.state_dict(), "version_log": log})
    for epoch in range(3):
        steps = slice(epoch * STEPS_PER_EPOCH, (epoch + 1) * STEPS_PER_EPOCH)
        in_turn = zip(ranks[0]["fed"][steps], ranks[1]["fed"][steps], strict=True)
        sampler.set_epoch(epoch)
        assert [p for pair in in_turn for batch in pair for p in batch] == list(sampler)
    last = ranks[1]["fed"][-2:]
    assert {p for batch in last for p in batch} <= set(
        Coreset.load(store.paths.root, 2).source_rows.tolist()
    )

    # What rank 0 logged at the end is what both were trained on.
    (logged,) = (read_uses(path) for path in newest_run(store.paths).values())
    uses = np.zeros(NUM_ROWS, int)
    for rank in ranks:
        np.add.at(uses, np.concatenate(rank["fed"]), 1)
    np.testing.assert_array_equal(logged.state.uses + logged.epoch_uses, uses[::2])
    assert logged.facts.step == 3 * STEPS_PER_EPOCH and logged.facts.versions == (1, 2)
    second = [
        p for pair in zip(*(r["fed"][6:12] for r in ranks), strict=True) for b in pair for p in b
    ]
    passes = [set(second[i : i + 10]) for i in (0, 10, 20, 30)]
    assert [len(drawn) for drawn in passes] == [10] * 4 and len(set(map(frozenset, passes))) > 1

    # Where rank 0 reads batches for both, weights cannot go with them, and that is said.
    for split in (False, True):
        paths = StorePaths(tmp_path / "dispatched" / str(split))
        (logged,) = (read_uses(path) for path in newest_run(paths).values())
        uses = np.zeros(NUM_ROWS, int)
        for rank in ranks:
            np.add.at(uses, np.concatenate(rank[f"dispatched {split}"]["fed"]), 1)
        assert uses.sum() == logged.facts.num_trained == (8 if split else 16)
        np.testing.assert_array_equal(logged.state.uses + logged.epoch_uses, uses[::2])
        said = "\n".join(ranks[0][f"dispatched {split}"]["said"])
        assert "weights do not reach the loss: rank 0 sends the others their batches" in said
        assert ranks[0][f"dispatched {split}"]["weights"] == [1], "rows are drawn to count alike"
