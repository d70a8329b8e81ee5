"""Learning curves of a comparison in a report, from results of runs and from printed JSON."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

import gracekit
from gracekit.comparing.arms import Arm
from gracekit.comparing.comparison import compare_results
from gracekit.comparing.run_result import Point, RunResult
from gracekit.errors import StoreFormatError, UsageError
from gracekit.reporting.curves import curves
from tests.report_stores import report_store
from tests.test_report_page import checked

NUM_ROWS = 40
STEPS = (0, 10, 20, 30)


def result(arm: str, seed: int, gain: float) -> RunResult:
    """A run whose losses fall to 3 less a gain."""
    rng = np.random.default_rng(1000 * seed + len(arm))
    rows = np.random.default_rng(5).normal(size=NUM_ROWS)
    points = [
        Point(
            step=step,
            losses=(
                5.0
                - (2.0 + gain) * step / STEPS[-1]
                + 0.3 * rows
                + 0.02 * rng.normal(size=NUM_ROWS)
            ).tolist(),
            trained_tokens=100.0 * step,
            selection_tokens=5.0 * step if arm == "recipe" else 0.0,
            training_s=1.0 * step,
            selection_s=0.0,
        )
        for step in STEPS
    ]
    return RunResult(
        arm=arm, seed=seed, settings={}, num_steps=STEPS[-1], points=points,
        num_targets=np.random.default_rng(6).integers(1, 50, NUM_ROWS).tolist(),
        groups=[0] * NUM_ROWS, group_names=["all"], metric=None, num_trained=100,
        num_distinct=90, most_uses=2, marked={},
    )  # fmt: skip


def all_results(gain: float = 0.5, seeds: int = 3) -> list[RunResult]:
    gains = {"random": 0.0, "once": 0.1, "recipe": gain}
    return [result(arm, seed, own) for seed in range(seeds) for arm, own in gains.items()]


def write(folder: Path, results: list[RunResult]) -> Path:
    folder.mkdir()
    for one in results:
        one.write(folder / f"{one.arm}-seed{one.seed}.json")
    return folder


def test_means_and_intervals_over_seeds(tmp_path: Path) -> None:
    results = all_results()
    found = curves(write(tmp_path / "compare", results))
    rows = [r for r in found.section.findings["by_step"].rows() if r["arm"] == "recipe"]
    assert [row["step"] for row in rows] == list(STEPS)
    weights = np.array(results[0].num_targets) / sum(results[0].num_targets)
    own = [one for one in results if one.arm == "recipe"]
    for place, row in enumerate(rows):
        losses = np.array([one.losses(place) @ weights for one in own])
        low, high = stats.t.interval(0.95, 2, losses.mean(), stats.sem(losses))
        assert row["loss"] == pytest.approx(losses.mean())
        assert (row["loss_low"], row["loss_high"]) == pytest.approx((low, high), abs=1e-5)
    assert rows[-1]["compute"] == 105.0 * STEPS[-1]


@pytest.mark.parametrize(
    ("gain", "expected", "is_worse"),
    [(0.5, "better than", False), (-0.5, "worse than", True), (0.1, "no difference", False)],
)
def test_the_verdict_is_that_of_compare(
    tmp_path: Path, gain: float, expected: str, is_worse: bool
) -> None:
    results = all_results(gain)
    found = curves(write(tmp_path / "compare", results))
    assert found.verdict[0].startswith("`recipe`") and expected in found.verdict[0]
    assert found.is_worse is is_worse
    arms = [Arm(name=name, about="") for name in ("random", "once", "recipe")]
    printed = compare_results(results, arms, average="tokens")
    apart = printed.arms[2].against_control
    row = next(r for r in found.section.findings["against_control"].rows() if r["arm"] == "recipe")
    assert apart is not None
    assert (row["less_control"], row["low"], row["high"]) == (apart.mean, apart.low, apart.high)
    (tmp_path / "printed.json").write_text(json.dumps(printed.to_json()))
    of_json = curves(tmp_path / "printed.json")
    assert of_json.is_worse is is_worse
    assert list(of_json.verdict) == printed.verdict
    means = of_json.section.findings["by_step"]
    expected_losses = found.section.findings["by_step"].columns
    by_arm = {
        arm: [row["loss"] for row in means.rows() if row["arm"] == arm]
        for arm in ("random", "once", "recipe")
    }
    for arm, losses in by_arm.items():
        both = zip(expected_losses["arm"], expected_losses["loss"], strict=True)
        assert losses == pytest.approx([loss for name, loss in both if name == arm])
    assert "no intervals along the curves" in means.notes[0]


def test_two_seeds_say_nothing_of_the_spread(tmp_path: Path) -> None:
    found = curves(write(tmp_path / "compare", all_results(seeds=2)))
    assert "fewer than 3 seeds" in found.verdict[0] and not found.is_worse


def test_a_report_with_a_comparison(tmp_path: Path) -> None:
    store = report_store(tmp_path / "store", versions=1)
    folder = write(tmp_path / "compare", all_results())
    report = gracekit.report(store, tmp_path / "report.html", comparison=folder)
    assert [s.key for s in report.sections][-1] == "comparison"
    assert "`recipe` ends better than `once`" in report.answer.worth
    assert "gracekit compare" not in report.answer.advice
    page = report.html()
    checked(page)
    assert page.count('class="band') >= 6
    worse = gracekit.report(store, comparison=write(tmp_path / "worse", all_results(-0.5)))
    assert "train on random rows" in worse.answer.advice


def test_what_is_no_comparison_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name, content in {
        "list.json": "[]",
        "text.json": "hello",
        "arms.json": '{"arms": [1]}',
        "deep.json": "[" * 100_000,
        "infinite.json": '{"arms": [{"arm": "a", "seeds": 1e999}], "verdict": []}',
    }.items():
        (tmp_path / name).write_text(content)
        with pytest.raises(UsageError, match="does not hold what `gracekit compare --json`"):
            curves(tmp_path / name)
    with pytest.raises(UsageError, match="no result of a run"):
        curves(tmp_path / "empty")
    with pytest.raises(UsageError, match="cannot read"):
        curves(tmp_path / "absent")
    folder = write(tmp_path / "compare", all_results())
    (folder / "random-seed0.json").write_text("{")
    with pytest.raises(StoreFormatError, match="cannot be read"):
        curves(folder)
