"""The numbers of a report, beside the same ones computed from the store's arrays."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import gracekit
from gracekit.recipe import DataSection
from gracekit.reporting import Report
from gracekit.store import Store, run_sql
from gracekit.types import Origin
from gracekit.version.header import DataDescription
from tests.releases import RELEASES, unpack
from tests.report_stores import (
    DOUBTFUL,
    FORGOTTEN,
    GROUPS,
    draft_of,
    report_store,
    samples_of,
)
from tests.stores import changed_samples, make_draft, make_reselect, make_store

NOW = 1_800_000_000.0
NAMES = {
    "timeline": {
        "worth",
        "kept",
        "cost",
        "measured",
        "trust",
        "losses",
        "uses",
        "churn",
        "versions",
    },
    "coreset": {
        "groups",
        "lengths",
        "importance",
        "entered",
        "left",
        "most_important",
        "least_important",
    },
    "samples": {"learned", "forgotten", "doubtful", "volatile", "never_selected"},
    "copies": {"exact", "near"},
    "map": {"map"},
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return report_store(tmp_path_factory.mktemp("findings") / "store")


@pytest.fixture(scope="module")
def report(store: Store) -> Report:
    return gracekit.report(store, now=NOW)


def test_every_part_has_its_findings_and_none_is_empty(report: Report) -> None:
    assert {s.key: set(s.findings) for s in report.sections} == NAMES
    for section in report.sections:
        for name, finding in section.findings.items():
            if (section.key, name) != ("map", "map"):
                assert len(finding), (section.key, name, finding.why_empty)
            assert finding.title and finding.good.endswith(".")
    assert report.map is not None


def is_same(one: object, other: object) -> bool:
    """Equal; a sum over threads differs in its last digits from time to time."""
    if isinstance(one, float) and isinstance(other, float):
        return one == pytest.approx(other, rel=1e-12, nan_ok=True)
    return one == other


def test_the_sql_that_is_shown_gives_the_numbers_that_are_shown(
    store: Store, report: Report
) -> None:
    checked = 0
    for section in report.sections:
        for name, finding in section.findings.items():
            if finding.sql and (section.key, name) != ("copies", "near"):
                columns, rows = run_sql(store.paths.root, finding.sql)
                assert columns == list(finding.columns)
                shown = [tuple(row.values()) for row in finding.rows()]
                assert len(rows) == len(shown), name
                for asked, given in zip(rows, shown, strict=True):
                    assert all(map(is_same, asked, given)), (name, asked, given)
                checked += 1
    assert checked == sum(map(len, NAMES.values())) - 2


def test_json_is_strict_and_has_all_numbers(report: Report) -> None:
    content = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert set(NAMES) - {"map"} < set(content)
    assert content["answer"] == report.answer.to_json()
    assert len(content["timeline"]["versions"]["rows"]) == 3
    assert len(content["map"]["rows"]) == 240 == content["map"]["num_samples"]
    assert content["created_at"] == "2027-01-15T08:00:00Z"


def test_shares_of_groups_are_counts(store: Store, report: Report) -> None:
    chosen = store.coreset(3)["row"].to_numpy()
    counted = Counter(GROUPS[row % len(GROUPS)] for row in chosen.tolist())
    rows = list(report.finding("coreset", "groups").rows())
    assert {row["group_name"]: row["selected"] for row in rows} == dict(counted)
    for row in rows:
        assert row["data_share"] == pytest.approx(1 / len(GROUPS))
        assert row["coreset_share"] == pytest.approx(counted[row["group_name"]] / len(chosen))
    assert sum(row["weight_share"] for row in rows) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("name", ["lengths", "importance", "groups"])
def test_histograms_count_every_sample_once(report: Report, name: str) -> None:
    columns = report.finding("coreset", name).columns
    assert sum(columns["samples"]) == 240
    assert sum(columns["selected"]) == 30
    assert sum(columns["data_share"]) == pytest.approx(1)
    assert sum(columns["coreset_share"]) == pytest.approx(1)


def test_uses_are_counted_by_version(store: Store, report: Report) -> None:
    for row in report.finding("timeline", "uses").rows():
        drawn = store.drawn(row["version"])
        assert drawn is not None
        uses = drawn.state.uses
        found = [row[k] for k in ("never", "once", "twice", "often")]
        assert found == [int((uses == 0).sum()), int((uses == 1).sum()), int((uses == 2).sum()),
                         int((uses > 2).sum())]  # fmt: skip


def test_losses_of_groups_are_means_of_what_was_measured_at_random(
    store: Store, report: Report
) -> None:
    rows = list(report.finding("timeline", "losses").rows())
    assert len(rows) == 3 * len(GROUPS)
    for row in rows:
        table = store.measurement(row["version"])
        group = GROUPS.index(row["group_name"])
        of_group = table["row"].to_numpy() % len(GROUPS) == group
        losses = table["loss"].to_numpy()[of_group].astype(np.float64)
        half = 1.645 * losses.std(ddof=1) / len(losses) ** 0.5
        assert row["measured"] == len(losses)
        assert row["loss"] == pytest.approx(losses.mean())
        assert (row["loss_low"], row["loss_high"]) == pytest.approx(
            (losses.mean() - half, losses.mean() + half)
        )


def test_what_was_planted_is_found(report: Report) -> None:
    doubtful = report.finding("samples", "doubtful").columns["sample_id"]
    assert set(doubtful) >= {f"id-{row:06d}" for row in DOUBTFUL}
    forgotten = report.finding("samples", "forgotten")
    assert forgotten.columns["sample_id"][0] == f"id-{FORGOTTEN[0]:06d}"
    assert forgotten.columns["last_loss"][0] - forgotten.columns["lowest_loss"][0] == pytest.approx(
        1.6, abs=1e-5
    )
    exact = next(report.finding("copies", "exact").rows())
    assert (exact["first_id"], exact["second_id"], exact["copies"]) == (
        "id-000000",
        "id-000001",
        2,
    )
    near = next(report.finding("copies", "near").rows())
    assert {near["first_id"], near["second_id"]} == {"id-000002", "id-000003"}
    assert "Question 2:" in near["first_text"] + near["second_text"]


def test_what_a_sample_was_before_it_changed_does_not_acquit_it(tmp_path: Path) -> None:
    """Row 20 had a low loss once; with its new content it is the worst of its group."""
    description = DataDescription(settings=DataSection(path="train.jsonl"))
    store = Store.create(tmp_path / "store", samples=samples_of(240), dataset=description)
    for version in range(1, 4):
        draft = draft_of(store, measured=1.0)
        scores, measurement = draft.scores, draft.measurement
        assert scores is not None and measurement is not None
        losses = scores.scores["loss"].copy()
        losses[20] = 0.01 if version == 1 else 9.0 + version
        scores = dataclasses.replace(scores, scores={**scores.scores, "loss": losses})
        of_rows = {**measurement.scores, "loss": losses[measurement.rows]}
        measurement = dataclasses.replace(measurement, scores=of_rows)
        samples = None
        if version == 2:
            samples = samples_of(240)
            contents = samples.content_versions.copy()
            contents[20] = 2
            samples = dataclasses.replace(samples, content_versions=contents)
        store.commit(
            dataclasses.replace(draft, scores=scores, measurement=measurement, samples=samples)
        )
    found = gracekit.report(store).finding("samples", "doubtful")
    assert "id-000020" in found.columns["sample_id"]


def test_learned_is_of_measured_losses_alone(store: Store, report: Report) -> None:
    seen: dict[int, dict[int, float]] = {}
    for version in store.versions():
        table = store.measurement(version)
        for row, loss in zip(table["row"].to_pylist(), table["loss"].to_pylist(), strict=True):
            seen.setdefault(row, {})[version] = loss
    falls = {
        row: losses[min(losses)] - losses[max(losses)]
        for row, losses in seen.items()
        if len(losses) > 1
    }
    best = max(falls, key=lambda row: falls[row])
    finding = report.finding("samples", "learned")
    assert finding.columns["sample_id"][0] == f"id-{best:06d}"
    fell = sum(fall > 0 for fall in falls.values())
    assert f"Of {len(falls):,} samples" in finding.notes[0]
    assert f"the loss of {fell:,} fell" in finding.notes[0]


def test_never_selected_counts_exactly(store: Store, report: Report) -> None:
    drawn = store.drawn(3)
    assert drawn is not None
    used = drawn.state.uses > 0
    for version in store.versions():
        used[store.coreset(version)["row"].to_numpy()] = True
    assert report.finding("samples", "never_selected").notes == (
        f"{int((~used).sum()):,} of 240 samples are in no coreset that is kept and were not "
        "trained on.",
    )


def test_likeness_is_shown_where_there_is_a_target(tmp_path: Path) -> None:
    aimed = gracekit.report(report_store(tmp_path / "store", versions=1, is_aimed=True))
    finding = aimed.finding("coreset", "likeness")
    assert sum(finding.columns["samples"]) == 240
    assert finding.columns["from_likeness"] == sorted(finding.columns["from_likeness"])


# --- the answer ---


def test_the_answer_has_three_sentences_in_the_words_of_status(
    store: Store, report: Report
) -> None:
    answer = report.answer
    assert answer.worth.startswith("What the coreset of version 3 is worth: 1,000 of these are")
    assert "all versions so far cost 6.0% of the training's compute" in answer.cost
    assert answer.advice.startswith("What to do: ")
    status = gracekit.status(store, now=NOW)
    folder = f"{store.paths.root.parent}/"
    assert report.status == tuple(text.replace(folder, "") for text in status.sentences())
    assert folder not in report.html(), "a report may be given away"
    assert "1,000 of these are worth 1,360 random ones" in " ".join(report.status)


def test_a_selection_from_stored_scores_names_the_version_that_was_measured(
    tmp_path: Path,
) -> None:
    store = report_store(tmp_path / "store", versions=2)
    store.commit(make_reselect(store, "again"))
    report = gracekit.report(store)
    assert "What the coreset of version 2 is worth" in report.answer.worth
    assert "version 3 was selected from stored scores" in report.answer.worth
    assert sum(report.finding("coreset", "groups").columns["selected"]) == 5


def test_where_norms_gain_nothing_it_says_train_on_random_rows(tmp_path: Path) -> None:
    store = report_store(tmp_path / "store", versions=1)
    draft = draft_of(store)
    assert draft.meter is not None
    meter = draft.meter.model_copy(update={"can_gain": False, "best": 1.01, "value": 1.0})
    store.commit(dataclasses.replace(draft, meter=meter))
    advice = gracekit.report(store).answer.advice
    assert "selection by norm cannot pay on this data, so train on random rows" in advice


# --- stores that lack something ---


def test_a_store_without_a_version_says_so_everywhere(tmp_path: Path) -> None:
    report = gracekit.report(make_store(tmp_path / "store"))
    assert "there is no version" in report.answer.worth
    assert report.map is None
    page = report.html()
    assert "There is no version yet, so there is no coreset" in page
    assert "There is no version yet, so there are no features" in page
    json.dumps(report.to_json(), allow_nan=False)


def test_one_version_has_nothing_to_compare_with(tmp_path: Path) -> None:
    report = gracekit.report(report_store(tmp_path / "store", versions=1))
    assert not report.finding("timeline", "churn")
    assert not report.finding("coreset", "entered")
    assert not report.finding("samples", "learned")
    page = report.html()
    assert "No sample was measured at two versions yet." in page
    assert "Samples that entered since the version before" in page and "version –" not in page
    assert "· 1 version kept, the newest is 1" in page
    assert len(report.finding("coreset", "groups")) == len(GROUPS)


def test_scores_without_a_loss_say_how_to_get_one(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    draft = make_draft(store, "one")
    assert draft.scores is not None and draft.measurement is not None
    for scores in (draft.scores.scores, draft.measurement.scores):
        del scores["loss"]
    store.commit(draft)
    report = gracekit.report(store)
    for name in ("learned", "forgotten", "doubtful"):
        assert "no score `loss`" in report.finding("samples", name).why_empty


def test_samples_that_left_the_data_are_in_no_list(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    store.commit(make_draft(store, "one"))
    store.commit(make_draft(store, "two", samples=changed_samples(store)))
    samples = store.samples()
    gone = set(samples.sample_ids[~samples.present].tolist())
    assert gone
    report = gracekit.report(store)
    groups = report.finding("coreset", "groups").columns
    assert sum(groups["samples"]) == int(samples.present.sum())
    for name in ("never_selected", "volatile"):
        assert not gone & set(report.finding("samples", name).columns.get("sample_id", []))
    assert (store.scores(2).origin == Origin.REMOVED).sum() == len(gone)
    report.html()


def test_versions_that_gc_removed_stay_in_the_timeline(tmp_path: Path) -> None:
    store = report_store(tmp_path / "store", versions=4)
    gracekit.gc(store, keep=1)
    report = gracekit.report(store)
    assert report.finding("timeline", "worth").columns["version"] == [1, 2, 3, 4]
    assert report.finding("timeline", "uses").columns["version"] == [4]
    assert "no version before this one that is kept" in report.finding("coreset", "left").why_empty
    assert report.finding("samples", "learned"), "what was measured is never removed"


@pytest.mark.parametrize("release", RELEASES)
def test_stores_of_earlier_releases_give_a_report(release: str, tmp_path: Path) -> None:
    root = unpack(release, tmp_path) / "store"
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*") if p.is_file()}
    report = gracekit.report(root)
    assert len(report.finding("timeline", "versions"))
    assert len(report.finding("coreset", "groups"))
    assert report.html().startswith("<!doctype html>")
    assert {p: p.stat().st_mtime_ns for p in root.rglob("*") if p.is_file()} == before


def test_a_damaged_part_leaves_the_others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = report_store(tmp_path / "store", versions=2)
    scores = store.paths.scores(2)
    scores.write_bytes(b"PAR1" + bytes(scores.stat().st_size - 8) + b"PAR1")
    report = gracekit.report(store.paths.root)
    assert len(report.finding("timeline", "versions")) == 2
    assert "This part cannot be made" in report.section("coreset").findings["nothing"].why_empty
    assert any("of the report is empty" in message for message in caplog.messages)
    page = report.html()
    assert "This part cannot be made" in page
    assert str(tmp_path) not in page, "the folder of a store is left out"
