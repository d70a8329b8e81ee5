"""Two ranks (gloo) of Axolotl's and ms-swift's own training: each draws its part of the coreset."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from gracekit.store import StoreReader
from gracekit.training import Coreset
from tests.guides import (
    DOCS,
    axolotl_configuration,
    make_world_of_templates,
    refresh_world,
    swift_plugin,
)
from tests.patience import LAST_RESORT_S
from tests.training_ranks_of_trainers import BATCH, FOR_SWIFT

NUM_SAMPLES = 8


def run_two_ranks(trainer: str, *more: str) -> None:
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
            "-m", "tests.training_ranks_of_trainers", trainer, *more,
        ],
        env={**os.environ, "PYTHONPATH": str(DOCS.parent), "ACCELERATE_USE_CPU": "true"},
        capture_output=True, text=True, timeout=LAST_RESORT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def sample_ids_fed(rank: int, tokens: Any) -> list[list[str]]:
    """Of each batch of a rank the samples, by the text of the question."""
    questions = [
        json.loads(line)["messages"][0]["content"]
        for line in Path("train.jsonl").read_text().splitlines()
    ]
    samples = StoreReader.open("gracekit-store").samples()
    named = dict(zip((questions[k] for k in samples.source_rows), samples.sample_ids, strict=True))
    batches = []
    for line in Path(f"fed-{rank}.jsonl").read_text().splitlines():
        texts = [tokens.decode(row) for row in json.loads(line)]
        found = [[i for question, i in named.items() if question in text] for text in texts]
        assert all(len(ids) == 1 for ids in found), texts
        batches.append([ids[0] for ids in found])
    return batches


def require_parts_of_the_coreset(tokens: Any) -> None:
    """Of each epoch what was drawn for it, batch by batch in turn over the ranks."""
    drawn = [json.loads(line) for line in Path("drawn.jsonl").read_text().splitlines()]
    assert [(line["epoch"], line["version"]) for line in drawn] == [(1, 1), (2, 1)]
    fed = [sample_ids_fed(rank, tokens) for rank in (0, 1)]
    steps = NUM_SAMPLES // BATCH // 2
    assert [len(batches) for batches in fed] == [2 * steps, 2 * steps]
    for epoch, line in enumerate(drawn):
        assert set(line["sample_ids"]) == set(Coreset.load("gracekit-store").sample_ids)
        both = [fed[rank][step] for step in range(epoch * steps, (epoch + 1) * steps)
                for rank in (0, 1)]  # fmt: skip
        assert [i for batch in both for i in batch] == line["sample_ids"]


@pytest.mark.axolotl
@pytest.mark.filterwarnings("default")
def test_two_ranks_of_axolotl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("axolotl.train", exc_type=ImportError)
    monkeypatch.chdir(tmp_path)
    tokens = make_world_of_templates(**{"data.rendering": "axolotl"})
    plugins = ("tests.noting_axolotl_plugin.NotingPlugin",)
    told = axolotl_configuration(tokens.pad_token, plugins=plugins, batch=BATCH)
    Path("axolotl.yaml").write_text(told)
    run_two_ranks("axolotl")
    require_parts_of_the_coreset(tokens)


SWIFT = pytest.mark.skipif(importlib.util.find_spec("swift") is None, reason="not installed")


@pytest.mark.swift
@pytest.mark.filterwarnings("default")
@SWIFT
def test_two_ranks_of_ms_swift(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tokens = make_world_of_templates(**{"data.loss_on": "all"})
    Path("coresets.py").write_text(swift_plugin() + FOR_SWIFT)
    run_two_ranks("swift")
    require_parts_of_the_coreset(tokens)


@pytest.mark.swift
@pytest.mark.filterwarnings("default")
@SWIFT
def test_two_ranks_of_ms_swift_resumed_within_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a new version: the epoch ends as it began, and the next draws from the new one."""
    monkeypatch.chdir(tmp_path)
    tokens = make_world_of_templates(**{"data.loss_on": "all"})
    Path("coresets.py").write_text(swift_plugin() + FOR_SWIFT)
    run_two_ranks("swift", "--save_strategy", "steps", "--save_steps", "1")
    whole = [sample_ids_fed(rank, tokens) for rank in (0, 1)]
    (first,) = Path("out").rglob("checkpoint-1")
    model = AutoModelForCausalLM.from_pretrained("base")
    for weight in model.parameters():
        weight.data = weight.data.flip(0)
    refresh_world(20, model, tokens, **{"data.loss_on": "all"})
    run_two_ranks("swift", "--resume_from_checkpoint", str(first))
    again = [sample_ids_fed(rank, tokens) for rank in (0, 1)]
    drawn = [json.loads(line) for line in Path("drawn.jsonl").read_text().splitlines()]
    assert [(line["epoch"], line["version"]) for line in drawn] == [(1, 1), (2, 2)]
    for rank in (0, 1):
        assert again[rank][0] == whole[rank][1]
        assert len(again[rank]) == 3
