"""Text tables that fit a width, short reprs, and the ways to Arrow, pandas and polars."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gracekit.tabular import (
    MOST_LINES,
    MissingLibraryError,
    Records,
    ShortRepr,
    html_table,
    read_only,
)
from gracekit.text_table import Column, display_width, lay_out, shorten

TEXT = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=40)


@st.composite
def columns(draw: st.DrawFn) -> list[Column]:
    num_rows = draw(st.integers(0, 4))
    return [
        Column(
            title=draw(TEXT),
            cells=draw(st.lists(TEXT, min_size=num_rows, max_size=num_rows)),
            is_number=draw(st.booleans()),
            priority=draw(st.integers(0, 4)),
            least=draw(st.integers(1, 20)),
        )
        for _ in range(draw(st.integers(1, 6)))
    ]


@given(columns(), st.integers(1, 120))
def test_no_line_is_wider_than_asked_for(table: list[Column], width: int) -> None:
    found = lay_out(table, width=width)
    assert len(found.lines) == 2 + len(table[0].cells), "one line a row, none is folded"
    assert max(map(display_width, found.lines)) <= width


@given(columns(), st.integers(1, 120))
def test_the_least_important_columns_go_first(table: list[Column], width: int) -> None:
    table = [
        Column(title=f"{i}", cells=c.cells, is_number=c.is_number, priority=c.priority)
        for i, c in enumerate(table)
    ]
    left_out = {int(title) for title in lay_out(table, width=width).left_out}
    kept = set(range(len(table))) - left_out
    assert kept
    for gone in left_out:
        for stays in kept:
            assert (table[gone].priority, gone) > (table[stays].priority, stays)
    wider = {int(title) for title in lay_out(table, width=width + 1).left_out}
    assert wider <= left_out, "more room never takes a column away"


@given(columns())
def test_without_a_width_all_is_whole(table: list[Column]) -> None:
    found = lay_out(table)
    assert found.left_out == [] and not found.is_shortened
    for row, line in enumerate(found.lines[2:]):
        for column in table:
            assert column.cells[row].strip() in line


@given(TEXT, st.integers(1, 40))
def test_a_shortened_text_fits_and_says_so(text: str, width: int) -> None:
    found = shorten(text, width)
    assert display_width(found) <= width
    assert found == text or found.endswith("…")


def test_wide_characters_take_two_columns() -> None:
    assert display_width("é語") == 3
    assert shorten("語語語", 4) == "語…"
    found = lay_out([Column(title="a", cells=["語", "x"]), Column(title="b", cells=["1", "2"])])
    assert found.lines[2:] == ["語  1", "x   2"]


def test_numbers_are_never_cut_while_another_column_can_go() -> None:
    table = [
        Column(title="id", cells=["x" * 40]),
        Column(title="n", cells=["123456789"], is_number=True, priority=1),
        Column(title="text", cells=["word " * 20], priority=2),
    ]
    found = lay_out(table, width=30)
    assert found.left_out == ["text"]
    assert found.lines[2] == "x" * 18 + "…  123456789"


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    name: str
    x: float
    flag: bool | None


class Points(Records[Point]):
    __slots__ = ()
    row_type = Point


def make_points(count: int) -> Points:
    return Points(Point(name=f"<p{i}>", x=i / 3, flag=None if i else True) for i in range(count))


def test_records_go_to_arrow_and_pandas() -> None:
    points = make_points(3)
    table = points.to_arrow()
    assert isinstance(table, pa.Table)
    assert table.to_pylist() == points.to_json()
    pandas = pytest.importorskip("pandas")
    frame = points.to_pandas()
    assert isinstance(frame, pandas.DataFrame) and list(frame["name"]) == ["<p0>", "<p1>", "<p2>"]
    assert points[1].x == 1 / 3 and len(points[:2]) == 2 and points == make_points(3)
    assert make_points(0).to_arrow().column_names == ["name", "x", "flag"]


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_a_missing_library_is_named(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingLibraryError, match=f"pip install {library}"):
        getattr(make_points(1), f"to_{library}")()


def test_polars_gets_the_arrow_table(monkeypatch: pytest.MonkeyPatch) -> None:
    polars = pytest.importorskip("polars")
    assert isinstance(make_points(3).to_polars(), polars.DataFrame)


@given(st.integers(0, 40))
def test_reprs_are_short(count: int) -> None:
    lines = repr(make_points(count)).splitlines()
    assert len(lines) <= MOST_LINES
    assert lines[0] == f"Points: {count} row{'' if count == 1 else 's'}"
    assert ("more rows" in lines[-1]) == (count > MOST_LINES - 3)


def test_html_is_escaped_and_short() -> None:
    html = make_points(40)._repr_html_()
    assert "&lt;p0&gt;" in html and "<p0>" not in html
    assert "the first 10 of 40 rows" in html
    assert "&lt;script&gt;" in html_table(["<script>"], [["x" * 1000]])
    assert len(html_table(["a"], [["x" * 1000]])) < 300


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Big(ShortRepr):
    name: str
    values: np.ndarray
    parts: dict[str, np.ndarray]
    more: tuple[int, ...] = tuple(range(1000))
    a: int = 0
    b: str = "x" * 1000
    c: int = 0
    d: int = 0
    e: int = 0
    f: int = 0
    g: int = 0


def test_a_repr_of_many_fields_and_arrays_is_short() -> None:
    big = Big(name="n", values=np.zeros((9, 2)), parts={"loss": np.zeros(9, np.float32)})
    text = repr(big)
    assert len(text.splitlines()) <= MOST_LINES and max(map(len, text.splitlines())) <= 110
    assert "values=float64[9, 2]" in text and "'loss': float32[9]" in text
    assert "… and 4 more fields" in text


def test_read_only_arrays() -> None:
    big = read_only(Big(name="n", values=np.zeros(3), parts={"loss": np.zeros(3)}))
    for array in (big.values, big.parts["loss"]):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
