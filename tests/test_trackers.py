"""`gracekit watch --tracker`: every version once, and a tracker that fails is no obstacle.

The trackers here are a user's own (`tests/plain_tracker.py`), in real processes;
`test_trackers_real.py` has TensorBoard, wandb and trackio.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import gracekit
from gracekit.cli import main
from gracekit.errors import RecipeError, StoreFormatError
from gracekit.recipe import Recipe
from gracekit.store import Store, StoreReader
from gracekit.store.retention import collect
from gracekit.trackers import tracking, worker
from gracekit.trackers.logged import Logged
from gracekit.trackers.names import TRACKERS, require_tracker
from gracekit.trackers.tracking import Tracking
from gracekit.trackers.values import MOST_GROUPS, version_values
from gracekit.training.reporting import version_numbers
from gracekit.version.log_numbers import PREFIX, log_numbers
from tests.patience import until
from tests.stores import make_draft, make_store
from tests.tiny import recipe_content, write_checkpoint, write_data

torch.set_num_threads(1)
LINES = "tests.plain_tracker:Lines"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_data(tmp_path / "train.jsonl")
    return tmp_path


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two versions."""
    made = make_store(tmp_path / "store")
    for number in (1, 2):
        made.commit(make_draft(made, f"refresh-{number}"))
    return made


def recipe_of(store: Store, **watch: Any) -> Recipe:
    content = {"data": {"path": "train.jsonl"}, "store": str(store.paths.root), "watch": watch}
    return Recipe.from_dict(content)


def place(root: Path, name: str = LINES) -> Path:
    return root / "trackers" / name.replace(":", ".")


def lines(root: Path, name: str = LINES) -> list[dict[str, Any]]:
    text = (place(root, name) / "lines.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def logged_versions(root: Path, name: str = LINES) -> list[int]:
    return [line["coreset/version"] for line in lines(root, name) if "step" in line]


def watch(folder: Path, *names: str, **options: Any) -> None:
    recipe = Recipe.from_dict(recipe_content(), folder=folder)
    gracekit.watch(recipe, folder / "run", trackers=names, **options)


# --- every version once ---


def test_each_version_is_logged_at_its_step_and_none_twice_after_a_restart(folder: Path) -> None:
    for steps in ((10, 20), (30,)):
        for step in steps:
            write_checkpoint(folder / "run", step)
        watch(folder, LINES, on_backlog="all", max_checkpoints=len(steps))
    watch(folder, LINES, once=True)  # makes nothing new, and so logs nothing
    found = lines(folder / "store")
    versions = [(line["step"], line["coreset/version"]) for line in found if "step" in line]
    assert versions == [(10, 1), (20, 2), (30, 3)]
    runs = {line["begin"] for line in found if "begin" in line}
    assert len(runs) == 1
    assert [line for line in found if "end" in line] == [{"end": True}] * 3
    assert found[0]["seed"] == recipe_content().get("seed", 0)
    assert (place(folder / "store") / "output.txt").read_text() == "hello from store\n"


def test_versions_of_other_commands_are_logged_by_the_next_daemon(store: Store) -> None:
    recipe = recipe_of(store, run_name="mine", project="ours")
    with Tracking(recipe, [LINES]):
        pass
    store.commit(make_draft(store, "refresh-3"))
    with Tracking(recipe, [LINES]):
        pass
    assert logged_versions(store.paths.root) == [1, 2, 3]
    assert lines(store.paths.root)[0]["project"] == "ours"
    assert "hello from mine" in (place(store.paths.root) / "output.txt").read_text()


def test_the_recipe_and_the_command_line_name_trackers(folder: Path) -> None:
    recipe = recipe_content() | {"watch": {"trackers": [LINES]}}
    (folder / "gracekit.yaml").write_text(yaml.safe_dump(recipe))
    write_checkpoint(folder / "run", 10)
    command = [sys.executable, "-m", "gracekit", "watch", "run", "--once", "--json"]
    moody = "tests.plain_tracker:Moody"
    for more, logs_to in (([], LINES), (["--tracker", moody], moody)):
        done = subprocess.run(
            [*command, *more], cwd=folder, capture_output=True, text=True, check=True
        )
        json.loads(done.stdout)  # what the tracker prints is not among the results
        assert logged_versions(folder / "store", logs_to) == [1]


def test_a_killed_daemon_leaves_a_run_that_goes_on(folder: Path) -> None:
    (folder / "gracekit.yaml").write_text(yaml.safe_dump(recipe_content()))
    write_checkpoint(folder / "run", 10)
    command = [sys.executable, "-m", "gracekit", "watch", "run", "--tracker", LINES]
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL) as process:
        file = place(folder / "store") / "logged.json"
        until(lambda: file.exists() and '"version": 1' in file.read_text(), "the first version")
        process.send_signal(signal.SIGKILL)
    # The tracker sees that it is alone, and closes.
    until(lambda: {"end": True} in lines(folder / "store"), "the end of the tracker")
    write_checkpoint(folder / "run", 20)
    watch(folder, LINES, once=True)
    assert logged_versions(folder / "store") == [1, 2]


# --- what is logged ---


def test_the_numbers_are_those_of_the_store(store: Store) -> None:
    found = version_values(store, 2)
    header, coreset = store.header(2), set(store.coreset(2)["row"].to_pylist())
    before = set(store.coreset(1)["row"].to_pylist())
    samples, scores = store.samples(2), store.scores(2)
    assert header.meter is not None and header.stats.overlap_with_parent is not None
    expected = {
        "version": 2.0,
        "step": float(header.checkpoint.step),
        "rows": float(len(coreset)),
        "samples": float(len(samples)),
        "value": header.meter.value,
        "value_kept": header.meter.value_kept,
        "measured_share": (header.stats.num_measured or 0) / len(samples),
        "churn": header.stats.overlap_with_parent.churn,
        "entered": float(len(coreset - before)),
        "left": float(len(before - coreset)),
        "loss": float(scores.scores["loss"].mean(dtype=np.float64)),
    }
    for number, name in enumerate(samples.group_names):
        rows = np.flatnonzero(samples.groups == number)
        expected[f"share/{name}"] = len(coreset & set(rows.tolist())) / len(coreset)
        expected[f"loss/{name}"] = scores.scores["loss"][rows].mean(dtype=np.float64)
    known = {f"coreset/{name}": value for name, value in expected.items() if np.isfinite(value)}
    assert found == pytest.approx(known)
    shares = [value for name, value in found.items() if name.startswith("coreset/share/")]
    assert sum(shares) == pytest.approx(1.0)


def test_the_first_version_has_no_exchange(store: Store) -> None:
    found = version_values(store, 1)
    assert not {"coreset/entered", "coreset/left", "coreset/churn"} & set(found)


def test_the_trainers_log_has_the_same_names(store: Store) -> None:
    of_trainer = version_numbers(store.paths.root, 2)
    assert of_trainer is not None
    of_daemon = version_values(store, 2)
    assert {PREFIX + name: value for name, value in of_trainer.items()}.items() <= of_daemon.items()


def test_a_version_that_gc_removed_is_logged_with_what_is_left(store: Store) -> None:
    collect(store, keep=1)
    reader = StoreReader.open(store.paths.root)
    assert reader.versions() == [2]
    removed = version_values(reader, 1)
    assert removed["coreset/version"] == 1.0
    assert not any("/share/" in name or "/loss" in name for name in removed)
    assert "coreset/entered" not in version_values(reader, 2)
    with Tracking(recipe_of(store), [LINES]):
        pass
    assert logged_versions(store.paths.root) == [1, 2]


def test_only_the_largest_groups_are_logged(folder: Path) -> None:
    groups = [f"g{min(i, 30):02d}" for i in range(60)]
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    rows = [{**rows[i % len(rows)], "id": f"n{i}", "source": g} for i, g in enumerate(groups)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    content = recipe_content()
    content["data"] |= {"group_column": "source"}
    content["data"].pop("id_column", None)
    write_checkpoint(folder / "run", 10)
    recipe = Recipe.from_dict(content, folder=folder)
    gracekit.refresh(recipe, folder / "run" / "checkpoint-10")
    values = version_values(StoreReader.open(recipe.store), 1)
    shares = [name for name in values if name.startswith("coreset/share/")]
    assert len(shares) == MOST_GROUPS
    assert "coreset/share/g30" in shares


@pytest.mark.parametrize("content", [{}, {"meter": None, "cost": {"cost_in_all": 5.0}}])
def test_numbers_that_are_not_known_are_left_out(content: dict[str, Any]) -> None:
    assert set(log_numbers(content)) <= {"cost_tokens"}


# --- a tracker that fails ---


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        r.getMessage()
        for r in caplog.records
        if r.levelno >= logging.WARNING and r.name.startswith("gracekit.trackers")
    ]


def test_a_full_disk_is_told_once_and_made_up_for(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    name = "tests.plain_tracker:Moody"
    root = store.paths.root
    place(root, name).mkdir(parents=True)
    broken = place(root, name) / "broken"
    broken.touch()

    def says(text: str) -> bool:
        return any(text in record.getMessage() for record in caplog.records)

    with Tracking(recipe_of(store), [name]) as tracking_:
        until(lambda: len(warnings_of(caplog)) == 1, "the warning")
        tracking_.tell()
        until(lambda: sum("failed" in r.getMessage() for r in caplog.records) == 2, "a second try")
        broken.unlink()
        tracking_.tell()
        until(lambda: says(f"{name} works again"), "the third try")
    (warning,) = warnings_of(caplog)
    assert f"the tracker {name} failed: No space left on device" in warning
    assert logged_versions(root, name) == [1, 2]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("Refused", "the key is not known here"),
        ("Dying", "its process ended with code 7; see "),
    ],
)
def test_the_daemon_goes_on_and_ends_well(
    folder: Path, caplog: pytest.LogCaptureFixture, kind: str, reason: str
) -> None:
    for step in (10, 20):
        write_checkpoint(folder / "run", step)
    watch(folder, f"tests.plain_tracker:{kind}", LINES, on_backlog="all", max_checkpoints=2)
    (warning,) = warnings_of(caplog)
    assert reason in warning
    assert Store.open(folder / "store").versions() == [1, 2]
    assert logged_versions(folder / "store") == [1, 2]  # the other one is not affected


def test_one_that_hangs_is_ended(
    store: Store, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "LOG_S", 0.2)
    with Tracking(recipe_of(store), ["tests.plain_tracker:Hanging"]):
        until(lambda: warnings_of(caplog), "the warning")
    assert "no answer within 0.2 s" in warnings_of(caplog)[0]


def test_the_end_does_not_wait_for_one_that_hangs(
    store: Store, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "CLOSE_S", 0.5)
    name = "tests.plain_tracker:Hanging"
    with Tracking(recipe_of(store), [name]):
        begun = place(store.paths.root, name) / "lines.jsonl"
        until(begun.exists, "its start")
    (warning,) = warnings_of(caplog)
    assert "did not end within 0.5 s" in warning
    assert Logged.begin(place(store.paths.root, name)).version == 0


def test_one_that_hangs_at_the_end_is_not_begun_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "CLOSE_S", 0.5)
    name, root = "tests.plain_tracker:Helped", store.paths.root
    with Tracking(recipe_of(store), [name]) as tracking_:
        until((place(root, name) / "lines.jsonl").exists, "its start")
        until(lambda: "helper" in lines(root, name)[-1], "its helper")
        tracking_.tell()  # so that there is something left to do
    until(lambda: all(name not in t.name for t in threading.enumerate()), "the end of its thread")
    assert sum("begin" in line for line in lines(root, name)) == 1
    helper = lines(root, name)[-1]["helper"]
    until(lambda: not is_running(helper), "the end of what it had started")


def is_running(pid: int) -> bool:
    """Whether there is such a process that has not ended."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def test_a_note_that_cannot_be_written_logs_no_version_twice(
    store: Store, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Logged, folder: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, Tracking(recipe_of(store), [LINES]) as tracking_:
        until((place(store.paths.root) / "lines.jsonl").exists, "its start")
        until(lambda: logged_versions(store.paths.root) == [1, 2], "both versions")
        patch.setattr(Logged, "save", fail)
        for number in (3, 4):
            store.commit(make_draft(store, f"refresh-{number}"))
            tracking_.tell()
            until(lambda: max(logged_versions(store.paths.root)) == store.latest(), "the next")
    (warning,) = warnings_of(caplog)
    assert "cannot be noted in" in warning and "No space left" in warning
    assert logged_versions(store.paths.root) == [1, 2, 3, 4]
    assert sum("begin" in line for line in lines(store.paths.root)) == 1


def test_a_damaged_version_is_logged_by_its_header(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    store.commit(make_draft(store, "refresh-3"))
    path = store.paths.scores(2)
    path.chmod(0o644)
    path.write_bytes(b"?" * path.stat().st_size)
    with Tracking(recipe_of(store), [LINES]):
        pass
    assert logged_versions(store.paths.root) == [1, 2, 3] and not warnings_of(caplog)
    has_loss = [f"{PREFIX}loss" in line for line in lines(store.paths.root) if "step" in line]
    assert has_loss == [True, False, True]


def test_a_file_of_another_kind_is_told_and_not_written_over(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    folder = place(store.paths.root)
    folder.mkdir(parents=True)
    (folder / "logged.json").write_text('{"run": "../../x", "version": 1}')
    with Tracking(recipe_of(store), [LINES]):
        pass
    (warning,) = warnings_of(caplog)
    assert "expected a run of eight hexadecimal digits" in warning
    assert "remove logged.json" in warning
    with pytest.raises(StoreFormatError):
        Logged.begin(folder)


def test_a_store_that_waits_for_its_first_checkpoint_can_be_made_later(folder: Path) -> None:
    recipe = Recipe.from_dict(recipe_content(), folder=folder)
    stop = threading.Event()
    options = {"trackers": [LINES], "stop": stop, "max_checkpoints": 1}
    thread = threading.Thread(target=gracekit.watch, args=(recipe, folder / "run"), kwargs=options)
    thread.start()
    try:
        begun = place(folder / "store") / "lines.jsonl"
        until(begun.exists, "the tracker's start")
        write_checkpoint(folder / "run", 10)
        thread.join()
    finally:
        stop.set()
        thread.join()
    assert logged_versions(folder / "store") == [1]


# --- names ---


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tensorbord", "there is no tracker 'tensorbord'; use tensorboard, wandb, trackio"),
        ("tests.plain_tracker:Gone", "has no 'Gone'"),
        ("nowhere.at_all:Class", "cannot import the tracker"),
        ("tests.plain_tracker:NoTracker", "it lacks log"),
        ("tests.plain_tracker:no_class", "is not a class"),
    ],
)
def test_a_name_that_is_none_is_refused_before_anything_starts(
    folder: Path, name: str, message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        watch(folder, name, once=True)
    assert not (folder / "store").exists()


def test_a_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name in TRACKERS:
        with pytest.raises(RecipeError, match=rf"pip install 'gracekit\[{name}\]'"):
            require_tracker(name)


def test_every_tracker_of_gracekit_has_an_extra() -> None:
    import tomllib

    text = (Path(__file__).parent.parent / "pyproject.toml").read_text()
    extras = tomllib.loads(text)["project"]["optional-dependencies"]
    for name, known in TRACKERS.items():
        assert any(entry.startswith(known.library) for entry in extras[name])


def test_the_command_line_says_it_in_one_line(folder: Path) -> None:
    from click.testing import CliRunner

    (folder / "gracekit.yaml").write_text(yaml.safe_dump(recipe_content()))
    recipe = str(folder / "gracekit.yaml")
    found = CliRunner().invoke(main, ["watch", str(folder), "-r", recipe, "--tracker", "mlflow"])
    assert found.exit_code == 2
    assert "there is no tracker 'mlflow'" in found.output
    assert "Traceback" not in found.output
