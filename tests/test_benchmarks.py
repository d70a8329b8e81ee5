"""The benchmarks still run."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from benchmarks.predicted_gain import over_seeds, told
from benchmarks.replay import SCORES, Run, chain
from benchmarks.scatter import Spot, scatter
from gracekit.comparing.run_result import Point, RunResult, WorthPoint
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


def result_of(arm: str, losses: list[float], value: float | None, seed: int = 0) -> RunResult:
    """Looks at steps 0, 10, …, each step of 100 tokens; selection costs 500 at once."""
    points = [
        Point(step=10 * place, losses=[loss], trained_tokens=1000.0 * place,
              selection_tokens=0.0 if value is None else 500.0, training_s=1, selection_s=0)
        for place, loss in enumerate(losses)
    ]  # fmt: skip
    worths = [
        WorthPoint(step=k, value=known, low=None, high=None, best=2.0, share_measured=0.1)
        for k, known in enumerate((None, value))
        if value is not None
    ]
    return RunResult(
        arm=arm, seed=seed, settings={}, num_steps=40, points=points, num_targets=[1], groups=[0],
        group_names=["a"], metric=None, num_trained=1, num_distinct=1, most_uses=1, marked={},
        worths=worths,
    )  # fmt: skip


def test_a_gain_is_beside_what_the_meter_said() -> None:
    """Sooner than the control, later than it, and without an end that the other one reaches."""
    runs = [
        result_of("random", [5, 4.5, 4.2, 4.1, 4.1], None),
        result_of("once", [5, 4, 3, 2.5, 2], None),
        result_of("recipe", [5, 3, 2, 1.9, 1.8], 1.5),
        result_of("slow", [5, 4.8, 4.6, 4.2, 3], 0.8),
        result_of("never", [5, 6, 6, 6, 6], 0.5),
        result_of("recipe", [5, 3, 2, 1.9, 1.8], 1.7, seed=1),  # no control of its seed
        result_of("balanced-alike", [5, 4, 3, 2.5, 2], None),  # knows no value
    ]
    found = told(runs, "bench")
    assert [(r.arm, r.value) for r in found] == [("recipe", 1.5), ("slow", 0.8), ("never", 0.5)]
    assert found[0].speed_up == 2.0 and found[0].in_compute == pytest.approx(4000 / 2500)
    assert found[1].speed_up == 0.5 and found[1].in_compute == pytest.approx(2000 / 4500)
    assert found[2].speed_up == 0.0, "the control begins below the end of that run"
    assert told(runs[2:], "bench") == []
    one, two = found[0], told([runs[1], result_of("recipe", [5, 2, 2, 2, 2], 2.5)], "bench")[0]
    mean = over_seeds([one, two])[0]
    assert (mean.arm, mean.value) == ("recipe", 2.0)
    assert mean.speed_up == pytest.approx((2 + 4) / 2)


def test_a_scatter_is_well_formed_whatever_the_names() -> None:
    spots = [Spot("a <b> & c", 1.2, 0.4), Spot("d", 0.9, 2.0)]
    picture = scatter(spots, title="<t>", across="x & y", up='"up"', origin=(1, 1))
    root = ElementTree.fromstring(picture)
    circles = [e for e in root.iter() if e.tag.endswith("circle")]
    assert len(circles) == len(spots) + 2  # and the legend
    assert "a <b> & c" in {e.text for e in root.iter()}


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
