"""Two processes of Lightning on a CPU draw a coreset together (`make test-formats`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from gracekit.training import Coreset, CoresetSampler
from tests.stores import N, make_draft, make_store

lightning = pytest.importorskip("lightning")
pytestmark = [pytest.mark.formats, pytest.mark.filterwarnings("ignore")]


class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
    """Writes the rows that each process is fed, in each epoch."""

    def __init__(self, out: str) -> None:
        super().__init__()
        self.out = out
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch: Any, index: int) -> Any:
        with Path(f"{self.out}/{self.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps([self.current_epoch, batch[0].long().tolist()]) + "\n")
        return self.layer(batch[0][:, None]).sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1e-6)


def test_two_processes_share_the_coreset(tmp_path: Path) -> None:
    """Each epoch is the sampler's draws, each by one process."""
    store = make_store(tmp_path / "store")
    version = store.commit(make_draft(store, "refresh"))
    chosen = Coreset.load(store.paths.root, version).source_rows
    num_rows = 2 * N
    sampler = CoresetSampler(store.paths.root, num_rows, num_samples=len(chosen), weighs=False)
    dataset = torch.utils.data.TensorDataset(torch.arange(num_rows, dtype=torch.float32))
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", devices=2, strategy="ddp_spawn", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(Module(str(tmp_path)), DataLoader(dataset, batch_size=2, sampler=sampler))
    fed: dict[int, list[int]] = {0: [], 1: []}
    for rank in (0, 1):
        for line in (tmp_path / f"{rank}.jsonl").read_text().splitlines():
            epoch, rows = json.loads(line)
            fed[epoch].extend(rows)
    for epoch in (0, 1):
        assert sorted(fed[epoch]) == sorted(chosen.tolist())
        assert fed[epoch] != fed[1 - epoch]  # in another order
