"""Old stores: one of the first release is read, built upon and asked; steps to a new format."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import pytest
import torch

import gracekit
from gracekit import files
from gracekit.api.reading import status, versions
from gracekit.errors import StoreDataMismatchError, StoreFormatError, StoreWriteError
from gracekit.recipe import Recipe
from gracekit.store import Store, StorePaths, verify
from gracekit.store.files import formats, migrations
from gracekit.store.files.migrations import MIGRATIONS, migration
from gracekit.store.files.sealing import without_checksum
from gracekit.store.sql.ask import run_sql
from gracekit.store.sql.queries import NAMED_QUERIES
from gracekit.training import Coreset
from gracekit.version import FORMAT_VERSION
from tests.faults import Killed, count_operations, failing_at, killed_at
from tests.releases import content, digests
from tests.stores import N, make_draft, make_store, outcome
from tests.tiny import write_checkpoint

torch.set_num_threads(1)
OLD = Path(__file__).parent / "data" / "store-0555866.tar.gz"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A folder with recipe, data and the store of the first release."""
    with tarfile.open(OLD) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def test_a_store_of_the_first_release_is_read(old: Path) -> None:
    root = old / "store"
    assert Store.open(root).versions() == [1, 2, 3]
    damage = [p for p in verify(Store.open(root)) if p.path != "scores.duckdb"]
    assert damage == [], "its database is of another schema, which the next start replaces"
    assert [row["num_selected"] for row in versions(root).to_json()] == [18, 18, 9]
    assert status(root).to_json()["audit"].startswith("scores carried to unmeasured samples")
    assert len(Coreset.load(root).rows) == 9
    assert run_sql(root, "SELECT count(*) FROM score_history")[1] == [(120,)]
    for query in NAMED_QUERIES.values():
        given = {"sample_id": "?"} if "sample_id" in query.parameters else {}
        run_sql(root, query.sql, parameters=query.bind(given))


def test_a_store_of_the_first_release_is_built_upon(old: Path) -> None:
    recipe, root = Recipe.load(old / "gracekit.yaml"), old / "store"
    before, told = digests(root), content(root)
    result = gracekit.refresh(recipe, write_checkpoint(old / "run", 30))
    assert result.version == 4 and result.header.operation == "refresh"
    assert outcome(result.header).num_measured < 60, "what it knew of the samples was used"
    chosen = gracekit.select(recipe.override({"selection.count": 7}))
    assert chosen.version == 5 and len(Coreset.load(root).rows) == 7
    store = Store.open(root)
    assert verify(store) == [] and store.recover() == []
    assert {name: digests(root)[name] for name in before} == before, "the history and samples"
    after = content(root)
    for what in ("headers", "coresets", "scores", "measured", "trained"):
        assert {v: after[what][v] for v in told[what]} == told[what]
    versions = "SELECT version, count(*) FROM score_history GROUP BY 1 ORDER BY 1"
    assert run_sql(root, versions)[1] == [(1, 60), (2, 60), (4, 60)]


def test_a_store_of_the_first_release_still_knows_its_tokens(old: Path) -> None:
    recipe = Recipe.load(old / "gracekit.yaml").override({"data.max_length": 8})
    with pytest.raises(StoreDataMismatchError, match="other tokens"):
        gracekit.refresh(recipe, write_checkpoint(old / "run", 30))


# --- the steps ---


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Two steps of a future release: the first writes two files, the second `store.json` itself."""
    made: list[int] = []
    monkeypatch.setattr(migrations, "FORMAT_VERSION", FORMAT_VERSION + 2)
    monkeypatch.setattr(formats, "FORMAT_VERSION", FORMAT_VERSION + 2)
    for number in (1, 2):
        monkeypatch.delitem(MIGRATIONS, FORMAT_VERSION + number, raising=False)

    def first(paths: StorePaths) -> None:
        """Files in pairs.

        A second paragraph."""
        made.append(1)
        for name in ("one.txt", "two.txt"):
            if not (paths.cache / name).exists():
                files.write_text_atomic(paths.cache / name, name)

    def second(paths: StorePaths) -> None:
        """Another name."""
        made.append(2)
        content = without_checksum(json.loads(paths.info.read_text()))
        files.write_text_atomic(paths.info, json.dumps({**content, "gracekit_version": "migrated"}))

    for number, step in ((1, first), (2, second)):
        monkeypatch.setitem(MIGRATIONS, FORMAT_VERSION + number, step)
    return made


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = make_store(tmp_path / "store")
    made.commit(make_draft(made, "one"))
    return made


def copy(store: Store, target: Path) -> Path:
    return shutil.copytree(store.paths.root, target)


def is_migrated(store: Store) -> bool:
    now = Store.open(store.paths.root)
    names = ("one.txt", "two.txt")
    return (
        now.info.format_version == FORMAT_VERSION + 2
        and now.info.gracekit_version == "migrated"
        and all((now.paths.cache / n).read_text() == n for n in names)
        and verify(now) == []
        and len(now.scores(1)) == N
    )


def test_every_format_has_its_step() -> None:
    assert sorted(MIGRATIONS) == list(range(2, FORMAT_VERSION + 1))
    migration(99)(lambda paths: None)
    with pytest.raises(AssertionError, match="two steps"):
        migration(99)(lambda paths: None)
    del MIGRATIONS[99]


def test_steps_are_taken_once_and_in_order(store: Store, calls: list[int]) -> None:
    assert run_sql(store.paths.root, "SELECT count(*) FROM scores")[1] == [(N,)], "read as it is"
    assert calls == []
    assert store.recover() == [
        f"brought the store to format {FORMAT_VERSION + 1}: Files in pairs",
        f"brought the store to format {FORMAT_VERSION + 2}: Another name",
    ]
    assert calls == [1, 2] and is_migrated(store)
    assert store.info.format_version == FORMAT_VERSION + 2
    assert store.recover() == [] and calls == [1, 2]
    assert store.commit(make_draft(store, "two")) == 2


@pytest.mark.parametrize("torn", [False, True])
def test_a_kill_at_any_operation_loses_nothing(
    store: Store, tmp_path: Path, calls: list[int], torn: bool
) -> None:
    num_operations = len(count_operations(Store.open(copy(store, tmp_path / "counted")).recover))
    assert num_operations > 12
    for k in range(1, num_operations + 1):
        hit = Store.open(copy(store, tmp_path / str(k)))
        with pytest.raises(Killed), killed_at(k, torn=torn):
            hit.recover()
        again = Store.open(hit.paths.root)
        assert again.versions() == [1] and len(again.scores(1)) == N
        again.recover()
        assert is_migrated(again), k


def test_a_disk_that_fails_in_a_step_is_a_clear_error(store: Store, calls: list[int]) -> None:
    for k in (1, 3, 5):
        with failing_at(k, 28), pytest.raises(StoreWriteError, match="No space left"):
            store.recover()
    store.recover()
    assert is_migrated(store)


def test_a_higher_format_is_refused_by_readers_and_writers(store: Store) -> None:
    content = json.loads(store.paths.info.read_text()) | {"format_version": FORMAT_VERSION + 1}
    store.paths.info.write_text(json.dumps(content))
    before = store.paths.info.read_bytes()
    for use in (store.recover, lambda: run_sql(store.paths.root, "SELECT 1")):
        with pytest.raises(StoreFormatError, match="update gracekit"):
            use()
    assert store.paths.info.read_bytes() == before
