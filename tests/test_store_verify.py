"""`verify` finds every kind of damage, and nothing in a whole store."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from gracekit.refresher import rollback
from gracekit.store import Store, verify
from gracekit.store.files.parquet import write_table
from gracekit.store.files.samples import write_samples
from gracekit.store.files.sealing import sealed_json, without_checksum
from gracekit.version.columns import MANIFEST
from tests.stores import changed_samples, make_draft, make_reselect, make_store


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = make_store(tmp_path_factory.mktemp("prepared") / "store")
    store.commit(make_draft(store, "one"))
    store.commit(make_draft(store, "two"))
    store.commit(make_reselect(store, "three"))
    return store.paths.root


@pytest.fixture
def store(prepared: Path, tmp_path: Path) -> Store:
    shutil.copytree(prepared, tmp_path / "store")
    return Store.open(tmp_path / "store")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    table = pq.ParquetFile(path).read()
    pq.write_table(change(table).replace_schema_metadata(table.schema.metadata), path)


def double_first_row(table: pa.Table) -> pa.Table:
    rows = table["row"].to_pylist()
    column = pa.array([rows[0], rows[0], *rows[2:]], pa.int64())
    return table.set_column(table.column_names.index("row"), "row", column)


def negative_weights(table: pa.Table) -> pa.Table:
    column = pa.array([-1.0] * len(table), pa.float32())
    return table.set_column(table.column_names.index("weight"), "weight", column)


def other_source_rows(table: pa.Table) -> pa.Table:
    rows = pc.add(table["source_row"], 1)
    return table.set_column(table.column_names.index("source_row"), "source_row", rows)


def other_ids(table: pa.Table) -> pa.Table:
    column = pa.array(["x"] * len(table))
    return table.set_column(table.column_names.index("sample_id"), "sample_id", column)


def sample_damage(spoil: Callable[[Path], object]) -> Callable[[Store], object]:
    """A version that met changed data, with a spoilt sample table."""

    def damage(store: Store) -> None:
        store.commit(make_draft(store, "four", samples=changed_samples(store)))
        store.commit(make_draft(store, "five"))
        spoil(store.paths.samples_of(4))

    return damage


def other_fingerprint(store: Store) -> None:
    content = json.loads(store.paths.info.read_text())
    content["dataset"]["fingerprint"] = "another"
    store.paths.info.write_text(sealed_json(without_checksum(content)))


DAMAGE: dict[str, tuple[Callable[[Store], object], str, str]] = {
    "samples unreadable": (
        lambda s: s.paths.samples.write_bytes(b"x"), "samples.parquet", "cannot read"),
    "other samples": (other_fingerprint, "samples.parquet", "fingerprint"),
    "changed samples unreadable": (
        sample_damage(lambda p: p.write_bytes(b"x")), "samples/v000004.parquet", "cannot read"),
    "changed samples reordered": (
        sample_damage(lambda p: rewrite(p, lambda t: t.take(np.arange(len(t))[::-1]))),
        "samples/v000004.parquet", "other samples than in the table before"),
    "rows of other data": (
        sample_damage(lambda p: rewrite(p, other_source_rows)),
        "manifests/v000005.parquet", "source rows are not"),
    "samples of nobody": (
        lambda s: write_samples(s.paths.samples_of(9), s.samples()),
        "samples/v000009.parquet", "no version"),
    "manifest flipped": (
        lambda s: s.paths.manifest(2).write_bytes(b"PAR1"), "manifests/v000002.parquet", "cannot"),
    "manifest under another number": (
        lambda s: shutil.copy(s.paths.manifest(1), s.paths.manifest(2)),
        "manifests/v000002.parquet", "says version 1"),
    "manifest lost": (lambda s: s.paths.manifest(2).unlink(), "manifests", "[2] are missing"),
    "rows twice": (
        lambda s: rewrite(s.paths.manifest(1), double_first_row),
        "manifests/v000001.parquet", "ascending"),
    "row dropped": (
        lambda s: rewrite(s.paths.manifest(1), lambda t: t.slice(1)),
        "manifests/v000001.parquet", "its header says 8"),
    "column dropped": (
        lambda s: rewrite(s.paths.manifest(1), lambda t: t.drop_columns(["gain"])),
        "manifests/v000001.parquet", "expected"),
    "weights": (
        lambda s: rewrite(s.paths.manifest(1), negative_weights),
        "manifests/v000001.parquet", "positive"),
    "ids of other samples": (
        lambda s: rewrite(s.paths.manifest(1), other_ids),
        "manifests/v000001.parquet", "sample ids"),
    "history flipped": (
        lambda s: flip(s.paths.measured(2)),
        "measurements/version=000002/measured.parquet", "checksum"),
    "history shortened": (
        lambda s: s.paths.scores(1).write_bytes(s.paths.scores(1).read_bytes()[:-4]),
        "score_history/version=000001/scores.parquet", "bytes, expected"),
    "history lost": (
        lambda s: s.paths.scores(2).unlink(),
        "score_history/version=000002/scores.parquet", "read"),
    "history of nobody": (
        lambda s: s.paths.scores(7).parent.mkdir(),
        "score_history/version=000007", "no version"),
    "sidecar changed": (
        lambda s: s.paths.sidecar(1).write_text("{}"), "headers/v000001.json", "differs"),
    "LATEST wrong": (lambda s: s.paths.latest.write_text("1\n"), "LATEST", "latest version, 3"),
    "database lost": (lambda s: s.paths.database.unlink(), "scores.duckdb", "missing"),
    "cache flipped": (
        lambda s: flip(s.paths.cache_of(2) / "features.npy"), "cache/v000002", "features.npy"),
}  # fmt: skip


def test_a_whole_store_has_no_problem(store: Store) -> None:
    assert verify(store) == []


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_found_and_advised_on(store: Store, damage: str) -> None:
    spoil, path, what = DAMAGE[damage]
    spoil(store)
    problems = verify(Store.open(store.paths.root))
    assert any(p.path == path and what in p.what for p in problems), problems
    assert all(p.advice for p in problems)


@pytest.mark.parametrize(
    "damage", ["history of nobody", "sidecar changed", "LATEST wrong", "database lost"]
)
def test_what_is_derived_is_repaired_at_the_next_start(store: Store, damage: str) -> None:
    DAMAGE[damage][0](store)
    assert store.recover()
    assert verify(store) == []


# --- deep ---


def lie(store: Store, change: Callable[[pa.Table], pa.Table]) -> None:
    """Write the first manifest anew, with a seal, so that no checksum tells."""
    path = store.paths.manifest(1)
    table = pq.ParquetFile(path).read()
    content = change(table).replace_schema_metadata(table.schema.metadata)
    write_table(path, content, MANIFEST.columns)


def with_column(name: str, values: list[object]) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        at = table.column_names.index(name)
        return table.set_column(at, table.schema.field(name), pa.array(values, table[name].type))

    return change


LIES: dict[str, tuple[Callable[[Store], object], str]] = {
    "weights": (lambda s: lie(s, with_column("weight", [9.0] * 8)), "they are 72.0"),
    "importance": (lambda s: lie(s, with_column("importance", [0.5] * 8)), "column importance"),
    "groups": (lambda s: lie(s, with_column("group", ["chat"] * 8)), "column group"),
    "rows of the database": (lambda s: in_database(s, "DELETE FROM sample_rows WHERE row = 3"),
                             "table samples"),
    "a value of the database": (
        lambda s: in_database(s, "UPDATE versions SET step = 7 WHERE version = 1"),
        "table versions"),
}  # fmt: skip


def in_database(store: Store, sql: str) -> None:
    with duckdb.connect(str(store.paths.database)) as connection:
        connection.execute(sql)


def test_a_deep_check_of_a_whole_store(store: Store) -> None:
    store.commit(make_draft(store, "grown", samples=changed_samples(store)))
    rollback(store.paths.root, 1)
    assert verify(store, deep=True) == []


@pytest.mark.parametrize("name", LIES)
def test_a_deep_check_finds_what_has_its_checksum_and_is_wrong(store: Store, name: str) -> None:
    spoil, what = LIES[name]
    spoil(store)
    found = verify(Store.open(store.paths.root), deep=True)
    assert any(what in problem.what for problem in found), found
    assert [p for p in verify(Store.open(store.paths.root)) if "checksum" in p.what] == []


@pytest.mark.parametrize("column", ["sample_id", "preview", "content_hash"])
def test_a_deep_check_goes_on_beside_a_damaged_sample_table(store: Store, column: str) -> None:
    path = store.paths.samples
    table = pq.ParquetFile(path).read()
    at = table.column_names.index(column)
    pq.write_table(table.set_column(at, column, pa.nulls(len(table), pa.string())), path)
    found = verify(Store.open(store.paths.root), deep=True)
    assert path.name in {problem.path for problem in found}, found
