"""A worker killed half-way in its second shard: python -m tests.dying_worker STORE MARKER."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import gracekit
from gracekit.model_pass.executors import LocalExecutor


def main(store: str, marker: str) -> None:
    torch.set_num_threads(1)
    num_shards = 0
    batches = LocalExecutor._batches

    def run(self: LocalExecutor, passes: Any, samples: Any, rows: Any) -> Iterator[Any]:
        nonlocal num_shards
        num_shards += len(passes) > 0 and len(rows) > 0
        for batch in batches(self, passes, samples, rows):
            yield batch
            if num_shards == 2:
                Path(marker).touch()
                os.kill(os.getpid(), signal.SIGKILL)

    LocalExecutor._batches = run  # type: ignore[method-assign]
    gracekit.work(store)


if __name__ == "__main__":
    main(*sys.argv[1:])
