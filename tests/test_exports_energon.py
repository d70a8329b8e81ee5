"""What Megatron-Energon and Megatron Core make of exports: shards, and shares of groups.

`make test-formats` runs them, in an environment of their own.
"""

from __future__ import annotations

import importlib.util
import json
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from gracekit.exports import export, shards
from gracekit.types import Json
from tests.exported import content_of

pytestmark = [
    pytest.mark.formats,
    pytest.mark.filterwarnings("default"),
    pytest.mark.skipif(importlib.util.find_spec("megatron") is None, reason="not installed"),
]
GROUPS = {"a b": 0.875, "c": 0.125}
"""Group -> share."""
NUM_DRAWN = 4000
FOUR_DEVIATIONS = 4 * (0.875 * 0.125 / NUM_DRAWN) ** 0.5


def prepare(folder: Path) -> None:
    """As the guide says."""
    subprocess.run(
        [Path(sys.executable).with_name("energon"), "prepare", "--non-interactive",
         "--split-ratio", "1,0,0", "--sample-type", "CrudeWebdataset", "--num-workers", "1",
         folder],
        check=True, capture_output=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def encoder() -> Any:
    """Rows as they are."""
    from megatron.energon import Cooker, CrudeSample, DefaultTaskEncoder, basic_sample_keys
    from megatron.energon.task_encoder import stateless

    def cook(sample: Any) -> Any:
        row = sample["json"]
        row = row if isinstance(row, dict) else json.loads(row)
        return CrudeSample(row=row, **basic_sample_keys(sample))

    class Rows(DefaultTaskEncoder):  # type: ignore[misc]
        cookers = (Cooker(stateless(cook)),)

        def batch(self, samples: list[Any]) -> list[Json]:
            return [sample["row"] for sample in samples]

    return Rows()


def worker() -> Any:
    from megatron.energon import WorkerConfig

    return WorkerConfig(rank=0, world_size=1, num_workers=0)


def test_energon_reads_every_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from megatron.energon import get_loader, get_val_dataset

    monkeypatch.setattr(shards, "SHARD_BYTES", 200)
    rows: list[Json] = [
        {"t": "text \u2028 🙂", "n": -(2**62), "x": 1e300, "any": "two", "list": [1, {"a": None}]},
        *({"t": "x" * k, "n": k, "x": k / 4, "any": None, "list": [k]} for k in range(20)),
    ]
    report = export(content_of(rows), "webdataset", tmp_path / "out")
    assert len(report.details["files"]) > 2
    prepare(tmp_path / "out")
    data = get_val_dataset(
        str(tmp_path / "out"), split_part="train", worker_config=worker(), batch_size=2,
        task_encoder=encoder(),
    )  # fmt: skip
    found = [row for batch in get_loader(data) for row in batch]
    expected = [row | {"sample_id": f"id {i}", "weight": 1.0} for i, row in enumerate(rows)]
    assert sorted(found, key=lambda row: str(row["sample_id"])) == sorted(
        expected, key=lambda row: str(row["sample_id"])
    )


def shares(directory: Path) -> None:
    """An export of shares, beside the data of each group under its name."""
    rows = [{"text": f"t {i}"} for i in range(4)]
    content = content_of(rows, [3.0, 0.5, 0.5, 4.0], groups=["a b", "c", "c", "a b"],
                         group_column="source")  # fmt: skip
    report = export(content, "domain-weights", directory)
    assert report.details["shares"] == GROUPS


def test_energon_draws_by_the_shares(tmp_path: Path) -> None:
    """Of groups whose data lie beside `energon.yaml`, in folders of their names."""
    from megatron.energon import get_loader, get_train_dataset

    shares(tmp_path / "out")
    for name in GROUPS:
        rows = [{"group": name, "k": k} for k in range(5)]
        export(content_of(rows), "webdataset", tmp_path / "out" / name)
        prepare(tmp_path / "out" / name)
    data = get_train_dataset(
        str(tmp_path / "out/energon.yaml"), worker_config=worker(), batch_size=8,
        shuffle_buffer_size=None, max_samples_per_sequence=None, task_encoder=encoder(),
    )  # fmt: skip
    batches = iter(get_loader(data))
    drawn = Counter(row["group"] for _ in range(NUM_DRAWN // 8) for row in next(batches))
    assert set(drawn) == set(GROUPS)
    assert abs(drawn["c"] / NUM_DRAWN - GROUPS["c"]) < FOUR_DEVIATIONS


def test_megatron_core_blends_by_the_shares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`nemo.txt` as arguments of `--data-path`, of data under the names of the groups."""
    utils = pytest.importorskip("megatron.core.datasets.utils")
    from megatron.core.datasets.blended_megatron_dataset_builder import (
        BlendedMegatronDatasetBuilder,
    )
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    monkeypatch.chdir(tmp_path)
    shares(tmp_path / "out")
    for token, name in enumerate(GROUPS):
        writer = IndexedDatasetBuilder(f"{name}.bin")
        for _ in range(20):
            writer.add_document(torch.full((33,), token, dtype=torch.int32), [33])
        writer.finalize(f"{name}.idx")
    blend = utils.get_blend_from_list(shlex.split(Path("out/nemo.txt").read_text()))
    config = GPTDatasetConfig(
        random_seed=0, sequence_length=32, blend=blend, split="1,0,0", path_to_cache="cache",
        tokenizer=SimpleNamespace(eod=2, pad=3, vocab_size=4, unique_identifiers={"class": "w"}),
        reset_position_ids=False, reset_attention_mask=False, eod_mask_loss=False,
    )  # fmt: skip
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        sizes = [NUM_DRAWN, 0, 0]
        built = BlendedMegatronDatasetBuilder(GPTDataset, sizes, lambda: True, config).build()
    finally:
        dist.destroy_process_group()
    drawn = Counter(int(built[0][i]["tokens"][0]) for i in range(NUM_DRAWN))
    assert drawn == {k: share * NUM_DRAWN for k, share in enumerate(GROUPS.values())}
