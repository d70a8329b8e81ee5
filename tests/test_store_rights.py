"""What may not be read is told from what is damaged, by every reader; and nobody builds beside it.

The permissions are real ones (`tests/rights.py`).
"""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from gracekit import report, status
from gracekit.errors import GracekitError, QueryError
from gracekit.refresher import Refresher
from gracekit.refresher.data import CurrentData
from gracekit.reporting.questions import Questions
from gracekit.store import Store, UnreadableError, list_versions, read_manifest, verify
from gracekit.store.files.parquet import damaged
from tests.rights import no_rights_to
from tests.stores import make_draft, make_reselect, make_store
from tests.tiny import tiny_recipe, write_data

OF_VERSIONS = (
    "score_history",
    "score_history/version=000003",
    "manifests/v000004.parquet",
    "removed/v000001.json",
)
"""Without them it cannot be told what a version is."""
OTHERS = (
    "score_history/version=000003/scores.parquet",
    "measurements/version=000003",
    "samples.parquet",
    "scores.duckdb",
    "headers/v000004.json",
    "LATEST",
    "cache/v000003",
    "shards/measure/000000.shard",
)
BLAME = ("damaged", "missing", "restore", "differs", "repairs")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Versions 2 to 4, of which the last is a selection; 1 was removed."""
    store = make_store(tmp_path_factory.mktemp("prepared") / "store", n=6)
    for name in ("one", "two", "three"):
        store.commit(make_draft(store, name))
    store.commit(make_reselect(store, "four"))
    store.pin(2, "kept")
    assert store.gc(2).removed == (1,)
    return store.paths.root


@pytest.fixture
def root(prepared: Path, tmp_path: Path) -> Path:
    return shutil.copytree(prepared, tmp_path / "store")


def blames(text: str) -> list[str]:
    """Words of damage that are not said to be none."""
    for none in ("need not be damaged", "does not mean that it is damaged", "what else is damaged"):
        text = text.replace(none, "")
    return [word for word in BLAME if word in text]


@pytest.mark.parametrize("name", OF_VERSIONS)
def test_a_version_without_rights_is_not_told_as_damaged_and_stops_writers(
    root: Path, name: str
) -> None:
    before = sorted(path.relative_to(root) for path in root.rglob("*"))
    with no_rights_to(root / name):
        verify(Store.open(root), deep=True)
        problems = status(root).to_json()["problems"]
        assert "Permission denied" in problems[0] and not any(map(blames, problems)), problems
        found = verify(Store.open(root))
        assert any("Permission denied" in problem.what for problem in found)
        assert not any(blames(problem.what + problem.advice) for problem in found), found
        store = Store.open(root)
        for work in (
            lambda: store.commit(make_draft(store, "five")),
            lambda: store.commit(make_reselect(store, "five")),
            lambda: store.gc(1),
        ):
            with pytest.raises(UnreadableError, match="Permission denied"):
                work()
    after = sorted(path.relative_to(root) for path in root.rglob("*"))
    assert [path for path in before if path not in after] == []
    assert status(root).to_json()["problems"] == [] and verify(Store.open(root)) == []
    store = Store.open(root)
    assert store.commit(make_draft(store, "five")) == 5 and store.gc(2).removed == (3,)


@pytest.mark.parametrize("name", OF_VERSIONS)
def test_a_refresh_does_not_start_beside_a_version_without_rights(
    root: Path, tmp_path: Path, name: str
) -> None:
    write_data(tmp_path / "train.jsonl")
    recipe = tiny_recipe(tmp_path, store=str(root))
    refresher = Refresher(recipe, CurrentData(recipe.data, strict=False))
    before = sorted(path.relative_to(root) for path in (root / "manifests").iterdir())
    with (
        no_rights_to(root / name),
        pytest.raises(UnreadableError, match="Permission denied"),
        refresher.locked(clean_up=True),
    ):
        Store.open(root).commit(make_draft(Store.open(root), "five"))
    assert sorted(path.relative_to(root) for path in (root / "manifests").iterdir()) == before
    with refresher.locked():
        store = Store.open(root)
        assert store.commit(make_draft(store, "five")) == 5


@pytest.mark.parametrize("name", OTHERS)
def test_what_may_not_be_read_is_told_as_that(root: Path, name: str) -> None:
    path = root / name
    if not path.exists():
        path.parent.mkdir(parents=True)
        path.write_bytes(b"what a killed refresh left")
    with no_rights_to(path):
        found = verify(Store.open(root))
        assert any("Permission denied" in problem.what for problem in found), found
        assert not any(blames(problem.what + problem.advice) for problem in found), found


@pytest.mark.parametrize("name", ["samples", "cache", "pinned"])
def test_a_directory_that_cannot_be_listed_hides_no_other_problem(root: Path, name: str) -> None:
    (root / name).mkdir(exist_ok=True)
    (root / "LATEST").write_text("1\n")
    with no_rights_to(root / name):
        found = {problem.path: problem for problem in verify(Store.open(root))}
    assert "Permission denied" in found[name].what and "LATEST" in found, found
    assert not blames(found[name].what + found[name].advice)


@pytest.mark.parametrize("name", ["manifests", "removed"])
def test_versions_that_cannot_be_listed_are_awaited(root: Path, name: str) -> None:
    with no_rights_to(root / name), pytest.raises(UnreadableError, match="Permission denied"):
        list_versions(root)
    assert list_versions(root) == [2, 3, 4]


@pytest.mark.parametrize("error", [MemoryError("no room"), pa.ArrowMemoryError("no room")])
def test_want_of_memory_is_no_damage(
    root: Path, error: MemoryError, monkeypatch: pytest.MonkeyPatch
) -> None:
    def allocate(size: int) -> pa.Buffer:
        raise error

    monkeypatch.setattr(pa, "allocate_buffer", allocate)
    with pytest.raises(MemoryError, match="no room"):
        read_manifest(root / "manifests" / "v000004.parquet")
    lacking = OSError(errno.ENOMEM, "Cannot allocate memory")
    assert isinstance(damaged(root / "samples.parquet", lacking), UnreadableError)


def test_a_report_that_cannot_connect_again_says_so(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(store: Store) -> None:
        raise duckdb.IOException("IO Error: gone")

    with Questions(Store.open(root)) as questions:
        sql = f"SELECT * FROM read_parquet('{root}/score_history/absent.parquet')"
        with monkeypatch.context() as patched:
            patched.setattr("gracekit.reporting.questions.connect", refuse)
            with pytest.raises(QueryError, match="cannot be read: IO Error: gone"):
                questions.ask(sql)
        assert questions.one("SELECT 1 AS a") == {"a": 1}


def test_a_cache_without_rights_is_not_measured_anew(root: Path) -> None:
    with no_rights_to(root / "cache" / "v000003"), pytest.raises(UnreadableError, match="denied"):
        Store.open(root).load_cache(3)


def test_a_report_beside_files_without_rights_says_so(root: Path, tmp_path: Path) -> None:
    scores = root / "score_history" / "version=000002" / "scores.parquet"
    with no_rights_to(scores), pytest.raises(GracekitError, match="Permission denied"):
        report(root, tmp_path / "report.html")
