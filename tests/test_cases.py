"""Small inputs of the kinds that went wrong once: read, tokens with loss, and the export.

Each file is written as users have it, with a few rows. What chat templates do with single
conversations of these kinds is in test_samples_templates.py, layouts in test_samples_layouts.py,
adapters and copied checkpoints in test_adapters.py and test_checkpoints.py.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import PreTrainedTokenizerFast

from gracekit.recipe import DataSection
from gracekit.samples import load_samples, tokenize
from gracekit.types import Json
from tests.conversations import tokenizer_for, without_marks
from tests.templates_of_families import CHATML, PHI, THINKING
from tests.test_samples_exact import as_read, exported, without_ids
from tests.test_samples_tokens import train_tokenizer


def chat(*turns: str, **last: Any) -> Json:
    """Turns of user and assistant in their order; more keys for the last one."""
    messages: list[Json] = [
        {"role": ("user", "assistant")[k % 2], "content": text} for k, text in enumerate(turns)
    ]
    messages[-1] |= last
    return {"messages": messages}


def call(**arguments: Any) -> Json:
    function = {"name": "c", "arguments": arguments}
    return {"content": None, "tool_calls": [{"type": "function", "function": function}]}


@dataclass(frozen=True)
class Case:
    """Rows of a file, and for each the text of its tokens with loss; None: it is left out."""

    rows: list[Json]
    said: list[str | None]
    template: str | None = CHATML
    settings: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    """In the reason why rows are left out."""


END = "<|im_end|>"
NUMBERS = ["1.10", "1e5", "null", "true", '{"x": 1}', "[1, 2]", '"q"', " 12 ", "007", "NaN"]
TOOL = {"type": "function", "function": {"name": "c", "parameters": {"type": "object"}}}
CASES: dict[str, Case] = {
    "3 tools": Case(
        [chat("Add", "4") | {"tools": [TOOL]}, chat("Add", "5") | {"tools": None}],
        [f"4{END}", f"5{END}"],
    ),
    "4 thinking": Case(
        [chat("11+4?", "<think>\nso\n</think>\n\n15", "11-4?", "<think>\noff\n</think>\n\n7"),
         chat("48+12?", "<think>\nthey make 60\n</think>\n\n60")],
        [f"15{END}<think>\noff\n</think>\n\n7{END}", f"<think>\nthey make 60\n</think>\n\n60{END}"],
        template=THINKING,
    ),
    "5 several turns": Case(
        [chat("Tell me of Ulm.", "Ulm is a town.", "More?", "It has 3 towers.")],
        ["Ulm is a town.<|end|>It has 3 towers.<|end|>\n</s>"],
        template=PHI,
    ),
    "6 a turn in two messages": Case(
        [{"messages": [*chat("Two towns.", "Ulm.")["messages"], {"role": "assistant",
                                                                 "content": "Jena 0."}]}],
        [f"Ulm.{END}Jena 0.{END}"],
    ),
    "10 numbers as text, one content list": Case(
        [*(chat(f"Convert {k}", text) for k, text in enumerate(NUMBERS)),
         {"messages": [{"role": "user", "content": [{"type": "text", "text": "Convert"}]},
                       {"role": "assistant", "content": "Infinity"}]}],
        [f"{text}{END}" for text in [*NUMBERS, "Infinity"]],
    ),
    "11 dates": Case(
        [{"prompt": f"{k}?", "completion": "2024-01-15", "id": f"2024-01-01T10:0{k}:00Z",
          "src": f"2024-0{k + 1}-01"} for k in range(3)],
        [f"2024-01-15{END}"] * 3,
        settings={"id_column": "id", "group_column": "src"},
    ),
    "16 weight 0": Case(
        [{"messages": [{"role": "user", "content": "Add 0 and 1."},
                       {"role": "assistant", "content": "2", "weight": 0},
                       {"role": "user", "content": "No, again."},
                       {"role": "assistant", "content": "1", "weight": 1}]},
         chat("Add", "2", weight=0)],
        [f"1{END}", None],
        reason="no message of the assistant carries loss (weight 0)",
    ),
    "17 rendered already": Case(
        [{"text": "<s>[INST] Add 0 and 1. [/INST] 1</s>"}],
        ["[INST] Add 0 and 1. [/INST] 1</s>"],
        template=None,
    ),
    "19 roles and JSON text": Case(
        [{"messages": json.dumps([{"role": "Human", "content": "Q"},
                                  {"role": "Assistant", "content": "A"}])},
         {"messages": [{"role": "user", "content": "Q"}, {"role": "bot", "content": "B"}]},
         {"messages": [{"role": "user", "content": "Q"}, {"role": "Narrator", "content": "C"}]}],
        [f"A{END}", f"B{END}", None],
        reason="the role 'Narrator' in 'messages' is not known",
    ),
    "20 parts with a value": Case(
        [{"messages": [{"role": "user", "content": [{"type": "text", "value": "What is 0+1?"}]},
                       {"role": "assistant", "content": "1"}]},
         {"messages": [{"role": "user", "content": [{"type": "text"}]},
                       {"role": "assistant", "content": "1"}]}],
        [f"1{END}", None],
        reason="a part of the content of a message of 'messages' has no text",
    ),
    "24 a prompt beyond max_length": Case(
        [chat("Add", "4"), chat("so " * 60, "5")],
        [f"4{END}", ""],
        settings={"max_length": 32},
    ),
    "33 pairs beside a chat": Case(
        [{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "earlier"},
                            {"from": "human", "value": "b"}],
          "chosen": {"from": "gpt", "value": "good"}, "rejected": {"from": "gpt", "value": "bad"}}],
        [f"good{END}"],
    ),
    "34 absent arguments": Case(
        [chat("Do 0", "", **call(expr="0*2", digits=2)), chat("Do 1", "", **call(city="Ulm"))],
        ['<tool_call>{"name": "c", "arguments": {"expr": "0*2", "digits": 2}}</tool_call>' + END,
         '<tool_call>{"name": "c", "arguments": {"city": "Ulm"}}</tool_call>' + END],
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def base() -> PreTrainedTokenizerFast:
    return train_tokenizer(trim_offsets=True, adds_bos=True)


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
@pytest.mark.parametrize("name", CASES)
def test_case(tmp_path: Path, base: PreTrainedTokenizerFast, name: str, kind: str) -> None:
    case, path = CASES[name], tmp_path / f"t.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in case.rows), encoding="utf-8")
    elif kind == "json":
        path.write_text(json.dumps(case.rows, indent=2), encoding="utf-8")
    else:
        try:
            pq.write_table(pa.Table.from_pylist(case.rows), path)
        except pa.ArrowException:
            pytest.skip("Arrow cannot hold a column of several types")
    data = DataSection.model_validate({"path": str(path), **case.settings})
    tokenizer = base if case.template is None else tokenizer_for(base, without_marks(case.template))
    raw = load_samples(data)
    table = tokenize(raw, tokenizer, data, tmp_path / "cache")
    found: dict[int, str] = {}
    for row, (ids, mask) in enumerate(table.take(np.arange(len(raw)))):
        found[int(raw.source_rows[row])] = tokenizer.decode(ids[mask])
        assert (ids == tokenizer.bos_token_id).sum() <= 1, "no sequence begins twice"
    assert [found.get(k) for k in range(len(case.rows))] == case.said
    assert all(case.reason and case.reason in skipped.reason for skipped in raw.skipped)
    kept = [case.rows[k] for k in raw.source_rows.tolist()]
    if kind == "parquet":  # where Arrow fills absent keys with null, and a null is an absent key
        kept = [{name: as_read(value) for name, value in row.items()} for row in kept]
    assert without_ids(exported(data, tmp_path / "out")) == kept
    if data.id_column is not None:
        assert raw.sample_ids.tolist() == [row[data.id_column] for row in kept]
