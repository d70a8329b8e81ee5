"""`Texts` beside an array of Python's strings, its slow twin."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gracekit import texts as module
from gracekit.samples import merge, same_where_known
from gracekit.store.files.parquet import text_column
from gracekit.store.files.samples import read_samples, write_samples
from gracekit.texts import Texts
from gracekit.types import Strings
from gracekit.version.json_text import clean_text
from tests.stores import make_samples

ANY_TEXT = st.text(st.characters(), max_size=6) | st.sampled_from(
    ["", "a", "b", "é", "→…", "😀", "\ud83d", "\ude00", "\ud83d\ude00", "\0", "\uffff", "\ufffd"]
)
"""Lone surrogates among them; some often twice."""
COLUMNS = st.lists(ANY_TEXT, max_size=40)


def twin(values: list[str]) -> Strings:
    array = np.empty(len(values), object)
    array[:] = values
    return array


@pytest.fixture(autouse=True, scope="module")
def _small_blocks() -> Any:
    """Blocks of a few texts, so that short columns have several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK", 7)
        yield


@given(COLUMNS, st.data())
def test_an_index_is_as_one_of_numpy(values: list[str], data: st.DataObject) -> None:
    texts, slow = Texts.of(values), twin(values)
    n = len(values)
    assert len(texts) == n and texts.tolist() == [*texts] == values
    for row in range(-n, n):
        assert texts[row] == slow[row] == texts[np.int64(row)]
    for row in (n, -n - 1):
        with pytest.raises(IndexError):
            texts[row]
    part = data.draw(st.slices(n))
    assert texts[part].tolist() == slow[part].tolist()
    rows = np.array(data.draw(st.lists(st.integers(0, n - 1)) if n else st.just([])), np.int64)
    assert texts[rows].tolist() == slow[rows].tolist() == texts[rows.tolist()].tolist()
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)), bool)
    assert texts[mask].tolist() == slow[mask].tolist()
    assert texts[part][mask[part]].tolist() == slow[part][mask[part]].tolist()
    for beyond in ([n], [-1]):
        with pytest.raises(IndexError):
            texts[np.array(beyond)]
    with pytest.raises(IndexError, match=f"mask of {n} texts"):
        texts[np.ones(n + 1, bool)]


@given(COLUMNS, COLUMNS, st.data())
def test_what_is_asked_of_texts(first: list[str], second: list[str], data: st.DataObject) -> None:
    whole = Texts.of([*second, *first])
    texts, others = whole[len(second) :], Texts.of(iter(second))  # one that begins within another
    slow = twin(first)
    place_of = {text: place for place, text in reversed([*enumerate(first)])}
    assert texts.places_of(others).tolist() == [place_of.get(text, -1) for text in second]
    assert texts.order().tolist() == sorted(range(len(first)), key=first.__getitem__)
    numbers: dict[str, int] = {}
    assert texts.codes().tolist() == [numbers.setdefault(t, len(numbers)) for t in first]
    assert texts.num_distinct == len(set(first))
    n = min(len(first), len(second))
    assert texts[:n].same(others[:n]).tolist() == (slow[:n] == twin(second)[:n]).tolist()
    assert (texts == others) == (first == second) and texts == Texts.of(first) and texts != first
    assert Texts.joined([texts, others, texts]).tolist() == [*first, *second, *first]
    assert Texts.joined([Texts.of([]), texts]) is texts or not first
    assert pickle.loads(pickle.dumps(texts)) == texts
    as_array = np.asarray(texts)
    assert as_array.dtype == object and as_array.tolist() == first
    some = data.draw(ANY_TEXT)
    assert (some in texts) == (some in first)
    assert texts.place_of(some) == place_of.get(some, -1)


@given(COLUMNS, st.integers(13, 60))
def test_to_arrow_and_back(values: list[str], most: int) -> None:
    expected = [clean_text(text) for text in values]
    texts, whole = Texts.of(["x", *values])[1:], text_column(Texts.of(values))
    assert whole.to_pylist() == expected and whole.type == pa.string()
    assert Texts.of_arrow(whole).tolist() == expected
    assert Texts.of_arrow(pa.chunked_array([whole, whole])).tolist() == [*expected, *expected]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_MOST_BYTES", most)
        column = text_column(texts)
    assert column.to_pylist() == expected
    sizes = [chunk.nbytes - 4 * len(chunk) for chunk in getattr(column, "chunks", ())]
    assert all(size <= most + 4 for size in sizes)
    if any("\ud800" <= c <= "\udfff" for text in values for c in text):
        with pytest.raises(ValueError):
            pa.array(texts)
    else:
        assert pa.array(texts, pa.large_string()).to_pylist() == values


def test_a_mask_is_made_of_an_array() -> None:
    """`==` never says False of what an array would have said a mask of."""
    texts = Texts.of(["a", "b", "a"])
    mask: Any = texts == np.asarray(Texts.of(["a", "x", "a"]))
    assert mask.tolist() == [True, False, True]
    with pytest.raises(TypeError, match=r"numpy.asarray\(texts\) == 'a' is a mask"):
        texts == "a"  # noqa: B015


def test_an_index_that_is_none_is_refused() -> None:
    texts = Texts.of("abc")
    assert texts[np.array(1)] == "b"
    odd: list[Any] = [[[0, 1], [1, 2]], np.array([1.7]), "a", None, np.array(["a"])]
    for index in odd:
        with pytest.raises(IndexError, match="as an index, found"):
            texts[index]


def test_a_slice_takes_no_more_than_itself_along() -> None:
    texts = Texts.of(f"sample-{row}" for row in range(10_000))
    part = pickle.dumps(texts[5000:5003])
    assert len(part) < 1000 and [*pickle.loads(part)] == [f"sample-{r}" for r in range(5000, 5003)]


def test_what_is_no_column_of_texts_is_told() -> None:
    for column in (pa.array([1]), pa.array(["a", None]), pa.array([b"a"])):
        with pytest.raises(ValueError, match="expected a column of texts"):
            Texts.of_arrow(column)
    for values in ([None], [1], ["a", b"b"]):
        with pytest.raises(TypeError):
            Texts.of(values)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        hash(Texts.of(["a"]))


@given(st.lists(st.tuples(*[st.integers(0, 2)] * 3), max_size=12).map(sorted),
       st.lists(st.tuples(*[st.integers(0, 3)] * 3), max_size=12))  # fmt: skip
def test_known_contents_have_tokens_that_they_are_known_with(
    known: list[tuple[int, int, int]], now: list[tuple[int, int, int]]
) -> None:
    contents, _, _ = zip(*known, strict=True) if known else ((), (), ())
    expected = all(row in known for row in now if row[0] in contents)
    columns = []
    for rows in (known, now):
        of_rows = np.array(rows, np.int64).reshape(-1, 3).T
        columns += [Texts.of(map(str, of_rows[0])), (of_rows[1], of_rows[2])]
    assert same_where_known(*columns) == expected  # type: ignore[arg-type]


def test_texts_are_in_memory_once_where_the_data_is_as_before(tmp_path: Path) -> None:
    known = make_samples(20)
    again = merge(known, make_samples(20), version=2).samples
    more = merge(known, make_samples(23), version=2).samples
    for name in ("sample_ids", "content_hashes", "previews"):
        assert getattr(again, name) is getattr(known, name)
        assert getattr(more, name) == getattr(make_samples(23), name)
    write_samples(tmp_path / "samples.parquet", known)
    assert read_samples(tmp_path / "samples.parquet").previews == known.previews


def test_a_trainer_does_not_load_pandas_for_them() -> None:
    code = (
        "import sys; import numpy as np; import pyarrow as pa; from gracekit.texts import Texts\n"
        "column = pa.StringArray.from_buffers(2, pa.py_buffer(np.array([0, 1, 2], np.int32)),"
        " pa.py_buffer(b'ab'))\n"
        "texts = Texts.of_arrow(column); assert texts == Texts.of(['a', 'b'])\n"
        "assert texts.places_of(texts[[1]]).tolist() == [1] and texts[0] == 'a'\n"
        "assert texts.order().tolist() == texts.codes().tolist() == [0, 1]\n"
        "assert texts.same(texts).all() and texts.num_distinct == 2\n"
        "assert 'pandas' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
