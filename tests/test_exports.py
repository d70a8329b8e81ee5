"""`exports`: every format read back by the library it is for, hostile text, and atomicity."""

from __future__ import annotations

import dataclasses
import datetime
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gracekit import files
from gracekit.errors import DataError, ExportError, RecipeError
from gracekit.exports import FORMATS, ExportedRows, export, rows_of
from gracekit.exports.exporting import WITHOUT_ROWS
from gracekit.recipe import DataSection
from gracekit.samples import load_samples, open_records, open_source
from gracekit.store import Store
from gracekit.types import Json, Rows
from gracekit.version.header import DataDescription
from tests.exported import content_of
from tests.faults import count_operations, failing_at
from tests.stores import make_draft, make_samples

HOSTILE = [
    "plain",
    "line one\nline two\r\nthree\ttab",
    "next\x85line separator\u2028paragraph\u2029",
    "null \x00 bell \x07 escape \x1b[31m vertical \x0b form \x0c",
    'quotes " and \\ back\\nslash {"json": [1]}',
    "عربي 日本語 🙂🇨🇭 e\u0301 \u202e reversed \ufeff",
    "",
    "  spaces  ",
]


def alpaca(count: int = len(HOSTILE)) -> list[Json]:
    return [
        {"instruction": HOSTILE[i % len(HOSTILE)], "input": None, "output": f"out {i}", "n": i}
        for i in range(count)
    ]


def expected_rows(records: list[Json]) -> list[Json]:
    return [{**r, "sample_id": f"id {i}", "weight": 1.0} for i, r in enumerate(records)]


# --- each format through its reader ---


def test_jsonl(tmp_path: Path) -> None:
    report = export(content_of(alpaca()), "jsonl", tmp_path / "out")
    assert report.num_rows == len(HOSTILE)
    assert (report.version, report.details["files"]) == (7, ["coreset.jsonl"])
    text = (tmp_path / "out/coreset.jsonl").read_text("utf-8")
    # Also readers that split at every Unicode line break see one row a line.
    assert [json.loads(line) for line in text.splitlines()] == expected_rows(alpaca())
    assert json.loads((tmp_path / "out/manifest.json").read_text())["version"] == 7
    loaded = datasets.load_dataset(
        "json", data_files=str(tmp_path / "out/coreset.jsonl"), split="train",
        cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    assert loaded.to_list() == expected_rows(alpaca())


@pytest.mark.parametrize("name", ["jsonl", "parquet"])
def test_the_whole_directory_can_be_loaded(tmp_path: Path, name: str) -> None:
    export(content_of(alpaca()), name, tmp_path / "out")
    loaded = datasets.load_dataset(
        str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert loaded.to_list() == expected_rows(alpaca())


def test_parquet_keeps_types_and_bridges_chunks(tmp_path: Path) -> None:
    records: list[Json] = [
        {
            "n": None if i < 1500 else i,
            "when": datetime.datetime(2024, 1, 1) + datetime.timedelta(days=i),
            "blob": b"\x00\xff",
            "messages": [{"role": "user", "content": "x"}, {"role": "tool", "call": [1.5]}],
            "half": 0.5 if i % 2 else 1.0,
        }
        for i in range(2500)
    ]
    export(content_of(records), "parquet", tmp_path / "out", weights="none")
    table = pq.read_table(tmp_path / "out/coreset.parquet").to_pylist()
    assert len(table) == 2500
    for i in (0, 1499, 1500, 2499):
        assert table[i]["n"] == records[i]["n"]
        assert table[i]["when"] == records[i]["when"]
        assert table[i]["blob"] == b"\x00\xff"
        assert table[i]["half"] == records[i]["half"] and isinstance(table[i]["half"], float)
        assert table[i]["messages"][0] == {"role": "user", "content": "x", "call": None}
        assert table[i]["sample_id"] == f"id {i}"
    assert "weight" not in table[0]


def test_hf_dataset(tmp_path: Path) -> None:
    report = export(content_of(alpaca(1200)), "hf-dataset", tmp_path / "out")
    loaded = datasets.load_from_disk(str(tmp_path / "out"))
    assert loaded.to_list() == expected_rows(alpaca(1200))
    assert loaded._indices is None
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == report.details["files"]


def test_ids_and_indices(tmp_path: Path) -> None:
    content = content_of(alpaca(4), [0.5, 1.5, 1.0, 1.0])
    export(content, "ids", tmp_path / "ids")
    assert (tmp_path / "ids/ids.txt").read_text().splitlines() == ["id 0", "id 1", "id 2", "id 3"]
    export(content, "indices-npy", tmp_path / "npy")
    indices = np.load(tmp_path / "npy/indices.npy", mmap_mode="r")
    assert (indices.dtype, indices.tolist()) == (np.int64, [3, 5, 7, 9])
    for directory in ("ids", "npy"):
        weights = np.load(tmp_path / directory / "weights.npy")
        assert (weights.dtype, weights.tolist()) == (np.float32, [0.5, 1.5, 1.0, 1.0])
    export(content, "indices-npy", tmp_path / "plain", weights="none")
    assert not (tmp_path / "plain/weights.npy").exists()


def test_ids_need_one_line_each(tmp_path: Path) -> None:
    content = dataclasses.replace(content_of(alpaca(1)), sample_ids=["two\nlines"])
    with pytest.raises(ExportError, match="not one line"):
        export(content, "ids", tmp_path / "out")


CHAT = [{"role": role, "content": role[0]} for role in ("system", "user", "assistant")]
SHAREGPT = [{"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}]


@pytest.mark.parametrize(
    ("record", "entry", "options"),
    [
        (
            {"messages": CHAT, "tools": "[]"},
            {
                "formatting": "sharegpt",
                "columns": {"messages": "messages", "tools": "tools"},
                "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user",
                         "assistant_tag": "assistant", "system_tag": "system"},
            },
            {
                "type": "chat_template",
                "field_messages": "messages",
                "message_property_mappings": {"role": "role", "content": "content"},
            },
        ),
        (
            {"conversations": SHAREGPT, "system": "s"},
            {
                "formatting": "sharegpt",
                "columns": {"messages": "conversations", "system": "system"},
                "tags": {"role_tag": "from", "content_tag": "value", "user_tag": "human",
                         "assistant_tag": "gpt", "system_tag": "system"},
            },
            {
                "type": "chat_template",
                "field_messages": "conversations",
                "message_property_mappings": {"role": "from", "content": "value"},
            },
        ),
        (
            {"instruction": "i", "input": "", "output": "o"},
            {
                "formatting": "alpaca",
                "columns": {"prompt": "instruction", "query": "input", "response": "output"},
            },
            {"type": "alpaca"},
        ),
        (
            {"prompt": "p", "completion": "c", "system": "s"},
            {
                "formatting": "alpaca",
                "columns": {"prompt": "prompt", "response": "completion", "system": "system"},
            },
            {
                "type": {
                    "field_system": "system",
                    "field_instruction": "prompt",
                    "field_output": "completion",
                    "format": "{instruction}",
                    "no_input_format": "{instruction}",
                }
            },
        ),
        (
            {"text": "t"},
            {"formatting": "alpaca", "columns": {"prompt": "text"}},
            {"type": "completion", "field": "text"},
        ),
    ],
)  # fmt: skip
def test_trainers_are_told_the_layout(
    tmp_path: Path, record: Json, entry: Json, options: Json
) -> None:
    content = content_of([record])
    report = export(content, "llamafactory", tmp_path / "lf")
    info = json.loads((tmp_path / "lf/dataset_info.json").read_text())
    assert info == {"lf": {"file_name": "coreset.jsonl", **entry}}
    told = (report.details["dataset"], report.details["dataset_dir"])
    assert told == ("lf", str(tmp_path / "lf"))
    export(content, "axolotl", tmp_path / "ax")
    fragment = yaml.safe_load((tmp_path / "ax/axolotl.yaml").read_text())
    path = str(tmp_path / "ax/coreset.jsonl")
    assert fragment == {"datasets": [{"path": path, "ds_type": "json", **options}]}
    assert json.loads(Path(path).read_text())["sample_id"] == "id 0"


def test_what_belongs_to_a_prompt_is_told_to_trainers_or_refused(tmp_path: Path) -> None:
    row = {"instruction": "i", "output": "o", "system_prompt": "s"}
    (options,) = exported_datasets(content_of([row]), tmp_path / "system")
    assert options["type"]["field_system"] == "system_prompt"
    entry = tags(tmp_path, "lf", row, row | {"tools": "[{}]"})
    assert entry["columns"]["system"] == "system_prompt" and entry["columns"]["tools"] == "tools"
    assert "tools" not in tags(tmp_path, "none", row | {"tools": "[]"})["columns"]
    for name, value in {"tools": [{}], "history": [["q", "a"]]}.items():
        rows: list[Json] = [row | {name: None}, row | {name: value}]
        with pytest.raises(ExportError, match=f"the selected rows have {name} beside the prompt"):
            export(content_of(rows), "axolotl", tmp_path / "ax")
        exported_datasets(content_of(rows[:1]), tmp_path / f"without {name}")
    chat = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}
    (options,) = exported_datasets(content_of([chat | {"system": "s"}]), tmp_path / "chat")
    assert "type" in options
    for system in ("", "s"):  # Axolotl finds a system message of a chat in that column alone
        content = content_of([chat | {"system_prompt": None}, chat | {"system_prompt": system}])
        with (
            pytest.raises(ExportError, match=r"system_prompt.*'system'")
            if system
            else nullcontext()
        ):
            export(content, "axolotl", tmp_path / f"prompt{system}")


def exported_datasets(content: ExportedRows, out: Path) -> list[Json]:
    export(content, "axolotl", out)
    found: list[Json] = yaml.safe_load((out / "axolotl.yaml").read_text())["datasets"]
    return found


@pytest.mark.parametrize("name", ["llamafactory", "axolotl"])
def test_trainers_that_do_not_know_a_layout(tmp_path: Path, name: str) -> None:
    content = content_of([{"prompt": CHAT, "completion": CHAT}])
    with pytest.raises(ExportError, match="found the columns prompt, completion"):
        export(content, name, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_llamafactory_is_entered_in_an_existing_directory(tmp_path: Path) -> None:
    shared = tmp_path / "dataset_info.json"
    before = {"identität": {"file_name": "identity.json"}, "hub": {"hf_hub_url": "a/b"}}
    shared.write_text(json.dumps(before))
    for overwrite in (False, True):
        report = export(content_of(alpaca()), "llamafactory", tmp_path / "subset",
                        overwrite=overwrite)  # fmt: skip
        after = json.loads(shared.read_text())
        assert {name: after[name] for name in before} == before
        assert after["subset"]["file_name"] == "subset/coreset.jsonl"
        assert (tmp_path / after["subset"]["file_name"]).exists()
        assert report.details["dataset_dir"] == str(tmp_path)
    # Another's dataset of that name, or a file that is not ours to repair.
    for text, message in [
        (json.dumps({"other": {"file_name": "mine.json"}}), "already has a dataset 'other'"),
        ("{broken", "not valid JSON"),
        ('{"other": "\\ud800"}', "not valid JSON"),
        ("[]", "one JSON object"),
        ('{"other": "mine.json"}', "already has a dataset 'other'"),
        ("[" * 100_000, "nested too deep"),
    ]:
        shared.write_text(text)
        with pytest.raises(ExportError, match=message):
            export(content_of(alpaca()), "llamafactory", tmp_path / "other")
        assert shared.read_text() == text
        assert not (tmp_path / "other").exists()


ENTER_MANY = """
import json, sys
from pathlib import Path
from gracekit.exports import enter_dataset

folder, name = Path(sys.argv[1]), sys.argv[2]
own = folder / name / "dataset_info.json"
own.parent.mkdir()
print("ready", flush=True)
sys.stdin.read()
for k in range(40):  # another entry each time, so that each time the file is replaced
    own.write_text(json.dumps({name: {"file_name": f"{k}.jsonl"}}))
    enter_dataset(folder / name)
    assert json.loads((folder / "dataset_info.json").read_text())[name]["file_name"] == (
        f"{name}/{k}.jsonl"
    )
"""


def test_exports_at_once_into_one_folder_are_all_entered(tmp_path: Path) -> None:
    shared = tmp_path / "dataset_info.json"
    shared.write_text('{"theirs": {"file_name": "mine.json"}}')
    names = ["one", "two", "three", "four"]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", ENTER_MANY, tmp_path, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for name in names
    ]
    for process in processes:  # they begin together
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()
    for process in processes:
        assert process.wait() == 0
        assert process.stdout is not None
        process.stdout.close()
    known = json.loads(shared.read_text())
    assert known.pop("theirs") == {"file_name": "mine.json"}
    assert known == {name: {"file_name": f"{name}/39.jsonl"} for name in names}
    assert {path.name for path in tmp_path.iterdir()} == {shared.name, *names}, "nothing is left"


def test_an_export_waits_for_no_process_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    monkeypatch.setattr("gracekit.exports.dataset_info._WAIT_S", 0.1)
    shared = tmp_path / "dataset_info.json"
    shared.write_text("{}")
    with shared.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ExportError, match=r"is written, but not entered in .*another process"):
            export(content_of(alpaca()), "llamafactory", tmp_path / "subset")
    assert shared.read_text() == "{}"
    export(content_of(alpaca()), "llamafactory", tmp_path / "subset", overwrite=True)
    assert list(json.loads(shared.read_text())) == ["subset"]


# --- weights ---


def test_repeat_writes_whole_copies(tmp_path: Path) -> None:
    weights = [0.25, 2.5, 0.25, 1.0, 1.0]
    reports = [
        export(content_of(alpaca(5), weights), "jsonl", tmp_path / name, weights="repeat")
        for name in ("one", "two")
    ]
    assert [r.num_rows for r in reports] == [5, 5]
    one, two = ((tmp_path / name / "coreset.jsonl").read_text() for name in ("one", "two"))
    assert one == two
    rows = [json.loads(line) for line in one.splitlines()]
    assert [row["n"] for row in rows] == sorted(row["n"] for row in rows)
    assert all(row["sample_id"] == f"id {row['n']}" and "weight" not in row for row in rows)
    counts = np.bincount([row["n"] for row in rows], minlength=5)
    assert counts[1] in (2, 3)
    assert counts[3:].tolist() == [1, 1]
    # The lists repeat in the same way.
    export(content_of(alpaca(5), weights), "indices-npy", tmp_path / "npy", weights="repeat")
    assert np.load(tmp_path / "npy/indices.npy").tolist() == [3 + 2 * row["n"] for row in rows]


def test_columns_of_the_user_are_never_lost(tmp_path: Path) -> None:
    records: list[Json] = [{"text": "a", "sample_id": "theirs", "weight": 80}]
    export(content_of(records), "jsonl", tmp_path / "out")
    row = json.loads((tmp_path / "out/coreset.jsonl").read_text())
    assert row == {**records[0], "gracekit_sample_id": "id 0", "gracekit_weight": 1.0}
    export(content_of([row, row]), "jsonl", tmp_path / "again")  # an export of the export
    again = json.loads((tmp_path / "again/coreset.jsonl").read_text().splitlines()[1])
    own = {"gracekit_gracekit_sample_id": "id 1", "gracekit_gracekit_weight": 1.0}
    assert again == {**row, **own}
    same: list[Json] = [{"text": "a", "sample_id": "id 0"}]
    export(content_of(same), "jsonl", tmp_path / "same", weights="none")
    assert json.loads((tmp_path / "same/coreset.jsonl").read_text()) == same[0]


# --- values that a format cannot hold ---


def test_jsonl_of_values_that_json_lacks(tmp_path: Path) -> None:
    records: list[Json] = [
        {"x": float("nan"), "y": [float("inf"), {"z": -float("inf")}], "t": "half \ud800 pair"},
        {"x": 1.0, "y": [2.0], "t": datetime.date(2024, 2, 29)},
    ]
    export(content_of(records), "jsonl", tmp_path / "out", weights="none")

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    lines = (tmp_path / "out/coreset.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line, parse_constant=refuse) for line in lines]
    assert (rows[0]["x"], rows[0]["y"]) == (None, [None, {"z": None}])
    assert rows[0]["t"] == "half \ud800 pair"
    assert rows[1]["t"] == "2024-02-29"
    with pytest.raises(ExportError, match="binary values"):
        export(content_of([{"b": b"\x00"}]), "jsonl", tmp_path / "binary")


@pytest.mark.parametrize("name", ["parquet", "hf-dataset"])
@pytest.mark.parametrize(
    ("mixed", "named"),
    [
        ([1, "one"], "column x is an integer in one place and a text in another"),
        ([1] * 1000 + [["list"]], "column x is an integer in one place and a list"),
        (["half \ud800 pair"], "surrogates not allowed"),
        ([0.5, 1], "column x is a number with a fraction in one place and an integer"),
        ([[1], [2, 0.5]], r"column x\[\] is an integer in one place and a number with a fraction"),
        ([{"f": {"n": 20}}] * 1001 + [{"f": {"n": 0.5}}], r"column x\.f\.n is an integer"),
        ([[{"a": {"n": None, "k": 1}}]], r"column x\[\]\.a has the key 'n' with null"),
        ([True, 1], "column x is true or false in one place and an integer in another"),
        ([2**64], "column x holds integers that 64 bits do not"),
        ([-1, 2**63], "column x holds integers that 64 bits do not"),
        ([{"a": 1, "b": 2}, {"b": 2, "a": 1}], "column x has the keys '.' and '.' in one order"),
        ([datetime.date(2024, 1, 1), "2024-01-01"], "column x is a date, a time .* a text"),
    ],
)
def test_columns_that_arrow_cannot_hold(
    tmp_path: Path, name: str, mixed: list[Any], named: str
) -> None:
    content = content_of([{"x": value} for value in mixed])
    has_json = hasattr(datasets, "Json")  # since 4.7; a column of objects is one of JSON there
    if name == "hf-dataset" and "{" in str(mixed) and has_json:
        export(content, name, tmp_path / "out")
        assert typed([r["x"] for r in read_back(tmp_path / "out")]) == typed(mixed)
        loaded = datasets.load_from_disk(str(tmp_path / "out"))
        assert typed(loaded.to_list()) == typed(expected_rows([{"x": value} for value in mixed]))
        return
    with pytest.raises(ExportError, match=f"(?s){named}.*Export as jsonl"):
        export(content, name, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def read_back(path: Path) -> list[Json]:
    data = DataSection(path=str(path))
    return list(open_records(data, np.arange(len(open_source(data)))))


def typed(value: Any) -> Any:
    """A value with its types and the order of nested keys, to be compared."""
    if isinstance(value, dict):
        return [(key, typed(item)) for key, item in value.items()]
    return [typed(item) for item in value] if isinstance(value, list) else (type(value), value)


leaves = st.integers(-(2**63), 2**64) | st.floats(allow_nan=False) | st.text(max_size=3) | st.none()
nested = st.recursive(
    leaves | st.booleans(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner),
    max_leaves=5,
)


@pytest.mark.skipif(not hasattr(datasets, "Json"), reason="the type Json is since datasets 4.7")
def test_keys_that_a_row_lacks_are_absent_in_a_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = [
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": None, "tool_calls": [
            {"type": "function", "function": {"name": "f", "arguments": {"n": 0.5}}}]}],
        None,
        [{"role": "user", "content": "007", "more": {"big": 2**63, "x": "2024-01-15"}}],
    ]  # fmt: skip
    records: list[Json] = [{"messages": value, "one": {"k": 1} if value else {}} for value in turns]
    export(content_of(records), "hf-dataset", tmp_path / "out", weights="none")
    expected = [{**r, "sample_id": f"id {i}"} for i, r in enumerate(records)]
    loaded = datasets.load_from_disk(str(tmp_path / "out"))
    assert typed(loaded.to_list()) == typed(expected) == typed(read_back(tmp_path / "out"))
    huge = {"messages": [{"role": "user", "content": "a", "n": 2**64}]}
    with pytest.raises(ExportError, match=r"column messages fits no one type.*Export as jsonl"):
        export(content_of([huge]), "hf-dataset", tmp_path / "huge")
    monkeypatch.delattr(datasets, "Json")  # as in an earlier one
    with pytest.raises(ExportError, match=r"messages has objects that lack keys.*export as jsonl"):
        export(content_of(records[::3]), "hf-dataset", tmp_path / "earlier")


@settings(max_examples=80, deadline=None)
@given(st.lists(st.fixed_dictionaries({"x": nested}), min_size=1, max_size=3))
@example([{"x": {"a": 1, "c": 2}}, {"x": {"b": 1, "c": 2}}, {"x": {"a": 2, "b": 3}}, {"x": {}}])
@example([{"x": [{"role": "user"}, {"role": "tool", "name": "f", "content": "1"}]}])
@example([{"x": 1}, {"x": 2.0}])
def test_what_arrow_gives_back_is_what_went_in(
    tmp_path_factory: pytest.TempPathFactory, records: list[Json]
) -> None:
    out = tmp_path_factory.mktemp("arrow") / "out"
    try:
        export(content_of(records), "parquet", out)
    except ExportError:  # the other test says in which words
        return
    found = [typed(row["x"]) for row in read_back(out / "coreset.parquet")]
    assert found == [typed(row["x"]) for row in records]


@pytest.mark.parametrize("name", ["parquet", "hf-dataset"])
def test_types_of_parquet_come_through_an_export(tmp_path: Path, name: str) -> None:
    table = pa.table({
        "prompt": ["a", "b"],
        "completion": ["b", "c"],
        "ns": pa.array([1234567890123456789, None], pa.timestamp("ns")),
        "whole": pa.array([10**9, 7 * 10**9], pa.timestamp("ns", "Europe/Berlin")),
        "duration": pa.array([5123, 10**12], pa.duration("ns")),
        "nested": pa.array([[{"t": 1234567890123456789}], None],
                           pa.list_(pa.struct({"t": pa.timestamp("ns")}))),
        "time": pa.array([5_123_000, 10**9], pa.time64("ns")),
        "large": pa.array([2**63 + 1, 1], pa.uint64()),
        "decimal": pa.array([Decimal("1.10"), Decimal("-7.00")]),
        "bytes": [b"\xff", b""],
        "date": [datetime.date(2024, 1, 15), None],
    })  # fmt: skip
    pq.write_table(table, tmp_path / "source.parquet")
    rows = read_back(tmp_path / "source.parquet")
    export(content_of(rows), name, tmp_path / "out", weights="none")
    path = tmp_path / "out" if name == "hf-dataset" else tmp_path / "out/coreset.parquet"
    found = [{k: v for k, v in row.items() if k != "sample_id"} for row in read_back(path)]
    assert found == rows
    assert [typed(row) for row in found] == [typed(row) for row in rows]
    assert found[0]["ns"].nanosecond == 789


@pytest.mark.parametrize("kind", [pa.time64("ns"), pa.list_(pa.struct({"t": pa.time64("ns")}))])
def test_times_in_nanoseconds_are_refused_when_read(tmp_path: Path, kind: pa.DataType) -> None:
    value = 5123 if kind == pa.time64("ns") else [{"t": 5123}]
    table = pa.table({"prompt": ["a"], "completion": ["b"], "t": pa.array([value], kind)})
    pq.write_table(table, tmp_path / "t.parquet")
    datasets.Dataset(table).save_to_disk(str(tmp_path / "saved"))
    for path in (tmp_path / "t.parquet", tmp_path / "saved"):
        with pytest.raises(DataError, match="column 't' holds times with nanoseconds"):
            read_back(path)


# --- a directory that is complete or absent ---


def files_below(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def failing_after(count: int, error: Exception) -> ExportedRows:
    """The user's data fails in the middle."""
    content = content_of(alpaca())

    def open_records(wanted: Rows) -> Iterator[Json]:
        yield from content_of(alpaca()).open_records(wanted[:count])
        raise error

    return dataclasses.replace(content, open_records=open_records)


@pytest.mark.parametrize("name", sorted(set(FORMATS) - WITHOUT_ROWS))
@pytest.mark.parametrize("error", [DataError("gone"), OSError(28, "No space left on device")])
def test_a_failing_export_leaves_everything_as_it_was(
    tmp_path: Path, name: str, error: Exception
) -> None:
    (tmp_path / "dataset_info.json").write_text("{}")
    before = files_below(tmp_path)
    with pytest.raises((DataError, ExportError), match=r"gone|No space left on device"):
        export(failing_after(3, error), name, tmp_path / "out")
    assert files_below(tmp_path) == before
    assert not (tmp_path / "out").exists()

    export(content_of(alpaca(2)), name, tmp_path / "out")
    before = files_below(tmp_path)
    with pytest.raises((DataError, ExportError), match=r"gone|No space left on device"):
        export(failing_after(3, error), name, tmp_path / "out", overwrite=True)
    assert files_below(tmp_path) == before


def test_only_an_earlier_export_is_ever_replaced(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    export(content_of(alpaca()), "jsonl", out)
    with pytest.raises(ExportError, match="holds an earlier export"):
        export(content_of(alpaca(1)), "ids", out)
    export(content_of(alpaca(1)), "ids", out, overwrite=True)
    assert sorted(path.name for path in out.iterdir()) == [
        "ids.txt",
        "manifest.json",
        "weights.npy",
    ]

    empty = tmp_path / "empty"
    empty.mkdir()
    export(content_of(alpaca(1)), "ids", empty)

    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "thesis.txt").write_text("the only copy")
    (theirs / "manifest.json").write_text("{}")
    link = tmp_path / "link"
    link.symlink_to(out)
    for place in (theirs, theirs / "thesis.txt", link):
        with pytest.raises(ExportError, match="left alone"):
            export(content_of(alpaca(1)), "ids", place, overwrite=True)
    assert (theirs / "thesis.txt").read_text() == "the only copy"


@pytest.mark.parametrize("text", ["[" * 100_000, '{"export": 1}', "[1]", "\ud800", "1" * 5000])
def test_a_manifest_that_makes_no_sense_is_no_export_of_ours(tmp_path: Path, text: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "manifest.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    before = files_below(tmp_path)
    with pytest.raises(ExportError, match="is not an earlier export"):
        export(content_of(alpaca(1)), "ids", out, overwrite=True)
    assert files_below(tmp_path) == before


def test_names_that_no_file_has_remove_nothing(tmp_path: Path) -> None:
    out, beside = tmp_path / "out", tmp_path / "thesis.txt"
    beside.write_text("the only copy")
    export(content_of(alpaca(1)), "ids", out)
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["export"]["written"] += ["a\0b", "../thesis.txt", str(beside), "", ".", "\ud800"]
    (out / "manifest.json").write_text(json.dumps(manifest))
    export(content_of(alpaca(2)), "ids", out, overwrite=True)
    assert beside.read_text() == "the only copy"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "thesis.txt"]


@pytest.mark.parametrize("with_list", [True, False], ids=["this release", "an earlier one"])
def test_force_removes_nothing_but_what_an_export_wrote(tmp_path: Path, with_list: bool) -> None:
    out = tmp_path / "out"
    for name in ("hf-dataset", "llamafactory"):
        export(content_of(alpaca(2)), name, out, overwrite=True)
        manifest = json.loads((out / "manifest.json").read_text())
        assert sorted(manifest["export"]["written"]) == sorted(p.name for p in out.iterdir())
        if not with_list:
            del manifest["export"]["written"]
            (out / "manifest.json").write_text(json.dumps(manifest))
    for theirs in ("thesis.txt", "deep/notes", "cache-1f.arrow"):
        (out / theirs).parent.mkdir(exist_ok=True)
        (out / theirs).write_text("the only copy")
        before = files_below(tmp_path)
        with pytest.raises(ExportError, match=f"no export of ours wrote .{theirs}"):
            export(content_of(alpaca(1)), "ids", out, overwrite=True)
        assert files_below(tmp_path) == before
        (out / theirs).unlink()
    export(content_of(alpaca(1)), "ids", out, overwrite=True)
    assert set(files_below(tmp_path)) == {
        f"out/{name}" for name in ("ids.txt", "manifest.json", "weights.npy")
    }


def test_what_comes_into_an_export_while_it_is_replaced_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    export(content_of(alpaca(1)), "ids", out)
    real = files.replace_surely

    def replace_surely(source: Path, final: Path) -> None:
        if source == out:
            (out / "late.txt").write_text("the only copy")
        real(source, final)

    monkeypatch.setattr(files, "replace_surely", replace_surely)
    with pytest.raises(ExportError, match=r"late.txt\), which are left in"):
        export(content_of(alpaca(2)), "ids", out, overwrite=True)
    assert len((out / "ids.txt").read_text().splitlines()) == 2
    (left,) = tmp_path.rglob("late.txt")
    assert left.read_text() == "the only copy"
    assert [path.name for path in left.parent.iterdir()] == ["late.txt"]


def test_a_disk_that_fails_between_the_renames_leaves_the_earlier_export(tmp_path: Path) -> None:
    def work() -> None:
        export(content_of(alpaca(1)), "jsonl", out, overwrite=True)

    out = tmp_path / "out"
    export(content_of(alpaca(2)), "ids", out)
    k = [i for i, name in enumerate(count_operations(work), 1) if name == "replace"][1]
    export(content_of(alpaca(2)), "ids", out, overwrite=True)
    before = files_below(tmp_path)
    with failing_at(k, 5), pytest.raises(ExportError, match="Input/output error"):
        work()
    assert files_below(tmp_path) == before


@pytest.mark.parametrize("name", ["x" * 300, "a/" * 2100 + "x", "x" * 250, "\udcff", "null\0byte"])
def test_names_of_any_length_and_kind(tmp_path: Path, name: str) -> None:
    with suppress(ExportError):
        report = export(content_of(alpaca(1)), "axolotl", tmp_path / name)
        assert json.loads((Path(report.path) / "manifest.json").read_text())["version"] == 7
        return
    assert not list(tmp_path.iterdir())


def test_nothing_is_exported_into_a_store(store: Store) -> None:
    root = store.paths.root
    before = files_below(root)
    inside = root.parent / "link"
    inside.symlink_to(root / "manifests")
    for place in (root, root / "manifests" / "out", root / "x" / "y", inside / "out"):
        with pytest.raises(ExportError, match="it lies in the store"):
            export(content_of(alpaca(1)), "ids", place, overwrite=True)
    assert files_below(root) == before


def test_unknown_format(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no export format 'csv'; known: jsonl, parquet"):
        export(content_of(alpaca()), "csv", tmp_path / "out")


# --- from a real store ---


@pytest.fixture
def data_file(tmp_path: Path) -> Path:
    path = tmp_path / "train.jsonl"
    records = [{"prompt": f"p {i} {HOSTILE[i % 8]}", "completion": f"c {i}"} for i in range(30)]
    records[4]["completion"] = ""  # skipped, so rows and source rows differ
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def store(tmp_path: Path, data_file: Path) -> Store:
    data = DataSection(path=str(data_file))
    raw = load_samples(data)
    samples = dataclasses.replace(
        make_samples(len(raw)),
        sample_ids=raw.sample_ids,
        content_hashes=raw.content_hashes,
        source_rows=raw.source_rows,
    )
    store = Store.create(
        tmp_path / "store", samples=samples, dataset=DataDescription(settings=data)
    )
    store.commit(make_draft(store, "first"))
    return store


def test_a_version_of_a_store(tmp_path: Path, store: Store, data_file: Path) -> None:
    content = rows_of(store, 1)
    export(content, "jsonl", tmp_path / "out")
    lines = (tmp_path / "out/coreset.jsonl").read_text().splitlines()
    coreset = store.coreset(1).to_pylist()
    originals = [json.loads(line) for line in data_file.read_text().splitlines()]
    assert len(lines) == len(coreset)
    for line, row in zip(lines, coreset, strict=True):
        expected = {"sample_id": row["sample_id"], "weight": row["weight"]}
        assert json.loads(line) == {**originals[row["source_row"]], **expected}

    moved = data_file.rename(tmp_path / "moved.jsonl")
    export(rows_of(store, 1, data_path=str(moved)), "jsonl", tmp_path / "again")
    assert (tmp_path / "again/coreset.jsonl").read_text().splitlines() == lines


def test_data_that_has_changed_is_never_exported(
    tmp_path: Path, store: Store, data_file: Path
) -> None:
    lines = data_file.read_text().splitlines(keepends=True)
    for changed in (lines[::-1], lines[1:] + lines[:1], ['{"question": "other"}\n'] * 30):
        data_file.write_text("".join(changed))
        with pytest.raises(ExportError, match="not what it was"):
            export(rows_of(store, 1), "jsonl", tmp_path / "out")
    data_file.write_text("".join(lines[:5]))
    with pytest.raises(DataError, match="the data has changed"):
        export(rows_of(store, 1), "jsonl", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def tags(tmp_path: Path, name: str, *records: Json) -> Json:
    export(content_of(list(records)), "llamafactory", tmp_path / name)
    info = json.loads((tmp_path / name / "dataset_info.json").read_text())
    entry: Json = info[name]
    return entry


def test_names_of_roles_are_told_to_llamafactory(tmp_path: Path) -> None:
    """Of all rows: it drops a row with a role that it does not know."""

    def chat(*names: str) -> Json:
        return {"conversations": [{"from": name, "value": f"of {name}"} for name in names]}

    short, long = chat("human", "gpt"), chat("human", "function_call", "observation", "gpt")
    entry = tags(tmp_path, "calls", short, long)
    assert entry["formatting"] == "sharegpt"
    assert entry["tags"]["function_tag"] == "function_call"
    assert entry["tags"]["observation_tag"] == "observation"
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "b"},
        {"role": "assistant", "content": "c"},
    ]
    entry = tags(tmp_path, "openai", {"messages": turns[:1] + turns[3:]}, {"messages": turns})
    assert entry["formatting"] == "sharegpt" and entry["tags"]["role_tag"] == "from"
    assert entry["tags"]["observation_tag"] == "observation"
    entry = tags(tmp_path, "mixed", short, chat("user", "gpt"))  # one name for each
    assert (entry["tags"]["user_tag"], entry["columns"]) == ("human", {"messages": "conversations"})
    lines = (tmp_path / "mixed/coreset.jsonl").read_text().splitlines()
    assert [json.loads(line)["conversations"][0]["from"] for line in lines] == ["human", "human"]


def test_names_of_roles_are_told_to_axolotl(tmp_path: Path) -> None:
    rows = [
        {"conversations": [{"from": "human", "value": "a"}, {"from": name, "value": "b"}]}
        for name in ("gpt", "model")
    ]
    export(content_of(rows), "axolotl", tmp_path / "ax")
    (options,) = yaml.safe_load((tmp_path / "ax/axolotl.yaml").read_text())["datasets"]
    assert options["roles"] == {
        "assistant": ["assistant", "gpt", "model"],
        "system": ["system"],
        "tool": ["tool"],
        "user": ["human", "user"],
    }
