"""A commit after many versions: what it takes over instead of reading it again."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import duckdb
import pytest

import gracekit
from gracekit.recipe import ScoringSection
from gracekit.store import Store, verify
from gracekit.store import reader as reader_module
from gracekit.store.files import manifests
from gracekit.store.sql import database
from gracekit.store.version_facts import KnownFacts, VersionFacts
from gracekit.version.columns import TABLES, VIEWS
from gracekit.version.header import Settings
from tests.flips import flip_bit
from tests.stores import make_draft, make_reselect, make_store


def content(path: Path) -> dict[str, list[tuple[object, ...]]]:
    """Everything in a published database, as anyone who opens the file sees it."""
    with duckdb.connect(str(path), read_only=True) as connection:
        return {
            name: connection.execute(f"FROM {name} ORDER BY ALL").fetchall()
            for name in (*TABLES, *VIEWS)
        }


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Refreshes with two recipes, one of them unknown to the headers, and a reselect between."""
    made = make_store(tmp_path / "store")
    for name in ("a", "b", "c", "d", "e"):
        draft = make_draft(made, name)
        scoring: ScoringSection | None
        scores, scoring = dict(draft.scores.scores), ScoringSection()  # type: ignore[union-attr]
        if name in "cd":
            scores["el2n"] = scores.pop("loss")
            scoring = ScoringSection(scores=("gradient-norm", "el2n"))
        if name == "d":
            scoring = None
        assert draft.scores is not None and draft.measurement is not None
        rows = draft.measurement.rows
        made.commit(
            dataclasses.replace(
                draft,
                settings=Settings(scoring=scoring),
                scores=dataclasses.replace(draft.scores, scores=scores),
                measurement=dataclasses.replace(
                    draft.measurement, scores={n: s[rows] for n, s in scores.items()}
                ),
            )
        )
        if name == "b":
            made.commit(make_reselect(made, "other selection"))
    return made


def test_a_database_that_grew_is_one_that_is_made_anew(store: Store) -> None:
    grown = content(store.paths.database)
    assert len(grown["versions"]) == 6 and len(grown["checkpoints"]) == 6
    store.paths.database.unlink()
    database.publish(Store.open(store.paths.root))
    assert content(store.paths.database) == grown
    assert verify(store) == []


def test_what_the_database_says_of_another_version_is_not_taken_over(store: Store) -> None:
    """A backup of the files was restored, and the run went on from there."""
    for path in (store.paths.manifest(6), store.paths.sidecar(6)):
        path.unlink()
    Store.open(store.paths.root).commit(make_draft(store.renew(), "instead"))
    made = {row[0]: row for row in content(store.paths.database)["versions"]}
    assert "instead" in made[6] and "d" in made[5]


def facts_of(known: KnownFacts) -> dict[int, VersionFacts]:
    return {version: facts for version, (_, facts) in sorted(known.items())}


def test_headers_are_read_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    monkeypatch.setattr(reader_module, "_NUM_HEADERS", 2)

    def read_header(path: Path) -> object:
        read.append(path.name)
        return manifests.read_header(path)

    monkeypatch.setattr(reader_module, "read_header", read_header)
    facts: KnownFacts = {}
    first = Store.open(store.paths.root, facts=facts)
    assert first.find_refresh("nobody") is None
    assert len(read) == 6 and len(first._headers) == 2
    read.clear()
    later = Store.open(store.paths.root, facts=facts)
    assert later.commit(make_draft(store, "next")) == 7
    assert later.find_refresh("a") == 1 and later.versions() == [*range(1, 8)]
    assert sorted(read) == ["v000006.parquet", "v000007.parquet"], "its own and its parent's, once"
    assert Store.open(store.paths.root).all_facts() == later.all_facts() == facts_of(facts)


def test_a_list_of_all_versions_reads_each_header_once(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: Counter[str] = Counter()
    monkeypatch.setattr(reader_module, "_NUM_HEADERS", 2)

    def read_header(path: Path) -> object:
        read[path.name] += 1
        return manifests.read_header(path)

    monkeypatch.setattr(reader_module, "read_header", read_header)
    opened = Store.open(store.paths.root)
    listed = gracekit.versions(opened)
    assert [record.version for record in listed] == [*range(1, 7)]
    assert set(read.values()) == {1} and len(read) == 6
    assert len(opened._headers) == 2, "a daemon of weeks keeps no more"


def test_status_compares_the_sample_table_and_does_not_take_it_apart(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_module, "read_samples", lambda path: pytest.fail("taken apart"))
    assert gracekit.status(store.paths.root).problems == ()
    before = flip_bit(store.paths.samples, 8 * 100)
    (problem,) = gracekit.status(store.paths.root).problems
    assert "samples.parquet: it differs from its checksum" in problem
    store.paths.samples.write_bytes(before)
    make_store(store.paths.root.parent / "other", n=30)
    other = Store.open(store.paths.root.parent / "other")
    store.paths.samples.write_bytes(other.paths.samples.read_bytes())
    (problem,) = gracekit.status(store.paths.root).problems
    assert "has 30 rows, 24 were written" in problem
