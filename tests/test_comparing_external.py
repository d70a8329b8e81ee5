"""Comparisons by a training command of the user's: what it gets, and what it may not do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest

import gracekit
from gracekit.comparing.external import Command
from gracekit.comparing.processes import run_words
from gracekit.errors import GracekitError, MeasureError, RecipeError, StoreLockedError
from tests.patience import until
from tests.test_comparing import ROOT, make_world

TRAIN = """\
import argparse, json, os, shutil, subprocess, sys, time, zlib
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
if way == "asks":
    assert sys.stdin.read() == "", "nobody is there to answer"
if way == "leaves":
    left = subprocess.Popen(["sleep", "600"])
    Path(__file__).with_name("left").write_text(str(left.pid))
if way == "stays":
    import signal
    signal.signal(signal.SIGTERM, lambda *_: print("asked", flush=True))
    print("here", flush=True)
    while True:
        time.sleep(1)
if way == "waits":
    print("here", flush=True)
    time.sleep(600)
weights = load_file(Path(options.start) / "model.safetensors")
seed = 0 if way == "no-seed" else int(options.seed)
text = "" if way == "no-subset" else "".join(sorted(row["prompt"] for row in rows))
rng = np.random.default_rng([seed, zlib.crc32(text.encode())])
for name in weights if way != "untrained" else ():
    weights[name] = weights[name] + 0.01 * rng.normal(size=weights[name].shape).astype("float32")
steps = -(-len(rows) // 8) + (way == "steps")
state = {"global_step": steps, "num_train_epochs": 2 if way == "twice" else 1}
if way == "endless":  # a dataset without a length
    state["num_train_epochs"] = sys.maxsize
place = Path(options.output)
if way == "gone":
    place.rmdir()
    sys.exit(0)
if way in ("final", "best"):  # checkpoints, and the model at the end or the best one on the way
    final = place / "final"
    order = (final, place / "checkpoint-5") if way == "best" else (place / "checkpoint-5", final)
    for at, folder in enumerate(order):
        folder.mkdir()
        shutil.copy(Path(options.start) / "config.json", folder)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        if folder != final:
            (folder / "trainer_state.json").write_text(json.dumps(state | {"global_step": 5}))
        os.utime(folder, (1000 + at, 1000 + at))
    sys.exit(0)
if way in ("top", "top-twice"):  # as `save_model` leaves it, with checkpoints below
    below = place / f"checkpoint-{steps}"
    below.mkdir()
    epochs = 2 if way == "top-twice" else 1
    state = {"global_step": steps, "max_steps": epochs * steps, "num_train_epochs": epochs}
    (below / "trainer_state.json").write_text(json.dumps(state))
if way in ("stateless", "torn"):  # a loop of the user's own: no trainer_state.json
    for step in (1, steps):
        (place / f"checkpoint-{step}").mkdir()
        shutil.copy(Path(options.start) / "config.json", place / f"checkpoint-{step}")
        saved = weights if step > 1 else load_file(Path(options.start) / "model.safetensors")
        save_file(saved, place / f"checkpoint-{step}/model.safetensors", metadata={"format": "pt"})
        (place / f"checkpoint-{step}/optimizer.pt").touch()
    for file in (place / "checkpoint-1").iterdir():  # written long ago
        os.utime(file, (1, 1))
    if way == "torn":
        os.truncate(place / f"checkpoint-{steps}/model.safetensors", 1000)
    sys.exit(0)
if way not in ("silent", "top", "top-twice"):
    place = place / f"checkpoint-{steps}"
    place.mkdir()
shutil.copy(Path(options.start) / "config.json", place)
save_file(weights, place / "model.safetensors", metadata={"format": "pt"})
if way not in ("silent", "top", "top-twice"):
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


@pytest.mark.parametrize("way", ["asks", "leaves", "endless", "final"])
def test_a_command_with_ways_of_its_own(world: Path, tmp_path: Path, way: str) -> None:
    """It gets no input, what it leaves running is not waited for, and it may count steps alone."""
    assert run(world, tmp_path, way, arms=["random"], seeds=1).missing == 0
    if way == "leaves":
        left = int((world.parent / "left").read_text())
        assert not has_ended(left)
        os.kill(left, signal.SIGKILL)


def test_two_arms_that_choose_the_same_rows_are_no_fault_of_the_command(
    world: Path, tmp_path: Path
) -> None:
    own = {"own": {"selection.excess": 0.0}}
    found = run(world, tmp_path, arms=["recipe", "own"], changes=own, seeds=1, epochs=1)
    assert any("`recipe` and `own` are the very same training" in r for r in found.remarks)


def test_a_stop_ends_the_command_and_a_kill_is_made_good_by_the_next_start(
    world: Path, tmp_path: Path
) -> None:
    line = [sys.executable, "-m", "gracekit", "compare", str(world), "--arms", "random"]
    line += ["--seeds", "1", "-o", str(tmp_path), "--train", command(world, "waits")]
    folder = tmp_path / "random-seed0.running"
    started, said = folder / "command.json", folder / "command.out"

    def at_work() -> tuple[subprocess.Popen[bytes], int]:
        process = subprocess.Popen(line, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=PIPE)
        until(lambda: started.exists() and b"here" in said.read_bytes(), "the command")
        return process, json.loads(started.read_text())["pid"]

    first, trainer = at_work()
    with pytest.raises(StoreLockedError, match="another comparison trains in"):
        run(world, tmp_path, arms=["random"], seeds=1)
    assert started.exists(), "the run of the other one is left alone"
    first.send_signal(signal.SIGINT)
    first.communicate()
    assert first.returncode == 130 and has_ended(trainer)
    started.unlink()
    second, trainer = at_work()
    second.kill()
    second.communicate()
    assert not has_ended(trainer)
    run(world, tmp_path, arms=["random"], seeds=1)
    assert has_ended(trainer)


def hear_hang_ups() -> None:
    """As in a terminal, also where the tests themselves run under `nohup`."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.mark.parametrize("way", ["waits", "stays"])
def test_a_closed_terminal_and_an_impatient_stop_leave_no_command(
    world: Path, tmp_path: Path, way: str
) -> None:
    """One that ends when it is asked to, after SIGHUP; one that does not, after two Ctrl-C."""
    line = [sys.executable, "-m", "gracekit", "compare", str(world), "--arms", "random"]
    line += ["--seeds", "1", "-o", str(tmp_path), "--train", command(world, way)]
    said = tmp_path / "random-seed0.running/command.out"
    process = subprocess.Popen(
        line, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=PIPE, preexec_fn=hear_hang_ups
    )
    until(lambda: said.exists() and b"here" in said.read_bytes(), "the command")
    trainer = json.loads(said.with_name("command.json").read_text())["pid"]
    if way == "waits":
        process.send_signal(signal.SIGHUP)
    else:
        process.send_signal(signal.SIGINT)
        until(lambda: b"asked" in said.read_bytes(), "the first stop")
        process.send_signal(signal.SIGINT)
    process.communicate()
    try:
        until(lambda: has_ended(trainer), "the end of the command")
    finally:
        if not has_ended(trainer):
            os.kill(trainer, signal.SIGKILL)
    assert process.returncode == 130


def has_ended(pid: int) -> bool:
    """Ended, though perhaps nobody has taken note of it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_checkpoint_of_a_command_that_has_ended_is_whole(world: Path, tmp_path: Path) -> None:
    """Though no trainer_state.json says so, and an earlier one is older."""
    found = run(world, tmp_path, "stateless", arms=["random"], seeds=1)
    weights = json.loads((tmp_path / "random-seed0.json").read_text())["weights_digest"]
    run(world, tmp_path / "top", "top", arms=["random"], seeds=1)
    assert weights == json.loads((tmp_path / "top/random-seed0.json").read_text())["weights_digest"]
    assert any(f"{found.arms[0].num_steps} steps of 8" in remark for remark in found.remarks)


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
        ("gone", "left no model in"),
        ("best", "took 5 steps, expected 11"),
        ("untrained", "has the losses of the start"),
        ("twice", "went over the subset 2 times"),
        ("top-twice", "went over the subset 2 times"),
        ("torn", "the last checkpoint that the training command left cannot be used: .*truncated"),
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


@pytest.mark.parametrize(
    ("mode", "words"), [(0o755, "begins with the program that runs it"), (0o644, r"chmod \+x")]
)
def test_a_script_that_is_no_program(tmp_path: Path, mode: int, words: str) -> None:
    script = tmp_path / "train.sh"
    script.write_text("echo trained\n", encoding="utf-8")
    script.chmod(mode)
    with pytest.raises(MeasureError, match=words):
        run_words([str(script)], tmp_path, "the arm 'random', seed 0")


def test_a_program_that_is_not_there_and_an_arm_that_looks(world: Path, tmp_path: Path) -> None:
    for arm, text, words in (
        ("random", "no-such-program {subset} {output} {seed}", "cannot start the training command"),
        ("loss-top", command(world), "looks at the model in training"),
        ("aimed-stopped", command(world), "ends where versions of later checkpoints advise it"),
    ):
        with pytest.raises(GracekitError, match=words):
            gracekit.compare(world, output=tmp_path / arm, set={"compare.arms": [arm]}, train=text)
    both = {"compare.arms": ["random", "loss-top"]}  # said before anything is trained
    with pytest.raises(RecipeError, match="looks at the model in training"):
        gracekit.compare(world, output=tmp_path / "both", set=both, train=command(world))
    assert not list((tmp_path / "both").glob("*.json"))


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
