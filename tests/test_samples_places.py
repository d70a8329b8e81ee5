"""Data in several files: lists, patterns, directories, and lists of rows inside of one object."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gracekit.errors import DataError, RecipeError
from gracekit.recipe import DataSection, Recipe
from gracekit.samples import data_stamp, load_samples, open_records
from gracekit.samples.row_source import Chain, Part, Source
from gracekit.types import Json


def row(i: int) -> Json:
    return {"prompt": f"Q{i}", "response": f"{i:03}"}


def lines(*numbers: int) -> str:
    return "".join(json.dumps(row(i)) + "\n" for i in numbers)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "b.jsonl").write_text(lines(2, 3))
    (tmp_path / "a.jsonl").write_text(lines(0, 1))
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(lines(4).encode()))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "d.parquet").touch()
    pq.write_table(pa.Table.from_pylist([row(5), row(6)]), tmp_path / "sub" / "d.parquet")
    (tmp_path / "README.md").write_text("not data")
    return tmp_path


def answers(folder: Path, *places: str, split: str = "train") -> list[int]:
    path = [*places] if len(places) != 1 else places[0]
    data = Recipe.from_dict({"data": {"path": path, "split": split}}, folder=folder).data
    raw = load_samples(data)
    records = list(open_records(data, raw.source_rows[::-1]))[::-1]
    assert [r["response"] for r in records] == [c.response for c in raw.records[:]]
    assert raw.source_rows.tolist() == list(range(len(raw)))
    return [int(r["response"]) for r in records]


def test_lists_patterns_and_directories(folder: Path) -> None:
    assert answers(folder, "b.jsonl", "a.jsonl") == [2, 3, 0, 1]
    assert answers(folder, "*.jsonl") == [0, 1, 2, 3]
    assert answers(folder, "*.jsonl*") == [0, 1, 2, 3, 4]
    assert answers(folder, "*") == [0, 1, 2, 3, 4], "what is no data file is passed over"
    assert answers(folder, "[bc].jsonl*", "sub") == [2, 3, 4, 5, 6]
    assert answers(folder, "**/*.parquet", str(folder / "a.jsonl")) == [5, 6, 0, 1]
    assert answers(folder, "a.jsonl", "sub/d.parquet", "b.jsonl", split="train[1:4]") == [1, 5, 6]
    datasets.Dataset.from_list([row(7)]).save_to_disk(str(folder / "saved"))
    assert answers(folder, "saved", "a.jsonl") == [7, 0, 1]


def test_what_is_wrong_with_places_is_said(folder: Path) -> None:
    for places, message in [
        (["no/*.jsonl"], "names no data file"),
        (["*.md"], r"names no data file; it names README\.md"),
        (["a.jsonl", "*.jsonl"], r"names .*a\.jsonl twice"),
        (["a.jsonl", "missing.jsonl"], "there is no file or directory"),
        (["**/*"], r"expected files of one kind.*data\.path: \[a\.jsonl, b\.parquet\]"),
        (["."], "expected files of one kind"),
    ]:
        with pytest.raises(DataError, match=message):
            answers(folder, *places)
    with pytest.raises(DataError, match=r"is files and has no split 'test'"):
        answers(folder, "*.jsonl", split="test")
    with pytest.raises(RecipeError, match="path is an empty list"):
        Recipe.from_dict({"data": {"path": []}})


def test_a_list_stays_one_in_the_recipe(folder: Path) -> None:
    content = {"data": {"path": ["a.jsonl", "org/some-data", "x/*.jsonl"]}}
    data = Recipe.from_dict(content, folder=folder).data
    assert data.places == (str(folder / "a.jsonl"), "org/some-data", str(folder / "x/*.jsonl"))
    assert data.name == f"{folder / 'a.jsonl'}, org/some-data and 1 more"
    assert DataSection.model_validate(data.model_dump(mode="json")) == data


def test_any_file_of_them_changes_the_stamp(folder: Path) -> None:
    names = [str(folder / "a.jsonl"), str(folder / "[bc].*")]
    data = DataSection.model_validate({"path": names})
    before = data_stamp(data)
    assert data_stamp(data) == before
    (folder / "c.jsonl.gz").write_bytes(gzip.compress(lines(9).encode()))
    assert data_stamp(data) != before
    before = data_stamp(data)
    (folder / "b.json").write_text("[]")
    assert data_stamp(data) != before, "a file that the pattern names from now on"


def test_files_of_two_layouts_are_refused_unless_one_is_named(tmp_path: Path) -> None:
    chat = {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}
    (tmp_path / "a.jsonl").write_text(lines(0, 1))
    (tmp_path / "b.jsonl").write_text(json.dumps(chat) + "\n")
    data = DataSection(path=str(tmp_path))
    with pytest.raises(DataError, match=r"a\.jsonl is laid out as 'prompt-completion', other "):
        load_samples(data)
    raw = load_samples(data.model_copy(update={"format": "messages"}))
    assert (len(raw), [s.source_row for s in raw.skipped]) == (1, [0, 1])
    # Of one layout with other columns beside: one.
    (tmp_path / "b.jsonl").write_text(json.dumps(row(2) | {"source": "x"}) + "\n")
    assert len(load_samples(data)) == 3


HELD: dict[str, tuple[str, list[int]]] = {
    "data": ('{"data": [%s, %s]}', [0, 1]),
    "pretty": ('{\n  "version": {"data": [1]},\n  "rows" :\n [\n%s,\n%s\n]\n, "n": [2]}\n', [0, 1]),
    "examples": ('\ufeff{"name": "}", "examples": [%s, %s]}', [0, 1]),
}


@pytest.mark.parametrize("name", HELD)
def test_rows_inside_of_one_object(tmp_path: Path, name: str) -> None:
    text, expected = HELD[name]
    path = tmp_path / "t.json"
    path.write_text(text % (json.dumps(row(0)), json.dumps(row(1))), encoding="utf-8")
    assert answers(tmp_path, "t.json") == expected
    records = list(open_records(DataSection(path=str(path)), np.arange(2)))
    assert records[1].text == json.dumps(row(1))  # type: ignore[attr-defined]


def test_an_object_that_is_no_list_of_rows(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    data = DataSection(path=str(path))
    path.write_text('{\n"title": "t",\n"data": {"a": 1}\n}')
    with pytest.raises(DataError, match=r"one JSON object over.*under the key 'data'"):
        load_samples(data)
    path.write_text('{"data": [{"prompt": "Q", "response": "A"}], }')
    with pytest.raises(DataError, match="line 1, column 44: not valid JSON"):
        load_samples(data)
    path.write_text('{\n"data": [{"prompt": "Q", "response": "A"}, 3]}')
    with pytest.raises(DataError, match="entry 2: expected a JSON object"):
        load_samples(data)
    path.write_text('{\n"prompt": "Q" "response"}\n')
    with pytest.raises(DataError, match="line 1, column"):
        load_samples(data)
    # One object a line is what it was, whatever its keys and how many lines there are.
    path.write_text(lines(0))
    assert len(load_samples(data)) == 1
    path.write_text('{"prompt": "Q", "response": "A", "data": []}\n' + lines(1))
    assert len(load_samples(data)) == 2
    other = path.rename(tmp_path / "t.jsonl")
    other.write_text(json.dumps({"data": [row(0)]}) + "\n")
    with pytest.raises(DataError, match="no layout fits the columns data"):
        load_samples(DataSection(path=str(other)))


class Numbers(Source):
    """Rows that hold their number."""

    def __init__(self, numbers: list[int]) -> None:
        self._numbers = numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def take(self, rows: object) -> list[Json]:
        return [{"n": self._numbers[k]} for k in rows]  # type: ignore[attr-defined]


@given(st.data())
def test_a_chain_is_the_list_of_all_rows(data: st.DataObject) -> None:
    parts = data.draw(st.lists(st.lists(st.integers(), max_size=4), min_size=1, max_size=5))
    numbers = [n for part in parts for n in part]
    start = data.draw(st.integers(0, len(numbers)))
    chain = Part(Chain([Numbers(part) for part in parts]), start, len(numbers))
    assert len(chain) == len(numbers) - start
    picks = st.lists(st.integers(0, len(chain) - 1), max_size=8) if len(chain) else st.just([])
    rows = data.draw(picks)
    assert [r["n"] for r in chain.take(rows)] == [numbers[start + k] for k in rows]
    spans = [(begin, stop) for _, begin, stop in chain.files() if stop > begin]
    assert [k for begin, stop in spans for k in range(begin, stop)] == list(range(len(chain)))
