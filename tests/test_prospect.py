"""`gracekit plan --worth`: what selection could bring, told before training."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

import gracekit
from gracekit.cli import main
from gracekit.recipe import Recipe
from gracekit.refresher.outlook import best_value, like_target, near_copies, told
from tests.tiny import recipe_content, write_checkpoint, write_data


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prospect")
    write_data(folder / "train.jsonl")
    lines = (folder / "train.jsonl").read_text().splitlines(keepends=True)
    (folder / "train.jsonl").write_text("".join([*lines, *lines[:40]]))
    write_data(folder / "target.jsonl", num_samples=12, seed=9)
    write_checkpoint(folder / "run", 10)
    content = recipe_content(training={"steps": 100, "samples_a_step": 8})
    (folder / "gracekit.yaml").write_text(yaml.safe_dump(content))
    return folder


def test_one_checkpoint_tells_what_selection_could_bring(world: Path, tmp_path: Path) -> None:
    """Nothing is written; the numbers fit the data; with a target its likeness is told too."""
    before = sorted(world.rglob("*"))
    found = gracekit.plan(world / "gracekit.yaml", world / "run/checkpoint-10", worth=True)
    assert found.num_samples == 200 and found.num_measured == 200
    assert found.exact_copies == pytest.approx(40 / 200)
    assert found.near_copies >= 80 / 200
    assert found.passes == 4 and any("duplicates: share" in word for word in found.words)
    assert found.best_low <= found.best <= found.best_high and math.isnan(found.like_target)
    target: dict[str, Any] = {"target": {"path": str(world / "target.jsonl"), "max_length": 64}}
    found = gracekit.plan(
        world / "gracekit.yaml", world / "run/checkpoint-10", worth=True, set=target
    )
    assert 0 <= found.like_target <= 1
    assert sorted(world.rglob("*")) == before
    rows = write_data(tmp_path / "a.jsonl", num_samples=36, seed=9).read_text().splitlines(True)
    (tmp_path / "a.jsonl").write_text("".join(rows[::3]))  # of one group
    target["target"]["path"] = str(tmp_path / "a.jsonl")
    found = gracekit.plan(
        world / "gracekit.yaml", world / "run/checkpoint-10", worth=True, set=target
    )
    assert 0 < found.like_target <= 0.3
    steps = 4 * found.like_target * 200 / (0.9 * 8)
    assert found.steps_of_target == pytest.approx(steps) and steps < 100
    words = next(word for word in found.words if "like the target" in word)
    assert f"good for about {steps:,.0f} steps, and 100 are planned" in words


def test_a_budget_in_tokens_and_a_target_of_one_sample(world: Path, tmp_path: Path) -> None:
    """The share of a draw is that of its tokens; of one sample nothing is like or unlike."""
    recipe, checkpoint = world / "gracekit.yaml", world / "run/checkpoint-10"
    row = json.dumps({"prompt": "red", "response": "blue small"}) + "\n"
    (tmp_path / "one.jsonl").write_text(row * 3)
    target = {"target": {"path": str(tmp_path / "one.jsonl"), "max_length": 64}}
    few = {"selection.fraction": 0.01, **target}
    found = gracekit.plan(recipe, checkpoint, worth=True, set=few)
    in_tokens = {"selection.fraction": None, "selection.tokens": 30}
    told_of_tokens = gracekit.plan(recipe, checkpoint, worth=True, set=in_tokens)
    assert told_of_tokens.best == pytest.approx(found.best, rel=1e-6)
    everything = {"selection.fraction": None, "selection.tokens": 10**6}
    assert gracekit.plan(recipe, checkpoint, worth=True, set=everything).best == pytest.approx(1)
    assert math.isnan(found.like_target)
    assert any("cannot be told of one usable sample" in word for word in found.words)
    assert not any("nan" in word for word in found.words)


def test_the_command_prints_and_gives_json(world: Path) -> None:
    arguments = [
        "plan", str(world / "run/checkpoint-10"), "--worth", "-r", str(world / "gracekit.yaml"),
    ]  # fmt: skip
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert "passes over the pool" in done.output and "1,000 drawn by perfect norms" in done.output
    found = json.loads(CliRunner().invoke(main, [*arguments, "--json"]).stdout)
    assert found["like_target"] is None and found["num_samples"] == 200


def test_data_of_one_row_has_no_best_value(world: Path, tmp_path: Path) -> None:
    row = json.dumps({"prompt": "red", "response": "blue small", "source": "a"}) + "\n"
    (tmp_path / "one.jsonl").write_text(row)
    done = CliRunner().invoke(main, [
        "plan", str(world / "run/checkpoint-10"), "--worth", "-r", str(world / "gracekit.yaml"),
        "--set", f"data.path={tmp_path / 'one.jsonl'}",
    ])  # fmt: skip
    assert done.exit_code == 0 and "could bring is not known" in done.output, done.output
    assert "nan" not in done.output and "drawn by perfect norms   -" in done.output


def test_the_best_value_is_that_of_a_draw_by_norms() -> None:
    """Without caps it is E[g²] / E[g]²; a simulation of both draws agrees."""
    rng = np.random.default_rng(0)
    norms = rng.lognormal(0, 0.7, 400)
    best, low, high = best_value(norms, 0.05, seed=0)
    assert best == pytest.approx((norms**2).mean() / norms.mean() ** 2, rel=1e-6)
    assert low < best < high
    chances = {"random": np.full(400, 0.05), "norms": 0.05 * norms / norms.mean()}
    moments = {
        name: np.mean([
            (norms[drawn] ** 2 / p[drawn] ** 2).sum()
            for drawn in (rng.random(400) < p for _ in range(4000))
        ])
        for name, p in chances.items()
    }  # fmt: skip
    assert moments["random"] / moments["norms"] == pytest.approx(best, rel=0.05)
    assert best_value(np.ones(50), 0.3, seed=0)[0] == pytest.approx(1)
    assert math.isnan(best_value(np.zeros(5), 0.3, seed=0)[0])


def test_copies_and_likeness_are_found() -> None:
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(60, 16)).astype(np.float32)
    doubled = np.concatenate([rows, rows[:20] + 1e-3]).astype(np.float32)

    def all_of_them(pairs: Any) -> Any:
        return np.ones(pairs.shape[1], bool)

    unlike = np.full(80, -1)
    assert near_copies(np.tile(rows[:1], (9, 1)), all_of_them, unlike[:9]) == 1
    assert near_copies(rows[:1], all_of_them, unlike[:1]) == 0
    assert near_copies(rows, all_of_them, unlike[:60]) == 0
    assert near_copies(doubled, all_of_them, unlike) == pytest.approx(40 / 80)
    assert near_copies(doubled, lambda pairs: pairs[0] < 10, unlike) == pytest.approx(20 / 80)
    responses = np.where(np.arange(80) < 6, np.arange(80) // 3, -1)
    assert near_copies(doubled, lambda pairs: pairs[0] > 90, responses) == pytest.approx(6 / 80)
    centre = np.zeros(16, np.float32)
    centre[0] = 8
    target = (centre + rng.normal(size=(20, 16))).astype(np.float32)
    pool = np.concatenate([rows, (centre + rng.normal(size=(15, 16))).astype(np.float32)])
    assert 0.05 < like_target(pool, target) <= 15 / 75
    assert math.isnan(like_target(pool, target[:1]))


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({}, "Not worth it"),
        ({"norms": np.random.default_rng(0).lognormal(0, 1, 300)}, "`gracekit compare` tells"),
        ({"near_copies": 0.4}, "`gracekit compare` tells"),
        ({"like_target": 0.08}, "`gracekit compare` tells"),
        ({"like_target": 0.7}, "Not worth it"),
        ({"like_target": 0.0}, "Not worth it"),
        ({"norms": np.zeros(1)}, "Not worth it"),
    ],
)
def test_it_says_when_it_is_not_worth_it(numbers: dict[str, Any], words: str) -> None:
    recipe = Recipe.from_dict({"data": {"path": "train.jsonl"}})
    given = {
        "num_samples": 1000, "num_compared": 1000, "norms": np.ones(300), "share": 0.2,
        "exact_copies": 0.0, "near_copies": 0.01, "like_target": math.nan, **numbers,
    }  # fmt: skip
    found = told(recipe, **given)
    assert words in found.words[-1]
    assert found.is_worth_it == (not words.startswith("Not"))
