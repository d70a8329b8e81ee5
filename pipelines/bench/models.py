"""Small models of several families, pre-trained first, so that fine-tuning is fine-tuning.

    python pipelines/bench/models.py gpt2 -o runs/bench/models/gpt2
    python pipelines/bench/models.py qwen3 -o runs/bench/models/qwen3

A model of about a million parameters in the layout of GPT-2 or Qwen3 is trained from scratch on
text that no benchmark has: docstrings and comments of the Python standard library that runs this.
Its tokenizer is of the same text and of the shipped data. Made once; a seed makes it again on the
same machine and Python.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import os
import shutil
import sys
import sysconfig
import time
import tokenize
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
from pipelines.train_quickstart import CHAT_TEMPLATE, smollm2

DATA = Path(__file__).resolve().parent.parent.parent / "data/train.jsonl"
VOCABULARY, WIDTH, BLOCKS, HEADS, CONTEXT = 4096, 128, 4, 4, 512
STEPS, BATCH, WINDOW, RATE, WARM_UP = 600, 16, 128, 3e-3, 60
MIN_CHARACTERS = 80
FAMILIES = ("gpt2", "qwen3", "smollm2")


def main() -> None:
    """Make one model."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    make(options.family, options.output, steps=options.steps, seed=options.seed)


def make(family: str, output: Path, *, steps: int = STEPS, seed: int = 0) -> Path:
    """The directory of a model, which is made where it is not there yet."""
    if (output / "config.json").is_file():
        return output
    if family == "smollm2":
        model, tokenizer = smollm2()
        return save(model, tokenizer, output)
    started = time.process_time()
    texts = list(library_texts())
    tokenizer = make_tokenizer(texts)
    ends = [tokenizer.eos_token_id]
    ids = [part + ends for part in tokenizer(texts, verbose=False)["input_ids"]]
    stream = torch.tensor(np.concatenate(ids).astype(np.int64))
    torch.manual_seed(seed)
    model = new_model(family, tokenizer)
    loss = pretrain(model, stream, steps=steps, seed=seed)
    size = sum(p.numel() for p in model.parameters())
    print(
        f"{family}: {size / 1e6:.2f} M parameters, {len(stream):,} tokens of text, {steps} steps "
        f"of {BATCH * WINDOW} tokens, last loss {loss:.3f}, "
        f"{time.process_time() - started:.0f} CPU s",
        flush=True,
    )
    return save(model, tokenizer, output)


def library_texts() -> Iterator[str]:
    """Docstrings and blocks of comments of the standard library, in the order of the files."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        inside = path.relative_to(root).parts
        if {"site-packages", "test", "tests", "idlelib", "lib2to3"} & {*inside}:
            continue
        try:
            source = path.read_text(encoding="utf-8")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse(source)
        except (UnicodeDecodeError, SyntaxError):
            continue
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        found = [ast.get_docstring(n) for n in ast.walk(tree) if isinstance(n, kinds)]
        yield from (text for text in found if text and len(text) >= MIN_CHARACTERS)
        yield from comments(source)


def comments(source: str) -> Iterator[str]:
    """Blocks of comment lines."""
    block: list[str] = []
    last = -1
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        if token.start[0] != last + 1 and block:
            yield from joined(block)
            block = []
        block.append(token.string.lstrip("#").strip())
        last = token.start[0]
    yield from joined(block)


def joined(lines: list[str]) -> Iterator[str]:
    """A block, where it is long enough to be prose."""
    text = "\n".join(lines).strip()
    if len(text) >= MIN_CHARACTERS:
        yield text


def make_tokenizer(texts: list[str]) -> Any:
    """Byte-level BPE of the texts and the shipped data, with the quickstart's chat template."""
    with DATA.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        [*texts, *(text for row in rows for text in (row["prompt"], row["response"]))],
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=["<|pad|>", "<|im_start|>", "<|im_end|>"],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<|pad|>",
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        chat_template=CHAT_TEMPLATE,
    )


def new_model(family: str, tokenizer: Any) -> Any:
    """A model from scratch."""
    ids = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    if family == "gpt2":
        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=len(tokenizer), n_positions=CONTEXT, n_embd=WIDTH, n_layer=BLOCKS,
                n_head=HEADS, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **ids,
            )
        )  # fmt: skip
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=3 * WIDTH,
            num_hidden_layers=BLOCKS, num_attention_heads=HEADS, num_key_value_heads=2,
            head_dim=WIDTH // HEADS, max_position_embeddings=CONTEXT, tie_word_embeddings=True,
            **ids,
        )
    )  # fmt: skip


def pretrain(model: Any, stream: torch.Tensor, *, steps: int, seed: int) -> float:
    """Next-token training on random windows; the mean loss of the last tenth of the steps."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    rng = np.random.default_rng(seed)
    losses = []
    model.train()
    for step in range(steps):
        rate = RATE * min(1.0, (step + 1) / WARM_UP) * (1 - 0.9 * step / steps)
        optimizer.param_groups[0]["lr"] = rate
        starts = rng.integers(0, len(stream) - WINDOW - 1, BATCH)
        batch = torch.stack([stream[start : start + WINDOW] for start in starts])
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))
    return float(np.mean(losses[-max(1, steps // 10) :]))


def save(model: Any, tokenizer: Any, output: Path) -> Path:
    """Write the directory, whole or not at all."""
    unfinished = output.with_name(f"{output.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    shutil.rmtree(output, ignore_errors=True)
    os.replace(unfinished, output)
    return output


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
