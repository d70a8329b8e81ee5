"""One table of columns: files, database and records have what it says, and nothing else."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gracekit.recipe.score_columns import RESERVED
from gracekit.store import Store, run_sql
from gracekit.store.files.parquet import read_schema
from gracekit.store.files.tables import file_schema
from gracekit.store.sql.schema import view_select
from gracekit.version.columns import (
    CORESETS,
    IDENTITY,
    MANIFEST,
    MEASURED_FILE,
    MEASUREMENTS,
    PLACES,
    SAMPLES,
    SCORE_HISTORY,
    SCORES,
    SCORES_FILE,
    TABLES,
    VERSIONS,
    VIEWS,
    version_record,
)
from gracekit.version.outcomes import Audit, Meter
from gracekit.version.parts import Part
from gracekit.version.sources import ListedVersion
from gracekit.version.table import Table
from tests.stores import make_draft, make_reselect, make_store

SCORE_NAMES = ["gradient_norm", "loss"]
SQL_TYPES = {
    "int32": "INTEGER", "int64": "BIGINT", "float32": "FLOAT", "float64": "DOUBLE",
    "string": "VARCHAR", "timestamp[ms]": "TIMESTAMP_MS", "json": "JSON",
}  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Two refreshes, of which the second was audited, and a reselect."""
    made = make_store(tmp_path_factory.mktemp("columns") / "store")
    made.commit(make_draft(made, "one"))
    made.commit(make_draft(made, "two"))
    made.commit(make_reselect(made, "three"))
    return made


def rows(store: Store, sql: str) -> list[tuple[Any, ...]]:
    return run_sql(store.paths.root, sql)[1]


def test_files_have_the_columns_of_the_table(store: Store) -> None:
    paths = store.paths
    for path, table in (
        (paths.samples, SAMPLES),
        (paths.scores(2), SCORES_FILE),
        (paths.measured(2), MEASURED_FILE),
        (paths.manifest(3), MANIFEST),
    ):
        found = read_schema(path)
        own = [field for field in found if field.name not in SCORE_NAMES]
        assert [(f.name, f.type) for f in own] == [
            (f.name, f.type) for f in file_schema(table.columns)
        ], table.name
        has_scores = table in (SCORES_FILE, MEASURED_FILE)
        assert len(found) - len(own) == (2 if has_scores else 0)


@pytest.mark.parametrize("has_versions", [True, False])
def test_the_database_has_the_columns_of_the_table(
    store: Store, tmp_path: Path, has_versions: bool
) -> None:
    asked = store if has_versions else make_store(tmp_path / "empty")
    for table in (TABLES | VIEWS).values():
        described = rows(asked, f"DESCRIBE {table.name}")
        found = {name: kind for name, kind, *_ in described if name not in SCORE_NAMES}
        assert found == {c.name: SQL_TYPES[c.type] for c in table.columns}, table.name
        assert [name for name in found if name in table.names] == table.names


@pytest.mark.parametrize(
    "table", [SCORES, CORESETS, MEASUREMENTS, SCORE_HISTORY], ids=lambda t: t.name
)
def test_every_row_says_which_sample_it_is(store: Store, table: Table) -> None:
    names = ", ".join(["row", *(column.name for column in IDENTITY)])
    strays = f"SELECT {names} FROM {table.name} EXCEPT SELECT {names} FROM samples"
    assert rows(store, strays) == []
    assert rows(store, f"SELECT count(*) > 0, count(*) - count(sample_id) FROM {table.name}") == [
        (True, 0)
    ]


@pytest.mark.parametrize("part", ["audit", "meter"])
def test_an_audit_number_is_a_column_wherever_versions_are_told(store: Store, part: str) -> None:
    kinds: dict[str, type[Part]] = {"audit": Audit, "meter": Meter}
    kind = kinds[part]
    numbers = [
        name
        for name, field in kind.model_fields.items()
        if isinstance(field.json_schema_extra, dict)
    ]
    assert len(numbers) >= 9
    of_header = getattr(store.header(2), part)
    assert of_header is not None
    ((*found,),) = rows(store, f"SELECT {', '.join(numbers)} FROM versions WHERE version = 2")
    expected = [getattr(of_header, name) for name in numbers]
    assert any(map(math.isfinite, expected))
    record = version_record(ListedVersion(store.header(2)))
    for name, value, told in zip(numbers, expected, found, strict=True):
        known = value if math.isfinite(value) else None
        assert told == record[name] == known, name
    assert all(version_record(ListedVersion(store.header(3)))[name] is None for name in numbers)


def test_a_record_of_a_version_is_its_row_without_the_header(store: Store) -> None:
    record = version_record(ListedVersion(store.header(2), removed_at="2026-01-01T00:00:00Z"))
    assert list(record) == VERSIONS.names[:-1] and VERSIONS.names[-1] == "header"
    assert record["removed_at"] == "2026-01-01T00:00:00Z" and record["operation"] == "refresh"


def test_no_score_takes_the_name_of_a_column_beside_it() -> None:
    assert {*SCORES.names, *SCORE_HISTORY.names, *MEASUREMENTS.names} == RESERVED


def test_names_differ_within_a_table_and_meanings_are_said() -> None:
    for table in (*(TABLES | VIEWS).values(), SCORES_FILE, MEASURED_FILE, MANIFEST):
        assert len(set(table.names)) == len(table.names)
        assert all(column.about for column in table.columns)


def test_places_of_a_release_that_had_fewer_columns(tmp_path: Path) -> None:
    """What no file has is NULL, so that ready-made queries can be asked of any store."""
    folder = tmp_path / "version=000001"
    folder.mkdir()
    content = {"row": pa.array([0, 1], pa.int32()), "place": [1.0, 0.5], "factor_copies": [1, 0.5]}
    pq.write_table(pa.table(content), folder / "places.parquet")
    query = view_select(PLACES.name, {(): [str(folder / "places.parquet")]})
    with duckdb.connect() as connection:
        row = "SELECT 0 AS row, 'a' AS sample_id, 'g' AS group_name"
        connection.execute(f"CREATE TABLE samples AS {row}")
        relation = connection.sql(query)
        assert set(PLACES.names) == set(relation.columns)
        found = relation.select("version, sample_id, place, copy_of, evidence").fetchall()
    assert found == [(1, "a", 1.0, None, None)]
