"""Stores of earlier releases: read as they are, migrated whatever is killed, and worked with."""

from __future__ import annotations

import json
import os
import random
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas  # type: ignore[import-untyped]
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner

import gracekit
from gracekit.cli import main
from gracekit.files import remove_leftovers
from gracekit.recipe import Recipe
from gracekit.store import NAMED_QUERIES, Store, StorePaths, run_sql, verify
from gracekit.store.files import lock
from gracekit.store.files.migrations import migrate
from gracekit.training import Coreset
from gracekit.version import FORMAT_VERSION
from tests.faults import Killed, count_operations, failing_at, killed_at, on_operation
from tests.power import Disk, after_a_power_cut
from tests.releases import RELEASES, answers, content, digests, unpack
from tests.tiny import write_checkpoint

torch.set_num_threads(1)
NEXT_STEP = {"format 1": 30, "format 2": 50}
VERSIONS = {"format 1": [1, 2, 3], "format 2": [2, 4, 5, 6]}
BASE = {"format 1": 2, "format 2": 6}
"""The newest version with scores of its own."""


@pytest.fixture(scope="module", params=RELEASES)
def release(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def pristine(release: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a release, and its recipe and data; not to be changed."""
    return unpack(release, tmp_path_factory.mktemp("release"))


@pytest.fixture(scope="module")
def expected(pristine: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the store tells before any migration."""
    return content(pristine / "store"), answers(pristine / "store")


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    return shutil.copytree(pristine, tmp_path / "world")


def require_present_layout(root: Path) -> None:
    assert not (root / "history").exists()
    assert {p.suffix for p in (root / "manifests").iterdir()} == {".parquet"}
    for manifest in (root / "manifests").iterdir():
        table = pq.ParquetFile(manifest).read()
        assert table.column_names[0] == "version" and table.schema.field(0).type == "int32"
        assert set(table["version"].to_pylist()) == {int(manifest.stem[1:])}
        assert (root / "headers" / f"{manifest.stem}.json").is_file()
    assert json.loads((root / "store.json").read_text())["format_version"] == FORMAT_VERSION


def test_an_old_store_is_read_as_it_is(
    pristine: Path, release: str, expected: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    root = pristine / "store"
    told, asked = expected
    assert told["versions"] == VERSIONS[release] and told["next"][2] == BASE[release]
    if release == "format 2":
        assert list(told["removed"]) == [1, 3] and told["held"].keys() == {2}
        assert told["measured"][1] is not None, "of a removed version"
    damage = [p for p in verify(Store.open(root)) if p.path != "scores.duckdb"]
    assert damage == [], "its database is of another schema, which the next start replaces"
    assert len(asked["score_history"][1]) == sum(len(s["origin"]) for s in _scores(told).values())
    assert not (root / "headers").exists(), "nothing was written"


def _scores(told: dict[str, Any]) -> dict[int, dict[str, Any]]:
    made = {h["scores_version"] for v, h in told["headers"].items() if v in told["versions"]}
    return {v: s for v, s in told["scores"].items() if v in made}


def test_a_migration_moves_files_and_keeps_all_that_they_say(
    folder: Path, expected: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    root = folder / "store"
    before, manifests = digests(root), _manifests(root)
    done = Store.open(root).recover()
    assert "brought the store to format 3: Every directory holds" in "\n".join(done)
    assert f"brought the store to format {FORMAT_VERSION}: Everything has a checksum now" in done
    require_present_layout(root)
    assert digests(root) == before, "files of the history and samples were moved"
    for name, (table, time_ns) in _manifests(root).items():
        assert table.drop_columns("version").equals(manifests[name][0])
        assert time_ns == manifests[name][1], "when it was made"
    assert (content(root), answers(root)) == expected
    assert verify(Store.open(root)) == [] and Store.open(root).recover() == []


def _manifests(root: Path) -> dict[str, tuple[Any, int]]:
    found = sorted((root / "manifests").glob("*.parquet"))
    return {
        p.name: (pq.ParquetFile(p).read().replace_schema_metadata(None), p.stat().st_mtime_ns)
        for p in found
    }


@pytest.mark.parametrize(
    "every", [pytest.param(5, id="some"), pytest.param(1, id="all", marks=pytest.mark.torture)]
)
@pytest.mark.parametrize("torn", [False, True])
def test_a_kill_at_any_operation_of_a_migration_loses_nothing(
    pristine: Path,
    tmp_path: Path,
    torn: bool,
    every: int,
    expected: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    """Of the operations every fifth, from another one on in each case; all in `make torture`."""
    told, asked = expected
    counted = shutil.copytree(pristine / "store", tmp_path / "counted")
    operations = count_operations(lambda: migrate(StorePaths(counted)))
    assert len(operations) > 40
    for k, name in enumerate(operations, 1):
        if (torn and name != "fill") or (k + 2 * torn) % every:
            continue
        root = shutil.copytree(pristine / "store", tmp_path / str(k))
        with pytest.raises(Killed), killed_at(k, torn=torn):
            migrate(StorePaths(root))
        assert content(root) == told, k
        if k in (11, 31, len(operations) - 12):
            assert answers(root) == asked, f"asked in SQL after {k}"
        migrate(StorePaths(root))
        assert content(root) == told, k
        if torn:
            Store.open(root).recover()
            assert content(root) == told and verify(Store.open(root)) == [], k
            assert not list(root.rglob("*.partial-*"))
        else:
            remove_leftovers(root)  # as a clean start does
        require_present_layout(root)
        shutil.rmtree(root)


def test_a_disk_that_fails_in_a_migration_is_told_and_loses_nothing(
    pristine: Path, tmp_path: Path, expected: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    root = shutil.copytree(pristine / "store", tmp_path / "store")
    for k in (1, 9, 17, 25):
        with failing_at(k, 28), pytest.raises(gracekit.GracekitError, match="No space left"):
            Store.open(root).recover()
        assert content(root) == expected[0]
    Store.open(root).recover()
    require_present_layout(root)
    assert content(root) == expected[0]


def test_a_damaged_manifest_is_left_as_it_is(folder: Path) -> None:
    root = folder / "store"
    path = StorePaths(root).manifest(2)
    path.write_bytes(b"PAR1 and no more")
    Store.open(root).recover()
    assert path.read_bytes() == b"PAR1 and no more"
    assert json.loads(StorePaths(root).sidecar(2).read_text())["version"] == 2
    assert 2 not in Store.open(root).versions() and (root / "score_history").is_dir()
    assert verify(Store.open(root))[0].path == "manifests/v000002.parquet"


SEED = 20261130


@pytest.fixture
def with_pin(pristine: Path, tmp_path: Path) -> Path:
    """The store on a disk of its own, with a pin as its release wrote it."""
    root = shutil.copytree(pristine / "store", tmp_path / "disk" / "store")
    (root / "pinned").mkdir(exist_ok=True)
    marker = {"note": "the run that we publish", "pinned_at": "2026-01-02T03:04:05Z"}
    (root / "pinned/v000002.json").write_text(json.dumps(marker, indent=1) + "\n")
    return root


@pytest.mark.parametrize(
    "num",
    [pytest.param(12, id="some"), pytest.param(250, id="250", marks=pytest.mark.torture)],
)
@pytest.mark.timeout(7200)
def test_power_cuts_in_a_migration_lose_nothing(
    with_pin: Path, release: str, tmp_path: Path, num: int
) -> None:
    """Over all of it, and as often again where the marker of the pin is written."""
    told = content(with_pin)
    assert told["held"] == {2: "pinned: the run that we publish"}
    recorder = Disk(with_pin.parent)
    with recorder.recording():
        Store.open(with_pin).recover()
    moments = recorder.moments
    # The last of that name: the marker, after all headers and records of removals.
    (*_, pin) = (k for k, m in enumerate(moments) if "of v000002.json" in m.operation)
    rng = random.Random(SEED)
    at_the_pin = [pin - 1 + k % 6 for k in range(num)]
    for k in (*(k * len(moments) // num for k in range(num)), *at_the_pin, -1):
        seed, disk = rng.getrandbits(32), tmp_path / "after"
        after_a_power_cut(moments[k], disk, random.Random(seed))
        where = f"before {moments[k].operation}, moment {k}, seed {seed}"
        assert content(disk / "store") == told, where
        Store.open(disk / "store").recover()
        assert content(disk / "store") == told, where
        assert verify(Store.open(disk / "store")) == [], where
        shutil.rmtree(disk)
    print(f"\nseed {SEED}: {2 * num + 1} power cuts in a migration of {release}")


@pytest.mark.parametrize("work", ["unpin", "pin"])
def test_a_pin_that_changes_while_a_migration_writes_it(
    with_pin: Path, monkeypatch: pytest.MonkeyPatch, work: str
) -> None:
    """At the rename of the marker: what was reported then must not come back."""
    monkeypatch.setattr(lock, "WAIT_S", 600.0)
    waits_or_is_done = threading.Event()
    changes: list[threading.Thread] = []

    def change() -> None:
        store = Store.open(with_pin)
        assert store.unpin(2) if work == "unpin" else store.pin(2, "a new note")
        waits_or_is_done.set()

    claim = lock._claim

    def claiming(path: Path, me: int) -> int | None:
        owner = claim(path, me)
        if owner is not None and owner != me:
            waits_or_is_done.set()
        return owner

    def react(count: int, name: str, path: Path) -> None:
        if name == "replace" and path.parent.name == "pinned" and not changes:
            changes.append(threading.Thread(target=change))
            changes[0].start()
            assert waits_or_is_done.wait(600)

    monkeypatch.setattr(lock, "_claim", claiming)
    with on_operation(react):
        Store.open(with_pin).recover()
    changes[0].join()
    assert Store.open(with_pin).held_versions().get(2) == (
        None if work == "unpin" else "pinned: a new note"
    )
    assert verify(Store.open(with_pin)) == []


# --- worked with ---


def refreshes(folder: Path, recipe: Recipe, release: str) -> int:
    result = gracekit.refresh(recipe, write_checkpoint(folder / "run", NEXT_STEP[release]))
    assert result.header.operation == "refresh"
    num_measured = result.header.stats.num_measured
    assert num_measured is not None and num_measured < 60, "what it knew of the samples was used"
    return result.version


def reselects(folder: Path, recipe: Recipe, release: str) -> int:
    return gracekit.reselect(recipe.override({"selection.count": 7})).version


def rolls_back(folder: Path, recipe: Recipe, release: str) -> int:
    result = gracekit.rollback(folder / "store", 2)
    assert result.header.rollback_of == 2
    return result.version


def collects(folder: Path, recipe: Recipe, release: str) -> int:
    store = Store.open(folder / "store")
    told = store.gc(1, dry_run=True)
    assert content(folder / "store")["versions"] == VERSIONS[release], "a dry run changes nothing"
    report = store.gc(1)
    assert (report.removed, report.kept) == (told.removed, told.kept)
    assert min(report.freed_bytes, told.freed_bytes) > 0  # its files are smaller when migrated
    assert report.removed == ((1,) if release == "format 1" else (4, 5))
    return max(store.versions())


def pins_and_unpins(folder: Path, recipe: Recipe, release: str) -> int:
    store = Store.open(folder / "store")
    assert store.pin("latest", "good").note == "good"
    assert store.latest() in store.held_versions()
    store.gc(1)
    assert store.unpin("latest") and not store.unpin("latest")
    return max(store.versions())


@pytest.mark.parametrize("work", [refreshes, reselects, rolls_back, collects, pins_and_unpins])
def test_an_old_store_is_worked_with(
    folder: Path, release: str, work: Callable[[Path, Recipe, str], int]
) -> None:
    recipe, root = Recipe.load(folder / "gracekit.yaml"), folder / "store"
    before = content(root)
    files = digests(root)
    version = work(folder, recipe, release)
    store = Store.open(root)
    assert store.latest() == version
    require_present_layout(root)
    assert verify(store) == [] and store.recover() == []
    after = content(root)
    for what in ("headers", "coresets", "samples", "measured"):
        assert {v: after[what][v] for v in before[what] if v in after[what]} == {
            v: kept for v, kept in before[what].items() if v in after[what]
        }, what
    assert after["headers"].keys() >= before["headers"].keys(), "also of removed versions"
    kept = digests(root)
    assert {name: kept[name] for name in files if name in kept} == {
        name: digest for name, digest in files.items() if name in kept
    }
    assert all(name in kept for name in files if name.endswith("measured.parquet"))


def test_two_operations_in_a_row(folder: Path, release: str) -> None:
    recipe, root = Recipe.load(folder / "gracekit.yaml"), folder / "store"
    first = refreshes(folder, recipe, release)
    chosen = gracekit.reselect(recipe.override({"selection.count": 7}))
    assert chosen.version == first + 1 and len(Coreset.load(root).rows) == 7
    versions = "SELECT version, count(*) FROM score_history GROUP BY 1 ORDER BY 1"
    made = run_sql(root, versions)[1]
    expected = {"format 1": [(1, 60), (2, 60), (4, 60)], "format 2": [2, 4, 6, 7]}[release]
    assert (made if release == "format 1" else [v for v, _ in made]) == expected


COMMANDS = [
    ["status"],
    ["versions"],
    ["verify"],
    ["diff", "2", "BASE"],
    ["sql", "--list"],
    *(["sql", "--named", name] for name in NAMED_QUERIES if name != "trajectory"),
    ["sql", "--named", "trajectory", "--param", "sample_id=SAMPLE"],
    ["sql", "SELECT count(*) FROM coresets"],
    ["explain", "SAMPLE"],
    ["similar", "SAMPLE"],
    ["export", "--out", "out.jsonl", "--data", "train.jsonl"],
    ["gc", "--keep", "1", "--dry-run"],
    ["pin", "2"],
    ["unpin", "2"],
    ["select", "--set", "selection.count=7"],
    ["gc", "--keep", "2"],
    ["rollback", "BASE"],
]


@pytest.fixture
def inside(folder: Path) -> Iterator[Path]:
    home = Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(home)


def test_every_command_works(inside: Path, release: str) -> None:
    """In this order; the first ones read a store that is not migrated."""
    (sample,) = run_sql(inside / "store", "SELECT sample_id FROM samples ORDER BY row DESC")[1][0]
    for words in COMMANDS:
        given = [w.replace("SAMPLE", sample).replace("BASE", str(BASE[release])) for w in words]
        result = CliRunner().invoke(main, given)
        assert result.exit_code == 0 and "Traceback" not in result.output, (given, result.output)
    assert CliRunner().invoke(main, ["verify"]).exit_code == 0


def test_directories_are_read_by_other_tools(folder: Path) -> None:
    """Each holds one table, whose rows tell their version."""
    root = folder / "store"
    Store.open(root).recover()
    told = content(root)
    num_rows = {v: len(coreset["row"]) for v, coreset in told["coresets"].items()}
    frame = pandas.read_parquet(root / "manifests")
    assert frame.groupby("version").size().to_dict() == num_rows
    table = pyarrow.dataset.dataset(root / "manifests").to_table()
    assert sorted(set(table["version"].to_pylist())) == sorted(num_rows)
    for name, file in (("score_history", "scores"), ("measurements", "measured")):
        found = {int(p.parent.name[8:]) for p in (root / name).rglob(f"{file}.parquet")}
        frame = pandas.read_parquet(root / name)
        assert set(frame["version"].astype(int)) == found
        table = pyarrow.dataset.dataset(root / name, partitioning="hive").to_table()
        assert {int(v) for v in table["version"].to_pylist()} == found
        assert {p.suffix for p in (root / name).rglob("*.*")} == {".parquet"}


def test_a_reader_meets_a_file_that_moves(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The migration runs between where a reader looks for a file and when it reads it."""
    root = folder / "store"
    expected = Store.open(root).versions()
    is_moved: list[bool] = []
    find = StorePaths.find

    def moving(self: StorePaths, path: Path) -> Path:
        found = find(self, path)
        if "history" in found.parts and not is_moved:
            is_moved.append(True)
            migrate(StorePaths(root))
        return found

    monkeypatch.setattr(StorePaths, "find", moving)
    assert Store.open(root).versions() == expected and is_moved
