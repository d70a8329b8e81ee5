"""Where checkpoints are looked for: nested folders, several runs, the folder itself; messages."""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from gracekit.checkpoints import (
    check_checkpoint,
    find_checkpoints,
    survey,
    watch_checkpoints,
    why_none,
)
from gracekit.checkpoints.discover import candidates_below
from gracekit.checkpoints.layouts import LAYOUTS, QUIET_S
from gracekit.errors import CheckpointError, CheckpointIncompleteError
from gracekit.recipe import CheckpointSection
from gracekit.types import Checkpoint
from tests.test_checkpoints import SETTINGS, write_checkpoint

NOW = CheckpointSection(settle_s=0, on_backlog="all")
NESTED = {
    "checkpoint-3": 3,
    "v0-20261129-101010/checkpoint-3": 3,  # ms-swift
    "run-1/checkpoint-3": 3,
    "lightning_logs/version_0/checkpoints/step_3": 3,
    "global_step_3/actor/huggingface": 3,  # verl
    "project/experiment/step_3": 3,
    "epoch_0_step_3/model/consolidated": 3,  # NeMo AutoModel
    "epoch_0_step_3/model": 3,
    "step_3": 3,
    "final": 0,
}


def place(path: Path, *, state: bool = False) -> Path:
    """A whole model there, and trainer_state.json if wanted."""
    write_checkpoint(path.parent / "x-3", state=state).rename(path)
    return path


@pytest.mark.parametrize("name", NESTED)
def test_they_are_found_where_trainers_nest_them(tmp_path: Path, name: str) -> None:
    (tmp_path / "wandb/run-1/files").mkdir(parents=True)
    (tmp_path / "wandb/run-1/files/config.yaml").write_text("")
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    place(tmp_path / name, state="checkpoint-" in name)
    (found,) = find_checkpoints(tmp_path, SETTINGS)
    assert (tmp_path / name).is_relative_to(found.path)
    assert found.step == NESTED[name]
    assert check_checkpoint(found.path, SETTINGS) == found
    assert check_checkpoint(tmp_path / name, SETTINGS).step == NESTED[name]
    assert [f.path for f in survey(found.path, SETTINGS)] == [found.path], "one, named itself"


def test_how_deep_is_looked_is_a_setting(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a/b/c/checkpoint-3")
    deep = {depth: SETTINGS.model_copy(update={"depth": depth}) for depth in (0, 3, 4)}
    assert [len(find_checkpoints(tmp_path, s)) for s in deep.values()] == [0, 0, 1]
    assert len(find_checkpoints(tmp_path / "a/b/c/checkpoint-3", deep[0])) == 1


def test_a_folder_that_is_a_checkpoint_and_holds_some(tmp_path: Path) -> None:
    """The final model is saved where the checkpoints are; what is in a checkpoint is none."""
    run = write_checkpoint(tmp_path / "run-1", state=False)
    for step in (10, 20):
        inner = write_checkpoint(run / f"checkpoint-{step}")
        (inner / f"global_step{step}").mkdir()
        (inner / f"global_step{step}/x_model_states.pt").touch()
    found = find_checkpoints(tmp_path, SETTINGS)
    assert {c.path.name for c in found} == {"run-1", "checkpoint-10", "checkpoint-20"}
    assert find_checkpoints(run, SETTINGS) == found


def test_a_model_without_a_number_has_the_step_of_the_last_before_it(tmp_path: Path) -> None:
    for i, name in enumerate(("checkpoint-10", "checkpoint-20", "final", "checkpoint-30")):
        path = write_checkpoint(tmp_path / "run-1" / name, state="-" in name)
        for file in path.iterdir():
            os.utime(file, (i, i))
    write_checkpoint(tmp_path / "run-1", state=False)  # the last of all
    names = ["checkpoint-10", "checkpoint-20", "final", "checkpoint-30", "run-1"]
    found = find_checkpoints(tmp_path, SETTINGS)
    assert {c.path.name: c.step for c in found} == dict(
        zip(names, (10, 20, 20, 30, 30), strict=True)
    )
    assert find_checkpoints(tmp_path / "run-1", SETTINGS) == found
    for checkpoint in found:
        assert check_checkpoint(checkpoint.path, SETTINGS) == checkpoint
    assert find_checkpoints(tmp_path / "run-1/final", SETTINGS) == [found[-3]]


def test_a_store_and_the_base_model_hold_no_checkpoints(tmp_path: Path) -> None:
    """Watching the folder in which everything lies, also while the first refresh runs."""
    write_checkpoint(tmp_path / "run/checkpoint-3")
    write_checkpoint(tmp_path / "base-9", state=False)
    write_checkpoint(tmp_path / "gracekit-store/pins/checkpoint-3")
    (tmp_path / "gracekit-store/.lock").touch()
    settings = SETTINGS.model_copy(update={"base_model": str(tmp_path / "base-9")})
    (found,) = find_checkpoints(tmp_path, settings)
    assert found.path == tmp_path / "run/checkpoint-3"
    assert len(find_checkpoints(tmp_path / "base-9", settings)) == 1


def test_links_to_what_is_below_are_left_out(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a/checkpoint-3")
    (tmp_path / "latest").symlink_to("a/checkpoint-3")
    (tmp_path / "a/up").symlink_to(tmp_path)
    assert len(find_checkpoints(tmp_path, SETTINGS)) == 1


# --- several runs


def test_the_run_that_began_last_is_followed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Two that train at one time: it is always the same one that is followed."""
    times = {"a/checkpoint-10": 10, "b/checkpoint-5": 20, "a/checkpoint-20": 30}
    for name, at in times.items():
        for file in write_checkpoint(tmp_path / name).iterdir():
            os.utime(file, (at, at))
    with caplog.at_level(logging.INFO, "gracekit.checkpoints"):
        (found,) = find_checkpoints(tmp_path, SETTINGS)
    assert found.path == tmp_path / "b/checkpoint-5"
    assert caplog.messages == [
        f"{tmp_path} holds checkpoints of 2 runs (a, b); following b, which began last; to follow "
        "another one, name its folder"
    ]
    assert len(find_checkpoints(tmp_path / "a", SETTINGS)) == 2


def test_a_restart_in_a_new_folder_is_followed_at_once(tmp_path: Path) -> None:
    """And rotation, which deletes a run's first checkpoint, does not make it a later one."""

    def save(name: str, at: int) -> None:
        for file in write_checkpoint(tmp_path / name).iterdir():
            os.utime(file, (at, at))

    script: list[Callable[[], object]] = [
        lambda: save("v1/checkpoint-10", 40),
        lambda: save("v0/checkpoint-40", 50),
        lambda: shutil.rmtree(tmp_path / "v0/checkpoint-20"),
        lambda: save("v1/checkpoint-20", 60),
    ]
    save("v0/checkpoint-20", 20)

    def wait(seconds: float) -> bool:
        if not script:
            return True
        script.pop(0)()
        return False

    seen = watch_checkpoints(
        tmp_path, NOW, is_done=lambda c: False, stop=threading.Event(), wait=wait
    )
    names = [str(c.path.relative_to(tmp_path)) for c in seen]
    assert names == ["v0/checkpoint-20", "v1/checkpoint-10", "v1/checkpoint-20"]


def aged(path: Path, at: float) -> Path:
    for file in path.iterdir():
        os.utime(file, (at, at))
    return path


@pytest.mark.parametrize("name", ["models/reward-model", "eval/Llama-3", "reward-model"])
def test_a_model_of_another_kind_takes_no_run_away(tmp_path: Path, name: str) -> None:
    """Also in the folder of the checkpoints; where nothing else is there it is used."""
    (tmp_path / name).parent.mkdir(exist_ok=True)
    aged(place(tmp_path / name), 50)
    (alone,) = find_checkpoints(tmp_path, SETTINGS)
    assert alone.path == tmp_path / name
    for step, at in ((10, 10), (20, 20)):
        aged(write_checkpoint(tmp_path / f"checkpoint-{step}"), at)
    assert [c.step for c in find_checkpoints(tmp_path, SETTINGS)] == [10, 20]


def test_the_run_in_the_folder_itself_is_preferred(tmp_path: Path) -> None:
    for name, at in (("checkpoint-10", 10), ("checkpoint-20", 20), ("b/checkpoint-5", 30)):
        aged(write_checkpoint(tmp_path / name), at)
    assert [c.step for c in find_checkpoints(tmp_path, SETTINGS)] == [10, 20]


def test_where_the_followed_run_is_silent_one_that_goes_on_is_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    times = {"checkpoint-10": 10, "checkpoint-20": 20, "b/checkpoint-5": 30, "b/checkpoint-6": 39}
    for name, at in times.items():
        aged(write_checkpoint(tmp_path / name), at)
    assert [c.step for c in find_checkpoints(tmp_path, SETTINGS)] == [10, 20]
    aged(write_checkpoint(tmp_path / "b/checkpoint-7"), 40)
    with caplog.at_level(logging.INFO, "gracekit.checkpoints"):
        assert [c.step for c in find_checkpoints(tmp_path, SETTINGS)] == [5, 6, 7]
    assert "following b, which goes on while the others are silent" in caplog.text
    aged(write_checkpoint(tmp_path / "checkpoint-30"), 41)
    assert [c.step for c in find_checkpoints(tmp_path, SETTINGS)] == [10, 20, 30]


def test_refused_checkpoints_hold_no_run(tmp_path: Path) -> None:
    aged(write_checkpoint(tmp_path / "a/checkpoint-10"), 10)
    aged(write_checkpoint(tmp_path / "b/checkpoint-5"), 20)
    refused: set[Checkpoint] = set()
    found = watch_checkpoints(
        tmp_path, NOW, is_done=lambda c: False, is_refused=refused.__contains__,
        stop=threading.Event(), wait=lambda s: True,
    )  # fmt: skip
    names = []
    for checkpoint in found:
        refused.add(checkpoint)
        names.append(checkpoint.path.name)
    assert names == ["checkpoint-5", "checkpoint-10"]


@pytest.mark.parametrize("command", [None, "convert {src} {dst}"])
def test_a_numbered_folder_of_runs_is_no_checkpoint(tmp_path: Path, command: str | None) -> None:
    settings = SETTINGS.model_copy(update={"convert_cmd": command})
    (tmp_path / "run-1/sub").mkdir(parents=True)
    (tmp_path / "run-1/README.md").touch()
    write_checkpoint(tmp_path / "run-1/checkpoint-10")
    for step in (10, 20):
        (tmp_path / f"zero-1/global_step{step}").mkdir(parents=True)
        (tmp_path / f"zero-1/global_step{step}/x_model_states.pt").touch()
    write_checkpoint(tmp_path / "exp_1/lora_a/checkpoint-10")
    (tmp_path / "exp_1/lora_a/adapter_config.json").write_text("{}")
    (tmp_path / "version_0/checkpoints").mkdir(parents=True)
    (tmp_path / "version_0/hparams.yaml").touch()
    (tmp_path / "version_0/checkpoints/a.ckpt").touch()
    names = {f.name for f in survey(tmp_path, settings)}
    assert {"run-1/checkpoint-10", "zero-1/global_step10", "exp_1/lora_a/checkpoint-10"} <= names
    assert not names & {"run-1", "zero-1", "exp_1", "version_0"}


def test_parts_that_are_written_first_are_no_checkpoints(tmp_path: Path) -> None:
    for name in ("pytorch_model_fsdp_0", "optimizer_0"):
        (tmp_path / "step_10" / name).mkdir(parents=True)
        (tmp_path / "step_10" / name / "__0_0.distcp").touch()
    assert {f.name for f in survey(tmp_path, SETTINGS)} <= {"step_10"}


def test_weights_alone_beside_whole_states_wait_for_the_rest(tmp_path: Path) -> None:
    for step in (10, 20):
        path = write_checkpoint(tmp_path / f"step-{step}", state=False)
        for name in ("config.json", "training_args.bin"):
            (path / name).unlink()
    (tmp_path / "step-10/random_states_0.pkl").touch()
    settings = SETTINGS.model_copy(update={"base_model": str(write_checkpoint(tmp_path / "x-1"))})
    with pytest.raises(CheckpointIncompleteError, match="random_states_0"):
        check_checkpoint(tmp_path / "step-20", settings)
    (tmp_path / "step-10/random_states_0.pkl").unlink()
    layout = LAYOUTS["pretrained"](settings)
    assert layout.settle_s(tmp_path / "step-20") == QUIET_S


def test_a_folder_of_shards_that_lightning_calls_ckpt_has_its_step(tmp_path: Path) -> None:
    assert LAYOUTS["pretrained"]().step(tmp_path / "epoch=0-step=20.ckpt") == 20


def test_a_large_folder_does_not_hide_a_run_and_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gracekit.checkpoints.places._MOST_FOLDERS", 10)
    for i in range(20):
        (tmp_path / f"data/d{i}").mkdir(parents=True)
    assert "only 10 folders were looked at" in why_none(tmp_path, SETTINGS)
    write_checkpoint(tmp_path / "run/checkpoint-10")
    assert len(find_checkpoints(tmp_path, SETTINGS)) == 1


# --- what is said


def messages(root: Path, caplog: pytest.LogCaptureFixture, looks: int = 3) -> list[str]:
    """What the watcher says in so many looks."""
    left = iter([False] * (looks - 1) + [True])
    with caplog.at_level(logging.INFO, "gracekit.checkpoints"):
        found = watch_checkpoints(
            root, NOW, is_done=lambda c: False, stop=threading.Event(), wait=lambda s: next(left)
        )
        assert list(found) == []
    return caplog.messages


def test_nothing_usable_is_said_at_once_and_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "train.log").touch()
    (said,) = messages(tmp_path, caplog)
    assert said == (
        f"waiting: there is no checkpoint in {tmp_path} yet, nor down to 4 folders below it "
        "(--depth): it holds 1 folder and 1 file (logs, train.log); expected a folder such as "
        "checkpoint-N with config.json and *.safetensors, or a file *.ckpt; docs/checkpoints.md "
        "lists what is read"
    )


def test_an_empty_folder_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (said,) = messages(tmp_path, caplog)
    assert "it is empty" in said


def test_the_same_words_are_said_wherever_one_asks(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_checkpoint(tmp_path / "sft/checkpoint-20")
    (tmp_path / "sft/checkpoint-20/trainer_state.json").unlink()
    reason = "trainer_state.json is not there yet"
    assert messages(tmp_path, caplog) == [f"waiting for sft/checkpoint-20: {reason}"]
    assert why_none(tmp_path, NOW).endswith(f"sft/checkpoint-20: {reason}")
    (finding,) = survey(tmp_path, NOW)
    assert (finding.state, finding.reason, finding.step) == ("waiting", reason, 20)
    with pytest.raises(CheckpointIncompleteError, match=reason):
        check_checkpoint(tmp_path / "sft/checkpoint-20", NOW)


def test_a_mistaken_path_names_what_is_below(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a/checkpoint-20")
    with pytest.raises(CheckpointError, match=r"name one of them: a/checkpoint-20"):
        check_checkpoint(tmp_path, SETTINGS)


# --- markers


def test_the_marker_of_a_step_counts_for_what_is_nested_in_it(tmp_path: Path) -> None:
    inner = tmp_path / "epoch_0_step_3/model/consolidated"
    inner.parent.mkdir(parents=True)
    place(inner)
    (tmp_path / "epoch_0_step_3/.incomplete").touch()
    for path in (tmp_path / "epoch_0_step_3", inner):
        with pytest.raises(CheckpointIncompleteError, match=r"\.incomplete"):
            check_checkpoint(path, SETTINGS)
    settings = SETTINGS.model_copy(update={"ready_marker": "STABLE"})
    (tmp_path / "epoch_0_step_3/.incomplete").unlink()
    assert find_checkpoints(tmp_path, settings) == []
    (tmp_path / "epoch_0_step_3/STABLE").touch()
    assert check_checkpoint(inner, settings).step == 3


def test_the_file_in_which_verl_names_its_last_step(tmp_path: Path) -> None:
    inner = tmp_path / "global_step_20/actor/huggingface"
    inner.parent.mkdir(parents=True)
    place(inner)
    tracker = tmp_path / "latest_checkpointed_iteration.txt"
    for text, reason in (("", "holds no step yet"), ("10", "says 10, expected 20")):
        tracker.write_text(text)
        with pytest.raises(CheckpointIncompleteError, match=reason):
            check_checkpoint(tmp_path / "global_step_20", SETTINGS)
    for text in ("20", "30"):
        tracker.write_text(text)
        assert check_checkpoint(tmp_path / "global_step_20", SETTINGS).layout == "verl"


def test_a_checkpoint_n_of_another_trainer_is_used_in_the_end(tmp_path: Path) -> None:
    """Plain save_pretrained into folders that are called as the Trainer's: never lost."""
    path = write_checkpoint(tmp_path / "checkpoint-20", state=False)
    (path / "training_args.bin").unlink()
    with pytest.raises(CheckpointIncompleteError, match="without it a whole model is used when"):
        check_checkpoint(path, SETTINGS)
    for file in path.iterdir():
        at = file.stat().st_mtime - QUIET_S
        os.utime(file, (at, at))
    assert check_checkpoint(path, SETTINGS).step == 20
    (path / "training_args.bin").touch()
    with pytest.raises(CheckpointIncompleteError, match=r"trainer_state\.json is not there yet"):
        check_checkpoint(path, SETTINGS)


def test_a_later_checkpoint_that_lacks_a_file_waits_for_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of the run's first one it is known what a whole one holds; others need no quiet."""
    settings = CheckpointSection(settle_s=12, poll_interval_s=5, on_backlog="all")
    late = tmp_path / "checkpoint-30/chat_template.jinja"
    now = [0.0]

    def save(step: int) -> None:
        write_checkpoint(tmp_path / f"checkpoint-{step}")
        (tmp_path / f"checkpoint-{step}/chat_template.jinja").touch()

    def save_without() -> None:
        save(30)
        late.unlink()

    script: list[Callable[[], object]] = [*[lambda: None] * 3, lambda: save(20), save_without,
                                          lambda: None, late.touch]  # fmt: skip
    save(10)

    def wait(seconds: float) -> bool:
        now[0] += seconds
        if not script:
            return True
        script.pop(0)()
        return False

    with caplog.at_level(logging.INFO, "gracekit.checkpoints"):
        seen = [
            (c.step, now[0])
            for c in watch_checkpoints(
                tmp_path, settings, is_done=lambda c: False, stop=threading.Event(),
                clock=lambda: now[0], wait=wait,
            )
        ]  # fmt: skip
    assert seen == [(10, 15.0), (20, 20.0), (30, 35.0)]
    assert caplog.messages == [
        "waiting for checkpoint-10: it is the run's first, and may be a copy under way, so 12 s "
        "without a change must pass",
        "waiting for checkpoint-30: it has no chat_template.jinja, as those before it, and may be "
        "a copy under way, so 12 s without a change must pass",
    ]


def test_a_large_tree_is_not_looked_through_to_its_end(tmp_path: Path) -> None:
    for i in range(40):
        (tmp_path / f"d{i}/e/f").mkdir(parents=True)
    few = SETTINGS.model_copy(update={"depth": 1})
    assert len(candidates_below(tmp_path, few, LAYOUTS)) == 40
