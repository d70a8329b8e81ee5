"""The quickstart end to end: trainer and watcher in processes of their own, on few samples."""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from gracekit.store import Store, verify
from gracekit.training import Coreset
from pipelines import quickstart, small_comparison, speaking
from pipelines.speaking import SILENCE_S, Silence, at_work, relay
from tests.patience import LAST_RESORT_S, until
from tests.stores import outcome

NUM_ROWS = 120
NUM_EPOCHS = 3


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run of the script; its output is beside it in `out.txt`."""
    folder = tmp_path_factory.mktemp("quickstart")
    recipe = yaml.safe_load((quickstart.HERE / "quickstart.yaml").read_text())
    recipe["data"] |= {
        "path": str(quickstart.ROOT / "data" / "train.jsonl"),
        "split": f"train[:{NUM_ROWS}]",
    }
    recipe["store"] = "run/store"
    recipe["selection"]["fraction"] = 0.2  # 24 samples: an epoch goes over a draw once
    recipe["refresh"] |= {
        "max_cost": None,
        "min_probe": 20,
        "min_fraction": 0.4,
        "max_fraction": 0.5,
    }
    recipe["propagation"] = {"min_measured": 20}
    (folder / "small.yaml").write_text(yaml.safe_dump(recipe))
    done = subprocess.run(
        [sys.executable, quickstart.__file__, "--recipe", folder / "small.yaml",
         "--epochs", str(NUM_EPOCHS), "--rows", str(NUM_ROWS), "--samples-per-epoch", "24"],
        capture_output=True, text=True, timeout=LAST_RESORT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "out.txt").write_text(done.stdout)
    return folder / "run"


def test_every_epoch_trained_on_its_version(run_dir: Path) -> None:
    """Drawn ids against manifests, without the script's own check."""
    lines = (run_dir / "drawn.jsonl").read_text().splitlines()
    epochs = [json.loads(line) for line in lines]
    assert [e["version"] for e in epochs] == [None, *range(1, NUM_EPOCHS)]
    for epoch in epochs:
        assert len(epoch["positions"]) == 24
        if epoch["version"] is not None:
            drawn = Store.open(run_dir / "store").drawn(epoch["version"])
            assert drawn is not None and drawn.draw is not None
            samples = Store.open(run_dir / "store").samples(epoch["version"])
            row_of = {name: row for row, name in enumerate(samples.sample_ids.tolist())}
            rows = np.array([row_of[name] for name in epoch["sample_ids"]])
            assert (drawn.draw.probabilities[rows] > 0).all()
            assert samples.source_rows[rows].tolist() == epoch["positions"]
            assert len(set(rows.tolist())) == len(rows)


def test_it_ends_with_what_the_coreset_is_worth_and_cost(run_dir: Path) -> None:
    out = (run_dir.parent / "out.txt").read_text()
    (line,) = (line for line in out.splitlines() if line.startswith("What came of it: "))
    assert line == quickstart.what_it_brought(run_dir / "store")
    cost = outcome_cost(Store.open(run_dir / "store"))
    assert f"; measuring for all versions cost {cost:.0%} of the training's compute" in line
    assert re.search("as well as about [0-9,]+ random ones|too few samples were measured", line)


def outcome_cost(store: Store) -> float:
    """Share of the training's compute, by the last version's account."""
    cost = store.header(store.versions()[-1]).cost
    assert cost is not None
    return cost.share


def test_the_first_version_measures_all_and_later_ones_a_part(run_dir: Path) -> None:
    store = Store.open(run_dir / "store")
    assert verify(store) == []
    measured = [outcome(store.header(v)).num_measured for v in store.versions()]
    assert measured[0] == NUM_ROWS
    assert all(count < NUM_ROWS for count in measured[1:])
    steps = [store.header(v).checkpoint.step for v in store.versions()]
    assert steps == sorted(set(steps))
    assert len(steps) == NUM_EPOCHS - 1


def test_it_says_what_a_newcomer_wants_to_know(run_dir: Path) -> None:
    out = (run_dir.parent / "out.txt").read_text()
    for expected in (
        "epoch 2 trains on coreset version 1",
        "version 1 · step",
        "audit corr",
        "distinct samples by the probabilities of version 1",
        "rows (jsonl)",
        "mean_loss",
        "Where to look next",
    ):
        assert expected in out
    assert "\x1b" not in out
    told = out[: out.index("Both are done")].splitlines()
    # On a busy machine it says in between that it is at work, which is no line of a process.
    of_processes = [line for line in told if not line.startswith("... ")]
    assert {
        line.partition("]")[0] for line in of_processes if line and "everything this" not in line
    } == {"[trainer ", "[gracekit"}
    assert any(re.match(r"\[gracekit\] \d\d:\d\d:\d\d waiting", line) for line in told)
    assert list((run_dir / "coreset").glob("*.jsonl"))


def test_it_ends_with_a_report(run_dir: Path) -> None:
    page = (run_dir / "report.html").read_text(encoding="utf-8")
    assert "gracekit report: train.jsonl" in page
    out = (run_dir.parent / "out.txt").read_text()
    assert "report.html   in a browser: file:///" in out
    assert out.index("What to do: ") < out.index("Where to look next")


def test_it_removes_only_what_it_made(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(SystemExit, match="thesis"):
        quickstart.clear(tmp_path, tmp_path / "store")
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    assert (tmp_path / "store").is_dir()


@pytest.mark.parametrize(
    ("versions", "is_right"), [([None, 1, 2], True), ([None, None, 2], False), ([None, 1], False)]
)
def test_the_check_of_drawn_samples_can_fail(
    run_dir: Path, tmp_path: Path, versions: list[int | None], is_right: bool
) -> None:
    ids = {v: Coreset.load(run_dir / "store", version=v).sample_ids for v in (1, 2)}
    lines = [
        {"epoch": i, "version": v, "positions": [0], "sample_ids": v and list(ids[v][:3])}
        for i, v in enumerate(versions, start=1)
    ]
    drawn = tmp_path / "drawn.jsonl"
    drawn.write_text("".join(json.dumps(line) + "\n" for line in lines))
    if is_right:
        quickstart.check_drawn_samples(drawn, run_dir / "store", 3)
    else:
        with pytest.raises(SystemExit):
            quickstart.check_drawn_samples(drawn, run_dir / "store", 3)


# --- the comparison at the end ---


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A comparison of seconds."""
    settings = {**small_comparison.SETTINGS, "seeds": 1, "epochs": 1, "evaluations": 1}
    monkeypatch.setattr(small_comparison, "SETTINGS", settings)
    monkeypatch.setattr(small_comparison, "NUM_DRAWN", 16)
    monkeypatch.setattr(small_comparison, "NUM_HELD_OUT", 20)
    monkeypatch.setattr(small_comparison, "NUM_ROWS", 60)


def prepare(run_dir: Path, place: Path) -> Path:
    checkpoint = run_dir / "checkpoints" / "checkpoint-3"
    recipe = run_dir.parent / "small.yaml"
    return small_comparison.prepare(run_dir, recipe, checkpoint, place)


@pytest.mark.usefixtures("small")
def test_the_held_out_rows_are_new_to_the_start_and_to_the_training(
    run_dir: Path, tmp_path: Path
) -> None:
    prepare(run_dir, tmp_path / "place")
    lines = (quickstart.ROOT / "data" / "train.jsonl").read_text().splitlines()
    first = json.loads((run_dir / "drawn.jsonl").read_text().splitlines()[0])
    seen = {lines[position] for position in first["positions"]}
    held_out = (tmp_path / "place" / "held-out.jsonl").read_text().splitlines()
    train = (tmp_path / "place" / "train.jsonl").read_text().splitlines()
    assert len(held_out) == 20 and 40 < len(train) <= 60
    assert not set(held_out) & seen
    assert not set(held_out) & set(train)
    assert {*held_out, *train} <= set(lines)


@pytest.mark.usefixtures("small")
def test_a_comparison_ends_in_words_and_is_kept(
    run_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "place"
    small_comparison.compare(prepare(run_dir, place))
    out = capfd.readouterr().out
    assert "With 1 seed nothing is shown" in out
    before = out[: out.index("control: random")].splitlines()
    told = [line for line in before if line.startswith("[compare ]")]
    assert any("run 1 of 2: random, seed 0: step 2 of 2" in line for line in told)
    assert any("selecting by what is measured at checkpoint-0" in line for line in told)
    assert "audit of" not in out and "trains on" not in out  # a refresh and a trainer in each run
    assert re.search(r"`recipe`.* `random`.*: [+-]\d\.\d+ \[[+-]\d\.\d+, [+-]\d\.\d+\]", out)
    assert "So small a comparison tells little: 2 steps" in out
    made = {file: file.stat().st_mtime_ns for file in place.rglob("*.json") if file.is_file()}
    assert made
    small_comparison.compare(prepare(run_dir, place))  # trains nothing
    assert "run 1 of" not in capfd.readouterr().out
    results = {file: file.stat().st_mtime_ns for file in made if "seed" in file.name}
    assert all(made[file] == time_ns for file, time_ns in results.items())


@pytest.mark.usefixtures("small")
def test_another_recipe_begins_anew_and_what_is_not_ours_is_left(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = prepare(run_dir, tmp_path / "place")
    (recipe.parent / "results").mkdir()
    monkeypatch.setattr(small_comparison, "NUM_DRAWN", 8)
    prepare(run_dir, tmp_path / "place")
    assert not (recipe.parent / "results").exists()
    assert yaml.safe_load(recipe.read_text())["selection"]["count"] == 8
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(SystemExit, match="was not made by an earlier run"):
        prepare(run_dir, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").exists()


@pytest.mark.usefixtures("small")
def test_other_rows_begin_anew_and_what_was_stopped_goes_on(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: object, **more: object) -> None:
        raise KeyboardInterrupt

    place, other = tmp_path / "place", run_dir.with_name("another-run")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copytree", stop)
        with pytest.raises(KeyboardInterrupt):
            prepare(run_dir, place)
    recipe = prepare(run_dir, place)
    assert recipe.is_file() and (place / "start").is_dir()
    (place / "results").mkdir()
    assert prepare(run_dir, place) == recipe and (place / "results").exists()
    shutil.copytree(run_dir, other)
    first, *rest = (other / "drawn.jsonl").read_text().splitlines()
    drawn = json.loads(first)
    drawn["positions"] = drawn["positions"][:-1]
    (other / "drawn.jsonl").write_text("\n".join([json.dumps(drawn), *rest]))
    prepare(other, place)
    assert not (place / "results").exists()


def test_only_the_first_recipe_is_compared_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*arguments: str) -> bool:
        monkeypatch.setattr(sys, "argv", ["quickstart.py", *arguments])
        return bool(quickstart.parse_options().comparison)

    assert asked()
    assert not asked("--no-comparison")
    assert not asked("--recipe", str(quickstart.HERE / "target.yaml"))
    assert asked("--recipe", str(quickstart.HERE / "target.yaml"), "--comparison")


def test_the_last_words_of_a_process_that_fails_are_heard(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quickstart, "RELAYS", [])
    code = "print('x\\n' * 20000); print('the reason'); raise SystemExit(3)"
    failing = quickstart.start("trainer ", ["-c", code])
    with pytest.raises(SystemExit, match="exit code 3; its messages are above"):
        quickstart.wait_for_both(failing, failing)
    assert "[trainer ] the reason" in capsys.readouterr().out.splitlines()


def test_lines_are_taken_though_nobody_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    stream = io.StringIO("one\ntwo\nthree\n")
    with os.fdopen(writer, "wb", buffering=0) as raw:
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, write_through=True))
        relay(stream, "trainer ").join()
        monkeypatch.undo()
    assert stream.read() == ""


def test_no_silence_lasts_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock of the test: a line once nobody has spoken for long, and only then."""
    now = 100.0
    silence = Silence(lambda: now)
    now += 60
    assert silence.sign() is None  # nothing is done
    silence.begin("gracekit report is at work")
    heard = []
    for second in range(1, 41):
        now += 1
        if second == 20:
            silence.broken()  # by a line of some process
        if (sign := silence.sign()) is not None:
            heard.append((second, sign))
    assert [second for second, _ in heard] == [8, 16, 28, 36]
    assert heard[1][1] == "... gracekit report is at work, for 16 s now"
    spoken = sorted([0, 20, 40, *(second for second, _ in heard)])
    assert max(b - a for a, b in itertools.pairwise(spoken)) < 10


def test_a_sign_of_life_comes_while_the_work_goes_on_and_not_afterwards(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(speaking, "SILENCE", Silence(lambda: now))
    told = ""
    with at_work("the trainer is at work", look_s=0.01):
        relay(io.StringIO("one\n"), "trainer ").join()
        now += SILENCE_S

        def is_told() -> bool:
            nonlocal told
            told += capsys.readouterr().out
            return "..." in told

        until(is_told, "a sign of life")
    assert told == "[trainer ] one\n... the trainer is at work, for 8 s now\n"
    now += 10 * SILENCE_S
    assert capsys.readouterr().out == "" and speaking.SILENCE.sign() is None
