"""Run by test_training_killed.py under torchrun: a data-parallel trainer that may kill itself.

Arguments: store, output directory, `hf`, `stream` or `trl`, `follow` of the callback, the step
after which each rank kills itself (0: none), and whether to resume (1). Versions are published by
rank 0 while the run lasts, unless it is resumed. Each rank writes what it was fed, step by
step, and at the end a hash of its weights.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import datasets
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from gracekit.store import Store
from gracekit.training import CoresetCallback, CoresetIterableDataset, CoresetTrainerMixin
from tests.drawable import publish_draw
from tests.stores import N

NUM_ROWS = 2 * N
SAVE_STEPS = 16
PUBLISHED_AFTER = (5, 14)
"""An epoch has 6 steps: the first version is taken by the second epoch, the second one in the
middle of the third, or by the fourth."""


class Publish(TrainerCallback):  # type: ignore[misc]
    """Rank 0 publishes a version, which is drawn anew, after each of the steps."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero and state.global_step in PUBLISHED_AFTER:
            publish_draw(self.store)


class KillAfter(TrainerCallback):  # type: ignore[misc]
    """As if the machine went down."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def make_trainer(kind: str, root: str, out: Path, callbacks: list[Any]) -> Any:
    rows = [{"input_ids": [i, 50, 51], "labels": [i, 50, 51]} for i in range(NUM_ROWS)]
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=64, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                    num_attention_heads=1)
    )  # fmt: skip
    settings: dict[str, Any] = {
        "output_dir": str(out), "num_train_epochs": 5, "per_device_train_batch_size": 4,
        "save_strategy": "steps", "save_steps": SAVE_STEPS, "logging_strategy": "no",
        "report_to": "none", "use_cpu": True, "ddp_backend": "gloo", "disable_tqdm": True,
        "dataloader_pin_memory": False, "learning_rate": 1e-2,
    }  # fmt: skip
    if kind in ("hf", "stream"):
        data: Any = CoresetIterableDataset(root, rows) if kind == "stream" else rows

        class HfTrainer(CoresetTrainerMixin, Trainer):  # type: ignore[misc]
            """As a user writes it."""

        return HfTrainer(
            model=model, args=TrainingArguments(**settings), train_dataset=data, callbacks=callbacks
        )
    import trl

    class TrlTrainer(CoresetTrainerMixin, trl.SFTTrainer):  # type: ignore[misc]
        """As a user writes it."""

    words = WordLevel({"<pad>": 0, **{str(i): i for i in range(1, 64)}}, unk_token="<pad>")
    return TrlTrainer(
        model=model,
        args=trl.SFTConfig(**settings, bf16=False, gradient_checkpointing=False),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(words), pad_token="<pad>", eos_token="<pad>"
        ),
        callbacks=callbacks,
    )


def main() -> None:
    torch.set_num_threads(1)
    root, out, kind, follow, killed, resumed = sys.argv[1:]
    rank = int(os.environ["RANK"])
    callbacks: list[Any] = [CoresetCallback(root, follow=follow, check_steps=1)]  # type: ignore[arg-type]
    if resumed == "0":
        callbacks.append(Publish(Store.open(root)))
    callbacks.append(KillAfter(int(killed)))
    trainer = make_trainer(kind, root, Path(out), callbacks)
    fed = Path(out) / f"fed-{rank}{'-resumed' if resumed == '1' else ''}.jsonl"
    fed.parent.mkdir(parents=True, exist_ok=True)
    file = fed.open("w")

    def note(module: Any, args: Any, kwargs: Any) -> None:
        file.write(json.dumps(kwargs["input_ids"][:, 0].tolist()) + "\n")
        file.flush()

    trainer.model.register_forward_pre_hook(note, with_kwargs=True)
    trainer.train(resume_from_checkpoint=resumed == "1")
    weights = b"".join(p.detach().numpy().tobytes() for p in trainer.model.parameters())
    log = [
        (entry["coreset_epoch"], entry["coreset_start"], entry["coreset_version"])
        for entry in trainer.state.log_history
        if "coreset_version" in entry
    ]
    found = {"weights": hashlib.sha256(weights).hexdigest(), "log": log}
    fed.with_suffix(".end.json").write_text(json.dumps(found))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    # torch's destructors may wait for gloo's thread, which waits for the GIL that they hold.
    os._exit(0)


if __name__ == "__main__":
    main()
