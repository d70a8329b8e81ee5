"""A pool of five rows, a draw of four of them, and the gradients of a real Trainer's steps.

Run by test_training_weighted_loss.py in its own process, and under torchrun as a module.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

from gracekit.recipe import ScoringSection
from gracekit.training import CoresetCallback, CoresetSampler, CoresetTrainerMixin, Drawn
from gracekit.types import Selection
from gracekit.version.header import Settings
from tests.stores import make_draft, make_store

LENGTHS = (3, 9, 5, 4, 7)
PROMPTS = (1, 2, 3, 1, 4)
"""Tokens at a row's start without loss."""
NUM_TARGETS = np.subtract(LENGTHS, PROMPTS)
TARGET = np.array([0.1, 0.3, 0.2, 0.25, 0.15])
"""What to train on."""
DRAWS = [list(rows) for rows in itertools.combinations(range(5), 4)]
CHANCES = np.array([0.12, 0.3, 0.08, 0.2, 0.3])
"""Of each of the draws."""
PROBABILITIES = np.array(
    [sum(p for p, rows in zip(CHANCES, DRAWS, strict=True) if i in rows) for i in range(5)]
)
WEIGHTS = 4 * TARGET / PROBABILITIES
TOKENS_PER_ROW = float(TARGET @ NUM_TARGETS)


def pool() -> list[dict[str, list[int]]]:
    random = np.random.default_rng(5)
    rows = []
    for length, prompt in zip(LENGTHS, PROMPTS, strict=True):
        tokens = random.integers(1, 32, length).tolist()
        rows.append({"input_ids": tokens, "labels": [-100] * prompt + tokens[prompt:]})
    return rows


def pad(examples: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """A user's padding collator; it would fail on anything but plain examples."""
    width = max(len(example["input_ids"]) for example in examples)
    filled = {"input_ids": 0, "labels": -100}
    batch = {
        name: torch.tensor([e[name] + [value] * (width - len(e[name])) for e in examples])
        for name, value in filled.items()
    }
    batch["attention_mask"] = torch.tensor(
        [[1] * len(e["input_ids"]) + [0] * (width - len(e["input_ids"])) for e in examples]
    )
    return batch


def make_model() -> Any:
    """All of it computes in float64, which a Llama does not do."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=32,
        n_positions=64,
        n_embd=8,
        n_layer=1,
        n_head=2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config).double()


def gradient_of(model: Any) -> torch.Tensor:
    """Of all that is trained, in one vector."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return torch.cat([p.grad.detach().flatten() for p in parameters if p.grad is not None])


def part_of(model: Any, row: dict[str, list[int]], smoothing: float = 0.0) -> torch.Tensor:
    """Gradient of the sum of a row's token losses, by torch alone."""
    model.zero_grad()
    logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
    torch.nn.functional.cross_entropy(
        logits, torch.tensor(row["labels"][1:]), reduction="sum", label_smoothing=smoothing
    ).backward()  # type: ignore[no-untyped-call]
    gradient = gradient_of(model)
    model.zero_grad()
    return gradient


def pool_gradient(model: Any, average: str, smoothing: float = 0.0) -> torch.Tensor:
    """What training on the target's distribution would do."""
    parts = torch.stack([part_of(model, row, smoothing) for row in pool()])
    target = torch.tensor(TARGET)
    if average == "samples":
        return (target / torch.tensor(NUM_TARGETS)) @ parts
    return target @ parts / TOKENS_PER_ROW


class ScriptedSampler(CoresetSampler):
    """Draws what it is told, in the order of one epoch."""

    script: list[Drawn]

    def __iter__(self) -> Any:
        self.set_epoch(self.epoch)
        yield from self.script


class ScriptedCallback(CoresetCallback):
    """With the weights of the draws in turn, or others."""

    def __init__(self, store: Path, script: list[Drawn], **arguments: Any) -> None:
        super().__init__(store, **arguments)
        self.script = script

    def make_sampler(self, num_rows: int, num_samples: int | None = None) -> Any:
        ids = [f"id-{row:03d}" for row in range(num_rows)]
        sampler = ScriptedSampler(self.store, ids, num_samples=len(self.script))
        sampler.script = self.script
        return sampler


class Gradients(TrainerCallback):  # type: ignore[misc]
    """Of each step, as the optimizer would get them."""

    def __init__(self) -> None:
        self.of_steps: list[torch.Tensor] = []

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        self.of_steps.append(gradient_of(model))


class WeighedTrainer(CoresetTrainerMixin, Trainer):  # type: ignore[misc]
    """The trainer that is looked at."""


def publish(root: Path, *, loss: str = "tokens", tokens_per_row: float | None = None) -> Path:
    """A store of the pool with one version, of the first draw."""
    store = make_store(root, 5)
    draft = make_draft(store, "refresh-1")
    details = {} if tokens_per_row is None else {"tokens_per_row": tokens_per_row}
    store.commit(
        dataclasses.replace(
            draft,
            selection=Selection(
                rows=np.array(DRAWS[0]),
                gains=np.zeros(4, np.float32),
                weights=WEIGHTS[DRAWS[0]].astype(np.float32),
                objective=0.0,
                details=details,
            ),
            settings=Settings(scoring=ScoringSection(loss=loss)),  # type: ignore[arg-type]
        )
    )
    return root


def all_draws(weights: Any = WEIGHTS) -> list[Drawn]:
    return [Drawn(row, float(weights[row]), 1) for rows in DRAWS for row in rows]


def arguments(output: Path, kind: Any = TrainingArguments, **settings: Any) -> Any:
    """Of a trainer that changes nothing, with two micro-batches of two rows for each draw."""
    given: dict[str, Any] = {
        "output_dir": str(output),
        "num_train_epochs": 1,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 0.0,
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        **settings,
    }
    return kind(**given)


def steps(
    root: Path,
    *,
    model: Any = None,
    script: list[Drawn] | None = None,
    kind: Any = WeighedTrainer,
    collator: Any = pad,
    dataset: Any = None,
    loss: Any = None,
    arguments_kind: Any = TrainingArguments,
    **settings: Any,
) -> list[torch.Tensor]:
    """The gradient of each step of a training on the script, by default on each draw in turn."""
    recorded = Gradients()
    drawn = all_draws() if script is None else script
    trainer = kind(
        model=make_model() if model is None else model,
        args=arguments(root.parent / "run", kind=arguments_kind, **settings),
        data_collator=collator,
        train_dataset=pool() if dataset is None else dataset,
        callbacks=[ScriptedCallback(root, drawn, loss=loss), recorded],
    )
    trainer.train()
    return recorded.of_steps


def expected(gradients: list[torch.Tensor]) -> torch.Tensor:
    """Over the draws."""
    assert len(gradients) == len(DRAWS)
    return torch.tensor(CHANCES) @ torch.stack(gradients)


def main() -> None:
    """The same, on this rank of a job."""
    torch.set_num_threads(1)
    root, out, rank = Path(sys.argv[1]), Path(sys.argv[2]), int(os.environ["RANK"])
    found = {}
    for average in ("tokens", "samples"):
        for across in (True, False):
            gradients = steps(
                root if rank == 0 else root / "not-mounted-here",
                loss=average,
                per_device_train_batch_size=1,
                average_tokens_across_devices=across,
                ddp_backend="gloo",
            )
            found[f"{average}, {across}"] = [g.tolist() for g in gradients]
    (out / f"rank-{rank}.json").write_text(json.dumps(found))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    os._exit(0)  # torch's destructors may wait for gloo's thread, which waits for the GIL


if __name__ == "__main__":
    main()
