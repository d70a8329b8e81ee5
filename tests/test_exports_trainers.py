"""Exports for trainers: what they hold, and what the trainers' own loaders make of them.

`make test-formats` and `make test-llamafactory` run those with a mark, in environments of their
own.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import tarfile
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gracekit.errors import ExportError
from gracekit.exports import ExportedRows, export, shards
from gracekit.exports.turns import CALL, OBSERVATION, Changes, Turn, alternate, alternating
from gracekit.types import Json
from tests.exported import content_of

TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
CALLED = {"name": "add", "arguments": {"a": 1}}


def sharegpt(*names: str, **more: Any) -> Json:
    """A chat with a turn of each name."""
    turns = [
        {"from": name, "value": json.dumps(CALLED) if name == "function_call" else f"{name} {k}"}
        for k, name in enumerate(names)
    ]
    return {"conversations": turns, **more}


def openai(*roles: str, **more: Any) -> Json:
    """The same with `messages`; `call` is a message with `tool_calls`."""
    call = {"id": "1", "type": "function", "function": CALLED}
    return {
        "messages": [
            {"role": "assistant", "content": "", "tool_calls": [call]}
            if role == "call"
            else {"role": role, "content": f"{role} {k}"}
            for k, role in enumerate(roles)
        ],
        **more,
    }


MIXED = [
    sharegpt("human", "gpt", system="", tools=""),
    sharegpt("system", "human", "gpt", system="", tools=""),
    sharegpt("human", "function_call", "observation", "gpt", system="", tools=json.dumps(TOOLS)),
    sharegpt("human", "human", "gpt", "gpt", system="Be kind.", tools=""),
    sharegpt("human", "gpt", "function_call", "observation", "gpt", system="", tools=""),
    sharegpt("gpt", "human", "gpt", system="", tools=""),
    sharegpt("human", "gpt", "human", system="", tools=""),
    sharegpt("human", "function_call", "observation", "observation", "human", "gpt", system="",
             tools=""),
    sharegpt("system", "system", "human", "gpt", "system", "human", "gpt", system="", tools=""),
    sharegpt("user", "assistant", system="", tools=""),
]  # fmt: skip
ALTERNATING = [
    [sharegpt("human", "gpt"), sharegpt("human", "function_call", "observation", "gpt")],
    [openai("system", "user", "assistant"), openai("user", "call", "tool", "tool", "assistant")],
]
WRONG_ORDER = [
    MIXED,
    [openai("user", "user", "assistant"), openai("user", "call", "tool", "tool", "assistant")],
    [openai("developer", "user", "assistant"), openai("system", "user", "assistant", "user")],
    [sharegpt("human", "gpt", "system", "gpt"), sharegpt("human", "gpt")],
    [openai("user", "assistant", "system", "assistant"), openai("user", "assistant")],
]


def read_lines(path: Path) -> list[Json]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


# --- turns ---

KINDS = st.sampled_from(["system", "user", "assistant", CALL, OBSERVATION])


@given(st.lists(KINDS, max_size=9))
def test_turns_alternate_and_no_answer_is_lost(kinds: list[str]) -> None:
    turns = [
        Turn(kind, json.dumps(CALLED) if kind == CALL else f"{kind} {k}")
        for k, kind in enumerate(kinds)
    ]
    changes = Changes()
    found = alternating(turns, changes)
    chat = found[1:] if found and found[0].kind == "system" else found
    assert all((turn.kind in ("assistant", CALL)) == bool(k % 2) for k, turn in enumerate(chat))
    assert len(chat) % 2 == 0
    words = "".join(turn.text for turn in found if turn.kind == "assistant")
    for turn in turns:
        if turn.kind == "assistant":
            assert turn.text in words
    calls = [call for t in found if t.kind == CALL for call in _listed(json.loads(t.text))]
    assert len(calls) == kinds.count(CALL)
    assert alternate(found)
    assert (found == turns) == (not changes.rows)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


# --- LLaMA-Factory ---


@pytest.mark.parametrize(
    "rows",
    [ALTERNATING[0], [openai("system", "user", "assistant"), openai("user", "assistant")]],
    ids=["sharegpt", "openai"],
)
def test_chats_that_llamafactory_keeps_stay_as_they_are(tmp_path: Path, rows: list[Json]) -> None:
    report = export(content_of(rows), "llamafactory", tmp_path / "lf", weights="none")
    assert "changed" not in report.details
    found = read_lines(tmp_path / "lf/coreset.jsonl")
    assert found == [row | {"sample_id": f"id {i}"} for i, row in enumerate(rows)]


def told_turns(tmp_path: Path, rows: list[Json], name: str) -> list[list[tuple[str, str]]]:
    """The chats of an export, read by what its `dataset_info.json` says, as LLaMA-Factory does."""
    export(content_of(rows), "llamafactory", tmp_path / name)
    (entry,) = json.loads((tmp_path / name / "dataset_info.json").read_text()).values()
    assert entry["formatting"] == "sharegpt", "openai changes the system message of every row"
    tags = entry["tags"]
    roles = {tags[key]: key for key in tags if key not in ("role_tag", "content_tag")}
    return [
        [(roles[t[tags["role_tag"]]], t[tags["content_tag"]]) for t in row["messages"]]
        for row in read_lines(tmp_path / name / "coreset.jsonl")
    ]


PLAIN = openai("user", "assistant")
OTHERS: dict[str, Json] = {
    "other keys": {
        "messages": [{"from": "user", "value": "q"}, {"from": "assistant", "value": "a"}]
    },
    "entries of two turns": {"messages": [{"input": "q", "output": "a"}]},
    "parts": {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "q"}]},
            {"role": "assistant", "content": "a"},
        ]
    },
    "numbers": {
        "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": 4}]
    },
    "JSON text": {"messages": json.dumps(openai("user", "assistant")["messages"])},
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_messages_that_llamafactory_would_not_find_are_written_anew(
    tmp_path: Path, name: str
) -> None:
    """Wherever such a row stands: the entry tells one pair of keys, and contents that are text."""
    is_first = name == "entries of two turns"
    rows = [OTHERS[name], PLAIN] if is_first else [PLAIN, OTHERS[name]]
    found = told_turns(tmp_path, rows, "lf")
    for turns in found:
        assert [role for role, _ in turns] == ["user_tag", "assistant_tag"]
        assert all(isinstance(text, str) for _, text in turns)


def test_calls_come_to_llamafactory_without_its_formatting_openai(tmp_path: Path) -> None:
    """That of 0.9.5 puts "detailed thinking off" into the system message of rows without tools."""
    old = openai("user", "assistant", "function", "assistant")
    old["messages"][1] = {
        "role": "assistant",
        "content": None,
        "function_call": {"name": "add", "arguments": json.dumps(CALLED["arguments"])},
    }
    for name, row in {
        "new": openai("user", "call", "tool", "tool", "assistant"),
        "old": old,
    }.items():
        turns = told_turns(tmp_path, [PLAIN, row], name)[1]
        kinds = ["user_tag", "function_tag", "observation_tag", "assistant_tag"]
        assert [role for role, _ in turns] == kinds
        assert json.loads(turns[1][1]) == [CALLED]


def test_pairs_that_llamafactory_would_read_otherwise_are_refused(tmp_path: Path) -> None:
    pair = {
        "conversations": [{"from": "human", "value": "q"}],
        "chosen": {"from": "gpt", "value": "a"},
        "rejected": {"from": "gpt", "value": "b"},
    }
    export(content_of([pair, pair]), "llamafactory", tmp_path / "lf")
    for side in (
        {"role": "assistant", "content": "b"},
        {"from": "gpt", "value": "b", "tool_calls": [{"type": "function", "function": CALLED}]},
    ):
        with pytest.raises(ExportError, match=r"a message of the selected pairs is .*as trl"):
            export(content_of([pair, pair | {"rejected": side}]), "llamafactory", tmp_path / "x")


@pytest.mark.parametrize("name", ["llamafactory", "axolotl"])
@pytest.mark.parametrize(
    "other",
    [
        {"prompt": "q", "completion": 4},
        {"prompt": [{"role": "user", "content": "q"}],
         "completion": [{"role": "assistant", "content": "a"}]},
    ],
    ids=["a number", "messages"],
)  # fmt: skip
def test_a_later_row_that_is_no_text_is_refused(tmp_path: Path, name: str, other: Json) -> None:
    """LLaMA-Factory leaves a row out whose answer is a number."""
    for rows in ([{"prompt": "q", "completion": "a"}, other], [other]):
        with pytest.raises(ExportError, match=r"(the column|found the columns).*xport as"):
            export(content_of(rows), name, tmp_path / "out")


@pytest.mark.parametrize("name", OTHERS)
def test_axolotl_is_given_the_messages_that_were_measured_or_none(
    tmp_path: Path, name: str
) -> None:
    rows = content_of([PLAIN, OTHERS[name]])
    if name in ("parts", "numbers"):  # which it joins, and prints
        export(rows, "axolotl", tmp_path / "ax")
        return
    with pytest.raises(ExportError, match=r"the sample 'id 1' .* 'role' and 'content'.*as trl"):
        export(rows, "axolotl", tmp_path / "ax")


def quiet_chat(key: str, of_user: Any = None) -> Json:
    user = {"role": "user", "content": "q", **({} if of_user is None else {key: of_user})}
    return {
        "messages": [
            user,
            {"role": "assistant", "content": "a", key: 0},
            user,
            {"role": "assistant", "content": "b", key: 1},
        ]
    }


@pytest.mark.parametrize(
    ("rows", "mark", "silent"),
    [
        ([PLAIN, quiet_chat("weight")], "weight", None),
        ([PLAIN, quiet_chat("train", 0)], "train", None),
        ([PLAIN, quiet_chat("weight", 1)], None, 1),  # Axolotl would train on the user's turns
        ([quiet_chat("loss"), quiet_chat("weight")], None, 2),
        ([PLAIN, PLAIN], None, None),
    ],
)
def test_turns_without_loss_are_told_to_axolotl_or_counted(
    tmp_path: Path, rows: list[Json], mark: str | None, silent: int | None
) -> None:
    report = export(content_of(rows), "axolotl", tmp_path / "ax")
    (options,) = yaml.safe_load((tmp_path / "ax/axolotl.yaml").read_text())["datasets"]
    assert options.get("message_field_training") == mark
    assert report.details.get("silent_turns") == silent
    counts = {"llamafactory": 0 if rows == [PLAIN, PLAIN] else len(rows) - rows.count(PLAIN)}
    told = export(content_of(rows), "llamafactory", tmp_path / "lf").details
    assert told.get("silent_turns", 0) == counts["llamafactory"]
    trained = export(content_of(rows, rendering="axolotl"), "axolotl", tmp_path / "as").details
    assert "silent_turns" not in trained, "they are measured with loss too"


def test_chats_in_another_order_are_written_anew(tmp_path: Path) -> None:
    report = export(content_of(MIXED), "llamafactory", tmp_path / "lf")
    assert report.details["changed"] == {
        "rows": 6, "joined": 6, "empty_turns": 2, "cut_off": 1, "later_system": 1,
    }  # fmt: skip
    found = [row["conversations"] for row in read_lines(tmp_path / "lf/coreset.jsonl")]
    assert [turn["from"] for turn in found[1]] == ["system", "human", "gpt"]
    assert [t["value"] for t in found[3]] == ["Be kind.", "human 0\n\nhuman 1", "gpt 2\n\ngpt 3"]
    assert found[5][0] == {"from": "human", "value": ""}
    assert [t["from"] for t in found[9]] == ["human", "gpt"]
    (entry,) = json.loads((tmp_path / "lf/dataset_info.json").read_text()).values()
    assert entry["columns"] == {"messages": "conversations", "tools": "tools"}


@pytest.mark.parametrize("name", ["llamafactory", "torchtune"])
def test_a_system_turn_between_answers_becomes_a_prompt(tmp_path: Path, name: str) -> None:
    rows = [sharegpt("human", "gpt", "system", "gpt"), sharegpt("human", "gpt")]
    report = export(content_of(rows), name, tmp_path / "out")
    assert report.details["changed"] == {
        "rows": 1, "joined": 0, "empty_turns": 0, "cut_off": 0, "later_system": 1,
    }  # fmt: skip
    (first, _) = read_lines(tmp_path / "out/coreset.jsonl")
    turns = first.get("conversations") or first["messages"]
    roles = [turn.get("from") or turn["role"] for turn in turns]
    prompt, answer = ("human", "gpt") if name == "llamafactory" else ("user", "assistant")
    assert roles == [prompt, answer, prompt, answer]


@pytest.mark.llamafactory
@pytest.mark.filterwarnings("default")
@pytest.mark.skipif(importlib.util.find_spec("llamafactory") is None, reason="not installed")
@pytest.mark.parametrize("rows", [*ALTERNATING, *WRONG_ORDER])
def test_llamafactory_keeps_every_row(tmp_path: Path, rows: list[Json]) -> None:
    from llamafactory.data.loader import _load_single_dataset
    from llamafactory.data.parser import get_dataset_list
    from llamafactory.data.processor import SupervisedDatasetProcessor
    from llamafactory.data.template import get_template_and_fix_tokenizer
    from llamafactory.hparams import DataArguments

    from tests.trainer_kinds import made_tokenizer

    report = export(content_of(rows), "llamafactory", tmp_path / "lf")
    folder = report.details["dataset_dir"]
    arguments = DataArguments(template="qwen3", dataset_dir=folder, cutoff_len=2048)
    model = SimpleNamespace(cache_dir=str(tmp_path / "cache"), hf_hub_token=None)
    training = SimpleNamespace(local_process_index=0, dataloader_num_workers=0)
    (attributes,) = get_dataset_list([report.details["dataset"]], folder)
    loaded = _load_single_dataset(attributes, model, arguments, training)
    assert len(loaded) == len(rows)
    tokenizer = made_tokenizer()
    template = get_template_and_fix_tokenizer(tokenizer, arguments)
    processor = SupervisedDatasetProcessor(template, tokenizer, None, arguments)
    found = processor.preprocess_dataset(loaded.to_dict())
    assert len(found["input_ids"]) == len(rows), "rows were dropped"
    assert not any("detailed thinking" in tokenizer.decode(ids) for ids in found["input_ids"])
    for row, labels in zip(read_lines(tmp_path / "lf/coreset.jsonl"), found["labels"], strict=True):
        said = tokenizer.decode([label for label in labels if label >= 0])
        for turn in row.get("conversations") or row["messages"]:
            name = turn.get("from") or turn["role"]
            if name in ("gpt", "assistant") and turn.get("value", turn.get("content")):
                words = turn.get("value") or turn["content"]
                assert tokenizer.decode(tokenizer(words)["input_ids"]) in said


# --- TRL, ms-swift, torchtune ---

ALPACA: Json = {"instruction": "i", "input": "x", "output": "o", "more": 1}
PAIR: Json = {"prompt": "p", "chosen": "good", "rejected": "bad"}


@pytest.mark.parametrize(
    ("row", "expected", "section"),
    [
        (
            ALPACA,
            {
                "prompt": [{"role": "user", "content": "i\n\nx"}],
                "completion": [{"role": "assistant", "content": "o"}],
            },
            {},
        ),
        ({"prompt": "p", "completion": "c"}, {"prompt": "p", "completion": "c"},
         {"rendering": "trl"}),
        (
            sharegpt("human", "gpt"),
            {"messages": [{"role": "user", "content": "human 0"},
                          {"role": "assistant", "content": "gpt 1"}]},
            {},
        ),
        (
            sharegpt("human", "gpt"),
            {"messages": [{"role": "human", "content": "human 0"},
                          {"role": "gpt", "content": "gpt 1"}]},
            {"rendering": "trl"},
        ),
        ({"text": "t", "more": 1}, {"text": "t"}, {}),
        ({"input_ids": [1, 2], "labels": [-100, 2]}, {"input_ids": [1, 2], "labels": [-100, 2]},
         {}),
        (
            PAIR,
            {
                "prompt": [{"role": "user", "content": "p"}],
                "chosen": [{"role": "assistant", "content": "good"}],
                "rejected": [{"role": "assistant", "content": "bad"}],
            },
            {},
        ),
    ],
)  # fmt: skip
def test_trl(tmp_path: Path, row: Json, expected: Json, section: Json) -> None:
    export(content_of([row], [2.0], **section), "trl", tmp_path / "out")
    (found,) = read_lines(tmp_path / "out/coreset.jsonl")
    assert found == expected | {"sample_id": "id 0", "weight": 2.0}
    options = yaml.safe_load((tmp_path / "out/trl.yaml").read_text())
    loaded = datasets.load_dataset(
        options["dataset_name"], split="train", cache_dir=str(tmp_path / "cache")
    )
    assert loaded.to_list() == [found]
    learns_answers = not section  # TRL's own way, which is measured too, learns all turns
    assert options.get("assistant_only_loss") is (
        learns_answers if "messages" in expected else None
    )


LISTS: Json = {
    "prompt": [{"role": "user", "content": "p"}],
    "completion": [{"role": "assistant", "content": "c"}],
}
CHAT: Json = {"messages": [*LISTS["prompt"], *LISTS["completion"]]}


@pytest.mark.parametrize(
    ("row", "loss_on", "expected"),
    [
        (CHAT, "auto", {"assistant_only_loss": False}),
        (CHAT, "all", {"assistant_only_loss": False}),
        (CHAT, "response", {"assistant_only_loss": True}),
        (LISTS, "auto", {"completion_only_loss": True, "assistant_only_loss": False}),
        (LISTS, "all", {"completion_only_loss": False, "assistant_only_loss": False}),
        (LISTS, "response", {"completion_only_loss": True, "assistant_only_loss": True}),
        ({"prompt": "p", "completion": "c"}, "auto", {"completion_only_loss": True}),
    ],
)
def test_trl_learns_the_tokens_that_were_measured(
    tmp_path: Path, row: Json, loss_on: str, expected: Json
) -> None:
    content = content_of([row], rendering="trl", loss_on=loss_on)
    export(content, "trl", tmp_path / "out")
    options = yaml.safe_load((tmp_path / "out/trl.yaml").read_text())
    assert options == {"dataset_name": str(tmp_path / "out"), **expected}


QUIET: Json = {"messages": [
    {"role": "user", "content": "u"}, {"role": "assistant", "content": "no", "weight": 0},
    {"role": "user", "content": "v"}, {"role": "assistant", "content": "yes"}]}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "section", "expected"),
    [
        ("trl", {}, 1),
        ("trl", {"loss_on": "all"}, None),
        ("trl", {"rendering": "trl"}, None),
        ("torchtune", {}, 1),
        ("ms-swift", {}, None),
    ],
)
def test_turns_without_loss_are_counted(
    tmp_path: Path, name: str, section: Json, expected: int | None
) -> None:
    rows = [QUIET, openai("user", "assistant")]
    report = export(content_of(rows, **section), name, tmp_path / "out")
    assert report.details.get("silent_turns") == expected


@pytest.mark.parametrize("rendering", ["plain", "trl"])
@pytest.mark.parametrize(
    "other",
    [
        {"prompt": "p", "completion": "c", "system": "s"},
        {"prompt": openai("user")["messages"], "completion": openai("assistant")["messages"]},
    ],
    ids=["a system message", "messages"],
)
def test_trl_is_given_prompts_in_one_form(tmp_path: Path, rendering: str, other: Json) -> None:
    """Of a column of texts and lists its loader makes no dataset."""
    row = {"prompt": "p", "completion": "c"}
    with pytest.raises(ExportError, match="TRL takes one of the two"):
        export(content_of([row, other], rendering=rendering), "trl", tmp_path / "out")
    export(content_of([row, other]), "trl", tmp_path / "auto")  # which writes all as messages
    export(content_of([other], rendering=rendering), "trl", tmp_path / "one")


def test_tools_come_to_trl_as_they_are(tmp_path: Path) -> None:
    rows = [openai("user", "call", "tool", "assistant", tools=TOOLS), openai("user", "assistant")]
    export(content_of(rows), "trl", tmp_path / "out", weights="none")
    found = read_lines(tmp_path / "out/coreset.jsonl")
    assert found[0]["tools"] == TOOLS and "tools" not in found[1]
    assert found[0]["messages"][1]["tool_calls"][0]["function"] == CALLED


def test_ms_swift(tmp_path: Path) -> None:
    rows = [openai("user", "call", "tool", "assistant", tools=TOOLS), QUIET]
    export(content_of(rows), "ms-swift", tmp_path / "out", weights="none")
    first, second = read_lines(tmp_path / "out/coreset.jsonl")
    assert [m["role"] for m in first["messages"]] == [
        "user", "tool_call", "tool_response", "assistant",
    ]  # fmt: skip
    assert json.loads(first["messages"][1]["content"]) == CALLED
    assert json.loads(first["tools"]) == TOOLS
    assert [m.get("loss") for m in second["messages"]] == [None, False, None, None]
    export(content_of([PAIR]), "ms-swift", tmp_path / "pair")
    (pair,) = read_lines(tmp_path / "pair/coreset.jsonl")
    assert (pair["messages"][-1]["content"], pair["rejected_response"]) == ("good", "bad")
    with pytest.raises(ExportError, match="are tokens, which ms-swift does not read"):
        export(content_of([{"input_ids": [1, 2]}]), "ms-swift", tmp_path / "tokens")


def test_calls_of_a_rejected_answer_are_not_lost(tmp_path: Path) -> None:
    call = openai("call")["messages"]
    pair = {"prompt": openai("user")["messages"], "chosen": openai("assistant")["messages"]}
    rows = [pair | {"rejected": openai("assistant", "user", "assistant")["messages"][2:]}]
    rows.append(pair | {"rejected": call})
    export(content_of(rows), "ms-swift", tmp_path / "swift")
    plain, called = read_lines(tmp_path / "swift/coreset.jsonl")
    assert plain["rejected_response"] == "assistant 2"
    assert [turn["role"] for turn in called["rejected_messages"]] == ["user", "tool_call"]
    assert json.loads(called["rejected_messages"][1]["content"]) == CALLED
    with pytest.raises(ExportError, match="calls tools"):
        export(content_of(rows), "torchtune", tmp_path / "tune")


def test_torchtune(tmp_path: Path) -> None:
    rows = [sharegpt("human", "human", "gpt"), sharegpt("human", "gpt")]
    report = export(content_of(rows), "torchtune", tmp_path / "out")
    assert report.details["changed"]["joined"] == 1
    found = read_lines(tmp_path / "out/coreset.jsonl")
    assert found[0]["messages"][0] == {"role": "user", "content": "human 0\n\nhuman 1"}
    dataset = yaml.safe_load((tmp_path / "out/torchtune.yaml").read_text())["dataset"]
    assert dataset["_component_"] == "torchtune.datasets.chat_dataset"
    with pytest.raises(ExportError, match="calls tools"):
        export(content_of([openai("user", "call", "tool", "assistant")]), "torchtune",
               tmp_path / "tools")  # fmt: skip


# --- shards ---


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 200)


ODD: list[Json] = [
    {"t": "text \u2028 🙂", "n": 7, "x": 0.5, "any": 1, "list": [1, {"a": None}]},
    {"t": "", "n": -(2**62), "x": 1e300, "any": "two", "list": [], "late": True},
    *({"t": "x" * k, "n": k, "x": k / 4, "any": None, "list": [k]} for k in range(20)),
]  # fmt: skip


@pytest.mark.usefixtures("small_shards")
def test_webdataset_holds_the_rows(tmp_path: Path) -> None:
    report = export(content_of(ODD), "webdataset", tmp_path / "out")
    found = []
    for name in report.details["files"]:
        with tarfile.open(tmp_path / "out" / name) as file:
            found += [json.load(file.extractfile(member)) for member in file.getmembers()]  # type: ignore[arg-type]
    assert len(report.details["files"]) > 2
    assert found == [row | {"sample_id": f"id {i}", "weight": 1.0} for i, row in enumerate(ODD)]
    export(content_of(ODD), "webdataset", tmp_path / "again")
    for name in report.details["files"]:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


@pytest.mark.usefixtures("small_shards")
def test_mds_says_how_its_columns_are_written(tmp_path: Path) -> None:
    report = export(content_of(ODD), "mds", tmp_path / "out")
    assert report.details["columns"] == {
        "t": "str", "n": "int", "x": "float64", "any": "json", "list": "json", "late": "json",
        "sample_id": "str", "weight": "float64",
    }  # fmt: skip
    index = json.loads((tmp_path / "out/index.json").read_text())
    assert sum(shard["samples"] for shard in index["shards"]) == len(ODD)
    for shard in index["shards"]:
        raw = (tmp_path / "out" / shard["raw_data"]["basename"]).read_bytes()
        ends = np.frombuffer(raw[4 : 4 + 4 * (shard["samples"] + 1)], "<u4")
        assert ends[-1] == len(raw) == shard["raw_data"]["bytes"]


# --- the libraries themselves ---


def installed(*names: str) -> pytest.MarkDecorator:
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {missing}")


@pytest.mark.formats
@installed("webdataset")
@pytest.mark.filterwarnings("default")
@pytest.mark.usefixtures("small_shards")
def test_webdataset_is_read_by_webdataset(tmp_path: Path) -> None:
    import webdataset

    report = export(content_of(ODD), "webdataset", tmp_path / "out")
    pattern = str(tmp_path / "out" / report.details["pattern"])
    found = [row["json"] for row in webdataset.WebDataset(pattern, shardshuffle=False).decode()]
    assert found == [row | {"sample_id": f"id {i}", "weight": 1.0} for i, row in enumerate(ODD)]


@pytest.mark.formats
@installed("streaming")
@pytest.mark.filterwarnings("default")
@pytest.mark.usefixtures("small_shards")
def test_mds_is_read_by_mosaicml_streaming(tmp_path: Path) -> None:
    spec = importlib.util.find_spec("streaming")
    assert spec is not None and spec.submodule_search_locations is not None
    # Its first page imports datasets of pictures, and with them torchvision, which is not there.
    package = ModuleType("streaming")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["streaming"] = package
    from streaming.base import StreamingDataset

    export(content_of(ODD), "mds", tmp_path / "out")
    dataset = StreamingDataset(local=str(tmp_path / "out"), batch_size=1)
    names = {name for row in ODD for name in row}
    for i, row in enumerate(ODD):
        expected = dict.fromkeys(names) | row | {"sample_id": f"id {i}", "weight": 1.0}
        assert dataset[i] == expected


@pytest.mark.formats
@installed("torchtune")
@pytest.mark.filterwarnings("default")
def test_torchtune_reads_its_chats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchtune.data import OpenAIToMessages, validate_messages
    from torchtune.datasets import SFTDataset

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    calls = {"function_call", "observation"}
    rows = [
        row
        for row in MIXED
        if not row["tools"] and not calls & {turn["from"] for turn in row["conversations"]}
    ]
    export(content_of(rows), "torchtune", tmp_path / "out")
    options = yaml.safe_load((tmp_path / "out/torchtune.yaml").read_text())["dataset"]
    seen = []

    def keep(sample: Json, inference: bool = False) -> Json:
        validate_messages(sample["messages"])
        seen.append([(m.role, m.text_content, m.masked) for m in sample["messages"]])
        return {"tokens": [0], "mask": [False], **sample}

    dataset = SFTDataset(
        source=options["source"],
        data_files=options["data_files"],
        split=options["split"],
        message_transform=OpenAIToMessages(
            train_on_input=options["train_on_input"],
            column_map={"messages": options["conversation_column"]},
        ),
        model_transform=keep,
    )
    assert len(list(iter(dataset[i] for i in range(len(dataset))))) == len(rows)
    exported = read_lines(tmp_path / "out/coreset.jsonl")
    assert [[(role, text) for role, text, _ in found] for found in seen] == [
        [(m["role"], m["content"]) for m in row["messages"]] for row in exported
    ]
    assert all(masked == (role != "assistant") for found in seen for role, _, masked in found)


@pytest.mark.swift
@installed("swift")
@pytest.mark.filterwarnings("default")
def test_ms_swift_keeps_every_row(tmp_path: Path) -> None:
    from swift.dataset import load_dataset

    rows = [
        openai("system", "user", "assistant"),
        openai("user", "call", "tool", "tool", "assistant", tools=TOOLS),
        openai("user", "user", "assistant", "assistant"),
        openai("assistant", "user", "assistant", "user"),
    ]
    pairs = [PAIR, PAIR | {"rejected": "worse"}]
    for name, given_rows in {"chats": rows, "sharegpt": MIXED, "pairs": pairs}.items():
        report = export(content_of(given_rows), "ms-swift", tmp_path / name)
        loaded, _ = load_dataset(report.details["dataset"], use_hf=True, load_from_cache_file=False)
        exported = read_lines(tmp_path / name / "coreset.jsonl")
        assert len(loaded) == len(given_rows)
        for found, row in zip(loaded, exported, strict=True):
            kept = [(m["role"], m["content"]) for m in found["messages"]]
            assert kept == [(m["role"], m["content"]) for m in row["messages"]]
            assert found.get("rejected_response") == row.get("rejected_response")
            assert (found.get("tools") or []) == json.loads(row.get("tools", "[]"))


# --- domain weights ---


def test_domain_weights(tmp_path: Path) -> None:
    rows = [{"text": f"t {i}"} for i in range(4)]
    content = content_of(rows, [3.0, 0.5, 0.5, 4.0], groups=["a b", "c", "c", "a b"],
                         group_column="source")  # fmt: skip
    report = export(content, "domain-weights", tmp_path / "out")
    assert report.details["shares"] == {"a b": 0.875, "c": 0.125}
    out = tmp_path / "out"
    blend = yaml.safe_load((out / "energon.yaml").read_text())["splits"]["train"]["blend"]
    assert blend == [{"weight": 0.875, "path": "a b"}, {"weight": 0.125, "path": "c"}]
    listed = yaml.safe_load((out / "axolotl.yaml").read_text())["datasets"]
    assert listed == [{"path": "a b", "split": "train[:2]"}, {"path": "c", "split": "train[:2]"}]
    assert (out / "nemo.txt").read_text() == "0.875000 'a b' 0.125000 c\n"
    assert "--dataset 'a b' c --interleave_prob 0.875000" in (out / "ms-swift.txt").read_text()
    plain = export(content, "domain-weights", tmp_path / "plain", weights="none")
    assert plain.details["shares"] == {"a b": 0.5, "c": 0.5}
    without: ExportedRows = content_of(rows, groups=["all"] * 4)
    with pytest.raises(ExportError, match="have no groups"):
        export(without, "domain-weights", tmp_path / "none")
