"""Discovery and pinning of checkpoints, on files written without torch."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save, save_file

from gracekit.checkpoints import check_checkpoint, describe_architecture, find_checkpoints, pin
from gracekit.checkpoints.layouts import QUIET_S
from gracekit.checkpoints.pins import require_unchanged
from gracekit.checkpoints.weights import read_header
from gracekit.errors import (
    CheckpointError,
    CheckpointIncompleteError,
    CheckpointVanishedError,
    StoreWriteError,
)
from gracekit.recipe import CheckpointSection
from gracekit.types import Checkpoint

SETTINGS = CheckpointSection()
TENSORS: dict[str, NDArray[Any]] = {
    "a": np.arange(6, dtype=np.float32),
    "b": np.ones((2, 3), dtype=np.float16),
}
Break = Callable[[Path], object]


def write_checkpoint(
    directory: Path, *, sharded: bool = False, state: bool = True, scale: float = 1.0
) -> Path:
    """A checkpoint as transformers' Trainer lays it out; its step is the directory's number."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text('{"model_type": "llama"}')
    tensors = {name: (t * scale).astype(t.dtype) for name, t in TENSORS.items()}
    if sharded:
        for i, (name, tensor) in enumerate(tensors.items(), start=1):
            save_file({name: tensor}, directory / f"model-0000{i}-of-00002.safetensors")
        weight_map = {n: f"model-0000{i}-of-00002.safetensors" for i, n in enumerate(tensors, 1)}
        (directory / "model.safetensors.index.json").write_text(
            json.dumps({"metadata": {}, "weight_map": weight_map})
        )
    else:
        save_file(tensors, directory / "model.safetensors")
    (directory / "tokenizer.json").write_text("{}")
    (directory / "training_args.bin").write_bytes(b"a pickle")
    if state:
        step = int(directory.name.rpartition("-")[2])
        (directory / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return directory


def truncate(name: str, num_bytes: int) -> Break:
    """Cut a file to so many bytes, or by so many where negative, as an unfinished write does."""

    def cut(directory: Path) -> None:
        content = (directory / name).read_bytes()
        (directory / name).write_bytes(content[:num_bytes])
        os.utime(directory / "trainer_state.json")

    return cut


def put(name: str, text: str) -> Break:
    def write(directory: Path) -> None:
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(text)

    return write


def drop(*names: str) -> Break:
    def remove(directory: Path) -> None:
        for name in names:
            (directory / name).unlink()

    return remove


def replace_weights(name: str) -> Break:
    """Nothing but weights of another kind, in a checkpoint that is otherwise complete."""

    def replace(directory: Path) -> None:
        for file in directory.glob("model*"):
            file.unlink()
        put(name, "x")(directory)

    return replace


def age_state(directory: Path) -> None:
    old = (directory / "model.safetensors").stat().st_mtime - 60
    os.utime(directory / "trainer_state.json", (old, old))


def empty(directory: Path) -> None:
    for file in directory.iterdir():
        file.unlink()


INDEX = "model.safetensors.index.json"
INCOMPLETE: dict[str, tuple[Break, str]] = {
    "empty directory": (empty, "trainer_state.json is not there yet"),
    "no state": (drop("trainer_state.json"), "trainer_state.json is not there yet"),
    "state cut off": (put("trainer_state.json", '{"global_'), "trainer_state.json does not parse"),
    "state is garbage": (put("trainer_state.json", "[1]"), "trainer_state.json does not parse"),
    "state without a step": (put("trainer_state.json", "{}"), "does not parse"),
    "step is text": (put("trainer_state.json", '{"global_step": "20"}'), "expected a whole number"),
    "another step": (put("trainer_state.json", '{"global_step": 10}'), "10, expected 20"),
    "weights newer than state": (age_state, "model.safetensors is newer than trainer_state.json"),
    "no config": (drop("config.json"), "config.json is not there yet"),
    "config cut off": (put("config.json", '{"model'), "config.json does not parse"),
    "config is a list": (put("config.json", "[]"), "config.json does not parse"),
    "no weights": (drop("model.safetensors"), "model.safetensors .* is not there yet"),
    "weights are empty": (truncate("model.safetensors", 0), "truncated: it has only 0 bytes"),
    "weights end in the length": (truncate("model.safetensors", 5), "truncated: it has only 5"),
    "weights end after the length": (truncate("model.safetensors", 8), "ends within its header"),
    "weights end in the header": (truncate("model.safetensors", 40), "ends within its header"),
    "weights lack a byte": (truncate("model.safetensors", -1), r"truncated: \d+ of \d+ bytes"),
    "weights are text": (put("model.safetensors", "<html>404</html>"), "not a safetensors file"),
    "interrupted": (put("checkpoint-is-incomplete.txt", ""), "being written"),
    "unfinished inside": (put(".incomplete", ""), "being written"),
    "unfinished beside": (
        lambda d: d.with_name(d.name + "-unfinished").touch(),
        "checkpoint-20-unfinished beside it",
    ),
}
INCOMPLETE_SHARDED: dict[str, tuple[Break, str]] = {
    "no shard": (
        drop("model-00002-of-00002.safetensors"),
        "model-00002-.*, which .* names, is not",
    ),
    "no index": (drop(INDEX), f"{INDEX} is not there yet"),
    "index cut off": (truncate(INDEX, -3), f"{INDEX} is cut off"),
    "index of nothing": (put(INDEX, '{"weight_map": {}}'), "names no weights"),
    "index leads outside": (put(INDEX, '{"weight_map": {"a": "../a.safetensors"}}'), "outside"),
    "shard of another": (
        lambda d: shutil.copy(
            d / "model-00001-of-00002.safetensors", d / "model-00002-of-00002.safetensors"
        ),
        "model-00002-of-00002.safetensors does not hold b",
    ),
    "shard cut off": (truncate("model-00001-of-00002.safetensors", -2), "model-00001.* truncated"),
}
UNSUPPORTED: dict[str, tuple[Break, str]] = {
    "pickle": (replace_weights("pytorch_model.bin"), "pickled weights"),
    "pickle shards": (replace_weights("pytorch_model-00001-of-00002.bin"), "pickled weights"),
    "gguf": (replace_weights("x.Q4_1.gguf"), "GGUF"),
    "deepspeed": (replace_weights("global_step20/mp_rank_00_model_states.pt"), "ZeRO"),
    "adapter": (put("adapter_config.json", "{}"), "a PEFT adapter .*merge"),
    "quantised": (put("config.json", '{"quantization_config": {"bits": 4}}'), "quantised"),
}


@pytest.mark.parametrize("sharded", [False, True])
def test_a_complete_checkpoint_is_found(tmp_path: Path, sharded: bool) -> None:
    directory = write_checkpoint(tmp_path / "checkpoint-20", sharded=sharded)
    (found,) = find_checkpoints(tmp_path, SETTINGS)
    assert (found.step, found.path, found.layout) == (20, directory, "hf-trainer")
    assert found == check_checkpoint(directory, SETTINGS)
    assert found.completed_at == (directory / "trainer_state.json").stat().st_mtime


def test_a_copy_without_its_times_is_used_once_it_is_quiet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = write_checkpoint(tmp_path / "checkpoint-20")
    age_state(directory)
    written = (directory / "model.safetensors").stat().st_mtime
    monkeypatch.setattr("gracekit.checkpoints.base_layout.time.time", lambda: written + QUIET_S - 1)
    with pytest.raises(CheckpointIncompleteError, match=r"is a copy whose times were not kept"):
        check_checkpoint(directory, SETTINGS)
    monkeypatch.setattr("gracekit.checkpoints.base_layout.time.time", lambda: written + QUIET_S)
    assert check_checkpoint(directory, SETTINGS).step == 20


@pytest.mark.parametrize(("harm", "reason"), INCOMPLETE.values(), ids=INCOMPLETE.keys())
def test_an_incomplete_checkpoint_says_why(tmp_path: Path, harm: Break, reason: str) -> None:
    _expect_refusal(tmp_path, harm, reason, CheckpointIncompleteError, sharded=False)


@pytest.mark.parametrize(
    ("harm", "reason"), INCOMPLETE_SHARDED.values(), ids=INCOMPLETE_SHARDED.keys()
)
def test_incomplete_shards_say_why(tmp_path: Path, harm: Break, reason: str) -> None:
    _expect_refusal(tmp_path, harm, reason, CheckpointIncompleteError, sharded=True)


@pytest.mark.parametrize(("harm", "reason"), UNSUPPORTED.values(), ids=UNSUPPORTED.keys())
def test_an_unsupported_checkpoint_says_what_to_do(
    tmp_path: Path, harm: Break, reason: str
) -> None:
    _expect_refusal(tmp_path, harm, reason, CheckpointError, sharded=False)


def _expect_refusal(
    tmp_path: Path, harm: Break, reason: str, error: type[CheckpointError], *, sharded: bool
) -> None:
    broken = write_checkpoint(tmp_path / "checkpoint-20", sharded=sharded)
    write_checkpoint(tmp_path / "checkpoint-10")
    harm(broken)
    with pytest.raises(error, match=reason) as caught:
        check_checkpoint(broken, SETTINGS)
    assert type(caught.value) is error and str(broken) in str(caught.value)
    assert [c.step for c in find_checkpoints(tmp_path, SETTINGS)] == [10]


@given(
    num_bytes=st.integers(0, 200),
    flip=st.tuples(st.integers(0, 150), st.integers(1, 255)) | st.none(),
)
def test_headers_are_judged_as_safetensors_does(
    num_bytes: int, flip: tuple[int, int] | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = bytearray(save(TENSORS, metadata={"format": "pt"}))
    if flip and flip[0] < len(content):
        content[flip[0]] ^= flip[1]
    path = tmp_path_factory.getbasetemp() / "header.safetensors"
    path.write_bytes(content[: len(content) - num_bytes] if num_bytes < 150 else content)
    try:
        with safe_open(path, framework="np") as file:
            names = set(file.keys())
    except (SafetensorError, OSError):
        return  # what safetensors also checks (dtypes, shapes) shows when loading
    assert read_header(path).keys() == names


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    content = save(TENSORS)
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    assert read_header(path).keys() == TENSORS.keys()
    for num_bytes in range(len(content)):
        path.write_bytes(content[:num_bytes])
        with pytest.raises(ValueError, match="truncated"):
            read_header(path)
    path.write_bytes(content + b"\0")
    with pytest.raises(ValueError, match="damaged"):
        read_header(path)


@pytest.mark.parametrize(("name", "step"), [("step_300", 300), ("epoch-2", 2), ("final", 0)])
def test_any_saved_model_is_a_checkpoint(tmp_path: Path, name: str, step: int) -> None:
    write_checkpoint(tmp_path / name, state=False)
    (found,) = find_checkpoints(tmp_path, SETTINGS)
    assert (found.step, found.layout) == (step, "pretrained")


def test_a_renamed_checkpoint_keeps_its_step(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "checkpoint-20").rename(tmp_path / "best")
    assert check_checkpoint(tmp_path / "best", SETTINGS).step == 20
    (tmp_path / "best/trainer_state.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot tell the training step"):
        check_checkpoint(tmp_path / "best", SETTINGS)


def test_order_is_by_step(tmp_path: Path) -> None:
    for step in (100, 9, 20):
        write_checkpoint(tmp_path / f"checkpoint-{step}")
    assert [c.step for c in find_checkpoints(tmp_path, SETTINGS)] == [9, 20, 100]


@pytest.mark.parametrize(
    "name", ["tmp-checkpoint-20", "checkpoint-20-tmp", "checkpoint-20.tmp", ".checkpoint-20"]
)
def test_temporary_names_are_left_alone(tmp_path: Path, name: str) -> None:
    write_checkpoint(tmp_path / "checkpoint-20").rename(tmp_path / name)
    assert find_checkpoints(tmp_path, SETTINGS) == []


def test_other_directories_are_not_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/events.out").touch()
    (tmp_path / "all_results.json").touch()
    assert find_checkpoints(tmp_path, SETTINGS) == []
    with pytest.raises(CheckpointError, match=r"is not a checkpoint: expected config.json"):
        check_checkpoint(tmp_path / "runs", SETTINGS)


def test_mistaken_paths_say_what_to_name(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint-20")
    with pytest.raises(CheckpointError, match="it holds checkpoints, so name one of them: checkp"):
        check_checkpoint(tmp_path, SETTINGS)
    assert find_checkpoints(checkpoint, SETTINGS) == [check_checkpoint(checkpoint, SETTINGS)]
    with pytest.raises(CheckpointError, match="there is no checkpoint directory"):
        check_checkpoint(tmp_path / "nowhere", SETTINGS)
    with pytest.raises(CheckpointError, match=r"cannot list .*nowhere: No such file"):
        find_checkpoints(tmp_path / "nowhere", SETTINGS)


def test_ready_marker_vetoes_and_vouches(tmp_path: Path) -> None:
    settings = CheckpointSection(ready_marker="STABLE")
    marked = write_checkpoint(tmp_path / "checkpoint-20")
    # A trainer of one's own: it calls its directories checkpoint-N and writes no trainer_state.
    own = write_checkpoint(tmp_path / "checkpoint-30", state=False)
    for directory in (marked, own):
        with pytest.raises(CheckpointIncompleteError, match=r"STABLE .* is not there yet"):
            check_checkpoint(directory, settings)
        (directory / "STABLE").touch()
    found = find_checkpoints(tmp_path, settings)
    assert [(c.step, c.layout) for c in found] == [(20, "hf-trainer"), (30, "pretrained")]
    truncate("model.safetensors", -1)(marked)
    assert [c.step for c in find_checkpoints(tmp_path, settings)] == [30]


def test_links_to_siblings_are_not_counted_twice(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "run/checkpoint-20")
    (tmp_path / "run/latest").symlink_to("checkpoint-20")
    write_checkpoint(tmp_path / "elsewhere/checkpoint-30")
    (tmp_path / "run/checkpoint-30").symlink_to(tmp_path / "elsewhere/checkpoint-30")
    assert [c.step for c in find_checkpoints(tmp_path / "run", SETTINGS)] == [20, 30]


def test_discovery_loads_no_torch() -> None:
    code = (
        "import sys, gracekit.checkpoints; "
        "assert not {'torch', 'transformers', 'datasets', 'scipy'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_checkpoint_is_never_reported_while_it_is_written(tmp_path: Path) -> None:
    """A writer in the order of transformers' Trainer, a byte chunk at a time, against a poller."""
    content = {
        "config.json": b'{"model_type": "llama"}',
        "model.safetensors": save(TENSORS),
        "tokenizer.json": b'{"version": "1.0"}',
        "training_args.bin": b"a pickle",
    }
    num_checkpoints = 12

    def write() -> None:
        for step in range(1, num_checkpoints + 1):
            directory = tmp_path / f"checkpoint-{step}"
            directory.mkdir()
            state = json.dumps({"log_history": [], "global_step": step}).encode()
            for name, data in {**content, "trainer_state.json": state}.items():
                with (directory / name).open("wb", buffering=0) as file:
                    for start in range(0, len(data), 16):
                        file.write(data[start : start + 16])
                        time.sleep(0.0002)

    writer = threading.Thread(target=write)
    writer.start()
    reported: set[int] = set()
    while len(reported) < num_checkpoints:
        alive = writer.is_alive()
        for found in find_checkpoints(tmp_path, SETTINGS):
            if found.step not in reported:
                for name, data in content.items():
                    assert (found.path / name).read_bytes() == data
                reported.add(found.step)
        assert alive or len(reported) == num_checkpoints
    writer.join()
    assert reported == set(range(1, num_checkpoints + 1))


# --- pins


def _hold(checkpoint: Checkpoint, pins_dir: Path) -> None:
    with pin(checkpoint, pins_dir):
        pass


def test_a_pin_outlives_the_checkpoint_and_is_removed(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "checkpoint-20", sharded=True)
    (directory / "additional_chat_templates").mkdir()
    (directory / "additional_chat_templates/rag.jinja").write_text("{{ x }}")
    checkpoint = check_checkpoint(directory, SETTINGS)
    with pin(checkpoint, tmp_path / "pins") as pinned:
        assert pinned.is_linked and pinned.step == 20
        assert pinned.directory.name.startswith("checkpoint-20-")
        shutil.rmtree(directory)
        require_unchanged(pinned)
        names = {str(p.relative_to(pinned.directory)) for p in pinned.directory.rglob("*.*")}
        assert read_header(pinned.directory / "model-00001-of-00002.safetensors")
    assert names == {
        "additional_chat_templates/rag.jinja",
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        INDEX,
        "tokenizer.json",
        "trainer_state.json",
    }
    assert list((tmp_path / "pins").iterdir()) == []


def test_the_digest_is_that_of_the_weights(tmp_path: Path) -> None:
    def digest(directory: Path) -> str:
        with pin(check_checkpoint(directory, SETTINGS), tmp_path / "pins") as pinned:
            return pinned.digest

    first = digest(write_checkpoint(tmp_path / "checkpoint-1"))
    assert digest(write_checkpoint(tmp_path / "checkpoint-2")) == first
    assert digest(write_checkpoint(tmp_path / "checkpoint-3", scale=2.0)) != first
    assert digest(write_checkpoint(tmp_path / "checkpoint-4", sharded=True)) != first
    assert len(first) == 32


def test_a_deleted_checkpoint_has_vanished(tmp_path: Path) -> None:
    checkpoint = check_checkpoint(write_checkpoint(tmp_path / "checkpoint-20"), SETTINGS)
    shutil.rmtree(checkpoint.path)
    with pytest.raises(CheckpointVanishedError, match="save_total_limit"):
        _hold(checkpoint, tmp_path / "pins")


def test_a_half_deleted_checkpoint_is_not_pinned(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "checkpoint-20", sharded=True)
    checkpoint = check_checkpoint(directory, SETTINGS)
    (directory / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointIncompleteError, match="model-00002"):
        _hold(checkpoint, tmp_path / "pins")


@pytest.mark.parametrize("victim", ["config.json", "tokenizer.json", "model.safetensors", "."])
def test_a_deletion_while_linking_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, victim: str
) -> None:
    checkpoint = check_checkpoint(write_checkpoint(tmp_path / "checkpoint-20"), SETTINGS)
    link = os.link

    def delete_meanwhile(source: Any, target: Any) -> None:
        link(source, target)
        if victim == ".":
            shutil.rmtree(checkpoint.path, ignore_errors=True)
        else:
            (checkpoint.path / victim).unlink(missing_ok=True)

    monkeypatch.setattr(os, "link", delete_meanwhile)
    with pytest.raises(CheckpointVanishedError):
        _hold(checkpoint, tmp_path / "pins")
    assert list((tmp_path / "pins").iterdir()) == []


@pytest.mark.parametrize("victim", ["model.safetensors", "config.json"])
def test_a_checkpoint_written_again_is_noticed(tmp_path: Path, victim: str) -> None:
    directory = write_checkpoint(tmp_path / "checkpoint-20")
    checkpoint = check_checkpoint(directory, SETTINGS)
    later = checkpoint.completed_at + 5
    with pin(checkpoint, tmp_path / "pins") as pinned:
        (directory / victim).write_bytes((directory / victim).read_bytes())
        os.utime(directory / victim, (later, later))
        with pytest.raises(CheckpointIncompleteError, match=f"written again .*{victim}"):
            require_unchanged(pinned)
    with pytest.raises(CheckpointIncompleteError, match=victim):
        _hold(checkpoint, tmp_path / "pins")
    os.utime(directory / "trainer_state.json", (later, later))
    with pin(check_checkpoint(directory, SETTINGS), tmp_path / "pins") as pinned:
        require_unchanged(pinned)


@pytest.mark.parametrize("error", [errno.EXDEV, errno.EPERM])
def test_without_hard_links_it_is_read_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    def refuse(source: Any, target: Any) -> None:
        raise OSError(error, os.strerror(error))

    checkpoint = check_checkpoint(write_checkpoint(tmp_path / "checkpoint-20"), SETTINGS)
    with pin(checkpoint, tmp_path / "pins") as linked:
        digest = linked.digest
    monkeypatch.setattr(os, "link", refuse)
    with pin(checkpoint, tmp_path / "pins") as pinned:
        assert not pinned.is_linked
        assert (pinned.directory, pinned.digest) == (checkpoint.path, digest)
        shutil.rmtree(checkpoint.path)
        with pytest.raises(CheckpointVanishedError):
            require_unchanged(pinned)


def test_a_full_disk_is_an_error_of_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Any, target: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    checkpoint = check_checkpoint(write_checkpoint(tmp_path / "checkpoint-20"), SETTINGS)
    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(StoreWriteError, match="the disk is full"):
        _hold(checkpoint, tmp_path / "pins")


def test_links_to_files_elsewhere_are_followed(tmp_path: Path) -> None:
    """A snapshot of the hub cache: every file is a link into a directory of blobs."""
    blobs = write_checkpoint(tmp_path / "blobs-20", state=False)
    snapshot = tmp_path / "snapshots/abc"
    snapshot.mkdir(parents=True)
    for blob in blobs.iterdir():
        (snapshot / blob.name).symlink_to(blob)
    with pin(check_checkpoint(snapshot, SETTINGS), tmp_path / "pins") as pinned:
        shutil.rmtree(blobs)
        pinned_file = pinned.directory / "model.safetensors"
        assert not pinned_file.is_symlink() and read_header(pinned_file)
    with pytest.raises(CheckpointError, match=r"config.json|model.safetensors"):
        check_checkpoint(snapshot, SETTINGS)  # its links lead nowhere now


# --- architecture ---

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 576,
    "intermediate_size": 1536,
    "model_type": "llama",
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "transformers_version": "4.56.0",
    "vocab_size": 49152,
}
GPT2 = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "n_ctx": 1024,
    "n_embd": 768,
    "n_head": 12,
    "n_inner": None,
    "n_layer": 12,
    "vocab_size": 50257,
}


def test_architectures_are_described_in_the_same_words(tmp_path: Path) -> None:
    def describe(config: Any) -> Any:
        (tmp_path / "config.json").write_text(json.dumps(config))
        return describe_architecture(tmp_path, SETTINGS)

    sizes = {"hidden_size": 576, "num_layers": 30, "num_heads": 9, "intermediate_size": 1536}
    llama = describe(LLAMA)
    assert llama == {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        **sizes,
        "vocab_size": 49152,
    }
    assert json.loads(json.dumps(llama)) == llama
    assert describe(GPT2) == {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "hidden_size": 768,
        "num_layers": 12,
        "num_heads": 12,
        "vocab_size": 50257,
    }
    assert describe(LLAMA | {"transformers_version": "5.0", "use_cache": False}) == llama
    assert describe(LLAMA | {"hidden_size": 960}) != llama
    assert describe(LLAMA | {"vocab_size": 49153}) != llama
    inner = {key: LLAMA[key] for key in LLAMA if key not in ("architectures", "model_type")}
    several = describe({"model_type": "gemma3", "text_config": inner | {"model_type": "text"}})
    assert several == {"model_type": "gemma3", **sizes, "vocab_size": 49152}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read"),
        ('{"model_', "cut off"),
        (b"\xff\xfe\x00", "cut off"),
        ("[]", "list"),
        ("{}", "model_type"),
    ],
)
def test_a_config_that_cannot_be_read_is_named(
    tmp_path: Path, content: str | bytes | None, message: str
) -> None:
    if content is not None:
        raw = content.encode() if isinstance(content, str) else content
        (tmp_path / "config.json").write_bytes(raw)
    with pytest.raises(CheckpointError, match=rf"config\.json.*{message}|{message}.*config\.json"):
        describe_architecture(tmp_path, SETTINGS)
