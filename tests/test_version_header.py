"""The typed header: every format is read, JSON is strict, and nobody else looks into it by name."""

from __future__ import annotations

import ast
import json
import math
import re
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import gracekit
from gracekit.recipe import DataSection, RefreshSection, SelectionSection
from gracekit.version import FIRST_POSITIONS, FORMAT_VERSION
from gracekit.version.header import DatasetInfo, Header
from gracekit.version.outcomes import Audit, SelectionDetails
from gracekit.version.parts import read_section
from gracekit.version.trainer_view import TrainerView
from tests.stores import make_audit, make_header

DATA = Path(__file__).parent / "data"
PACKAGE = Path(gracekit.__file__).parent


def old_headers() -> list[Any]:
    """Name and content of every header in the stores of earlier releases."""
    found = []
    for archive in sorted(DATA.glob("store-*.tar.gz")):
        with tarfile.open(archive) as file:
            for member in file.getmembers():
                if member.name.startswith("store/manifests/") and member.name.endswith(".json"):
                    stream = file.extractfile(member)
                    assert stream is not None
                    content = json.load(stream)
                    name = f"{archive.name}:{Path(member.name).name}"
                    found.append(pytest.param(content.get("header", content), id=name))
    return found


@pytest.mark.parametrize("content", old_headers())
def test_headers_of_earlier_releases_lose_nothing(content: dict[str, Any]) -> None:
    header = Header.from_json(content)
    assert Header.from_json(header.to_json()).to_json() == header.to_json()
    kept = json.loads(header.to_text())
    same = ("version", "operation", "refresh_id", "scores_version", "checkpoint", "files")
    assert {key: kept[key] for key in same} == {key: content[key] for key in same}
    assert kept["selection"].items() >= content["selection"]["details"].items()
    assert kept["stats"].items() >= content["stats"].items()
    for section, values in (
        ("scoring", content["scoring"]),
        ("selection", {k: v for k, v in content["selection"].items() if k != "details"}),
    ):
        assert kept["settings"][section].items() >= values.items()
    if content["audit"] is not None:
        assert kept["audit"].items() >= content["audit"].items()
    measured = content["refresh"]
    if "num_measured" in measured:
        outcome = kept["refresh"]
        for key in ("num_measured", "num_rows", "rounds", "num_since_full"):
            assert outcome[key] == measured[key]
        assert outcome["graph"]["backend"] == measured["graph"]["backend"]
        assert kept["settings"]["refresh"]["plan"] == measured["plan"]
        assert kept["settings"]["propagation"]["features"] in ("ridge", "none"), "the setting"
        assert kept["measure_id"] == measured["measure_id"]
    else:
        assert kept["refresh"] is None
    for stage, seconds in content["timings"].items():
        times = kept["timings"]
        name = stage.removesuffix("_s")
        assert seconds == (times[stage] if stage in times else times["stages"][name])


@pytest.mark.parametrize("content", old_headers())
def test_the_trainer_reads_of_any_format_what_the_header_says(
    content: dict[str, Any],
) -> None:
    typed = Header.from_json(content)
    for form in (content, typed.to_json()):
        view = TrainerView.from_json(form)
        assert view.step == typed.checkpoint.step
        assert view.num_source_rows == typed.dataset.num_source_rows
        assert view.positions == typed.dataset.positions
        assert view.rollback_of == typed.rollback_of
        assert view.sources in ({}, typed.dataset.sources)


def test_a_store_without_a_hash_of_positions_stands_for_its_first_data() -> None:
    dataset = {"path": "a.jsonl", "fingerprint": "f", "num_samples": 3, "num_source_rows": 4}
    found = DatasetInfo.from_json(dataset)
    assert (found.num_rows, found.positions) == (3, FIRST_POSITIONS)
    assert found.sources == {FIRST_POSITIONS: 4} and found.samples_file == "samples.parquet"
    assert found.settings == DataSection(path="a.jsonl")


# --- JSON ---


def test_numbers_that_json_lacks_are_null_and_come_back_as_nan() -> None:
    audit = make_audit().model_copy(update={"calibration": math.nan, "rank_correlation": math.inf})
    header = make_header(3).model_copy(update={"audit": audit})
    content = json.loads(header.to_text(), parse_constant=pytest.fail)
    assert content["audit"]["calibration"] is None
    again = Header.from_json(content).audit
    assert again is not None and math.isnan(again.calibration)
    assert again.mean_abs_error == audit.mean_abs_error
    assert content["audit"]["target_met"] is True


@given(
    st.dictionaries(
        st.text(max_size=5).filter(lambda name: name not in SelectionDetails.model_fields),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: st.lists(inner, max_size=3),
        ),
        max_size=4,
    )
)
def test_what_a_selector_of_the_users_reports_is_kept(details: dict[str, Any]) -> None:
    from gracekit.version.json_text import plain_json

    plain = plain_json(details)
    header = make_header(1).model_copy(update={"selection": SelectionDetails.model_validate(plain)})
    again = Header.from_json(json.loads(header.to_text()))
    assert again.to_json() == header.to_json()
    assert again.to_json()["selection"].items() >= plain_json(plain).items()


def test_what_a_later_release_adds_is_passed_over() -> None:
    content = make_header(1).to_json() | {"added_later": 1}
    content["stats"] |= {"num_new": 3}
    content["settings"]["selection"] |= {"new_key": "x"}
    assert Header.from_json(content) == make_header(1)


@pytest.mark.parametrize(
    "path", ["version", "stats", "stats.num_selected", "checkpoint.step", "dataset.fingerprint"]
)
@pytest.mark.parametrize("how", ["missing", "wrong"])
def test_a_damaged_header_names_the_place_in_one_line(path: str, how: str) -> None:
    content = make_header(1).to_json()
    *parents, leaf = path.split(".")
    node = content
    for parent in parents:
        node = node[parent]
    if how == "missing":
        del node[leaf]
    else:
        node[leaf] = ["not", "that"]
    with pytest.raises(ValueError, match=path.replace(".", r"\.")) as error:
        Header.from_json(content)
    assert "\n" not in str(error.value)


def test_a_setting_that_no_longer_exists_or_is_out_of_range_becomes_the_default() -> None:
    values = {"plan": "cover", "min_probe": -3, "gone": 1, "full_every": 4}
    section = read_section(RefreshSection, values)
    assert section == RefreshSection(plan="cover", full_every=4)
    both = {"count": 3, "fraction": 0.5, "selector": "top"}
    assert read_section(SelectionSection, both) == SelectionSection(), "refused as a whole"


def test_headers_are_frozen_and_of_the_present_format() -> None:
    header = make_header(2)
    assert header.format_version == FORMAT_VERSION
    with pytest.raises(ValueError, match="frozen"):
        header.version = 3


# --- nobody else looks into it by name ---

_PARTS = {"header", "metadata", "stats", "audit", "dataset", "checkpoint", "timings", "outcome"}


def look_ups(path: Path) -> list[str]:
    """Places where a part of a header is asked for something by a string."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Subscript):
            of, key = node.value, node.slice
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
            of, key = node.func.value, node.args[0]
            if node.func.attr != "get":
                continue
        else:
            continue
        is_text = isinstance(key, ast.Constant) and isinstance(key.value, str)
        name = ast.unparse(of)
        is_of_header = re.fullmatch(r"(.*\.)?header(\.\w+)*", name) is not None
        if is_text and (name.rpartition(".")[2] in _PARTS or is_of_header):
            found.append(f"{path.name}:{node.lineno}: {ast.unparse(node)}")
    return found


def test_no_string_look_up_into_a_header_outside_of_its_module() -> None:
    modules = [p for p in PACKAGE.rglob("*.py") if "version" not in p.relative_to(PACKAGE).parts]
    assert len(modules) > 100
    assert [place for path in modules for place in look_ups(path)] == []
    assert look_ups(PACKAGE / "version" / "formats.py"), "this test can fail"


def test_every_number_of_the_audit_has_a_meaning() -> None:
    for name, field in Audit.model_fields.items():
        assert field.description, name
