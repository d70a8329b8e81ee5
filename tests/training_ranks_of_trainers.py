"""Run by test_training_ranks_of_trainers.py under torchrun: Axolotl's or ms-swift's own training.

Arguments: `axolotl` or `swift`, and more of `swift sft`. Each rank notes the tokens of the rows
that it is fed. The present directory holds the world of the guides.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from tests.guides import run_swift

BATCH = 2
FOR_SWIFT = """
from swift.callbacks import callbacks_map
from tests.training_ranks_of_trainers import NoteRows

callbacks_map["note"] = lambda args, trainer: NoteRows()
"""
"""What is added to the guide's plugin."""


class NoteRows(TrainerCallback):  # type: ignore[misc]
    """Writes the tokens of each batch into a file of the rank."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        file = Path(f"fed-{os.environ['RANK']}.jsonl").open("w")  # noqa: SIM115

        def note(module: Any, given: Any, named: Any) -> None:
            file.write(json.dumps(named["input_ids"].tolist()) + "\n")
            file.flush()

        kwargs["model"].register_forward_pre_hook(note, with_kwargs=True)


def train_with_axolotl() -> None:
    from axolotl.cli.config import load_cfg
    from axolotl.common.datasets import load_datasets
    from axolotl.train import train

    cfg = load_cfg("axolotl.yaml")
    cfg.device_map = {"": "cpu"}  # where there are ranks it takes their number for a GPU's
    train(cfg=cfg, dataset_meta=load_datasets(cfg=cfg))  # which leaves the process group, too


def main() -> None:
    torch.set_num_threads(1)
    if sys.argv[1] == "swift":
        run_swift(
            callbacks="gracekit note",
            more=" ".join(["--ddp_backend gloo", *sys.argv[2:]]),
            batch=BATCH,
        )
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    else:
        train_with_axolotl()
    # torch's destructors may wait for gloo's thread, which waits for the GIL that they hold.
    os._exit(0)


if __name__ == "__main__":
    main()
