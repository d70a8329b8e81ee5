"""The page of a report: whole, safe, readable without a script, and small."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import math
import re
import tracemalloc
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import gracekit
from gracekit.errors import ExportError
from gracekit.recipe import DataSection
from gracekit.reporting import Report
from gracekit.reporting.charts import bar_chart, line_chart
from gracekit.reporting.feature_map import feature_map
from gracekit.reporting.finding import Bars, Finding, Lines, Rows, Series
from gracekit.reporting.map_picture import MapPicture
from gracekit.reporting.texts import LONGEST_TEXT, plain, script_json, shown
from gracekit.store import Store
from gracekit.version.header import DataDescription
from tests.report_stores import draft_of, features_of, report_store, samples_of
from tests.stores import strings
from tests.test_report_map import cache_of

HOSTILE = (
    '<script>alert("x")</script><img src=x onerror=alert(1)>',
    "</script></style></svg><h1>broken</h1>&amp;&lt;",
    "מה שלום כולם \u202egnp.exe\u202c ?שלום",
    "👩‍👩‍👧‍👦 🇳🇱 \u200d\ufe0f\u0301\u0301\u0301",
    "a" * 1_000_000,
    "`backticks` {braces} %s $x ]]> --> \\u003c",
    "\x00\x07\x1b[31mred\x1b[0m\r\nline",
    "",
)
DESCRIPTION = DataDescription(settings=DataSection(path="train.jsonl", format="messages"))
VOID = {"meta", "input", "img", "br", "hr", "link"}


class Checked(HTMLParser):
    """Every element is closed in its order; scripts, links and ids are noted."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.handlers: list[str] = []
        self.tags: list[str] = []
        self.headings: list[int] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "action", "srcset", "data", "poster"):
                self.references.append(value or "")
            if name.startswith("on") or name == "style":
                self.handlers.append(name)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if "script" not in self.open and "style" not in self.open:
            self.texts.append(data)


def checked(page: str) -> Checked:
    parser = Checked()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    root = tmp_path_factory.mktemp("page")
    return gracekit.report(report_store(root / "store"), root / "report.html")


def test_the_page_is_well_formed_and_refers_to_nothing_outside(report: Report) -> None:
    assert report.path is not None
    page = report.path.read_text(encoding="utf-8")
    assert page == report.html()
    parser = checked(page)
    assert all(reference.startswith("#") for reference in parser.references)
    assert {r.removeprefix("#") for r in parser.references} <= set(parser.ids)
    assert len(set(parser.ids)) == len(parser.ids)
    assert parser.handlers == []
    assert not {"img", "link", "iframe", "object"} & set(parser.tags)
    assert re.findall(r"https?://[^\s\"'<)]+", page) == []
    assert parser.headings[0] == 1 and parser.headings.count(1) == 1
    assert all(b - a <= 1 for a, b in zip(parser.headings, parser.headings[1:], strict=False))


def test_what_matters_is_there_without_a_script(report: Report) -> None:
    page = re.sub(r"<script.*?</script>", "", report.html(), flags=re.DOTALL)
    text = " ".join(checked(page).texts)
    for expected in (
        report.answer.worth.split(":")[0],
        "From version to version",
        "id-000002",
        "Question 2: how far is it?",
        "What is good:",
        "SELECT",
    ):
        assert expected in text
    charts = [f for s in report.sections for f in s.findings.values()
              if isinstance(f.chart, Lines | Bars | Rows)]  # fmt: skip
    assert page.count('class="chart"') == len(charts) >= 11
    assert page.count('class="dots core') == 3
    assert page.count('type="radio"') == 3


def test_only_our_own_script_and_style_may_run(report: Report) -> None:
    page = report.html()
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy is not None and "default-src 'none'" in policy[1]
    for tag in ("script", "style"):
        contents = re.findall(rf"<{tag}>(.*?)</{tag}>", page, flags=re.DOTALL)
        assert len(contents) == 1
        digest = base64.b64encode(hashlib.sha256(contents[0].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy[1]


def test_texts_with_markup_are_text(tmp_path: Path) -> None:
    store = report_store(tmp_path / "store", preview=lambda row: HOSTILE[row % len(HOSTILE)])
    page = gracekit.report(store, tmp_path / "report.html").html()
    (tmp_path / "report.html").read_text(encoding="utf-8").encode("utf-8")
    parser = checked(page)
    assert parser.tags.count("script") == 3, "the map's points and layout, and our own"
    assert parser.tags.count("h1") == 1
    assert parser.handlers == []
    assert "a" * (LONGEST_TEXT + 1) not in page
    assert '<script>alert("x")' in " ".join(parser.texts)
    assert "שלום" in page and "👩‍👩‍👧‍👦" in page
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069]", page)
    points = re.search(r'id="map-points">(.*?)</script>', page, flags=re.DOTALL)
    assert points is not None
    assert len(json.loads(points[1])["text"]) == 240


def test_hostile_names_of_groups_and_ids(tmp_path: Path) -> None:
    n = 64
    names = ("<b>bold</b>", "x" * 5000, "\u202eright to left", "")
    samples = dataclasses.replace(
        samples_of(n),
        group_names=names,
        sample_ids=strings([f"{HOSTILE[i % 4]}{i}" for i in range(n)]),
    )
    description = DataDescription(settings=DataSection(path='"><script>.jsonl', format="messages"))
    store = Store.create(tmp_path / "store", samples=samples, dataset=description)
    for _ in range(2):
        store.commit(draft_of(store))
    parser = checked(gracekit.report(store).html())
    assert parser.tags.count("script") == 3 and "b" in parser.tags
    assert "<b>bold</b>" in " ".join(parser.texts)
    assert not any("x" * 200 in text for text in parser.texts)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_text_on_one_line_is_cut_and_has_nothing_that_steers(text: str) -> None:
    found = plain(text)
    assert len(found) <= LONGEST_TEXT and "\n" not in found and "\x1b" not in found
    assert "\u202e" not in found
    assert "<script" not in shown(text)


def test_json_in_a_script_cannot_end_it() -> None:
    found = script_json({"text": "</script><!--\u2028&"})
    assert not set("<>&\u2028\u2029") & set(found)
    assert json.loads(found) == {"text": "</script><!--\u2028&"}


# --- where it is written ---


def test_a_later_report_replaces_an_earlier_one_and_nothing_else(tmp_path: Path) -> None:
    store = report_store(tmp_path / "store", versions=1)
    page = tmp_path / "report.html"
    gracekit.report(store, page)
    first = page.read_text()
    gracekit.report(store, page, now=1_900_000_000.0)
    assert page.read_text() != first
    page.write_text("<p>a thesis</p>")
    with pytest.raises(ExportError, match="no report of gracekit"):
        gracekit.report(store, page)
    assert page.read_text() == "<p>a thesis</p>"
    with pytest.raises(ExportError, match="lies in the store"):
        gracekit.report(store, tmp_path / "store" / "report.html")
    with pytest.raises(ExportError, match="it is a directory"):
        gracekit.report(store, tmp_path)


# --- many of everything ---


def test_a_page_stays_small_whatever_the_texts_are(tmp_path: Path) -> None:
    """The most points that a map has, with long texts of three bytes a character."""
    n = 20_000
    store = Store.create(
        tmp_path / "store", samples=samples_of(n, lambda row: f"{row}" + "漢字" * 200),
        dataset=DESCRIPTION,
    )  # fmt: skip
    for _ in range(6):
        draft = draft_of(store, is_indexed=False)
        store.commit(draft)
    page = gracekit.report(store).html()
    assert page.count("漢字" * 30) > 5000
    assert len(page.encode()) < 5_000_000


def picture_of(groups: list[str], sample_ids: list[str], texts: list[str]) -> MapPicture:
    """A map whose points are some of all samples, and more of six coresets."""
    n = len(groups)
    coresets = {version: np.arange(version, n, 7) for version in range(1, 7)}
    found = feature_map(
        cache_of(features_of(n, 1)), np.ones(n, np.bool_), coresets, fingerprint="a"
    )
    assert found is not None
    rows = found.rows.tolist()
    return MapPicture(
        found=found,
        groups=[groups[row] for row in rows],
        sample_ids=[sample_ids[row] for row in rows],
        texts=[texts[row] for row in rows],
    )


def test_a_map_stays_small_where_ids_and_groups_are_long_too() -> None:
    """Ids, a group of each sample and texts: the longest that are shown, of six bytes each."""
    n = 8000
    names = [f"{i}" + "<" * 90 for i in range(n)]
    page = picture_of(names, names, names).html()
    points = re.search(r'id="map-points">(.*?)</script>', page, flags=re.DOTALL)
    assert points is not None
    found = json.loads(points[1])
    assert len(found["text"]) == len(found["id"]) > 4000
    assert len(page.encode()) < 4_000_000
    short = picture_of(["a"] * 9, ["b" * 40] * 9, ["c" * 80] * 9).html()
    assert "b" * 40 in short and "c" * 80 in short


def test_a_group_may_have_a_name_of_any_length_and_with_any_character() -> None:
    names = ["G" * 1_000_000, *["ends in zero\0"] * 2000, *["\u202ec"] * 1999]
    picture = picture_of(names, ["id"] * 4000, ["text"] * 4000)
    tracemalloc.start()
    page = picture.html()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "ends in zero" in page and len(page) < 1_000_000
    assert most < 1 << 28


def test_many_groups_and_a_group_of_each_sample_stay_readable(tmp_path: Path) -> None:
    n = 200
    samples = dataclasses.replace(
        samples_of(n),
        groups=np.arange(n, dtype=np.int32),
        group_names=tuple(f"group {i} of the many" for i in range(n)),
    )
    store = Store.create(tmp_path / "store", samples=samples, dataset=DESCRIPTION)
    for _ in range(2):
        store.commit(draft_of(store))
    report = gracekit.report(store)
    page = report.html()
    checked(page)
    assert "188 smaller groups are in the numbers below" in page
    assert "The first 100 of 200 rows." in page
    assert "194 other groups" in page
    assert len(report.finding("coreset", "groups")) == n


def test_many_versions_show_the_last_ones_and_fold_the_rest(tmp_path: Path) -> None:
    report = gracekit.report(report_store(tmp_path / "store", n=64, versions=15))
    page = report.html()
    checked(page)
    assert "The last 12 of 15 rows." in page
    assert page.count('type="radio"') == 6 and "version 15</label>" in page
    assert len(report.finding("timeline", "versions")) == 15


def test_a_line_over_thousands_of_versions_stays_small() -> None:
    versions = 5000
    finding = Finding(
        title="Many",
        good="Few.",
        columns={
            "version": [*range(1, versions + 1)],
            "loss": [1 + math.sin(version) for version in range(versions)],
        },
    )
    series = (Series("loss", "a", "loss", "loss"), Series("loss", "b"))
    chart = Lines(x="version", x_name="version", y_name="loss", series=series)
    found = line_chart(finding, chart)
    assert f"a, version {versions:,}: " in found, "the last one can be pointed at"
    assert found.count("<circle") < 2 * 160 and len(found) < 400_000


def test_names_of_axes_have_room(report: Report) -> None:
    names = re.findall(r'<text class="axis"[^>]*>([^<]*)</text>', report.html())
    assert len(names) > 10
    assert all(len(text) <= 44 for text in names), max(names, key=len)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 30])
def test_bars_stand_above_their_marks(count: int) -> None:
    columns: dict[str, list[float]] = {
        "version": [*range(1, count + 1)],
        "share": [0.5] * count,
    }
    chart = Bars(x="version", x_name="version", y_name="share", series=(Series("share", "share"),))
    drawn = bar_chart(Finding(title="t", good="g", columns=columns, chart=chart), chart)
    picture = drawn.partition('<svg class="chart"')[2]  # without the legend
    bars = re.findall(r'<rect class="bar [^"]*" x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', picture)
    middles = [float(x) + float(width) / 2 for x, width in bars]
    marks = dict(re.findall(r'x="([\d.]+)" y="[\d.]+" text-anchor="middle">(\d+)<', picture))
    assert len(middles) == count and marks
    for place, label in marks.items():
        assert abs(middles[int(label) - 1] - float(place)) < 1


def test_a_page_tells_no_folder(tmp_path: Path) -> None:
    store = report_store(tmp_path / "here" / "store")
    followed = tmp_path / "elsewhere" / "checkpoints"
    beat = {"state": "stopped", "pid": 7, "unix_time": 1000.0, "checkpoint_dir": str(followed)}
    store.paths.heartbeat.write_text(json.dumps(beat))
    found = gracekit.report(store.paths.root)
    assert f"gracekit watch {followed}" in found.answer.advice
    page = found.html()
    assert "gracekit watch checkpoints" in page
    assert str(tmp_path) not in page
