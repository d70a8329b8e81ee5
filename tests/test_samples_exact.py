"""Rows come out as they stand in the file: no type is guessed, no key added, nothing kept back."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
import os
import random
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gracekit.errors import DataError
from gracekit.exports import ExportedRows, export
from gracekit.recipe import DataSection, Recipe
from gracekit.samples import (
    byte_files,
    data_stamp,
    json_files,
    load_samples,
    merge,
    open_records,
    sample_table,
)
from gracekit.samples.sources import open_source
from gracekit.store import Store
from gracekit.types import Json
from tests.stores import make_header

TEXTS = [
    "1.10", "007", "1e5", "0.50", "null", "true", '{"x": 1}', "[1, 2]", '"q"', " 12 ", "-0", "1.0",
    "12345678901234567890123", "1_000", "NaN", "Infinity", "2024-01-15", "2024-01-01T10:00:00Z",
    "10:30", "0x1F", "١٢٣", "a\u2028b", "\N{SLIGHTLY SMILING FACE}", "é\u0301", "\x00\x1b",
]  # fmt: skip


def write(path: Path, rows: list[Json]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def exported(data: DataSection, folder: Path, rows: list[int] | None = None) -> list[str]:
    """The lines of a JSONL export of the given source rows, or of all."""
    raw = load_samples(data)
    places = np.arange(len(raw)) if rows is None else np.array(rows)
    content = ExportedRows(
        rows=places,
        source_rows=raw.source_rows[places],
        sample_ids=raw.sample_ids[places].tolist(),
        weights=np.ones(len(places), np.float32),
        header=make_header(1),
        open_records=lambda wanted: open_records(data, wanted),
    )
    export(content, "jsonl", folder, weights="none")
    return (folder / "coreset.jsonl").read_text("utf-8").splitlines()


def without_ids(lines: list[str]) -> list[Json]:
    return [{k: v for k, v in json.loads(x).items() if k != "sample_id"} for x in lines]


# --- what went wrong once ---


def test_a_content_list_in_one_row_changes_no_other(tmp_path: Path) -> None:
    rows: list[Json] = [
        {"messages": [{"role": "user", "content": f"Convert {i}."},
                      {"role": "assistant", "content": text}]}
        for i, text in enumerate(TEXTS)
    ]  # fmt: skip
    rows[-1]["messages"][0]["content"] = [{"type": "text", "text": "Convert it."}]
    data = DataSection(path=str(write(tmp_path / "t.jsonl", rows)))
    raw = load_samples(data, strict=True)
    assert [c.messages[1]["content"] for c in raw.records] == TEXTS
    assert raw.records[len(rows) - 1].prompt == "Convert it."
    assert without_ids(exported(data, tmp_path / "out")) == rows


def test_dates_stay_text_as_answers_ids_and_groups(tmp_path: Path) -> None:
    rows: list[Json] = [
        {"prompt": f"{i}?", "completion": "2024-02-01", "id": f"2024-01-01T10:{i:02}:00Z",
         "src": f"2024-0{i % 3 + 1}-01"}
        for i in range(40)
    ]  # fmt: skip
    path = write(tmp_path / "t.jsonl", rows)
    data = DataSection(path=str(path), id_column="id", group_column="src")
    raw = load_samples(data, strict=True)
    assert raw.sample_ids.tolist() == [row["id"] for row in rows]
    assert raw.group_names == ("2024-01-01", "2024-02-01", "2024-03-01")
    assert {c.response for c in raw.records} == {"2024-02-01"}
    assert without_ids(exported(data, tmp_path / "out")) == rows


def test_large_integers_mixed_columns_nulls_and_missing_keys(tmp_path: Path) -> None:
    lines = [
        '{"prompt": "a", "response": "b", "n": 18446744073709551617, "x": 1.10, "y": -0}',
        '{"prompt": "a", "response": "c", "n": "1", "meta": {"a": null, "b": [null, {}]}}',
        '{"response": "d",   "prompt": "a", "n": [1, "2", null], "x": 1E400, "z": null}',
        '{"prompt": "a", "response": "e", "n": 0.1000000000000000055511151231257827}',
    ]
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(lines))
    data = DataSection(path=str(path), id_column="response")
    records = list(open_records(data, np.arange(4)))
    assert [dict(record) for record in records] == [json.loads(line) for line in lines]
    assert "x" not in records[1]
    # To the byte: the digits, the order of the keys, the spaces.
    for line, source in zip(exported(data, tmp_path / "out"), lines, strict=True):
        assert line.startswith(source[:-1] + ', "sample_id": ')


def test_arguments_that_a_parquet_row_lacks_are_absent(tmp_path: Path) -> None:
    calls: list[Json] = [{"expr": "0*2", "digits": 2}, {"city": "Ulm"}] * 3
    rows = [
        {"messages": [
            {"role": "user", "content": f"Do {i}"},
            {"role": "assistant", "content": None, "tool_calls": [
                {"type": "function", "function": {"name": "f", "arguments": arguments}}]},
        ], "note": None}
        for i, arguments in enumerate(calls)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet", row_group_size=2)
    data = DataSection(path=str(tmp_path / "t.parquet"))
    raw = load_samples(data, strict=True)
    for conversation, arguments in zip(raw.records, calls, strict=True):
        (call,) = conversation.messages[1]["tool_calls"]
        assert call["function"]["arguments"] == arguments
    written = without_ids(exported(data, tmp_path / "out"))
    assert written[1]["messages"][1]["tool_calls"][0]["function"]["arguments"] == {"city": "Ulm"}
    assert written[1]["note"] is None, "a column stays a column"
    plain = DataSection(path=str(write(tmp_path / "t.jsonl", rows)))
    assert load_samples(plain).fingerprint == raw.fingerprint


# --- any values ---


def random_value(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.randrange(9 if depth < 3 else 7)
    if kind == 0:
        return None
    if kind == 1:
        return rng.random() < 0.5
    if kind == 2:
        return rng.choice([0, -1, 2**63, -(2**64), 10**30, rng.randrange(10**6)])
    if kind == 3:
        return rng.choice([0.1, -0.0, 1e-320, 1.7e308, 1.0, rng.uniform(-1e9, 1e9)])
    if kind < 7:
        letters = "".join(chr(rng.choice([rng.randrange(32, 127), rng.randrange(0x600, 0x2100),
                                          rng.randrange(0x1F300, 0x1F900)]))
                          for _ in range(rng.randrange(12)))  # fmt: skip
        return rng.choice([letters, rng.choice(TEXTS)])
    count = rng.randrange(4)
    if kind == 7:
        return [random_value(rng, depth + 1) for _ in range(count)]
    return {rng.choice(["a", "b", "ключ", ""]): random_value(rng, depth + 1) for _ in range(count)}


def random_rows(rng: random.Random, number: int) -> list[Json]:
    rows: list[Json] = []
    for i in range(number):
        row = {"prompt": f"{i} {random_value(rng)}", "response": rng.choice(TEXTS)}
        names = [name for name in ("id", "x", "y", "ζ", "date") if rng.random() < 0.6]
        row |= {name: random_value(rng) for name in names}
        items = list(row.items())
        rng.shuffle(items)
        rows.append(dict(items))
    return rows


def as_lines(rng: random.Random, rows: list[Json]) -> bytes:
    return "".join(json.dumps(r, ensure_ascii=rng.random() < 0.5) + "\n" for r in rows).encode()


def pack_zstd(content: bytes) -> bytes:
    packed: bytes = pa.Codec("zstd").compress(content, asbytes=True)
    return packed


FUZZED: dict[str, tuple[int, Callable[[random.Random, list[Json]], bytes]]] = {
    "t.jsonl": (10_000, as_lines),
    "t.json": (2_000, lambda _, rows: json.dumps(rows, indent=1, ensure_ascii=False).encode()),
    "held.json": (300, lambda _, rows: json.dumps({"n": [1], "data": rows}, indent=1).encode()),
    "t.jsonl.gz": (1_000, lambda rng, rows: gzip.compress(as_lines(rng, rows), 1)),
    "t.json.zst": (1_000, lambda _, rows: pack_zstd(json.dumps(rows).encode())),
}


@pytest.mark.parametrize("name", FUZZED)
def test_more_than_ten_thousand_random_rows_come_through(tmp_path: Path, name: str) -> None:
    number, dump = FUZZED[name]
    rng = random.Random(7)
    rows = random_rows(rng, number)
    path = tmp_path / name
    path.write_bytes(dump(rng, rows))
    data = DataSection(path=str(path))
    raw = load_samples(data, strict=True)
    assert [c.messages[1]["content"] for c in raw.records] == [row["response"] for row in rows]
    lines = exported(data, tmp_path / "out")
    for line, row in zip(lines, rows, strict=True):
        found = json.loads(line)
        del found["sample_id"]
        assert json.dumps(found) == json.dumps(row), "values, their types and the keys' order"


def random_type(rng: random.Random, depth: int = 0) -> pa.DataType:
    kind = rng.randrange(7 if depth < 3 else 5)
    if kind < 5:
        return [pa.string(), pa.int64(), pa.float64(), pa.bool_(), pa.int32()][kind]
    if kind == 5:
        return pa.list_(random_type(rng, depth + 1))
    return pa.struct({name: random_type(rng, depth + 1) for name in ("a", "ключ")})


def value_of(rng: random.Random, kind: pa.DataType) -> Any:
    if rng.random() < 0.2:
        return None
    if pa.types.is_list(kind):
        return [value_of(rng, kind.value_type) for _ in range(rng.randrange(3))]
    if pa.types.is_struct(kind):
        return {field.name: value_of(rng, field.type) for field in kind}
    if pa.types.is_string(kind):
        return rng.choice(TEXTS)
    if pa.types.is_boolean(kind):
        return rng.random() < 0.5
    if pa.types.is_floating(kind):
        return rng.choice([0.1, -0.0, 1e-320, 1.7e308, rng.uniform(-1e9, 1e9)])
    return rng.choice([0, -1, 2 ** (kind.bit_width - 1) - 1, rng.randrange(10**6)])


def as_read(value: Any) -> Any:
    """A nested value of Parquet as it is read: keys that are null are absent."""
    if isinstance(value, list):
        return [as_read(item) for item in value]
    if isinstance(value, dict):
        return {key: as_read(item) for key, item in value.items() if item is not None}
    return value


@pytest.mark.parametrize("name", ["t.parquet", "t.parquet.zst"])
def test_random_rows_of_parquet_come_through(tmp_path: Path, name: str) -> None:
    rng = random.Random(11)
    texts = {"prompt": pa.string(), "response": pa.string()}
    schema = pa.schema(texts | {f"c{k}": random_type(rng) for k in range(12)})
    rows = [
        {field.name: value_of(rng, field.type) for field in schema}
        | {"prompt": f"{i}?", "response": rng.choice(TEXTS)}
        for i in range(1_000)
    ]
    table, plain = pa.Table.from_pylist(rows, schema=schema), tmp_path / "plain"
    pq.write_table(table, plain, row_group_size=300)
    path = tmp_path / name
    path.write_bytes(plain.read_bytes() if name == "t.parquet" else pack_zstd(plain.read_bytes()))
    data = DataSection(path=str(path))
    assert [c.response for c in load_samples(data).records] == [r["response"] for r in rows]
    expected = [{key: as_read(value) for key, value in row.items()} for row in rows]
    assert without_ids(exported(data, tmp_path / "out")) == expected
    assert json.dumps(expected[0]) in json.dumps(without_ids(exported(data, tmp_path / "o", [0])))


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(
        st.dictionaries(st.sampled_from(["prompt", "b", "c"]), st.text(max_size=8) | st.integers()),
        min_size=1,
        max_size=8,
    ),
    ends=st.lists(st.sampled_from(["\n", "\r\n", "\n\n", "\n  \n", " \n\t\n"]), min_size=8),
    block=st.sampled_from([1, 3, 16, 1 << 22]),
    bom=st.booleans(),
    is_list=st.booleans(),
)
def test_objects_are_found_wherever_blocks_end(
    tmp_path_factory: pytest.TempPathFactory,
    texts: list[Json],
    ends: list[str],
    block: int,
    bom: bool,
    is_list: bool,
) -> None:
    path = tmp_path_factory.mktemp("blocks") / "t.json"
    dumped = [json.dumps(text, ensure_ascii=False) for text in texts]
    if is_list:
        ends = [*(f"{end},{end}" for end in ends[: len(dumped) - 1]), f"\n]{ends[0]}"]
    content = "".join(text + end for text, end in zip(dumped, ends, strict=False))
    path.write_text("\ufeff" * bom + "\n[" * is_list + content, encoding="utf-8", newline="")
    with pytest.MonkeyPatch.context() as patch:
        for module in (byte_files, json_files):
            patch.setattr(module, "BLOCK_BYTES", block)
        source = open_source(DataSection(path=str(path)))
        assert [dict(row) for row in source.take(range(len(source)))] == texts
        last = len(texts) - 1
        assert source.take([last, 0, last]) == [texts[last], texts[0], texts[last]]


@settings(max_examples=60, deadline=None)
@given(
    table=st.lists(
        st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=6),
                 min_size=2, max_size=2),
        min_size=1, max_size=6),
    block=st.sampled_from([1, 5, 1 << 22]),
)  # fmt: skip
def test_csv_is_text(
    tmp_path_factory: pytest.TempPathFactory, table: list[list[str]], block: int
) -> None:
    path = tmp_path_factory.mktemp("csv") / "t.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([["a", "b"], *table])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(byte_files, "BLOCK_BYTES", block)
        source = open_source(DataSection(path=str(path)))
        assert [list(row.values()) for row in source.take(range(len(source)))] == table


def test_csv_headers_short_rows_and_open_quotes(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(",a,a\n1,2\n\n  \n,,\n")
    source = open_source(DataSection(path=str(path)))
    assert source.columns == ("Unnamed: 0", "a", "a.1")
    assert source.take([0, 1]) == [
        {"Unnamed: 0": "1", "a": "2"},
        {"Unnamed: 0": "", "a": "", "a.1": ""},
    ]
    path.write_text('prompt,response\na,b\nc,"d\n')
    with pytest.raises(DataError, match=r"t\.csv as csv: line 3: a quotation mark"):
        open_source(DataSection(path=str(path)))
    path.write_text(f"prompt,response\na,{'b' * 200_000}\n")
    assert len(load_samples(DataSection(path=str(path))).records[0].response) == 200_000


def test_numbers_too_long_for_python_are_told(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"prompt": "a", "response": "b", "n": ' + "1" * 5000 + "}\n")
    with pytest.raises(DataError, match=r"t\.jsonl, line 1: .*4300 digits"):
        load_samples(DataSection(path=str(tmp_path / "t.jsonl")))


def test_columns_that_first_appear_late(tmp_path: Path) -> None:
    early: list[Json] = [{"other": i} for i in range(1500)]
    late: list[Json] = [{"prompt": f"{i}", "response": "r", "id": 10**20 + i} for i in range(3)]
    path = write(tmp_path / "t.jsonl", early + late)
    raw = load_samples(DataSection(path=str(path)))
    assert (raw.format, raw.source_rows.tolist()) == ("prompt-completion", [1500, 1501, 1502])
    # A layout that stands before the first one's.
    chats = [{"messages": [{"role": "assistant", "content": "x"}]}]
    path = write(tmp_path / "u.jsonl", late * 400 + chats)
    assert load_samples(DataSection(path=str(path))).source_rows.tolist() == [1200]
    with pytest.raises(DataError, match="row 0 has no id"):
        load_samples(DataSection(path=str(write(tmp_path / "v.jsonl", [
            {"prompt": "a", "response": "b"}, *late])), id_column="id"))  # fmt: skip
    weights: list[Json] = [{"prompt": "a", "response": "b"}, {"prompt": "a", "response": "c",
                                                              "weight": 5}]  # fmt: skip
    data = DataSection(path=str(write(tmp_path / "w.jsonl", weights)))
    raw = load_samples(data)
    content = ExportedRows(
        rows=np.arange(2), source_rows=np.arange(2), sample_ids=raw.sample_ids.tolist(),
        weights=np.ones(2, np.float32), header=make_header(1),
        open_records=lambda wanted: open_records(data, wanted),
    )  # fmt: skip
    export(content, "jsonl", tmp_path / "weights")
    lines = (tmp_path / "weights/coreset.jsonl").read_text().splitlines()
    assert json.loads(lines[1])["weight"] == 5, "the user's own"
    assert all(json.loads(line)["gracekit_weight"] == 1 for line in lines)


# --- packed files and several files ---


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": pack_zstd,
}


@pytest.mark.parametrize("ending", PACKERS)
@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_packed_files(tmp_path: Path, kind: str, ending: str) -> None:
    rows: list[Json] = [{"prompt": f"{i}?", "response": f"0{i}"} for i in range(50)]
    plain = tmp_path / f"p.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), plain)
    elif kind == "jsonl":
        write(plain, rows)
    else:
        plain.write_text("prompt,response\n" + "".join(f"{i}?,0{i}\n" for i in range(50)))
    packed = tmp_path / "packed" / f"a.{kind}{ending}"
    packed.parent.mkdir()
    packed.write_bytes(PACKERS[ending](plain.read_bytes()))
    data = DataSection(path=str(packed.parent))
    raw = load_samples(data)
    assert raw.fingerprint == load_samples(DataSection(path=str(plain))).fingerprint
    assert without_ids(exported(data, tmp_path / "out", [49, 3])) == [rows[49], rows[3]]
    packed.write_bytes(packed.read_bytes()[:20])
    with pytest.raises(DataError, match=rf"cannot (unpack|read) .*a\.{kind}"):
        load_samples(data)


def test_two_parts_in_one_gzip_file(tmp_path: Path) -> None:
    lines = [json.dumps({"prompt": p, "response": "r"}).encode() + b"\n" for p in "abc"]
    (tmp_path / "t.jsonl.gz").write_bytes(b"".join(map(gzip.compress, lines)))
    data = DataSection(path=str(tmp_path / "t.jsonl.gz"))
    assert len(load_samples(data)) == 3
    (tmp_path / "t.jsonl.gz").write_bytes(gzip.compress(b""))
    with pytest.raises(DataError, match=r"t\.jsonl\.gz is empty"):
        load_samples(data)


def test_files_of_a_directory_may_differ_in_columns_and_be_many(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    for i in range(byte_files.MOST_OPEN + 5):
        write(folder / f"{i:03}.jsonl", [{"prompt": f"{i}", "response": "r", f"c{i % 3}": i}])
    data = DataSection(path=str(folder))
    raw = load_samples(data)
    assert [c.prompt for c in raw.records[::-1]] == [
        str(i) for i in reversed(range(byte_files.MOST_OPEN + 5))
    ]
    found = list(open_records(data, np.array([0, 68, 1])))
    assert [set(row) - {"prompt", "response"} for row in found] == [{"c0"}, {"c2"}, {"c1"}]
    parquet = tmp_path / "p"
    parquet.mkdir()
    pq.write_table(pa.table({"prompt": ["a"], "response": ["b"]}), parquet / "0.parquet")
    pq.write_table(pa.table({"response": ["d"], "prompt": ["c"], "n": [1]}), parquet / "1.parquet")
    data = DataSection(path=str(parquet))
    assert [c.prompt for c in load_samples(data).records] == ["a", "c"]
    first = next(iter(open_records(data, np.array([1, 0]))))
    assert first == {"response": "d", "prompt": "c", "n": 1}


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train[:20%]", [0, 1]),
        ("train[3:5]", [3, 4]),
        ("train[-2:]", [8, 9]),
        ("train[8:]", [8, 9]),
    ],
)
def test_a_part_of_a_split(tmp_path: Path, split: str, expected: list[int]) -> None:
    rows: list[Json] = [{"prompt": f"{i}", "response": "r", "n": i} for i in range(10)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    for path in (write(tmp_path / "t.jsonl", rows), tmp_path / "t.parquet"):
        data = DataSection(path=str(path), split=split)
        raw = load_samples(data)
        assert [c.prompt for c in raw.records] == [str(i) for i in expected]
        assert [row["n"] for row in open_records(data, raw.source_rows)] == expected
    with pytest.raises(DataError, match="is no part of 10 rows"):
        load_samples(DataSection(path=str(tmp_path / "t.jsonl"), split="train[x]"))


# --- files that change ---


def test_a_changed_file_is_read_again_whatever_its_time_says(tmp_path: Path) -> None:
    file = write(tmp_path / "t.jsonl", [{"prompt": "a", "response": "1"}])
    data = DataSection(path=str(file))
    before, stamp = os.stat(file), data_stamp(data)
    assert load_samples(data).records[0].response == "1"
    write(tmp_path / "t.jsonl", [{"prompt": "a", "response": "2"}])
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    now = os.stat(file)
    assert (now.st_size, now.st_mtime_ns, now.st_ino) == (
        before.st_size, before.st_mtime_ns, before.st_ino)  # fmt: skip
    assert data_stamp(data) != stamp
    assert load_samples(data).records[0].response == "2"
    stamp = data_stamp(data)
    os.utime(file)
    assert data_stamp(data) == stamp, "another time alone is no change"


def test_rows_are_never_taken_from_a_file_that_was_written_to(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", [{"prompt": "a", "response": str(i)} for i in range(9)])
    raw = load_samples(DataSection(path=str(path)))
    path.replace(tmp_path / "old.jsonl")
    write(path, [{"prompt": "a", "response": str(i)} for i in range(8, -1, -1)])
    assert [c.response for c in raw.records[2:4]] == ["2", "3"], "replaced: read on as it was"
    raw = load_samples(DataSection(path=str(path)))
    write(path, [{"prompt": "a", "response": str(i)} for i in range(9)])
    assert raw.records[4].response == "4", "the same as before"
    with pytest.raises(DataError, match="row 0 of the data is not what it was"):
        raw.records[0]
    path.write_text("")
    with pytest.raises(DataError):
        raw.records[0]


# --- stores that were made before ---


@pytest.mark.parametrize("name", ["store-0555866", "store-f5a544c"])
def test_samples_of_old_stores_are_the_same(tmp_path: Path, name: str) -> None:
    with tarfile.open(Path(__file__).parent / "data" / f"{name}.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    store = Store.open(tmp_path / "store")
    known = store.samples(store.versions()[-1])
    raw = load_samples(Recipe.load(tmp_path / "gracekit.yaml").data)
    assert raw.fingerprint == known.fingerprint
    growth = merge(known, sample_table(raw, None), version=99)
    assert (len(growth.added), len(growth.removed), len(growth.changed)) == (0, 0, 0)
    assert not growth.is_change
    previews = dict(zip(raw.sample_ids, raw.previews, strict=True))
    assert {i: previews[i] for i in known.sample_ids[known.present]} == dict(
        zip(known.sample_ids[known.present], known.previews[known.present], strict=True)
    )


def test_new_keys_change_no_hash_of_a_recipe_that_does_not_set_them() -> None:
    plain = {"data": {"path": "x"}, "target": {"path": "y"}}
    one = Recipe.from_dict(plain)
    empty = {**plain, "data": {"path": "x", "columns": {}, "roles": {}}}
    digests = [recipe.digest("data", "target") for recipe in (one, Recipe.from_dict(empty))]
    assert digests == ["46e247667aae923e"] * 2, "as in the release before there were these keys"
    for key, value in {
        "columns": {"prompt": "q"},
        "roles": {"user": ["h"]},
        "rendering": "trl",
    }.items():
        assert Recipe.from_dict({"data": {"path": "x", key: value}}).digest("data") != (
            Recipe.from_dict({"data": {"path": "x"}}).digest("data"))  # fmt: skip
