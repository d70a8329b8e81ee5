"""What the tests of checkpoints written by trainers' own libraries share."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

from gracekit.recipe import CheckpointSection
from tests.checkpoint_writers import loaded, logits
from tests.half_copies import ORDERS, Copy

ROWS = [torch.tensor([3, 4, 5, 29, 31, 40, 62, i + 13]) for i in range(8)]


class Rows(Dataset[torch.Tensor]):
    """The rows for a loader."""

    def __len__(self) -> int:
        return len(ROWS)

    def __getitem__(self, index: int) -> torch.Tensor:
        return ROWS[index]


def expect_same(
    path: Path, model: Any, settings: CheckpointSection, pins: Path, tolerance: float = 0.0
) -> None:
    """The checkpoint loads to what the model in memory says."""
    expected = logits(model.eval())
    found = loaded(path, settings, pins)
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


def expect_never_early(path: Path, folder: Path, settings: CheckpointSection, step: int) -> None:
    """Copied in every order, it is picked up when it is whole, and then it is."""
    careful = settings.model_copy(update={"settle_s": 12, "poll_interval_s": 5})
    for i, order in enumerate(ORDERS):
        copy = Copy(path, folder / f"copy-{i}", order)
        with pytest.MonkeyPatch.context() as patch:
            copy.set_clocks(patch)
            assert [c.step for c in copy.watched(careful)] == [step]


def run_ranks(function: Callable[..., None], *args: Any) -> None:
    """Call a function of a module in two processes, with the rank, a free port and `args`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(  # type: ignore[attr-defined, no-untyped-call]
        function, (port, *args), nprocs=2, join=True
    )


def join_ranks(rank: int, port: int) -> None:
    """Join the process group of `run_ranks`."""
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), LOCAL_RANK=str(rank),
        WORLD_SIZE="2",
    )  # fmt: skip
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
