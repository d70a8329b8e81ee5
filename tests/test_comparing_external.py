"""Comparisons by a training command of the user's: what it gets, and what it may not do."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import gracekit
from gracekit.comparing.external import Command
from gracekit.errors import GracekitError, MeasureError, RecipeError
from tests.test_comparing import make_world

TRAIN = """\
import argparse, json, shutil, sys, zlib
from pathlib import Path
import numpy as np
from safetensors.numpy import load_file, save_file

parser = argparse.ArgumentParser()
for name in ("subset", "output", "seed", "start", "way"):
    parser.add_argument("--" + name, default="")
options = parser.parse_args()
rows = [json.loads(line) for line in open(options.subset, encoding="utf-8")]
way = options.way
if way == "fails":
    print("epoch 1\\nout of patience", file=sys.stderr)
    sys.exit(3)
if way == "nothing":
    sys.exit(0)
weights = load_file(Path(options.start) / "model.safetensors")
seed = 0 if way == "no-seed" else int(options.seed)
text = "" if way == "no-subset" else "".join(sorted(row["prompt"] for row in rows))
rng = np.random.default_rng([seed, zlib.crc32(text.encode())])
for name in weights if way != "untrained" else ():
    weights[name] = weights[name] + 0.01 * rng.normal(size=weights[name].shape).astype("float32")
steps = -(-len(rows) // 8) + (way == "steps")
state = {"global_step": steps, "num_train_epochs": 2 if way == "twice" else 1}
place = Path(options.output)
if way != "silent":
    place = place / f"checkpoint-{steps}"
    place.mkdir()
shutil.copy(Path(options.start) / "config.json", place)
save_file(weights, place / "model.safetensors", metadata={"format": "pt"})
if way != "silent":
    (place / "trainer_state.json").write_text(json.dumps(state))
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = make_world(tmp_path_factory.mktemp("external"))
    (recipe.parent / "train.py").write_text(TRAIN)
    return recipe


def command(world: Path, way: str = "") -> str:
    script, start = world.parent / "train.py", world.parent / "models/checkpoint-0"
    return (
        f"{sys.executable} {script} --subset {{subset}} --output {{output}} --seed {{seed}} "
        f"--start {start} --way '{way}'"
    )


def run(world: Path, output: Path, way: str = "", **changes: Any) -> Any:
    given = {"compare.arms": ["random", "once"], "compare.seeds": 2}
    given |= {f"compare.{key}": value for key, value in changes.items()}
    return gracekit.compare(world, output=output, set=given, train=command(world, way))


@pytest.mark.parametrize("way", ["", "silent"])
def test_a_command_trains_on_what_each_arm_draws(world: Path, tmp_path: Path, way: str) -> None:
    found = run(world, tmp_path, way, arms=["random", "once", "recipe", "full"], seeds=1)
    by_name = {arm.arm: arm for arm in found.arms}
    rows = round(0.2 * 140)
    assert by_name["once"].num_steps == -(-3 * rows // 8)
    assert by_name["once"].num_distinct == 3 * rows
    assert by_name["full"].num_distinct == 140
    assert by_name["recipe"].selection_share > 0
    assert [len(arm.losses) for arm in found.arms] == [2] * 4
    before = {file: file.stat().st_mtime_ns for file in tmp_path.glob("*-seed*.json")}
    run(world, tmp_path, way, arms=["random", "once", "recipe", "full"], seeds=1)
    assert {file: file.stat().st_mtime_ns for file in before} == before


@pytest.mark.parametrize(
    ("way", "words"),
    [
        ("fails", r"ended with exit code 3: .*\n  epoch 1\n  out of patience"),
        ("nothing", "left no model in"),
        ("untrained", "has the losses of the start"),
        ("twice", "went over the subset 2 times"),
        ("steps", r"took 12 steps, expected 11 for 84 rows: it ignores the subset"),
        ("no-subset", "with the very weights of random with seed 0: .* ignores the subset"),
    ],
)
def test_a_command_that_does_not_do_its_part_is_told(
    world: Path, tmp_path: Path, way: str, words: str
) -> None:
    with pytest.raises(MeasureError, match=words):
        run(world, tmp_path, way)
    assert len(list(tmp_path.glob("*-seed*.json"))) == (way == "no-subset")


def test_a_script_that_was_edited_half_way_is_other_code(world: Path, tmp_path: Path) -> None:
    run(world, tmp_path, arms=["random"])
    script = world.parent / "train.py"
    script.write_text(TRAIN.replace("0.01 *", "0.02 *"))
    try:
        with pytest.raises(RecipeError, match=r"2 of 2 results .*train\.py is .*--mix-code"):
            run(world, tmp_path)
    finally:
        script.write_text(TRAIN)
    assert run(world, tmp_path).missing == 0, "the code that began goes on"


def test_a_command_that_ignores_the_seed_is_told(world: Path, tmp_path: Path) -> None:
    changes = {"own": {"selection.selector": "top"}}
    with pytest.raises(MeasureError, match=r"own with seed 1 .* ignores the seed"):
        run(world, tmp_path, "no-seed", arms=["own"], changes=changes)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("python train.py {subset} {output}", "lacks {seed}"),
        ("python 'train.py {subset} {output} {seed}", "cannot read the command"),
    ],
)
def test_a_command_needs_its_places(text: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        Command.parse(text)


def test_what_is_filled_in_stays_one_word() -> None:
    filled = Command("train --in={subset} {output} {seed}").filled(subset="a b", output="c", seed=4)
    assert filled == ["train", "--in=a b", "c", "4"]


def test_a_program_that_is_not_there_and_an_arm_that_looks(world: Path, tmp_path: Path) -> None:
    for arm, text, words in (
        ("random", "no-such-program {subset} {output} {seed}", "cannot start the training command"),
        ("loss-top", command(world), "looks at the model in training"),
    ):
        with pytest.raises(GracekitError, match=words):
            gracekit.compare(world, output=tmp_path / arm, set={"compare.arms": [arm]}, train=text)


def test_the_subset_holds_the_rows_as_they_are(world: Path, tmp_path: Path) -> None:
    script = tmp_path / "copy.py"
    script.write_text(
        "import shutil, sys; shutil.copy(sys.argv[1], sys.argv[4]); sys.exit(1)", encoding="utf-8"
    )
    text = f"{sys.executable} {script} {{subset}} {{output}} {{seed}} {tmp_path / 'seen.jsonl'}"
    with pytest.raises(MeasureError, match="it printed nothing"):
        gracekit.compare(world, output=tmp_path, set={"compare.arms": ["once"]}, train=text)
    data = (world.parent / "train.jsonl").read_text().splitlines()
    known = {json.dumps(json.loads(line), sort_keys=True) for line in data}
    seen = [json.loads(line) for line in (tmp_path / "seen.jsonl").read_text().splitlines()]
    assert len(seen) == 84 and {json.dumps(row, sort_keys=True) for row in seen} <= known
