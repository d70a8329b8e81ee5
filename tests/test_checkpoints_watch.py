"""The watcher, on scripted directory changes and a clock that only the script moves."""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from gracekit.checkpoints import watch_checkpoints
from gracekit.checkpoints.layouts import QUIET_S
from gracekit.errors import CheckpointError
from gracekit.recipe import CheckpointSection
from gracekit.types import Checkpoint
from tests.patience import LAST_RESORT_S

LATEST = CheckpointSection(on_backlog="latest", poll_interval_s=5, settle_s=0)
SETTLED = LATEST.model_copy(update={"settle_s": 12})
ALL = LATEST.model_copy(update={"on_backlog": "all"})
Change = Callable[[], object]


class World:
    """A run directory whose i-th change happens while the watcher waits for the i-th time."""

    def __init__(self, root: Path, start: float = 1000.0) -> None:
        self.root = root
        self.now = 0.0
        self._mtime = start
        self.stop = threading.Event()
        self.script: list[Change] = []

    def save(self, name: str, *, state: bool = True) -> Path:
        """Write a checkpoint, every one later than all before."""
        self._mtime += 10
        directory = self.root / name
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "config.json").write_text("{}")
        save_file({"a": np.ones(2, dtype=np.float32)}, directory / "model.safetensors")
        if state:
            step = int(name.rpartition("-")[2])
            (directory / "trainer_state.json").write_text(json.dumps({"global_step": step}))
        for file in directory.iterdir():
            os.utime(file, (self._mtime, self._mtime))
        return directory

    def delete(self, name: str) -> None:
        shutil.rmtree(self.root / name)

    def wait(self, seconds: float) -> bool:
        self.now += seconds
        if not self.script:
            self.stop.set()
        else:
            self.script.pop(0)()
        return self.stop.is_set()

    def watch(
        self,
        settings: CheckpointSection,
        done: Iterable[int] = (),
        is_refused: Callable[[Checkpoint], bool] = lambda checkpoint: False,
    ) -> Iterable[Checkpoint]:
        finished = set(done)
        return watch_checkpoints(
            self.root,
            settings,
            is_done=lambda c: c.step in finished,
            is_refused=is_refused,
            stop=self.stop,
            clock=lambda: self.now,
            wait=self.wait,
        )

    def steps(self, settings: CheckpointSection, done: Iterable[int] = ()) -> list[int]:
        return [c.step for c in self.watch(settings, done)]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "run")


def nothing() -> None:
    """A wait during which nothing changes."""


@pytest.mark.parametrize(
    ("settings", "expected"), [(LATEST, [30, 40, 60]), (ALL, [10, 20, 30, 40, 50, 60])]
)
def test_backlog(world: World, settings: CheckpointSection, expected: list[int]) -> None:
    for step in (20, 10, 30):
        world.save(f"checkpoint-{step}")
    world.script = [
        nothing,
        lambda: world.save("checkpoint-40"),
        nothing,
        lambda: (world.save("checkpoint-50"), world.save("checkpoint-60")),
        nothing,
    ]
    # A copied run, whose times tell nothing: they still come by step.
    mtimes = {30: 1, 10: 2, 20: 3}
    for step, mtime in mtimes.items():
        for file in (world.root / f"checkpoint-{step}").iterdir():
            os.utime(file, (mtime, mtime))
    assert world.steps(settings) == expected


@pytest.mark.parametrize(
    ("settings", "done", "expected"),
    [(LATEST, {30}, []), (LATEST, {20}, [30]), (ALL, {20}, [10, 30]), (ALL, {10, 20, 30}, [])],
)
def test_what_is_done_is_skipped(
    world: World, settings: CheckpointSection, done: set[int], expected: list[int]
) -> None:
    for step in (10, 20, 30):
        world.save(f"checkpoint-{step}")
    world.script = [nothing, nothing]
    assert world.steps(settings, done) == expected


def test_a_backlog_that_grows_while_the_caller_works(world: World) -> None:
    world.save("checkpoint-10")
    watch = iter(world.watch(LATEST))
    assert next(watch).step == 10
    world.save("checkpoint-20")
    world.save("checkpoint-30")
    assert next(watch).step == 30
    assert list(watch) == []


def test_all_leaves_out_what_was_rotated_away(world: World) -> None:
    for step in (10, 20, 30):
        world.save(f"checkpoint-{step}")
    watch = iter(world.watch(ALL))
    assert next(watch).step == 10
    world.delete("checkpoint-20")
    assert [c.step for c in watch] == [30]


@pytest.mark.parametrize("settings", [LATEST, ALL])
def test_a_checkpoint_comes_again_only_when_it_changes(
    world: World, settings: CheckpointSection
) -> None:
    """The caller refused it (is_done stays False): no retry until the trainer writes it anew."""
    world.save("checkpoint-10")
    world.script = [
        nothing,
        lambda: (world.root / "checkpoint-10/rng_state_1.pth").touch(),  # another rank, later
        nothing,
        lambda: world.save("checkpoint-10"),
        nothing,
        lambda: world.delete("checkpoint-10"),
        nothing,
        lambda: world.save("checkpoint-10"),
    ]
    assert world.steps(settings) == [10, 10, 10]


def test_a_directory_that_is_out_of_sight_for_a_while_is_not_new(world: World) -> None:
    directory = world.save("checkpoint-10")
    hidden = world.root / ".checkpoint-10"
    world.script = [lambda: directory.rename(hidden), lambda: hidden.rename(directory), nothing]
    assert world.steps(LATEST) == [10] and world.script == []


def test_a_run_that_began_anew_is_followed(world: World) -> None:
    world.save("checkpoint-90")
    world.script = [lambda: world.save("checkpoint-10"), lambda: world.save("checkpoint-20")]
    assert world.steps(LATEST, done={90}) == [10, 20]


def test_it_waits_for_what_is_being_written(world: World, caplog: pytest.LogCaptureFixture) -> None:
    state = world.root / "checkpoint-20/trainer_state.json"
    world.script = [
        lambda: world.save("checkpoint-20", state=False),
        nothing,
        lambda: state.write_text('{"global'),
        nothing,
        lambda: state.write_text('{"global_step": 20}'),
    ]
    with caplog.at_level(logging.INFO, "gracekit.checkpoints"):
        assert world.steps(LATEST) == [20]
    assert caplog.messages == [
        f"waiting for {world.root}: there is no such directory yet",
        "waiting for checkpoint-20: nothing says that it is complete, so 60 s without a change "
        "must pass",
        "waiting for checkpoint-20: trainer_state.json does not parse: it is cut off or damaged",
    ]


def test_a_copy_without_its_times_is_looked_at_again(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    directory = world.save("checkpoint-20")
    os.utime(directory / "trainer_state.json", (900, 900))
    written = (directory / "model.safetensors").stat().st_mtime
    monkeypatch.setattr("gracekit.checkpoints.base_layout.time.time", lambda: written + world.now)
    world.script = [nothing] * (int(QUIET_S / LATEST.poll_interval_s) - 1)
    with caplog.at_level(logging.INFO, "gracekit.checkpoints"):
        assert world.steps(LATEST) == []
        world.script, world.stop = [nothing], threading.Event()
        assert world.steps(LATEST) == [20]
    assert ["times were not kept" in text for text in caplog.messages] == [True]


def test_a_marker_beside_the_checkpoint_is_seen_to_go(world: World) -> None:
    world.save("checkpoint-20")
    marker = world.root / "checkpoint-20-unfinished"
    marker.touch()
    world.script = [nothing, nothing, marker.unlink]
    assert world.steps(LATEST) == [20] and world.script == []


@pytest.mark.parametrize("trainer", ["deepspeed", "verl"])
def test_what_the_run_names_as_its_last_is_looked_at_each_time(world: World, trainer: str) -> None:
    """It is written after a checkpoint, in which nothing changes then."""
    tracker, content, step = {
        "deepspeed": ("latest", "global_step{}", "global_step{}/mp_rank_00_model_states.pt"),
        "verl": ("latest_checkpointed_iteration.txt", "{}", "global_step_{}/huggingface"),
    }[trainer]
    settings = ALL.model_copy(update={"convert_cmd": "convert {src} {dst}"})
    seen: list[tuple[int, float]] = []

    def save(number: int) -> None:
        place = world.root / step.format(number)
        place.parent.mkdir(parents=True)
        if trainer == "deepspeed":
            place.write_bytes(b"a state")
        else:
            world.save(str(place.relative_to(world.root)), state=False)

    def name(number: int) -> None:
        (world.root / tracker).write_text(content.format(number))

    world.root.mkdir()
    save(1)
    name(1)
    world.script = [nothing, lambda: save(2), nothing, lambda: name(2), nothing]
    for checkpoint in world.watch(settings):
        seen.append((checkpoint.step, world.now))
    assert seen == [(1, 0), (2, 20)]


@pytest.mark.parametrize("is_link", [False, True])
def test_latest_beside_plain_models_changes_nothing_about_the_older_ones(
    world: World, is_link: bool
) -> None:
    """Only layouts that read it look at it; another run beside this one is not taken meanwhile."""
    latest = world.root / "a/latest"

    def save(number: int) -> None:
        world.save(f"a/step-{number}", state=False)
        latest.unlink(missing_ok=True)
        if is_link:
            latest.symlink_to(f"step-{number}")
        else:
            latest.write_text(f"step-{number}")

    world.save("b/step-1", state=False)
    save(1)
    world.script = [nothing, nothing, nothing, lambda: save(2), nothing, nothing, nothing, nothing]
    names = [c.path.relative_to(world.root).as_posix() for c in world.watch(SETTLED)]
    assert names == ["a/step-1", "a/step-2"]


def test_an_unusable_checkpoint_is_reported_once(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    broken = world.save("checkpoint-20")
    (broken / "adapter_config.json").write_text("{}")
    world.script = [
        nothing,
        nothing,
        lambda: (broken / "README.md").touch(),
        (broken / "adapter_config.json").unlink,
    ]
    with caplog.at_level(logging.INFO, "gracekit.checkpoints"):
        assert world.steps(LATEST) == [20]
    (record,) = caplog.records
    assert record.levelname == "WARNING", caplog.messages
    assert record.message.startswith("cannot use checkpoint-20: ") and "PEFT" in record.message


def test_without_a_marker_it_must_be_quiet_for_a_while(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Looks every 5 s, quiet for 12 s: the third look after the last change."""
    directory = world.save("step-7", state=False)
    times: list[float] = []
    world.script = [
        nothing,
        nothing,
        lambda: (directory / "tokenizer.json").write_text("{}"),  # at 15 s
        *[nothing] * 5,
    ]
    with caplog.at_level(logging.INFO, "gracekit.checkpoints"):
        for checkpoint in world.watch(SETTLED):
            assert (checkpoint.step, checkpoint.layout) == (7, "pretrained")
            times.append(world.now)
    assert times == [30.0]
    assert caplog.messages == [
        "waiting for step-7: nothing says that it is complete, so 12 s without a change must pass"
    ]


def test_a_ready_marker_needs_no_quiet_time(world: World) -> None:
    settings = LATEST.model_copy(update={"ready_marker": "DONE"})
    directory = world.save("step-7", state=False)
    world.script = [nothing, nothing, nothing, nothing, (directory / "DONE").touch]
    watch = iter(world.watch(settings))
    assert next(watch).step == 7 and world.now == 25.0


def test_a_root_that_cannot_be_watched_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot list the checkpoint directory"):
        World(tmp_path / "file").steps(LATEST)


def test_stop_ends_a_long_wait_at_once(tmp_path: Path) -> None:
    stop = threading.Event()
    settings = CheckpointSection(poll_interval_s=3600)
    found: list[Checkpoint] = []

    def run() -> None:
        found.extend(
            watch_checkpoints(tmp_path, settings, is_done=lambda checkpoint: False, stop=stop)
        )

    thread = threading.Thread(target=run)
    thread.start()
    stop.set()
    thread.join(timeout=LAST_RESORT_S)
    assert not thread.is_alive() and found == []


def test_a_real_writer_is_followed_in_order(tmp_path: Path) -> None:
    """No script and no fake clock: another thread trains, rotates, and ends."""
    world = World(tmp_path / "run", start=time.time())
    stop = threading.Event()
    settings = CheckpointSection(poll_interval_s=0.001, on_backlog="all", settle_s=0)

    def train() -> None:
        for step in range(1, 9):
            world.save(f"checkpoint-{step}")
            if step > 2:
                world.delete(f"checkpoint-{step - 2}")
            time.sleep(0.01)

    trainer = threading.Thread(target=train)
    trainer.start()
    seen: list[int] = []
    for checkpoint in watch_checkpoints(world.root, settings, is_done=lambda c: False, stop=stop):
        if checkpoint.step not in seen:  # `save` sets the times after the last file is written
            seen.append(checkpoint.step)
        if checkpoint.step == 8:
            stop.set()
    trainer.join()
    assert seen == sorted(seen) and seen[-1] == 8


@pytest.mark.parametrize(("settings", "expected"), [(LATEST, [30, 20, 10]), (ALL, [10, 20, 30])])
def test_behind_one_that_could_not_be_used_stands_an_older_one(
    world: World, settings: CheckpointSection, expected: list[int]
) -> None:
    for step in (10, 20, 30):
        world.save(f"checkpoint-{step}")
    world.script = [nothing]
    refused: set[Checkpoint] = set()
    seen: list[int] = []
    for checkpoint in world.watch(settings, is_refused=refused.__contains__):
        seen.append(checkpoint.step)
        if checkpoint.step != 10:
            refused.add(checkpoint)
    assert seen == expected


def test_only_newer_ones_than_those_that_are_done_stand_behind(world: World) -> None:
    for step in (10, 20):
        world.save(f"checkpoint-{step}")
    refused: set[Checkpoint] = set()
    watch = iter(world.watch(LATEST, is_refused=refused.__contains__))
    assert next(watch).step == 20
    world.save("checkpoint-30")
    world.save("checkpoint-40")
    world.script = [lambda: world.save("checkpoint-40"), nothing]
    for expected in (40, 30, 40):  # 40 was written anew, 10 was passed over for 20
        checkpoint = next(watch)
        assert checkpoint.step == expected
        if checkpoint.step == 40:
            refused.add(checkpoint)
    assert list(watch) == [] and world.script == []


def test_a_trainer_that_deletes_each_before_it_has_settled_is_followed(world: World) -> None:
    """Saves every 5 s and keeps one: none is unchanged for 12 s."""

    def rotate(step: int) -> None:
        world.delete(f"checkpoint-{step - 10}")
        world.save(f"checkpoint-{step}")

    world.save("checkpoint-10")
    world.script = [lambda step=step: rotate(step) for step in (20, 30, 40, 50, 60)]  # type: ignore[misc]
    assert world.steps(SETTLED) == [40, 50, 60]
