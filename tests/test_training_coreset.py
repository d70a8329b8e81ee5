"""Reading a version where the trainer runs: which one, into what dataset, and with what loaded."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest

from gracekit.errors import (
    DataError,
    StoreFormatError,
    StoreNotFoundError,
    VersionNotFoundError,
)
from gracekit.store import Store
from gracekit.training import Coreset
from tests.stores import N, make_draft, make_store

NUM_SOURCE_ROWS = 2 * N
ALL_IDS = [f"id-{i // 2:03d}" if i % 2 == 0 else f"skipped-{i}" for i in range(NUM_SOURCE_ROWS)]
"""Ids of all rows of the data file: the store's samples lie at the even rows."""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with versions 1 to 3."""
    store = make_store(tmp_path_factory.mktemp("prepared") / "store")
    for refresh_id in ("one", "two", "three"):
        store.commit(make_draft(store, refresh_id))
    return store.paths.root


@pytest.fixture
def root(prepared: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(prepared, tmp_path / "store"))


def manifest(root: Path, version: int) -> Path:
    return root / "manifests" / f"v{version:06d}.parquet"


def test_a_version_is_what_the_store_holds(prepared: Path) -> None:
    table = Store.open(prepared).coreset(2)
    coreset = Coreset.load(prepared, version=2)
    assert coreset.version == 2
    assert coreset.step == 200
    assert len(coreset) == table.num_rows == N // 3
    assert coreset.rows.tolist() == table["row"].to_pylist()
    assert coreset.source_rows.tolist() == table["source_row"].to_pylist()
    assert coreset.sample_ids.tolist() == table["sample_id"].to_pylist()
    assert coreset.weights.dtype == np.float32
    assert coreset.weights.tolist() == table["weight"].to_pylist()
    assert coreset.metadata["refresh_id"] == "two"
    assert coreset.metadata == json.loads(
        (prepared / "headers" / "v000002.json").read_text(encoding="utf-8")
    )


def test_latest_is_the_highest_version_whatever_the_hint_says(root: Path) -> None:
    (root / "LATEST").write_text("1\n")
    assert Coreset.load(root).version == 3


@pytest.mark.parametrize("damage", ["truncated", "empty", "no header", "no step", "no such column"])
def test_latest_passes_over_a_damaged_manifest(root: Path, damage: str) -> None:
    path = manifest(root, 3)
    table = pq.read_table(path)
    path.unlink()
    if damage == "truncated":
        pq.write_table(table, path)
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "empty":
        path.touch()
    elif damage == "no header":
        pq.write_table(table.replace_schema_metadata({}), path)
    elif damage == "no step":
        header = json.loads(table.schema.metadata[b"gracekit"]) | {"checkpoint": {}}
        metadata = {b"gracekit": json.dumps(header).encode()}
        pq.write_table(table.replace_schema_metadata(metadata), path)
    else:
        pq.write_table(table.drop_columns("weight"), path)
    assert Coreset.load(root).version == 2
    with pytest.raises(StoreFormatError, match="v000003"):
        Coreset.load(root, version=3)


def test_a_newer_format_is_refused_not_passed_over(root: Path) -> None:
    table = pq.read_table(manifest(root, 3))
    header = json.loads(table.schema.metadata[b"gracekit"])
    header["format_version"] = 99
    manifest(root, 3).unlink()
    pq.write_table(
        table.replace_schema_metadata({b"gracekit": json.dumps(header).encode()}), manifest(root, 3)
    )
    with pytest.raises(StoreFormatError, match="update gracekit"):
        Coreset.load(root)
    assert Coreset.load(root, version=2).version == 2


def test_all_damaged_says_so(root: Path) -> None:
    for version in (1, 2, 3):
        manifest(root, version).write_bytes(b"not parquet")
    with pytest.raises(StoreFormatError, match="v000003"):
        Coreset.load(root)


def test_the_manifests_alone_are_enough(prepared: Path, tmp_path: Path) -> None:
    shutil.copytree(prepared / "manifests", tmp_path / "elsewhere" / "manifests")
    assert Coreset.load(tmp_path / "elsewhere").version == 3


def test_missing_store_and_versions_are_clear(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError, match=r"no store at .*nowhere.*gracekit watch"):
        Coreset.load(tmp_path / "nowhere")
    make_store(tmp_path / "fresh")
    with pytest.raises(VersionNotFoundError, match="no version yet"):
        Coreset.load(tmp_path / "fresh")
    with pytest.raises(VersionNotFoundError, match=r"no version 9: .* has versions 1 to 3"):
        Coreset.load(prepared, version=9)
    with pytest.raises(VersionNotFoundError, match="has none yet"):
        Coreset.load(tmp_path / "fresh", version=1)


def test_positions_by_ids_follow_the_trainers_order(prepared: Path) -> None:
    coreset = Coreset.load(prepared)
    shuffled = np.random.default_rng(0).permutation(ALL_IDS).tolist()
    found = coreset.positions(shuffled)
    assert [shuffled[i] for i in found] == coreset.sample_ids.tolist()
    assert coreset.positions(ALL_IDS).tolist() == coreset.source_rows.tolist()


def test_positions_by_number_of_rows_need_the_whole_data_file(prepared: Path) -> None:
    coreset = Coreset.load(prepared)
    assert coreset.positions(NUM_SOURCE_ROWS).tolist() == coreset.source_rows.tolist()
    with pytest.raises(DataError, match=r"has 40 rows and .* has 48.*sample_ids"):
        coreset.positions(40)


def test_samples_that_the_trainer_dropped(prepared: Path) -> None:
    coreset = Coreset.load(prepared)
    gone = coreset.sample_ids[0]
    ids = [i for i in ALL_IDS if i != gone]
    found = coreset.locate(ids)
    assert found[0] == -1
    assert [ids[i] for i in found[1:]] == coreset.sample_ids[1:].tolist()
    with pytest.raises(DataError, match=f"1 of the 8 samples.*{gone}"):
        coreset.positions(ids)


def test_ids_of_other_data_and_repeated_ids_are_refused(prepared: Path) -> None:
    coreset = Coreset.load(prepared)
    with pytest.raises(DataError, match=r"only 0 are in the trainer's dataset.*'0'"):
        coreset.locate(list(range(NUM_SOURCE_ROWS)))
    with pytest.raises(DataError, match="not unique"):
        coreset.locate([*ALL_IDS, ALL_IDS[0]])


def test_select(prepared: Path) -> None:
    coreset = Coreset.load(prepared)
    table = datasets.Dataset.from_dict({"id": ALL_IDS, "n": list(range(NUM_SOURCE_ROWS))})
    assert coreset.select(table)["n"] == coreset.source_rows.tolist()
    some = table.shuffle(seed=0)
    assert some["n"] != table["n"]
    assert coreset.select(some, id_column="id")["id"] == coreset.sample_ids.tolist()
    assert coreset.select(range(NUM_SOURCE_ROWS)) == coreset.source_rows.tolist()
    with pytest.raises(DataError, match="no column 'uid'"):
        coreset.select(table, id_column="uid")


def test_nothing_heavy_is_loaded(prepared: Path) -> None:
    code = (
        "import sys, gracekit.training\n"
        "from gracekit.training import Coreset, CoresetSampler\n"
        f"coreset = Coreset.load({str(prepared)!r})\n"
        f"assert len(list(CoresetSampler({str(prepared)!r}, {NUM_SOURCE_ROWS}))) > 0\n"
        "heavy = {'torch', 'transformers', 'duckdb', 'datasets', 'accelerate', 'numba', 'scipy',\n"
        "         'hnswlib', 'pandas', 'pydantic'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
