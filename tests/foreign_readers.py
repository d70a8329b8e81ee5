"""Every reader of foreign files, each with whole files to damage and what must hold whatever they
hold: it ends with a `GracekitError` or without one, in time, and what is beside it is not touched.

Above 250 lines for the table of readers, which is one thing.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import random
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.numpy import save

from gracekit.checkpoints import (
    check_checkpoint,
    describe_architecture,
    find_checkpoints,
    is_of_trl_sft,
    model_identity,
    pin,
)
from gracekit.checkpoints.model import load_model, read_tokenizer
from gracekit.checkpoints.optimizer import read_adam_state
from gracekit.errors import GracekitError
from gracekit.recipe import CheckpointSection, DataSection
from gracekit.samples import load_samples, open_conversations
from gracekit.store import ailment, read_heartbeat
from gracekit.store.files.leases import followers
from gracekit.store.files.lock import _holder, _what_it_left, _who
from gracekit.store.files.paths import StorePaths
from gracekit.training.record import keep_epochs_before
from gracekit.views.status_words import daemon_in_words, next_step
from tests.mutations import (
    mutated_bytes,
    mutated_document,
    mutated_lines,
    mutated_safetensors,
    put_special,
    remove,
)
from tests.patience import LAST_RESORT_S

Mutate = Callable[[bytes, random.Random], bytes]
SETTINGS = CheckpointSection(settle_s=0)
SPECIAL_SHARE = 0.06


class HangError(BaseException):
    """A reader did not come back."""


@contextmanager
def in_time() -> Iterator[None]:
    """Raise `HangError` where the block does not end."""

    def give_up(number: int, frame: FrameType | None) -> None:
        raise HangError

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(int(LAST_RESORT_S / 5))
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@dataclass
class Reader:
    """One reader of foreign files."""

    name: str
    make: Callable[[Path], None]
    """Writes whole files into an empty folder."""
    mutate: dict[str, Mutate]
    """Files that are damaged, by their path in the folder, and how."""
    read: Callable[[Path], Any]
    """Reads all of it; raises `GracekitError` or nothing, but AssertionError where another thing
    than the damaged one is affected."""
    files: dict[str, bytes] = field(default_factory=dict)
    may_be_special: bool = True

    def prepare(self, folder: Path) -> None:
        """Make the whole files once."""
        self.make(folder)
        self.files = {name: (folder / name).read_bytes() for name in self.mutate}

    def run(self, folder: Path, rng: random.Random) -> str:
        """Damage one file, read, and mend it; how it ended, as the name of the error or `fine`."""
        name = rng.choice([*self.mutate])
        path = folder / name
        if self.may_be_special and rng.random() < SPECIAL_SHARE:
            what = put_special(path, rng)
        else:
            content = self.mutate[name](self.files[name], rng)
            what = repr(content[:2000])
            path.write_bytes(content)
            os.utime(path, (1e9, 1e9))
        try:
            with in_time():
                self.read(folder)
        except GracekitError as error:
            return type(error).__name__
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            raise AssertionError(f"{self.name}: {name} made of {what}: {error!r}") from error
        finally:
            for other in folder.rglob("*.other"):
                remove(other)
            remove(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.files[name])
            os.utime(path, (1e9, 1e9))
        return "fine"


# --- checkpoints ---

TENSORS: dict[str, np.ndarray[Any, Any]] = {
    "model.a.weight": np.ones((2, 3), np.float32),
    "model.b.weight": np.ones(4, np.float16),
}
CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 64,
    "quantization_config": None,
    "text_config": {"hidden_size": 8, "n_layer": 2},
}
ADAPTER = {
    "peft_type": "LORA",
    "r": 8,
    "lora_alpha": 16,
    "target_modules": ["q_proj", "v_proj"],
    "use_dora": False,
    "base_model_name_or_path": None,
}


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    """The files, all of one old time."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    for path in folder.rglob("*"):
        if path.is_file():
            os.utime(path, (1e9, 1e9))


def read_start(path: Path) -> bytes:
    """The first bytes of a file, which may be very large."""
    with path.open("rb") as file:
        return file.read(10_000)


def as_json(value: Any) -> bytes:
    """A document with line ends, as trainers write it."""
    return json.dumps(value, indent=1).encode()


def _good(step: int) -> dict[str, bytes]:
    where = f"run/checkpoint-{step}"
    return {
        f"{where}/config.json": as_json(CONFIG),
        f"{where}/model.safetensors": save(TENSORS, metadata={"format": "pt"}),
        f"{where}/trainer_state.json": as_json({"global_step": step, "epoch": 1.5}),
    }


def _whole(folder: Path) -> None:
    write_files(folder, _good(10) | _good(20))


def _sharded(folder: Path) -> None:
    shards = {
        "model.a.weight": "model-00001-of-00002.safetensors",
        "model.b.weight": "model-00002-of-00002.safetensors",
    }
    files = {
        f"run/checkpoint-20/{file}": save({name: TENSORS[name]}) for name, file in shards.items()
    }
    index = {"metadata": {"total_size": 32}, "weight_map": shards}
    files["run/checkpoint-20/model.safetensors.index.json"] = as_json(index)
    write_files(folder, _good(10) | _good(20) | files)
    (folder / "run/checkpoint-20/model.safetensors").unlink()


def _quantised(folder: Path) -> None:
    _whole(folder)
    config = CONFIG | {"quantization_config": {"quant_method": "fp8", "load_in_8bit": True}}
    write_files(folder, {"run/checkpoint-20/config.json": as_json(config)})


def _adapter(folder: Path) -> None:
    base = {name.replace("run/checkpoint-20", "base"): c for name, c in _good(20).items()}
    weights = {"base_model.model.q_proj.lora_A.weight": np.ones((8, 2), np.float32)}
    config = ADAPTER | {"base_model_name_or_path": str(folder / "base")}
    files = {
        "run/checkpoint-20/adapter_config.json": as_json(config),
        "run/checkpoint-20/adapter_model.safetensors": save(weights),
    }
    write_files(folder, _good(10) | _good(20) | base | files)
    (folder / "run/checkpoint-20/model.safetensors").unlink()
    (folder / "run/checkpoint-20/config.json").unlink()


def _card(folder: Path) -> None:
    _whole(folder)
    card = b"---\nlibrary_name: transformers\ntags:\n- trl\n- sft\nlicence: x\n---\n\n# A model\n"
    write_files(folder, {"run/README.md": card})


def look_and_describe(folder: Path) -> None:
    """All that is read of a checkpoint without its model; the one beside it is always found."""
    run, pins = folder / "run", folder / "pins"
    found = find_checkpoints(run, SETTINGS)
    assert 10 in [checkpoint.step for checkpoint in found], "the checkpoint beside was lost"
    is_of_trl_sft(run / "checkpoint-20")
    checkpoint = check_checkpoint(run / "checkpoint-20", SETTINGS)
    assert checkpoint in found
    try:
        with pin(checkpoint, pins) as pinned:
            json.dumps(describe_architecture(pinned.directory, SETTINGS), allow_nan=False)
            model_identity(pinned.directory, SETTINGS)
    finally:
        assert not pins.exists() or not any(pins.iterdir())


# --- the model's own files ---


def _real(folder: Path) -> None:
    from tests.tiny import write_checkpoint

    write_checkpoint(folder, 10)
    for path in folder.rglob("*"):
        if path.is_file():
            os.utime(path, (1e9, 1e9))


def _tokenizer(folder: Path) -> None:
    from tests.tiny import make_tokenizer

    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    tokenizer.save_pretrained(folder)
    for path in folder.rglob("*"):
        os.utime(path, (1e9, 1e9))


def load(folder: Path) -> None:
    """The model of a checkpoint, on the CPU."""
    checkpoint = check_checkpoint(folder / "checkpoint-10", SETTINGS)
    with pin(checkpoint, folder / "pins") as pinned:
        load_model(pinned, SETTINGS, device="cpu")


def tokenise(folder: Path) -> None:
    """A text by the tokenizer, as far as that can be loaded."""
    from gracekit.samples.encode import Encoder
    from gracekit.samples.rendered import Rendered

    tokenizer = read_tokenizer(folder)
    Encoder(tokenizer).encode([Rendered("one red cat", [(0, 3)])], 16)


_MODEL = torch.nn.Linear(3, 2)


def _optimizer(folder: Path) -> None:
    optimizer = torch.optim.AdamW(_MODEL.parameters())
    _MODEL(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")


def mutated_optimizer(content: bytes, rng: random.Random) -> bytes:
    """A state with another value in it, or with damaged bytes."""
    if rng.random() < 0.3:
        return mutated_bytes(content, rng)
    state = torch.load(io.BytesIO(content), weights_only=True)
    group, entry = state["param_groups"][0], state["state"][rng.choice([0, 1])]
    tensors = [torch.zeros(0), torch.full((2, 3), float("nan")), torch.tensor(-1.0)]
    odd: Any = rng.choice(
        [None, -1, 2.5, float("nan"), float("inf"), 10**30, "x", [], {}, True, *tensors]
    )
    holder = rng.choice([group, entry, state, state["state"]])
    holder[rng.choice([*holder])] = odd
    buffer = io.BytesIO()
    torch.save(rng.choice([state, state, state, odd, [state]]), buffer)
    return buffer.getvalue()


def adam(folder: Path) -> None:
    """The state of Adam: used, or the reason why not."""
    state = read_adam_state(folder, _MODEL)
    assert state.reason or len(state.parameters) == 2
    json.dumps(state.facts(), allow_nan=False)


# --- what other processes of ours write ---

BEAT = {
    "pid": 17,
    "birth": "boot pid:[1] 5",
    "host": "elsewhere",
    "checkpoint_dir": "/run",
    "started_at": "2026-01-01T00:00:00Z",
    "state": "refreshing",
    "checkpoint": "/run/checkpoint-1",
    "version": 3,
    "error": "full",
    "num_tries": 2,
    "next_try_at": "2026-01-01T00:00:09Z",
    "num_published": 2,
    "num_skipped": 1,
    "unix_time": 1.8e9,
    "progress": {
        "stage": "measure",
        "stage_s": 2.5,
        "num_done": 5,
        "num_planned": 9,
        "seconds_left": 3.5,
    },
}
LEASE = {
    "pid": 17,
    "birth": None,
    "host": "elsewhere",
    "pid_namespace": "pid:[1]",
    "versions": [1, 2],
    "unix_time": 1.8e9,
}
HOLDER = {"pid": 17, "birth": "b p 5", "host": "elsewhere", "since": "2026-01-01T00:00:00+00:00"}


def _store_files(folder: Path) -> None:
    import socket

    here = {"host": socket.gethostname()}
    write_files(
        folder,
        {
            "heartbeat.json": as_json(BEAT | here),
            "leases/a.json": as_json(LEASE | here),
            "leases/b.json": as_json(LEASE),
            ".lock.json": as_json(HOLDER | here),
            "record.jsonl": b'{"epoch": 1, "positions": [1]}\n{"epoch": 2, "positions": [0]}\n',
        },
    )


def ask_processes(folder: Path) -> None:
    """What the daemon, trainers and writers say of themselves."""
    beat = read_heartbeat(folder, now=1.8e9 + 5)
    json.dumps(beat, allow_nan=False)
    ailment(beat, max_age_s=120)
    daemon_in_words(beat)
    next_step("store", None, beat)
    found = {follower.file.name: follower for follower in followers(StorePaths(folder), now=1.8e9)}
    other = folder / "leases/b.json"
    if other.is_file() and read_start(other) == as_json(LEASE):
        assert found["b.json"].holds and found["b.json"].versions == (1, 2)
    holder = _holder(folder / ".lock.json")
    _what_it_left(holder)
    _who(folder / ".lock.json", folder / ".lock", "works")
    keep_epochs_before(folder / "record.jsonl", 2)


# --- data ---

ROWS: list[dict[str, Any]] = [
    {
        "id": f"row-{k}",
        "prompt": f"{k} red?",
        "response": f"cat {k}",
        "source": "ab"[k % 2],
        "more": {"a": [k, None]},
    }
    for k in range(4)
]
CHATS: list[dict[str, Any]] = [
    {
        "messages": [
            {"role": "user", "content": f"say {k}"},
            {
                "role": "assistant",
                "content": f"it is {k}",
                "tool_calls": [{"function": {"name": "f", "arguments": {"x": k}}}],
            },
        ]
    }
    for k in range(4)
]
FIRST = "row-0"


def lines_of(rows: list[dict[str, Any]]) -> bytes:
    """As JSON lines."""
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def csv_of(rows: list[dict[str, Any]]) -> bytes:
    """As CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, ["id", "prompt", "response", "source"], extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def parquet_of(rows: list[dict[str, Any]]) -> bytes:
    """As Parquet."""
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


def mutated_parquet(content: bytes, rng: random.Random) -> bytes:
    """Other values and types of a column, or damaged bytes."""
    if rng.random() < 0.5:
        return mutated_bytes(content, rng)
    table = pq.read_table(io.BytesIO(content))
    odd = rng.choice(
        [
            pa.array([None] * 4),
            pa.array([b"\xff", b"", b"a", None]),
            pa.array([1, 2**63 - 1, 0, -1]),
            pa.array([float("nan"), float("inf"), 0.0, None]),
            pa.array([[1], [], None, [2]]),
            pa.array([2**62, -(2**62), 0, None], pa.timestamp("us")),
            pa.array([True, None, False, True]),
            pa.array([2**31 - 1, -(2**31), 0, None], pa.date32()),
            pa.array(["a", "b", "c", "d"]),
            pa.array(["a", "a", "b", "a"]).dictionary_encode(),
        ]
    )
    column = rng.choice(table.column_names)
    if rng.random() < 0.3:
        table = table.append_column(rng.choice([column, "", "messages", "text"]), odd)
    else:
        table = table.set_column(table.column_names.index(column), column, odd)
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def mutated_gzip(content: bytes, rng: random.Random) -> bytes:
    """Damaged lines in a whole archive, or a damaged archive."""
    if rng.random() < 0.5:
        return mutated_bytes(content, rng)
    return gzip.compress(mutated_lines(gzip.decompress(content), rng))


def read_data(name: str, **settings: Any) -> Callable[[Path], None]:
    """Read a data file, and its conversations one by one."""

    def read(folder: Path) -> None:
        data = DataSection.model_validate({"path": str(folder / name)} | settings)
        raw = load_samples(data)
        assert len(raw) == len(raw.sample_ids) == len(raw.source_rows)
        list(open_conversations(data, raw.source_rows, format_name=raw.format))

    return read


def read_lines(folder: Path) -> None:
    """JSON lines of which one is damaged: the others are what they were."""
    content = (folder / "data.jsonl").read_bytes() if (folder / "data.jsonl").is_file() else b""
    settings = {"id_column": "id", "group_column": "source"}
    data = DataSection.model_validate({"path": str(folder / "data.jsonl")} | settings)
    raw = load_samples(data)
    whole = {row["id"]: row for row in ROWS}
    given = {}
    for line in content.split(b"\n"):
        with suppress(ValueError, RecursionError):
            row = json.loads(line)
            if isinstance(row, dict) and row in ROWS:
                given[row["id"]] = row
    found = dict(zip(raw.sample_ids.tolist(), raw.records, strict=True))
    for sample_id in given:
        asked = found[sample_id].prompt
        assert asked == whole[sample_id]["prompt"], (sample_id, asked)


_LIST = json.dumps({"data": ROWS}).encode()

READERS = [
    Reader(
        "checkpoint",
        _whole,
        {
            "run/checkpoint-20/config.json": mutated_document,
            "run/checkpoint-20/trainer_state.json": mutated_document,
            "run/checkpoint-20/model.safetensors": mutated_safetensors,
        },
        look_and_describe,
    ),
    Reader(
        "shards",
        _sharded,
        {
            "run/checkpoint-20/model.safetensors.index.json": mutated_document,
            "run/checkpoint-20/model-00002-of-00002.safetensors": mutated_safetensors,
        },
        look_and_describe,
    ),
    Reader(
        "quantised",
        _quantised,
        {"run/checkpoint-20/config.json": mutated_document},
        look_and_describe,
    ),
    Reader(
        "adapter",
        _adapter,
        {
            "run/checkpoint-20/adapter_config.json": mutated_document,
            "run/checkpoint-20/adapter_model.safetensors": mutated_safetensors,
            "base/config.json": mutated_document,
            "base/model.safetensors": mutated_safetensors,
        },
        look_and_describe,
    ),
    Reader("card", _card, {"run/README.md": mutated_bytes}, look_and_describe),
    Reader(
        "processes",
        _store_files,
        {
            "heartbeat.json": mutated_document,
            "leases/a.json": mutated_document,
            "leases/b.json": mutated_document,
            ".lock.json": mutated_document,
            "record.jsonl": mutated_lines,
        },
        ask_processes,
    ),
    Reader(
        "jsonl",
        lambda f: write_files(f, {"data.jsonl": lines_of(ROWS)}),
        {"data.jsonl": mutated_lines},
        read_lines,
        may_be_special=False,
    ),
    Reader(
        "chats",
        lambda f: write_files(f, {"data.jsonl": lines_of(CHATS)}),
        {"data.jsonl": mutated_lines},
        read_data("data.jsonl"),
        may_be_special=False,
    ),
    Reader(
        "json",
        lambda f: write_files(f, {"data.json": _LIST}),
        {"data.json": mutated_document},
        read_data("data.json"),
        may_be_special=False,
    ),
    Reader(
        "csv",
        lambda f: write_files(f, {"data.csv": csv_of(ROWS)}),
        {"data.csv": mutated_bytes},
        read_data("data.csv", group_column="source"),
        may_be_special=False,
    ),
    Reader(
        "gzip",
        lambda f: write_files(f, {"data.jsonl.gz": gzip.compress(lines_of(ROWS))}),
        {"data.jsonl.gz": mutated_gzip},
        read_data("data.jsonl.gz"),
        may_be_special=False,
    ),
    Reader(
        "parquet",
        lambda f: write_files(f, {"data.parquet": parquet_of(ROWS)}),
        {"data.parquet": mutated_parquet},
        read_data("data.parquet"),
        may_be_special=False,
    ),
    Reader("optimizer", _optimizer, {"optimizer.pt": mutated_optimizer}, adam),
    Reader(
        "tokenizer",
        _tokenizer,
        {
            "tokenizer.json": mutated_document,
            "tokenizer_config.json": mutated_document,
            "chat_template.jinja": mutated_bytes,
        },
        tokenise,
    ),
    Reader(
        "model",
        _real,
        {
            "checkpoint-10/config.json": mutated_document,
            "checkpoint-10/model.safetensors": mutated_safetensors,
            "checkpoint-10/generation_config.json": mutated_document,
        },
        load,
    ),
]


def damage(reader: Reader, folder: Path, seed: int, count: int) -> Counter[str]:
    """So many damaged inputs of one reader; how often it ended how."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    reader.prepare(folder)
    reader.read(folder)
    ended: Counter[str] = Counter()
    for number in range(count):
        rng = random.Random(f"{seed} {reader.name} {number}")
        try:
            ended[reader.run(folder, rng)] += 1
        except AssertionError as error:
            raise AssertionError(f"seed {seed}, number {number}: {error}") from error
    return ended
