"""The benchmarks of pipelines/bench: their data, their starts, and their small forms.

The small forms train for minutes (`make test-slow`).
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gracekit.comparing.arms import arm_of
from gracekit.recipe import Recipe
from pipelines.bench import data, models, run

torch.set_num_threads(1)
SHIPPED = [name for name in data.BENCHMARKS if not name.startswith("maths")]


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("name", SHIPPED)
def test_data_is_the_same_each_time_and_held_out_rows_are_apart(name: str, tmp_path: Path) -> None:
    counts = data.make(name, tmp_path / "one")
    assert data.make(name, tmp_path / "two") == counts
    parts = {}
    for part in counts:
        one, two = (tmp_path / folder / f"{part}.jsonl" for folder in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()
        parts[part] = {(row["prompt"], row["response"]) for row in read(one)}
    assert not parts["train"] & parts["held-out"]
    assert not parts.get("target", set()) & (parts["train"] | parts["held-out"])


def test_what_is_planted_is_marked(tmp_path: Path) -> None:
    data.make("found", tmp_path)
    rows = read(tmp_path / "train.jsonl")
    planted = Counter(row["planted"] for row in rows)
    assert len(planted) == 6 and 0.4 < 1 - planted[""] / len(rows) < 0.6
    copies = Counter(row["response"] for row in rows if row["copy"])
    assert all(count >= 10 for count in copies.values())
    sources = Counter(row["source"] for row in rows)
    assert sources["python-docs"] > 0.6 * len(rows)
    answers = {row["response"] for row in data.read(data.SHIPPED)}
    assert all(row["response"] in answers for row in rows if not row["planted"])


def test_a_target_of_good_rows_has_nothing_planted(tmp_path: Path) -> None:
    assert data.make("found-target", tmp_path)["target"] == data.NUM_TARGET
    good = {(row["prompt"], row["response"]) for row in data.read(data.SHIPPED)}
    assert all((row["prompt"], row["response"]) in good for row in read(tmp_path / "target.jsonl"))
    assert sum(bool(row["planted"]) for row in read(tmp_path / "train.jsonl")) > 1000


def test_maths_needs_the_files_of_gsm8k(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="--gsm8k DIR"):
        data.make("maths", tmp_path)
    row = {"question": "1 + 1?", "answer": "2\n#### 2"}
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "test.jsonl").write_text(json.dumps(row) + "\n")
    assert data.make("maths", tmp_path / "out", gsm8k=tmp_path) == {"train": 1, "held-out": 1}


@pytest.mark.parametrize("name", sorted(data.BENCHMARKS))
def test_every_recipe_has_arms_that_there_are(name: str) -> None:
    recipe = Recipe.load(run.HERE / f"{name}.yaml")
    assert all(arm_of(arm, recipe).name == arm for arm in recipe.compare.arms)
    assert "once" in recipe.compare.arms


def test_arms_of_a_reference_model_read_its_file(tmp_path: Path) -> None:
    texts = [f"the {k}th sentence of a text that is learnt by heart " * 3 for k in range(40)]
    start = tmp_path / "models/gpt2"
    tokenizer = models.make_tokenizer(texts)
    models.save(models.new_model("gpt2", tokenizer), tokenizer, start)
    data.make("share", tmp_path / "share")
    recipe = run.recipe_of("share", "gpt2", root=tmp_path)
    with_file = run.with_reference(recipe, start, tmp_path)
    assert Path(with_file.selection.reference or "").is_file()
    assert set(with_file.compare.arms) >= {*recipe.compare.arms, *run.OF_REFERENCE}
    for arm, change in run.OF_REFERENCE.items():
        assert arm_of(arm, with_file).name == arm
        changed = with_file.override(change)
        assert changed.selection.reads_reference


@pytest.mark.parametrize("family", ["gpt2", "qwen3"])
def test_a_start_is_made_again_by_its_seed(family: str, tmp_path: Path) -> None:
    texts = [f"the {k}th sentence of a text that is learnt by heart " * 3 for k in range(40)]
    tokenizer = models.make_tokenizer(texts)
    stream = torch.tensor(np.concatenate(tokenizer(texts)["input_ids"]).astype(np.int64))
    ends = []
    for _ in range(2):
        torch.manual_seed(0)
        model = models.new_model(family, tokenizer)
        first = float(model(input_ids=stream[None, :64], labels=stream[None, :64]).loss.detach())
        ends.append(models.pretrain(model, stream, steps=3, seed=0))
    assert ends[0] == ends[1] < first
    models.save(model, tokenizer, tmp_path / "start")
    assert models.make(family, tmp_path / "start") == tmp_path / "start"


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_the_small_form_comes_to_a_verdict(name: str) -> None:
    """Under `runs/bench`, where it goes on from what is there."""
    found = run.run(name)
    recipe = Recipe.load(run.HERE / f"{name}.yaml")
    assert [arm.arm for arm in found.arms] == list(recipe.compare.arms)
    assert found.missing == 0 and found.verdict
    assert all(arm.losses[-1] < arm.losses[0] for arm in found.arms)
    if name == "found":
        assert found.verdict[0].startswith("Head-room"), found.verdict[0]
