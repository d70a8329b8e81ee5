"""Run by test_training_ranks.py under torchrun: a data-parallel Trainer that tells what it was fed.

Only rank 0 gets the true path of the store.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from gracekit.store import Store
from gracekit.training import CoresetCallback, CoresetTrainerMixin
from tests.drawable import publish_draw
from tests.stores import N, make_draft

NUM_ROWS = 2 * N


class PublishAfter(TrainerCallback):  # type: ignore[misc]
    """Rank 0 publishes a version after each of these steps."""

    def __init__(self, store: Store, steps: tuple[int, ...]) -> None:
        self.store = store
        self.steps = steps

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero and state.global_step in self.steps:
            if state.global_step == self.steps[0]:
                publish_draw(self.store)  # which the ranks draw from anew
            else:
                self.store.commit(make_draft(self.store, f"refresh-{state.global_step}"))


class CoresetTrainer(CoresetTrainerMixin, Trainer):  # type: ignore[misc]
    """What weights would reach, if its batches were not sent from rank 0."""


def watched_model(fed: list[list[int]]) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=64, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.register_forward_pre_hook(
        lambda module, args, kwargs: fed.append(kwargs["input_ids"][:, 0].tolist()),
        with_kwargs=True,
    )
    return model


def dispatched(root: Path, out: Path, *, split: bool) -> dict[str, Any]:
    """What is fed of an epoch of 18 samples, and said, where rank 0 reads batches for both."""
    fed: list[list[int]] = []
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("gracekit.training").addHandler(handler)
    callback = CoresetCallback(root, num_samples=18)
    trainer = CoresetTrainer(
        model=watched_model(fed),
        args=TrainingArguments(
            output_dir=str(out), max_steps=2, per_device_train_batch_size=4,
            save_strategy="no", logging_strategy="no", report_to="none", use_cpu=True,
            ddp_backend="gloo", disable_tqdm=True, dataloader_pin_memory=False,
            accelerator_config={"dispatch_batches": True, "split_batches": split},
        ),
        train_dataset=[{"input_ids": [i, 50], "labels": [i, 50]} for i in range(NUM_ROWS)],
        callbacks=[callback],
    )  # fmt: skip
    trainer.train()
    logging.getLogger("gracekit.training").removeHandler(handler)
    assert callback.sampler is not None
    weights = sorted({drawn.weight for drawn in callback.sampler.draws()})
    return {"fed": fed, "said": said, "weights": weights}


def main() -> None:
    torch.set_num_threads(1)
    root, out, of_rank_zero = map(Path, sys.argv[1:4])
    rank = int(os.environ["RANK"])
    fed: list[list[int]] = []
    model = watched_model(fed)
    store = root if rank == 0 else root / "not-mounted-here"
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(out), num_train_epochs=3, per_device_train_batch_size=4,
            save_strategy="no", logging_strategy="no", report_to="none", use_cpu=True,
            ddp_backend="gloo", disable_tqdm=True, dataloader_pin_memory=False,
        ),
        train_dataset=[{"input_ids": [i, 50], "labels": [i, 50]} for i in range(NUM_ROWS)],
        callbacks=[
            CoresetCallback(store, follow="step", check_steps=1),
            PublishAfter(Store.open(root), steps=(5, 14)),
        ],
    )  # fmt: skip
    trainer.train()
    log = [
        (entry["coreset_epoch"], entry["coreset_start"], entry["coreset_version"])
        for entry in trainer.state.log_history
        if "coreset_version" in entry
    ]
    found: dict[str, Any] = {"fed": fed, "log": log}
    for split in (False, True):
        place = of_rank_zero / str(split)
        found[f"dispatched {split}"] = dispatched(place, out, split=split)
    (out / f"rank-{rank}.json").write_text(json.dumps(found))
    # A rank that leaves while the other still talks to it makes that one abort.
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    # torch's destructors may wait for gloo's thread, which waits for the GIL that they hold.
    os._exit(0)


if __name__ == "__main__":
    main()
