"""What selection costs and keeps in a real training, measured in one process.

    python benchmarks/price_run.py --model llama-tiny -o runs/price/tiny
    python benchmarks/price_run.py --model smollm2 --rows 2000 --max-length 128 --samples 600 \
        --epochs 4 -o runs/price/smollm2
    ... --bf16 --whole --max-length 96 --truth-at 1,4 --truth-rows 400 -o runs/price/smollm2-bf16
    ... --lora -o runs/price/smollm2-lora

A Hugging Face trainer with `CoresetTrainerMixin` trains epochs of some samples. After each (or each
`--every` epochs) but the last it saves a checkpoint, and a refresh makes a version of it
by the default recipe with its budget, in one process that reads the data once, as `watch` does. CPU
seconds of the training and of all of each refresh (reading, loading, measuring, propagation, graph,
draw, commit) are counted apart. Then all samples (or `--truth-rows`
drawn at random) are measured at the same checkpoint, in a store of its own, which is no part of
either: by these norms the version's draw and one from exact scores are worth what the table says,
and the last column is what is kept of the gain. A line is printed and saved as soon as its version
is there. Stopped or killed, a run with the same options goes on from its last whole epoch; what was
done after that is done, and counted, again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import DataCollatorForSeq2Seq, Trainer, TrainerCallback, TrainingArguments

import gracekit
from gracekit.checkpoints import check_checkpoint
from gracekit.draw.capped import capped_probabilities
from gracekit.recipe import Recipe
from gracekit.refresher.flow import Refresher
from gracekit.scores.norms import part_norms
from gracekit.store import Store
from gracekit.training import CoresetCallback, CoresetTrainerMixin
from gracekit.types import Float64, Origin
from gracekit.version.header import Header

sys.path.insert(0, str(Path(__file__).parent.parent))
from pipelines.train_quickstart import PRESETS, encode, read_rows, smollm2, tiny_llama

DATA = Path(__file__).parent.parent / "data/train.jsonl"
ACCOUNT = "account.json"


class CoresetTrainer(CoresetTrainerMixin, Trainer):  # type: ignore[misc]
    """The stock trainer."""


class Selecting(TrainerCallback):  # type: ignore[misc]
    """Makes a version of each checkpoint, and measures what it was worth."""

    def __init__(
        self,
        recipe: Recipe,
        output: Path,
        *,
        truth_at: set[int] | None,
        truth_share: float | None = None,
        every: int = 1,
    ) -> None:
        """`truth_share` of the rows tell the truth (None: all); a version each `every` epochs."""
        self.recipe, self.output, self.truth_at = recipe, output, truth_at
        self.truth_share, self.every = truth_share, every
        self.lines: list[dict[str, Any]] = []
        self.step = 0
        """That was done last when the account was written."""
        self._before_s = self._away_s = self._began = 0.0
        self._refresher: Refresher | None = None

    @property
    def training_s(self) -> float:
        """CPU seconds of the training so far, those before a stop included."""
        return self._before_s + time.process_time() - self._began - self._away_s

    @property
    def selecting_s(self) -> float:
        """CPU seconds of all versions so far."""
        return float(sum(line["took_s"] for line in self.lines))

    @property
    def planned(self) -> float:
        """Share of the training that was planned at the first checkpoint."""
        return float(self.lines[0]["planned"]) if self.lines else float("nan")

    def write_account(self, step: int) -> None:
        """Write down what the run has come to at a step."""
        account = {"step": step, "training_s": self.training_s, "lines": self.lines}
        temporary = self.output / "account.tmp"
        temporary.write_text(json.dumps(account), encoding="utf-8")
        temporary.replace(self.output / ACCOUNT)

    def take_up(self) -> None:
        """Go on from the account of a run that was stopped."""
        account = json.loads((self.output / ACCOUNT).read_text(encoding="utf-8"))
        self.step, self._before_s = account["step"], account["training_s"]
        self.lines = account["lines"]
        # What a stopped refresh has measured is measured, and counted, once more.
        shutil.rmtree(self.output / "store/shards", ignore_errors=True)

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._began = time.process_time()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A checkpoint after each epoch but the last."""
        control.should_save = state.global_step < state.max_steps

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Make a version, where one is due, and keep the account."""
        if round(state.epoch) % self.every == 0:
            self.select(state.global_step)
        self.write_account(state.global_step)

    def select(self, step: int) -> None:
        """Select, and look at what it is worth."""
        training_s, planned = self.training_s, self.planned
        checkpoint = self.output / f"checkpoints/checkpoint-{step}"
        looked_away = time.process_time()
        if not self.lines:  # what a user is told before anything is measured
            run = gracekit.refresh(self.recipe, checkpoint, dry_run=True).run
            planned = run.selection / run.training
        started = time.process_time()
        header = self.refresh(checkpoint)
        took = time.process_time() - started
        nan = float("nan")
        looks = self.truth_at is None or header.version in self.truth_at
        kept = self.kept(header.version, checkpoint) if looks else (nan, nan)
        self._away_s += time.process_time() - looked_away
        assert header.cost is not None and header.meter is not None
        self.lines.append(
            {
                "version": header.version,
                "step": step,
                "measured": header.stats.num_measured,
                "planned": planned,
                "counted": header.cost.share,
                "training_s": training_s,
                "took_s": took,
                "value": kept[0],
                "exact": kept[1],
                "meter": header.meter.value,
            }
        )
        print(json.dumps(self.lines[-1]), flush=True)

    def refresh(self, checkpoint: Path) -> Header:
        """Make a version, as a daemon does: the data is read before the first one."""
        if self._refresher is None:
            self._refresher = Refresher.from_recipe(self.recipe)
        with self._refresher.locked():
            found = check_checkpoint(checkpoint, self.recipe.checkpoints)
            return self._refresher.refresh(found).header

    def kept(self, version: int, checkpoint: Path) -> tuple[float, float]:
        """Value of the version's draw, and of one from exact scores, by the norms of the rows."""
        place, recipe = self.output / "exact", self.recipe
        shutil.rmtree(place, ignore_errors=True)
        how: dict[str, Any] = {"refresh.max_cost": None}
        if self.truth_share is not None:  # other rows than those that the run itself measures first
            share = self.truth_share
            how = {"refresh.max_cost": 1e6, "seed": recipe.seed + 12345}
            how |= {"refresh.min_fraction": share, "refresh.max_fraction": share}
        gracekit.refresh(recipe, checkpoint, store=place, set=how)
        exact, drawn = Store.open(place), Store.open(recipe.store).drawn(version)
        table, lengths = exact.scores(1), exact.samples(1).num_response_tokens
        norms = part_norms(table.scores[recipe.scoring.importance], lengths, recipe.scoring)
        assert drawn is not None and drawn.draw is not None
        p = drawn.draw.probabilities
        told = (table.origin == Origin.MEASURED) & np.isfinite(norms) & (p > 0)
        norms, alpha, share = norms[told], recipe.selection.alpha, recipe.selection.fraction or 0.3
        best = capped_probabilities(
            alpha + (1 - alpha) * norms / norms.mean(), np.ones(len(norms)), share * len(norms)
        )
        return worth(p[told], norms), worth(best, norms)


def worth(p: Float64, norms: Float64) -> float:
    """How many random samples one that is drawn so is worth."""
    square = norms**2
    return float(square.sum() / p.mean() / (square / p).sum())


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options of a run; of the command line, or those that are given."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=sorted(PRESETS), default="llama-tiny")
    parser.add_argument("--lora", action="store_true", help="train an adapter of rank 8")
    parser.add_argument("--rows", type=int, help="of the data file")
    parser.add_argument("--max-length", type=int, default=192)
    parser.add_argument("--whole", action="store_true", help="only rows that --max-length cuts not")
    parser.add_argument("--samples", type=int, default=600, help="of an epoch")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--every", type=int, default=1, help="epochs from version to version")
    parser.add_argument("--loss", choices=("tokens", "samples"), default="tokens")
    parser.add_argument("--max-cost", type=float, default=0.1)
    parser.add_argument("--bf16", action="store_true", help="train and score in bfloat16")
    parser.add_argument(
        "--truth-at",
        type=lambda text: {int(part) for part in text.split(",") if part},
        help="versions whose value is compared with that of exact scores, as 1,5,9; '' for none",
    )
    parser.add_argument("--truth-rows", type=int, help="drawn at random, instead of all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, required=True)
    return parser.parse_args(arguments)


def begin(options: argparse.Namespace) -> tuple[list[dict[str, str]], Recipe]:
    """The rows to train on, and the default recipe; a run of other options is left alone."""
    output: Path = options.output
    asked = json.dumps(vars(options), default=str, sort_keys=True)
    file = output / "options.json"
    if not (file.is_file() and file.read_text(encoding="utf-8") == asked and (
        output / ACCOUNT).is_file()):  # fmt: skip
        if (output / ACCOUNT).is_file():
            sys.exit(f"{output} has a run of other options (options.json); name another folder")
        shutil.rmtree(output, ignore_errors=True)
        output.mkdir(parents=True)
        file.write_text(asked, encoding="utf-8")
    rows = read_rows(DATA, None)
    if options.whole:
        _, tokenizer = smollm2() if options.model == "smollm2" else tiny_llama(rows)
        longest = options.max_length
        rows = [r for r in rows if len(encode(r, tokenizer, longest + 1)["input_ids"]) <= longest]
    rows = rows[: options.rows]
    data = output / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = Recipe.from_dict({
        "data": {
            "path": str(data),
            "group_column": "source",
            "max_length": options.max_length,
        },
        "store": str(options.output / "store"),
        "seed": options.seed,
        "scoring": {
            "loss": options.loss,
            "batch_tokens": 1024,
            "num_threads": 1,
            "dtype": "bfloat16" if options.bf16 else "auto",
        },
        "refresh": {"max_cost": options.max_cost},
        "selection": {"fraction": options.samples / len(rows)},
    })  # fmt: skip
    return rows, recipe


def train(
    options: argparse.Namespace,
    rows: list[dict[str, str]],
    selecting: TrainerCallback,
    checkpoint: Path | None = None,
) -> None:
    """Train on the rows, from a fresh start or a checkpoint, with `selecting` at checkpoints."""
    torch.set_num_threads(1)
    transformers.set_seed(options.seed)
    transformers.utils.logging.set_verbosity_error()
    preset = PRESETS[options.model]
    model, tokenizer = smollm2() if options.model == "smollm2" else tiny_llama(rows)
    if options.lora:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear"))
    store: Path = options.output / "store"
    trainer = CoresetTrainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(options.output / "checkpoints"),
            num_train_epochs=options.epochs,
            per_device_train_batch_size=preset.batch_size,
            learning_rate=10 * preset.learning_rate if options.lora else preset.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=10,
            seed=options.seed,
            logging_strategy="epoch",
            save_strategy="no",
            save_total_limit=2,
            report_to="none",
            use_cpu=True,
            bf16=options.bf16,
            dataloader_pin_memory=False,
            disable_tqdm=True,
        ),
        train_dataset=[encode(row, tokenizer, options.max_length) for row in rows],
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        processing_class=tokenizer,
        callbacks=[
            CoresetCallback(store, num_samples=options.samples, seed=options.seed),
            selecting,
        ],
    )
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))


def main() -> None:
    """Train, select and print."""
    options = parse()
    rows, recipe = begin(options)
    selecting = Selecting(
        recipe,
        options.output,
        truth_at=options.truth_at,
        truth_share=options.truth_rows and options.truth_rows / len(rows),
        every=options.every,
    )
    checkpoint = None
    if (options.output / ACCOUNT).is_file():
        selecting.take_up()
        checkpoint = options.output / f"checkpoints/checkpoint-{selecting.step}"
        print(f"goes on from step {selecting.step}", flush=True)
    train(options, rows, selecting, checkpoint)
    training_s = selecting.training_s
    print(
        f"\n{len(rows)} samples, {options.epochs} epochs of {options.samples}; training "
        f"{training_s:.0f} CPU s, all selection {selecting.selecting_s:.0f} "
        f"({selecting.selecting_s / training_s:.1%}); in counted tokens {selecting.planned:.1%} "
        f"were planned at the first checkpoint, {selecting.lines[-1]['counted']:.1%} spent\n"
    )
    print("| version | step | measured | counted, all so far | refresh, CPU s | value | exact "
          "scores | kept |\n|--:|--:|--:|--:|--:|--:|--:|--:|")  # fmt: skip
    for line in selecting.lines:
        share = (line["value"] - 1) / (line["exact"] - 1)
        print(
            f"| {line['version']} | {line['step']} | {line['measured']} | {line['counted']:.1%} | "
            f"{line['took_s']:.1f} | {line['value']:.2f} | {line['exact']:.2f} | {share:.0%} |"
        )


if __name__ == "__main__":
    main()
