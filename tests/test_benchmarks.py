"""The benchmarks still run."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.replay import SCORES, Run, chain
from gracekit.recipe import Recipe
from tests.stores import make_samples

ROOT = Path(__file__).parent.parent


def test_selection_benchmark_prints_its_tables() -> None:
    run = subprocess.run(
        [sys.executable, "benchmarks/selection.py", "--no-peers", "--largest", "10000"],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "| 10,000 | " in run.stdout
    assert "- craig: " in run.stdout


BENCHMARKS = sorted(path.stem for path in (ROOT / "benchmarks").glob("[!_]*.py"))


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_can_be_imported(name: str) -> None:
    assert callable(getattr(importlib.import_module(f"benchmarks.{name}"), "main", chain))


def synthetic_run(n: int, num_checkpoints: int) -> dict[str, np.ndarray]:
    """What `exact_run.py` writes, of clusters that move together and rows that move alone."""
    rng = np.random.default_rng(0)
    samples = make_samples(n)
    cluster = rng.integers(0, 5, n)
    features = [rng.normal(size=(5, 8))[cluster] + 0.3 * rng.normal(size=(n, 8))]
    norms = [rng.lognormal(size=n)]
    for _ in range(num_checkpoints - 1):
        turn = np.eye(8) + 0.1 * rng.normal(size=(8, 8))
        features.append(features[-1] @ turn + 0.02 * rng.normal(size=(n, 8)))
        drift = 0.3 * rng.normal(size=5)[cluster] + 0.05 * rng.normal(size=n)
        norms.append(norms[-1] * np.exp(drift))
    return {
        "steps": 10 * np.arange(1, num_checkpoints + 1),
        "gradient-norm": np.array(norms, np.float32),
        "loss": np.sqrt(norms).astype(np.float32),
        "hidden": np.array(features, np.float16),
        "groups": samples.groups,
        "num_prompt_tokens": samples.num_prompt_tokens,
        "num_targets": samples.num_response_tokens,
    }


def test_a_replay_is_a_chain_of_steps_beside_the_truth(tmp_path: Path) -> None:
    np.savez(tmp_path / "run.npz", **synthetic_run(200, 4))  # type: ignore[arg-type]
    content = {
        "data": {"path": "none.jsonl"},
        "refresh": {"min_fraction": 0.3, "max_fraction": 0.5, "min_probe": 20},
        "propagation": {"min_measured": 20},
        "selection": {"selector": "coverage"},
    }
    recipe = Recipe.from_dict(content)
    links = chain(Run.load(tmp_path / "run.npz", "hidden"), recipe)
    assert [link.step for link in links] == [20, 30, 40]
    for link in links:
        assert 0.3 <= link.cost <= 0.5
        assert all(0.5 < link.rank_correlation[score] <= 1 for score in SCORES)
        assert link.rank_correlation[SCORES[0]] >= link.unmeasured > 0
        assert 0.9 < link.cosine <= 1 and link.recall == 1 and 0 < link.kept <= 1.2
        assert len(link.selected) == 60
    everything = recipe.override({"refresh.min_fraction": 1.0, "refresh.max_fraction": 1.0})
    for link in chain(Run.load(tmp_path / "run.npz", "hidden"), everything):
        assert link.cost == 1 and link.kept == pytest.approx(1, abs=0.1)
        assert link.rank_correlation == dict.fromkeys(SCORES, 1)
