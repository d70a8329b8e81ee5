"""The guides of docs/trainers as the tests of them run them, and a small world to train in."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import yaml
from transformers import LlamaConfig, LlamaForCausalLM

import gracekit
from gracekit.recipe import Recipe
from tests.templates_of_families import CHATML
from tests.trainer_kinds import made_tokenizer

DOCS = Path(__file__).parent.parent / "docs"
NUM_ROWS = 24


def guide(name: str) -> str:
    return (DOCS / f"trainers/{name}.md").read_text("utf-8")


def blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", guide(name), re.DOTALL)


def write_rows() -> None:
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"is {i} large"},
                {"role": "assistant", "content": f"the {i} is small"},
            ]
        }
        for i in range(NUM_ROWS)
    ]
    Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_world_of_templates(**changes: Any) -> Any:
    """As `world`, with a tokenizer and a template that trainers render with; the tokenizer."""
    tokens = made_tokenizer(chat_template=CHATML.replace("<|im_end|>", "</s>"))
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokens),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=256,
        )
    )
    model.save_pretrained("base")
    tokens.save_pretrained("base")
    write_rows()
    gracekit.init("train.jsonl")
    refresh_world(10, model, tokens, **changes)
    return tokens


def refresh_world(step: int, model: Any, tokens: Any, **changes: Any) -> None:
    """A version of the world's store from this model as the checkpoint of a step."""
    path = Path(f"run/checkpoint-{step}")
    model.save_pretrained(path)
    tokens.save_pretrained(path)
    (path / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    refresh_at(path, **changes)


def refresh_at(path: Path, **changes: Any) -> None:
    """A version of the world's store from a checkpoint."""
    settings = {"scoring.device": "cpu", "selection.fraction": 0.34, "refresh.max_cost": None}
    gracekit.refresh(Recipe.load("gracekit.yaml").override(settings | changes), path)


def axolotl_configuration(pad_token: str, *, plugins: tuple[str, ...] = (), batch: int = 4) -> str:
    """Axolotl's configuration with the guide's plugin, for the world, a CPU and two epochs."""
    told = yaml.safe_load(blocks("axolotl", "yaml")[0])
    told["gracekit"] |= {"num_samples": 8, "record": "drawn.jsonl", "redraw": "never"}
    told["plugins"] += plugins
    told |= {
        "base_model": "base",
        "datasets": [{"path": "train.jsonl", "ds_type": "json", "type": "chat_template",
                      "field_messages": "messages"}],
        "chat_template": "tokenizer_default", "output_dir": "out", "num_epochs": 2,
        "micro_batch_size": batch, "gradient_accumulation_steps": 1, "learning_rate": 1e-3,
        "optimizer": "adamw_torch", "lr_scheduler": "constant", "sequence_len": 128,
        "sample_packing": False, "bf16": False, "fp16": False, "tf32": False, "device": "cpu",
        "save_strategy": "no", "logging_steps": 1, "dataset_num_proc": 1, "val_set_size": 0.0,
        "dataset_prepared_path": "prepared", "special_tokens": {"pad_token": pad_token},
    }  # fmt: skip
    return yaml.safe_dump(told)


def swift_plugin() -> str:
    """The guide's plugin for the world."""
    (code,) = blocks("ms-swift", "python")
    return code.replace("num_samples=2000", 'num_samples=8, record="drawn.jsonl", redraw="never"')


def run_swift(*, callbacks: str = "gracekit", more: str = "", batch: int = 4) -> None:
    """`swift sft` in the present directory, with the plugin in its `coresets.py`."""
    from swift.pipelines.train.sft import sft_main

    sft_main(shlex.split(
        "--model base --model_type llama --template dummy --template_backend jinja "
        f"--dataset train.jsonl --external_plugins coresets.py --callbacks {callbacks} "
        f"--tuner_type full --num_train_epochs 2 --per_device_train_batch_size {batch} "
        "--gradient_accumulation_steps 1 --output_dir out --save_strategy no --logging_steps 1 "
        "--torch_dtype float32 --use_cpu true --report_to none --split_dataset_ratio 0 "
        "--check_model false --max_length 128 --attn_impl eager --use_hf true "
        f"--gradient_checkpointing false --dataloader_num_workers 0 {more}"
    ))  # fmt: skip
