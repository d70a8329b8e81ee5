"""Two ranks that are killed in the middle of an epoch, after a version change, and resumed."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import LAST_RESORT_S
from tests.stores import make_store
from tests.training_killed_ranks import NUM_ROWS, SAVE_STEPS

KILLED_AFTER = 17
STEPS = 5 * NUM_ROWS // 8


def run(root: Path, out: Path, *arguments: str) -> int:
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
            "-m", "tests.training_killed_ranks", str(root), str(out), *arguments,
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=Path(__file__).parent.parent,
        capture_output=True, text=True, timeout=LAST_RESORT_S, check=False,
    )  # fmt: skip
    if done.returncode:
        assert arguments[2] != "0", done.stderr[-3000:]
    return done.returncode


def fed(path: Path) -> list[list[int]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


TRL = [
    pytest.mark.trl,
    pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="not installed"),
]


@pytest.mark.parametrize(
    ("kind", "follow"),
    [
        pytest.param("hf", "epoch", marks=pytest.mark.slow),
        pytest.param("hf", "step", marks=pytest.mark.slow),
        pytest.param("stream", "epoch", marks=pytest.mark.slow),
        pytest.param("trl", "epoch", marks=TRL),
        pytest.param("trl", "step", marks=TRL),
    ],
)
def test_killed_ranks_go_on_with_the_same_batches_and_weights(
    tmp_path: Path, kind: str, follow: str
) -> None:
    stores = [make_store(tmp_path / name).paths.root for name in ("whole", "cut")]
    whole, cut = tmp_path / "whole-run", tmp_path / "cut-run"
    assert run(stores[0], whole, kind, follow, "0", "0") == 0
    assert run(stores[1], cut, kind, follow, str(KILLED_AFTER), "0") != 0
    assert run(stores[1], cut, kind, follow, "0", "1") == 0
    for rank in (0, 1):
        expected = fed(whole / f"fed-{rank}.jsonl")
        before, after = (fed(cut / f"fed-{rank}{part}.jsonl") for part in ("", "-resumed"))
        assert len(expected) == STEPS and len(before) in (KILLED_AFTER, KILLED_AFTER + 1)
        assert before == expected[: len(before)]
        assert before[:SAVE_STEPS] + after == expected
        ends = [
            json.loads(path.read_text())
            for path in (whole / f"fed-{rank}.end.json", cut / f"fed-{rank}-resumed.end.json")
        ]
        assert ends[0] == ends[1]
        # The versions are those of the second and third epoch, at whose middle the kill came.
        versions = [version for _, _, version in ends[0]["log"]]
        assert versions == ([0, 1, 1, 2, 2] if follow == "epoch" else [0, 1, 1, 2, 2, 2])
        (cut_off,) = [
            start for epoch, start, version in ends[0]["log"] if (epoch, version) == (2, 2)
        ] or [0]
        assert bool(cut_off) == (follow == "step")
