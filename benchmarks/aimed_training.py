"""Training towards a target: what each signal, and the mix that gracekit chooses, brings.

    python benchmarks/aimed_training.py --target python-docs --seeds 0,1,2 -o runs/aimed
    python benchmarks/aimed_training.py --target evals --arms random,auto -o runs/aimed
    ... --model smollm2 --rows 2000 --max-length 128 --epochs 6 -o runs/aimed-smollm2
    ... --epochs 30 -o runs/aimed-long           # five passes over the pool

The shipped data is split by a hash: half of it trains the tiny model first (SmolLM2 is trained
already), the other half is the pool. Of the target's source, 40 rows of neither are the target set,
and others, held out, tell the loss. All arms start alike and take as many steps of as many rows:

- `random` re-drawn at each epoch; `once`: every row once before any comes twice;
- `oracle`: the target's source alone, each row once before any comes twice;
- `none`: gracekit without a target; `auto`: with one, all else default; `influence`, `likeness`,
  `round-robin`: one signal alone; `undosed`: `auto` with `selection.dose: 1`;
- `per-row`: the rows with the largest per-row influence (`selector: top`);
- `coverage`: `selector: target-coverage`.

Each arm and seed writes a file when it is done, and is passed over when that is there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch.utils.data import Sampler
from transformers import DataCollatorForSeq2Seq, Trainer, TrainerCallback, TrainingArguments

import gracekit
from gracekit.recipe import Recipe
from gracekit.training import CoresetCallback, CoresetTrainerMixin

sys.path.insert(0, str(Path(__file__).parent.parent))
from pipelines.train_quickstart import encode, read_rows, smollm2, tiny_llama

Row = dict[str, str]
DATA = Path(__file__).parent.parent / "data/train.jsonl"
NUM_TARGET, MOST_HELD_OUT = 40, 120
PLAIN = ("random", "once", "oracle")
ARMS: dict[str, dict[str, Any]] = {
    "none": {"selection.aim": "none"},
    "auto": {},
    "influence": {"selection.aim": "influence"},
    "likeness": {"selection.aim": "likeness"},
    "round-robin": {"selection.aim": "round-robin"},
    "undosed": {"selection.dose": 1.0},
    "per-row": {
        "selection.selector": "top",
        "scoring.scores": ["gradient-norm", "loss", "influence"],
        "scoring.importance": "influence",
        "scoring.normalise": "all",
    },
    "coverage": {
        "selection.selector": "target-coverage",
        "scoring.scores": ["gradient-norm", "loss", "influence"],
        "scoring.importance": "influence",
        "scoring.normalise": "all",
    },
}


class CoresetTrainer(CoresetTrainerMixin, Trainer):  # type: ignore[misc]
    """The stock trainer, with gracekit's epochs."""


class Given(Sampler[int]):
    """Rows in an order that is given, epoch after epoch."""

    def __init__(self, order: list[int], count: int) -> None:
        self.order, self.count, self.epoch = order, count, 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        start = self.epoch * self.count
        self.epoch += 1
        yield from self.order[start : start + self.count]


class PlainTrainer(Trainer):  # type: ignore[misc]
    """The stock trainer over given rows."""

    given: Given

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Given:
        return self.given


class Looking(TrainerCallback):  # type: ignore[misc]
    """Held-out loss after each epoch, and for gracekit's arms a refresh of a checkpoint."""

    def __init__(
        self, held_out: list[dict[str, list[int]]], recipe: Recipe | None, output: Path
    ) -> None:
        self.held_out, self.recipe, self.output = held_out, recipe, output
        self.losses: list[float] = []
        self.aims: list[dict[str, Any]] = []
        self.selecting_s = 0.0

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look, and ask for a checkpoint."""
        self.losses.append(loss_of(kwargs["model"], self.held_out))
        control.should_save = self.recipe is not None and state.global_step < state.max_steps

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Select."""
        if self.recipe is None:
            return
        checkpoint = self.output / f"checkpoints/checkpoint-{state.global_step}"
        started = time.process_time()
        header = gracekit.refresh(self.recipe, checkpoint).header
        self.selecting_s += time.process_time() - started
        found = {} if header.aim is None else header.aim.model_dump(mode="json")
        found.pop("losses", None)
        found["measured"] = header.stats.num_measured
        found["cost"] = None if header.cost is None else header.cost.share
        self.aims.append(found)
        for old in (self.output / "checkpoints").iterdir():
            if old != checkpoint:
                shutil.rmtree(old)


def loss_of(model: Any, rows: list[dict[str, list[int]]]) -> float:
    """Mean over rows of the mean loss over their target tokens."""
    was_training, losses = model.training, []
    model.eval()
    with torch.no_grad():
        for row in rows:
            ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
            losses.append(float(model(input_ids=ids, labels=labels).loss))
    model.train(was_training)
    return float(np.mean(losses))


def hashed(row: Row) -> int:
    """A number that depends on the row's text alone."""
    return int.from_bytes(hashlib.sha256(row["prompt"].encode()).digest()[:6], "big")


def split(rows: list[Row], target: str, *, with_base: bool) -> dict[str, list[Row]]:
    """Rows for the base model, the pool, the target set and the held-out loss."""
    parts: dict[str, list[Row]] = {"base": [], "pool": [], "target": [], "held": []}
    wanted = sorted((row for row in rows if row["source"] == target), key=hashed)
    num_held = min(MOST_HELD_OUT, len(wanted) // 4)
    parts["target"], parts["held"] = wanted[:NUM_TARGET], wanted[NUM_TARGET : NUM_TARGET + num_held]
    taken = {id(row) for name in ("target", "held") for row in parts[name]}
    for row in rows:
        if id(row) not in taken:
            is_base = with_base and hashed(row) % 2 == 0
            parts["base" if is_base else "pool"].append(row)
    return parts


def orders(arm: str, pool: list[Row], target: str, count: int, seed: int) -> list[int]:
    """The rows of a plain arm, in order."""
    random = np.random.default_rng(seed)
    rows = np.arange(len(pool))
    if arm == "oracle":
        rows = np.array([i for i, row in enumerate(pool) if row["source"] == target])
    order: list[int] = []
    while len(order) < count:
        order += random.permutation(rows).tolist()
        if arm == "random":  # each epoch anew
            order = order[: len(order) // options().samples * options().samples]
    return order[:count]


def base_model(parts: dict[str, list[Row]], rows: list[Row], place: Path) -> tuple[Any, Any]:
    """The model that all arms start from, and its tokenizer."""
    given = options()
    if given.model == "smollm2":
        return smollm2()
    transformers.set_seed(0)
    model, tokenizer = tiny_llama(rows)
    if not (place / "config.json").is_file():
        encoded = [encode(row, tokenizer, given.max_length) for row in parts["base"]]
        trainer = PlainTrainer(
            model=model,
            args=arguments(place.with_name("base-run"), 6, seed=0),
            train_dataset=[row for row in encoded if any(i >= 0 for i in row["labels"])],
            data_collator=DataCollatorForSeq2Seq(tokenizer),
        )
        trainer.given = Given(
            orders("once", parts["base"], "", 6 * len(trainer.train_dataset), 0),
            len(trainer.train_dataset),
        )
        trainer.given.order = [i % len(trainer.train_dataset) for i in trainer.given.order]
        trainer.train()
        model.save_pretrained(place)
    return type(model).from_pretrained(place), tokenizer


def arguments(output: Path, epochs: int, *, seed: int) -> TrainingArguments:
    """The same for all arms."""
    given = options()
    return TrainingArguments(
        output_dir=str(output),
        num_train_epochs=epochs,
        per_device_train_batch_size=given.batch,
        learning_rate=given.rate,
        lr_scheduler_type="cosine",
        warmup_steps=5,
        seed=seed,
        logging_strategy="epoch",
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=given.bf16,
        dataloader_pin_memory=False,
        disable_tqdm=True,
    )


def run(arm: str, seed: int, parts: dict[str, list[Row]], rows: list[Row], output: Path) -> None:
    """Train one arm and write what it reached."""
    given = options()
    started = time.process_time()
    model, tokenizer = base_model(parts, rows, given.output / "base" / given.target)
    transformers.set_seed(seed)
    place = output / "work"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    for name in ("pool", "target"):
        text = "".join(json.dumps(row) + "\n" for row in parts[name])
        (place / f"{name}.jsonl").write_text(text)
    encoded = [encode(row, tokenizer, given.max_length) for row in parts["pool"]]
    held = [encode(row, tokenizer, given.max_length) for row in parts["held"]]
    held = [row for row in held if any(label >= 0 for label in row["labels"][1:])]
    recipe = None if arm in PLAIN else recipe_of(arm, seed, place, tokenizer)
    looking = Looking(held, recipe, place)
    common: dict[str, Any] = {
        "model": model,
        "args": arguments(place / "checkpoints", given.epochs, seed=seed),
        "data_collator": DataCollatorForSeq2Seq(tokenizer),
        "processing_class": tokenizer,
    }
    before = loss_of(model, held)
    if recipe is None:
        usable = [i for i, row in enumerate(encoded) if any(j >= 0 for j in row["labels"])]
        pool = [parts["pool"][i] for i in usable]
        trainer = PlainTrainer(
            train_dataset=[encoded[i] for i in usable], callbacks=[looking], **common
        )
        count = given.samples
        trainer.given = Given(orders(arm, pool, given.target, given.epochs * count, seed), count)
    else:
        first = place / "checkpoints/checkpoint-0"
        model.save_pretrained(first)
        tokenizer.save_pretrained(first)
        state = {"global_step": 0, "max_steps": given.epochs * -(-given.samples // given.batch)}
        state["train_batch_size"] = given.batch
        (first / "trainer_state.json").write_text(json.dumps(state))
        looking.on_save(None, argparse.Namespace(global_step=0), None)
        coresets = CoresetCallback(place / "store", num_samples=given.samples, seed=seed)
        trainer = CoresetTrainer(train_dataset=encoded, callbacks=[coresets, looking], **common)
    trainer.train()
    result = {
        "arm": arm, "seed": seed, "before": before, "losses": looking.losses,
        "cpu_s": time.process_time() - started, "selecting_s": looking.selecting_s,
        "aims": looking.aims,
    }  # fmt: skip
    shutil.rmtree(place)
    unfinished = output / "result.tmp"
    unfinished.write_text(json.dumps(result))
    unfinished.replace(output / "result.json")


def recipe_of(arm: str, seed: int, place: Path, tokenizer: Any) -> Recipe:
    """The default recipe with what the arm says."""
    given = options()
    recipe = Recipe.from_dict({
        "data": {
            "path": str(place / "pool.jsonl"),
            "group_column": "source",
            "max_length": given.max_length,
        },
        "target": {"path": str(place / "target.jsonl"), "max_length": given.max_length},
        "store": str(place / "store"),
        "seed": seed,
        "scoring": {
            "batch_tokens": 1024,
            "num_threads": 1,
            "dtype": "bfloat16" if given.bf16 else "auto",
        },
        "refresh": {"max_cost": given.max_cost},
        "selection": {"fraction": given.samples / len(read_rows(place / "pool.jsonl", None))},
    })  # fmt: skip
    return recipe.override(ARMS[arm]) if ARMS[arm] else recipe


def table(results: list[dict[str, Any]]) -> None:
    """Loss at the end less that of random, by arm."""
    by_arm: dict[str, dict[int, dict[str, Any]]] = {}
    for result in results:
        by_arm.setdefault(result["arm"], {})[result["seed"]] = result
    random, oracle = by_arm.get("random", {}), by_arm.get("oracle", {})
    print("\n| arm | seeds | loss at the end | less random | of the oracle's | lowest, at epoch | "
          "selection, CPU | counted |\n|---|--:|--:|--:|--:|--:|--:|--:|")  # fmt: skip
    for arm, runs in by_arm.items():
        ends = {seed: run["losses"][-1] for seed, run in runs.items()}
        both = [s for s in ends if s in random]
        less = [ends[s] - random[s]["losses"][-1] for s in both]
        of_oracle = [
            (ends[s] - random[s]["losses"][-1])
            / (oracle[s]["losses"][-1] - random[s]["losses"][-1])
            for s in both
            if s in oracle and arm != "random"
        ]
        lows = [int(np.argmin(run["losses"])) + 1 for run in runs.values()]
        low = np.mean([min(run["losses"]) for run in runs.values()])
        selecting = np.mean([run["selecting_s"] / run["cpu_s"] for run in runs.values()])
        counted = [run["aims"][-1]["cost"] or math.nan for run in runs.values() if run["aims"]]
        print(
            f"| {arm} | {len(ends)} | {np.mean([*ends.values()]):.3f} | {spread(less)} | "
            f"{spread(of_oracle, 2)} | {low:.3f}, {np.mean(lows):.1f} | {selecting:.0%} | "
            f"{np.mean(counted) if counted else 0:.1%} |"
        )


def spread(values: list[float], digits: int = 3) -> str:
    """Mean and standard error."""
    if not values:
        return ""
    error = np.std(values, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{np.mean(values):+.{digits}f} ± {error:.{digits}f}"


_OPTIONS: list[argparse.Namespace] = []


def options() -> argparse.Namespace:
    """The command line, read once."""
    if not _OPTIONS:
        parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
        parser.add_argument("--target", default="python-docs", help="source that is aimed at")
        parser.add_argument("--arms", default=",".join((*PLAIN, *ARMS)))
        parser.add_argument("--seeds", default="0")
        parser.add_argument("--model", choices=("llama-tiny", "smollm2"), default="llama-tiny")
        parser.add_argument("--rows", type=int, help="of the data file, a spread of them")
        parser.add_argument("--max-length", type=int, default=192)
        parser.add_argument("--samples", type=int, default=400, help="of an epoch")
        parser.add_argument("--epochs", type=int, default=6)
        parser.add_argument("--batch", type=int, default=8)
        parser.add_argument("--rate", type=float, default=1e-3)
        parser.add_argument("--max-cost", type=float, default=0.1)
        parser.add_argument("--bf16", action="store_true")
        parser.add_argument("-o", "--output", type=Path, required=True)
        _OPTIONS.append(parser.parse_args())
    return _OPTIONS[0]


def main() -> None:
    """Run what is not there yet, and print all."""
    given = options()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    rows = read_rows(DATA, None)
    if given.rows:
        rows = sorted(rows, key=hashed)[: given.rows]
    parts = split(rows, given.target, with_base=given.model == "llama-tiny")
    print({name: len(part) for name, part in parts.items()}, flush=True)
    results = []
    for seed in map(int, given.seeds.split(",")):
        for arm in given.arms.split(","):
            output = given.output / given.target / f"{arm}-{seed}"
            if not (output / "result.json").is_file():
                run(arm, seed, parts, rows, output)
            results.append(json.loads((output / "result.json").read_text()))
            losses = " ".join(f"{loss:.3f}" for loss in results[-1]["losses"])
            print(f"{arm} {seed}: {losses}  ({results[-1]['cpu_s']:.0f} CPU s)", flush=True)
    table(results)


if __name__ == "__main__":
    main()
