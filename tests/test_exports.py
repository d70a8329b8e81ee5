"""`exports`: every format read back by the library it is for, hostile text, and atomicity."""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from gracekit.errors import DataError, ExportError, RecipeError
from gracekit.exports import FORMATS, ExportedRows, export, rows_of
from gracekit.recipe import DataSection
from gracekit.samples import load_samples
from gracekit.store import Store
from gracekit.types import Json, Rows
from gracekit.version.header import DataDescription
from tests.stores import make_draft, make_header, make_samples

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


def content_of(records: list[Json], weights: list[float] | None = None) -> ExportedRows:
    """A coreset of every other row of a data set, whose rows are the given records."""
    b = len(records)
    source_rows = 3 + 2 * np.arange(b)

    def open_records(wanted: Rows) -> Iterator[Json]:
        return (dict(records[(row - 3) // 2]) for row in wanted.tolist())

    return ExportedRows(
        rows=np.arange(b) * 2,
        source_rows=source_rows,
        sample_ids=[f"id {i}" for i in range(b)],
        weights=np.array(weights or [1.0] * b, np.float32),
        header=make_header(7),
        open_records=open_records,
    )


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
            "half": 0.5 if i % 2 else 1,
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
        assert table[i]["half"] == records[i]["half"]
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


CHAT = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
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
        ("[]", "one JSON object"),
    ]:
        shared.write_text(text)
        with pytest.raises(ExportError, match=message):
            export(content_of(alpaca()), "llamafactory", tmp_path / "other")
        assert shared.read_text() == text
        assert not (tmp_path / "other").exists()


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
@pytest.mark.parametrize("mixed", [[1, "one"], [1] * 1000 + [["list"]], ["half \ud800 pair"]])
def test_columns_that_arrow_cannot_hold(tmp_path: Path, name: str, mixed: list[Any]) -> None:
    with pytest.raises(ExportError, match="Export as jsonl"):
        export(content_of([{"x": value} for value in mixed]), name, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


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


@pytest.mark.parametrize("name", sorted(set(FORMATS) - {"ids", "indices-npy"}))
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
