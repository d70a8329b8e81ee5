"""Pickles in checkpoints that would run something, or claim what is not there."""

from __future__ import annotations

import math
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from gracekit.checkpoints import check_checkpoint, find_checkpoints, pin
from gracekit.checkpoints.inert_pickle import (
    Record,
    mapping,
    read_archive,
    read_records,
    saved_tensors,
)
from gracekit.checkpoints.model import load_model
from gracekit.errors import CheckpointError
from gracekit.recipe import CheckpointSection
from tests.checkpoint_writers import save_distributed
from tests.tiny import write_checkpoint


class Runs:
    """Touches a file where its pickle is loaded as usual."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self._path}",)


def test_nothing_that_a_pickle_names_is_called(tmp_path: Path) -> None:
    content = pickle.dumps({"a": [Runs(tmp_path / "was-run"), 1], "b": math.pi})
    found = read_records(content, "x")
    record = found["a"][0]
    assert isinstance(record, Record) and record.path.endswith(".system")
    assert found["b"] == math.pi and not (tmp_path / "was-run").exists()


def test_the_table_of_shards_runs_nothing(tmp_path: Path) -> None:
    """Also where torch's own reader gets to it."""
    base = write_checkpoint(tmp_path / "base", 0)
    model = AutoModelForCausalLM.from_pretrained(base)
    with pytest.warns(UserWarning, match="single process"):
        path = save_distributed(model, tmp_path / "run")
    table = pickle.loads((path / ".metadata").read_bytes())
    table.planner_data = Runs(tmp_path / "was-run")
    (path / ".metadata").write_bytes(pickle.dumps(table))
    section = CheckpointSection(base_model=str(base))
    found = check_checkpoint(path, section)
    with (
        pin(found, tmp_path / "pins", section) as pinned,
        pytest.raises(CheckpointError, match=r"system, which is not run"),
    ):
        load_model(pinned, section, device="cpu", dtype="float32")
    assert not (tmp_path / "was-run").exists()


def _tensors(table: Any) -> list[Any]:
    return [entry for entry in table.state_dict_metadata.values() if hasattr(entry, "size")]


def _claim_more(table: Any) -> None:
    for entry in _tensors(table):
        entry.size = torch.Size([1 << 40, *entry.size[1:]])


def _claim_more_in_chunks(table: Any) -> None:
    for entry in _tensors(table):
        entry.size = torch.Size([1 << 40, *entry.size[1:]])
        entry.chunks[0].sizes = entry.size


def _place_less(table: Any) -> None:
    for entry in _tensors(table):
        entry.chunks[0].sizes = torch.Size([1, *entry.size[1:]])


def _claim_wider_numbers(table: Any) -> None:
    for entry in _tensors(table):
        entry.properties.dtype = torch.complex128


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_claim_more, r"of \(1099511627776, 32\), expected \(64, 32\), as its config says"),
        (_claim_more_in_chunks, r"of \(1099511627776, 32\), expected \(64, 32\)"),
        (_place_less, "does not place all parts"),
        (_claim_wider_numbers, "its files have"),
    ],
)
def test_a_table_that_claims_more_than_there_is(
    tmp_path: Path, spoil: Callable[[Any], None], message: str
) -> None:
    base = write_checkpoint(tmp_path / "base", 0)
    with pytest.warns(UserWarning, match="single process"):
        path = save_distributed(AutoModelForCausalLM.from_pretrained(base), tmp_path / "run")
    table = pickle.loads((path / ".metadata").read_bytes())
    spoil(table)
    (path / ".metadata").write_bytes(pickle.dumps(table))
    section = CheckpointSection(base_model=str(base))
    with (
        pin(check_checkpoint(path, section), tmp_path / "pins", section) as pinned,
        pytest.raises(CheckpointError, match=message),
    ):
        load_model(pinned, section, device="cpu", dtype="float32")


def test_tensors_that_lead_outside_or_claim_more_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    torch.save({"state_dict": {"a": torch.ones(3).expand(1000, 3)}}, path)
    archive = read_archive(path)
    with pytest.raises(ValueError, match="leads outside of its numbers"):
        list(saved_tensors(archive, mapping(archive.content["state_dict"])))
    section = CheckpointSection(settle_s=0)
    with pytest.raises(CheckpointError, match="leads outside"):
        check_checkpoint(path, section)
    torch.save({"optimizer": 1}, path)
    with pytest.raises(CheckpointError, match=r"no tensors in a state_dict.*found optimizer"):
        check_checkpoint(path, section)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("x/data.pkl", bytes(1 << 20))
    with pytest.raises(CheckpointError, match=r"is no file of torch\.save"):
        check_checkpoint(path, section)


@given(
    cut=st.floats(0, 1),
    flips=st.lists(st.tuples(st.floats(0, 0.999), st.integers(1, 255)), max_size=4),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_damage_of_any_kind_costs_the_checkpoint_alone(
    cut: float, flips: list[tuple[float, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / "damaged"
    (folder / "step-5").mkdir(parents=True, exist_ok=True)
    state = {"state_dict": {"model.a": torch.arange(6.0)}, "global_step": 3}
    torch.save(state, folder / "last.ckpt")
    if not (folder / "whole").exists():
        with pytest.warns(UserWarning, match="single process"):
            dcp.save(state, checkpoint_id=str(folder / "step-5"))  # type: ignore[attr-defined]
        (folder / "step-5/.metadata").rename(folder / "whole")
    for source, target in (("last.ckpt", "last.ckpt"), ("whole", "step-5/.metadata")):
        content = bytearray((folder / source).read_bytes())
        for place, flip in flips:
            content[int(place * len(content))] ^= flip
        (folder / target).write_bytes(content[: int(cut * len(content))])
    find_checkpoints(folder, CheckpointSection(settle_s=0))


def test_a_length_without_end_is_no_memory(tmp_path: Path) -> None:
    content = b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62)
    with pytest.raises(ValueError, match="cut off or damaged"):
        read_records(content, "x")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x80\x02})" + b"\x85" * 1_000_000 + b"K\x01s.", "nests more than"),
        (b"\x80\x02})\x85\x85K\x01s.", "keys other than"),
        (b"\x80\x02}()\x85\x85K\x01u.", "keys other than"),
        (b"\x80\x02()\x85\x85K\x01d.", "keys other than"),
        (b"\x80\x04\x8f()\x85\x85\x90.", "keys other than"),
        (b"\x80\x04()\x85\x85\x91.", "keys other than"),
        (
            b"\x80\x02Nr" + (20_000_000).to_bytes(4, "little") + b".",
            "more values than it has bytes",
        ),
        (b"\x80\x02cos\nsystem\n]R.", "no tuple"),
        (b"\x80\x02]))\x85R.", "no class"),
        (b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".", "cut off"),
    ],
)
def test_what_would_end_the_process_or_take_memory_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_records(content, "x")
