"""What is foreign fails in any way, and concerns only itself: `foreign`, numbers, damaged inputs.

`CORPUS` is what was found by fuzzing and ended the daemon, a command, or gc before; the fuzzing
goes on from fixed seeds, a little in each run of the suite and more in `make torture`.

Above 400 lines for the corpus, which is data.
"""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gracekit import documents
from gracekit.checkpoints import check_checkpoint, is_of_trl_sft, pin, watch_checkpoints
from gracekit.checkpoints.layouts import LAYOUTS, QUIET_S, TrainerLayout
from gracekit.checkpoints.pins import require_unchanged
from gracekit.errors import CheckpointError, CheckpointIncompleteError
from gracekit.foreign import HIGHEST, finite_number, foreign, whole_number
from gracekit.process import birth_of, is_alive
from gracekit.recipe import CheckpointSection
from gracekit.store import ailment, read_heartbeat
from gracekit.store.files.leases import LIFE_S, followers
from gracekit.store.files.paths import StorePaths
from tests.foreign_copies import READERS_OF_COPIES
from tests.foreign_readers import (
    BEAT,
    LEASE,
    READERS,
    SETTINGS,
    Reader,
    _whole,
    as_json,
    damage,
    write_files,
)

SEED = 20260521
ALL_READERS = [*READERS, *READERS_OF_COPIES]
NUM_IN_SUITE = {"optimizer": 40, "tokenizer": 40, "model": 30, "publisher": 25, "mirror": 25}
"""Damaged inputs of readers that take long; 100 of the others."""
NUM_IN_TORTURE = {
    "optimizer": 200, "tokenizer": 300, "model": 400, "publisher": 400, "mirror": 400,
}  # fmt: skip
"""The same in `make torture`; 1,700 of the others, 20,000 and more in all."""


# --- the mechanism ---


class PanicError(BaseException):
    """As of a library in Rust: no `Exception`."""


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (KeyError("dtype"), "cannot read it: KeyError: 'dtype'"),
        (RecursionError("maximum recursion depth"), "cannot read it: it is nested too deep"),
        (MemoryError(), "cannot read it: there is not enough memory for the size that it claims"),
        (OverflowError("too large"), "cannot read it: OverflowError: too large"),
        (PermissionError(13, "Permission denied", "/a/b"), "cannot read /a/b: Permission denied"),
        (OSError("odd"), "cannot read it: OSError: odd"),
        (ValueError("no header\nand more"), "cannot read it: no header"),
        (StopIteration(), "cannot read it: StopIteration"),
        (PanicError("index out of bounds"), "cannot read it: PanicError: index out of bounds"),
        (AssertionError("x" * 5000), "cannot read it: AssertionError: " + "x" * 300),
    ],
)
def test_every_failure_is_one_error_with_its_reason(
    error: BaseException, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.DEBUG, "gracekit.foreign"),
        pytest.raises(CheckpointError) as caught,
        foreign("it", CheckpointError),
    ):
        raise error
    assert str(caught.value) == reason and caught.value.__cause__ is error
    assert type(error).__name__ in caplog.text, "the traceback of a bug of ours can be had"


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), SystemExit(3), CheckpointIncompleteError("a reason")]
)
def test_the_end_of_work_and_our_own_errors_pass(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, foreign("it", CheckpointError):
        raise error
    assert caught.value is error


@given(st.none() | st.booleans() | st.text() | st.floats() | st.integers() | st.just(10**400))
def test_numbers_from_outside(value: Any) -> None:
    whole, number = whole_number(value), finite_number(value)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    assert (whole is not None) == (type(value) is int and 0 <= value <= HIGHEST)
    assert whole in (None, value)
    assert number is None or (is_number and abs(number) < float("inf") and number == value * 1.0)
    if is_number and abs(value) < 1e300:
        assert number is not None


# --- what was found ---


def header(text: bytes) -> Callable[[Path], object]:
    content = struct.pack("<Q", len(text)) + text
    return lambda checkpoint: (checkpoint / "model.safetensors").write_bytes(content)


def text(name: str, content: str) -> Callable[[Path], object]:
    return lambda checkpoint: (checkpoint / name).write_text(content)


def index(content: str) -> Callable[[Path], object]:
    def spoil(checkpoint: Path) -> None:
        (checkpoint / "model.safetensors").unlink()
        (checkpoint / "model.safetensors.index.json").write_text(content)

    return spoil


def link(name: str, target: str) -> Callable[[Path], object]:
    def spoil(checkpoint: Path) -> None:
        (checkpoint / name).unlink(missing_ok=True)
        (checkpoint / name).symlink_to(target)

    return spoil


def renamed(name: str) -> Callable[[Path], object]:
    return lambda checkpoint: checkpoint.rename(checkpoint.with_name(name))


def loop(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint)
    checkpoint.with_name("other").symlink_to(checkpoint.name)
    checkpoint.symlink_to("other")


CONFIG = '{"model_type": "llama", %s}'
CORPUS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no dtype": (header(b'{"a": {"shape": [0], "data_offsets": [0, 0]}}'), "no valid dtype"),
    "dtype is a number": (
        header(b'{"a": {"dtype": 5, "shape": [0], "data_offsets": [0, 0]}}'),
        "no valid dtype",
    ),
    "endless offset": (
        header(b'{"a": {"dtype": "F32", "shape": [0], "data_offsets": [0, 1e999]}}'),
        "no valid dtype",
    ),
    "offset is true": (
        header(b'{"a": {"dtype": "U8", "shape": [1], "data_offsets": [false, true]}}'),
        "no valid dtype",
    ),
    "shape of a number": (
        header(b'{"a": {"dtype": "F32", "shape": 3, "data_offsets": [0, 0]}}'),
        "no valid dtype",
    ),
    "shape that claims": (
        header(b'{"a": {"dtype": "F32", "shape": [9999999999], "data_offsets": [0, 0]}}'),
        "in 0 bytes",
    ),
    "a million dimensions": (
        header(
            b'{"a": {"dtype": "F32", "data_offsets": [0, 0], "shape": ['
            + b"2," * 1_000_000
            + b"2]}}"
        ),
        "no valid dtype",
    ),
    "entry is a list": (header(b'{"a": [1]}'), "no valid dtype"),
    "header is a list": (header(b"[]"), "its header is not valid"),
    "quantisation is a list": (
        text("config.json", CONFIG % '"quantization_config": [1]'),
        "does not name its method",
    ),
    "method is a list": (
        text("config.json", CONFIG % '"quantization_config": {"quant_method": [1]}'),
        "does not name its method",
    ),
    "shard is a list": (index('{"weight_map": {"a": ["x"]}}'), "names a file outside"),
    "adapter is a list": (text("adapter_config.json", "[]"), "does not parse"),
    "adapter of a list": (text("adapter_config.json", '{"peft_type": ["LORA"]}'), "of type"),
    "step beyond int64": (renamed("checkpoint-" + "9" * 30), "expected a training step from 0"),
    "step below zero": (text("trainer_state.json", '{"global_step": -20}'), "from 0 to"),
    "step is true": (text("trainer_state.json", '{"global_step": true}'), "from 0 to"),
    "endless step": (text("trainer_state.json", '{"global_step": 1e999}'), "from 0 to"),
    "config is a link that loops": (link("config.json", "config.json"), "not there yet"),
    "a folder that loops": (loop, "Too many levels of symbolic links"),
}
HARMLESS: dict[str, Callable[[Path], object]] = {
    "a link that loops": link("notes", "notes"),
    "a link upwards": link("up", ".."),
    "a link to nowhere": link("notes", "nowhere"),
    "a folder with a name at the limit": lambda c: c.with_name("checkpoint-30" + "x" * 240).mkdir(),
    "a file beside": lambda c: c.with_name("checkpoint-30").write_text(""),
    "a link that loops beside": lambda c: c.with_name("best").symlink_to("best"),
    "a name that is no text": lambda c: c.with_name("step-\udcff-7").mkdir(),
}


def steps(run: Path, settings: CheckpointSection = SETTINGS, **named: Any) -> list[int]:
    """What the watcher yields in two looks."""
    looks = iter([False, True])
    found = watch_checkpoints(
        run,
        settings.model_copy(update={"on_backlog": "all"}),
        is_done=lambda c: False,
        stop=threading.Event(),
        wait=lambda seconds: next(looks),
        **named,
    )
    return [checkpoint.step for checkpoint in found]


def age(folder: Path) -> None:
    for path in folder.rglob("*"):
        os.utime(path, (1e9, 1e9), follow_symlinks=False)


@pytest.mark.parametrize("name", CORPUS)
def test_a_poisoned_folder_costs_only_itself(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    spoil, reason = CORPUS[name]
    _whole(tmp_path)
    spoil(tmp_path / "run/checkpoint-20")
    age(tmp_path)
    with caplog.at_level(logging.INFO, "gracekit.checkpoints"):
        assert steps(tmp_path / "run") == [10]
    assert any(reason in said for said in caplog.messages) and "Traceback" not in caplog.text
    assert len(caplog.messages) == (2 if name == "a folder that loops" else 1)
    if name != "step beyond int64":
        with pytest.raises(CheckpointError):
            check_checkpoint(tmp_path / "run/checkpoint-20", SETTINGS)


@pytest.mark.parametrize("name", HARMLESS)
def test_what_is_odd_beside_it_keeps_no_checkpoint_back(tmp_path: Path, name: str) -> None:
    _whole(tmp_path)
    HARMLESS[name](tmp_path / "run/checkpoint-20")
    age(tmp_path)
    assert steps(tmp_path / "run") == [10, 20]


def test_a_root_that_loops_is_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "run").symlink_to("other")
    (tmp_path / "other").symlink_to("run")
    with caplog.at_level(logging.INFO, "gracekit.checkpoints"):
        assert steps(tmp_path / "run") == []
    assert "Too many levels of symbolic links; trying again" in caplog.text


class PanickingLayout(TrainerLayout):
    """A layout, such as a plug-in may bring, with a bug for one folder."""

    def matches(self, directory: Path) -> bool:
        """As the other."""
        if directory.name == "checkpoint-20":
            raise PanicError("index out of bounds")
        return super().matches(directory)


def test_a_layout_with_a_bug_costs_one_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _whole(tmp_path)
    found = steps(tmp_path / "run", layouts=LAYOUTS | {"hf-trainer": PanickingLayout})
    assert found == [10]
    assert caplog.messages == [
        f"cannot use checkpoint-20: cannot read {tmp_path}/run/checkpoint-20: PanicError: index "
        "out of bounds"
    ]


PERMISSIONS = """
import os, sys, threading
from pathlib import Path
from gracekit.checkpoints import watch_checkpoints
from gracekit.recipe import CheckpointSection
if os.getuid() == 0:
    os.seteuid(65534)
looks = iter([False, True])
found = watch_checkpoints(
    Path(sys.argv[1]), CheckpointSection(on_backlog="all", settle_s=0), stop=threading.Event(),
    is_done=lambda c: False, wait=lambda s: next(looks),
)
print([c.step for c in found])
"""


def test_files_without_permission_cost_their_checkpoint() -> None:
    run = Path(tempfile.mkdtemp())  # pytest's own are for their owner alone
    try:
        _whole(run)
        (run / "run/checkpoint-20/config.json").chmod(0)
        shutil.copytree(run / "run/checkpoint-10", run / "run/checkpoint-30")
        (run / "run/checkpoint-30").chmod(0)
        run.chmod(0o755)
        done = subprocess.run(
            [sys.executable, "-c", PERMISSIONS, str(run / "run")],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parent.parent,
        )
        assert done.stdout == "[10]\n", done.stderr
        for step in (20, 30):
            assert f"cannot use checkpoint-{step}: " in done.stderr
        assert "Permission denied" in done.stderr and "Traceback" not in done.stderr
    finally:
        (run / "run/checkpoint-30").chmod(0o700)
        shutil.rmtree(run)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "heartbeat.json")
    (tmp_path / "folder.json").mkdir()
    assert read_heartbeat(tmp_path)["state"] == "unreadable"
    for name in ("heartbeat.json", "folder.json", "/dev/zero"):
        with pytest.raises(OSError, match="expected a file"):
            documents.read_json(tmp_path / name)


# --- clocks ---


def test_a_time_ahead_is_not_waited_for(tmp_path: Path) -> None:
    """Of a host whose clock is ahead, or before this one's was set back."""
    _whole(tmp_path)
    weights = tmp_path / "run/checkpoint-20/model.safetensors"
    for ahead, expected in ((QUIET_S / 2, [10]), (86400.0, [10, 20])):
        os.utime(weights, (time.time() + ahead,) * 2)
        assert steps(tmp_path / "run") == expected


def test_settling_goes_by_a_steady_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of the wall jumps back and ahead meanwhile."""
    _whole(tmp_path)
    (tmp_path / "run/checkpoint-20/trainer_state.json").unlink()
    (tmp_path / "run/checkpoint-20").rename(tmp_path / "run/step-20")
    now, wall = [0.0], iter([1.8e9, 1.0, 4e9] + [2e9] * 50)
    monkeypatch.setattr("gracekit.checkpoints.base_layout.time.time", lambda: next(wall))
    seen: list[tuple[int, float]] = []

    def wait(seconds: float) -> bool:
        now[0] += seconds
        return now[0] > 60

    settings = CheckpointSection(on_backlog="all", poll_interval_s=5, settle_s=12)
    for checkpoint in watch_checkpoints(
        tmp_path / "run",
        settings,
        is_done=lambda c: False,
        stop=threading.Event(),
        clock=lambda: now[0],
        wait=wait,
    ):
        seen.append((checkpoint.step, now[0]))
    assert seen == [(10, 0.0), (20, 15.0)]


def test_files_written_anew_by_a_clock_that_was_set_back_are_noticed(tmp_path: Path) -> None:
    _whole(tmp_path)
    checkpoint = check_checkpoint(tmp_path / "run/checkpoint-20", SETTINGS)
    with pin(checkpoint, tmp_path / "pins") as pinned:
        require_unchanged(pinned)
        for path in checkpoint.path.iterdir():
            os.utime(path, (9e8, 9e8))
        with pytest.raises(CheckpointIncompleteError, match="written again"):
            require_unchanged(pinned)


# --- processes: numbers that are given again, other hosts, other containers ---


def test_a_process_is_told_from_a_later_one_of_its_number() -> None:
    pid, birth = os.getpid(), birth_of(os.getpid())
    assert is_alive(pid) and is_alive(pid, birth)
    if birth is None:
        pytest.skip("this system has no /proc")
    boot, space, start = birth.split()
    assert not is_alive(pid, f"{boot} {space} {int(start) - 1}"), "an earlier process"
    assert not is_alive(pid, f"another-boot {space} {start}"), "before the last start of the host"
    assert is_alive(pid, f"{boot} pid:[1] {start}"), "another container: it cannot be told"
    for odd in (0, -1, True, 2**31, 2**70, 1.5, "1", None, [1]):
        assert not is_alive(odd)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert not is_alive(ended.pid)


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({}, "refreshing"),
        ({"birth": "earlier"}, "dead"),
        ({"birth": "earlier", "host": "elsewhere"}, "refreshing"),
        ({"birth": "earlier", "state": "stopped"}, "stopped"),
        ({"birth": None}, "refreshing"),  # of an earlier release
        ({"pid": 2**70}, "refreshing"),  # no number of a process: it is left out
        ({"unix_time": 1e999}, "unreadable"),
        ({"unix_time": True}, "unreadable"),
        ({"state": ["waiting"]}, "unreadable"),
    ],
)
def test_a_heartbeat_is_believed_as_far_as_it_makes_sense(
    tmp_path: Path, changes: dict[str, Any], state: str
) -> None:
    birth = birth_of(os.getpid())
    if birth is None:
        pytest.skip("this system has no /proc")
    earlier = " ".join([*birth.split()[:2], "1"])
    content = BEAT | {"pid": os.getpid(), "host": socket.gethostname(), "birth": birth} | changes
    content = {k: earlier if v == "earlier" else v for k, v in content.items()}
    (tmp_path / "heartbeat.json").write_text(json.dumps(content))
    found = read_heartbeat(tmp_path, now=1.8e9 + 5)
    assert found["state"] == state
    reason = ailment(found, max_age_s=120)
    assert (reason is None) == (state == "refreshing")
    if state != "unreadable":
        assert found["seconds_since_beat"] == 5.0


@pytest.mark.parametrize(
    ("changes", "holds"),
    [
        ({}, True),
        ({"birth": "earlier"}, False),
        ({"birth": None}, True),
        ({"birth": "earlier", "host": "elsewhere"}, True),
        ({"host": "elsewhere", "unix_time": 1.8e9 + 9 * LIFE_S}, True),  # a clock ahead
        ({"host": "elsewhere", "unix_time": 1.8e9 - 2 * LIFE_S}, False),
        ({"unix_time": 1.8e9 - 2 * LIFE_S}, True),  # it runs here, whatever the clock says
        ({"pid": 2**70}, False),
        ({"versions": [1, 1e999]}, False),
        ({"versions": [True]}, False),
    ],
)
def test_a_lease_holds_as_long_as_its_trainer_may_live(
    tmp_path: Path, changes: dict[str, Any], holds: bool
) -> None:
    birth = birth_of(os.getpid())
    if birth is None:
        pytest.skip("this system has no /proc")
    here = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "birth": birth,
        "pid_namespace": birth.split()[1],
    }
    content = LEASE | here | changes
    earlier = " ".join([*birth.split()[:2], "1"])
    content = {k: earlier if v == "earlier" else v for k, v in content.items()}
    write_files(tmp_path, {"leases/a.json": as_json(content)})
    (found,) = followers(StorePaths(tmp_path), now=1.8e9)
    assert found.holds == holds


# --- damaged inputs ---


def _report(seed: int, ended: dict[str, Counter[str]]) -> str:
    total = sum(map(Counter.total, ended.values()))
    lines = [f"seed {seed}: {total:,} damaged inputs, 0 tracebacks, 0 hangs"]
    for name, found in ended.items():
        counts = ", ".join(f"{how} {count:,}" for how, count in sorted(found.items()))
        lines.append(f"  {name}: {counts}")
    return "\n".join(lines)


@pytest.mark.parametrize("reader", ALL_READERS, ids=lambda reader: reader.name)
def test_damaged_inputs_concern_only_themselves(tmp_path: Path, reader: Reader) -> None:
    count = NUM_IN_SUITE.get(reader.name, 100)
    ended = damage(reader, tmp_path / "world", SEED, count)
    assert ended.total() == count


@pytest.mark.torture
@pytest.mark.timeout(7200)
def test_twenty_thousand_damaged_inputs(tmp_path: Path) -> None:
    seed = int(os.environ.get("GRACEKIT_SEED", SEED + 1))
    ended = {}
    for reader in ALL_READERS:
        count = NUM_IN_TORTURE.get(reader.name, 1700)
        ended[reader.name] = damage(reader, tmp_path / reader.name, seed, count)
    print("\n" + _report(seed, ended))
    assert sum(map(Counter.total, ended.values())) >= 20_000
    assert all(
        found["fine"] and len(found) > 1
        for name, found in ended.items()
        if name not in ("card", "processes", "optimizer")
    )


def test_damage_is_the_same_from_the_same_seed() -> None:
    content = READERS[0].mutate["run/checkpoint-20/config.json"]
    first, second = (
        [content(b'{"a": [1, {"b": 2}]}', random.Random(f"{k}")) for k in range(50)]
        for _ in range(2)
    )
    assert first == second and len(set(first)) > 30


def test_a_deep_card_takes_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader of YAML would take a minute; it is not even asked."""
    card = tmp_path / "README.md"
    head = "---\ntags:\n- trl\n- sft\n{}\n---\n"
    card.write_text(head.format("x: " + "[]" * 10))
    assert not is_of_trl_sft(tmp_path / "checkpoint-10"), "no YAML"
    card.write_text(head.format("x: [1]"))
    assert is_of_trl_sft(tmp_path / "checkpoint-10")
    card.write_text(head.format("x: &a [1]\ny: *a"))
    assert not is_of_trl_sft(tmp_path / "checkpoint-10"), "aliases may multiply"
    monkeypatch.setattr(yaml, "parse", lambda *arguments: pytest.fail("asked"))
    card.write_text(head.format("x: " + "[" * 20_000))
    assert not is_of_trl_sft(tmp_path / "checkpoint-10")
