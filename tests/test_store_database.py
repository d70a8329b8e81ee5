"""The published database: from anywhere, while versions are made, and read-only."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pytest

from gracekit.errors import StoreNotFoundError, StoreWriteError
from gracekit.store import Store
from gracekit.store.sql import database
from gracekit.store.sql.ask import run_sql
from gracekit.store.sql.database import connect
from gracekit.version.columns import TABLES, VIEWS
from tests.faults import failing_at
from tests.patience import LAST_RESORT_S
from tests.stores import N, make_draft, make_reselect, make_store

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Two refreshes and a reselect, in a directory with every sign that SQL or a glob minds."""
    root = tmp_path_factory.mktemp("lr=1e-4, [a]*") / "it's a störe"
    made = make_store(root)
    made.commit(make_draft(made, "one"))
    made.commit(make_draft(made, "two"))
    made.commit(make_reselect(made, "three"))
    return made


def ask(store: Store, sql: str) -> list[tuple[object, ...]]:
    return run_sql(store.paths.root, sql)[1]


def test_tables_hold_what_the_files_hold(store: Store) -> None:
    assert ask(store, "SELECT count(*), min(row), max(row) FROM samples") == [(N, 0, N - 1)]
    assert ask(store, "SELECT sample_id, group_name FROM samples WHERE row = 4") == [
        ("id-004", "code")
    ]
    scores = store.scores(3)
    found = ask(store, "SELECT gradient_norm, origin, importance FROM scores ORDER BY row")
    assert [row[0] for row in found] == scores.scores["gradient-norm"].tolist()
    assert [row[2] for row in found] == scores.importance.tolist()
    assert found[0][1] == "propagated" and found[1][1] == "measured"
    assert ask(store, "SELECT version, parent_version, operation, step, num_measured, "
               "measured_fraction, rank_correlation FROM versions ORDER BY version") == [
        (1, None, "init", 100, N // 2, 0.5, None),
        (2, 1, "refresh", 200, N // 2, 0.5, 0.8),
        (3, 2, "reselect", 100, None, None, None),
    ]  # fmt: skip
    for version in (1, 2, 3):
        rows = store.coreset(version)["row"].to_pylist()
        sql = f"SELECT row FROM coresets WHERE version = {version} ORDER BY row"
        assert [row for (row,) in ask(store, sql)] == rows
    assert ask(store, "SELECT latest_version, num_samples FROM store") == [(3, N)]
    assert ask(store, "SELECT step, path, digest, first_version FROM checkpoints "
               "WHERE digest IS NOT NULL") == [
        (100, "/runs/checkpoint-100", "digest-1", 1), (200, "/runs/checkpoint-200", "digest-2", 2),
    ]  # fmt: skip
    header = "SELECT header->>'$.refresh_id' FROM versions WHERE version = 2"
    assert ask(store, header) == [("two",)]


def test_history_views(store: Store) -> None:
    assert ask(store, "SELECT version, step, count(*) FROM score_history GROUP BY ALL "
               "ORDER BY version") == [(1, 100, N), (2, 200, N)]  # fmt: skip
    loss = ask(store, "SELECT loss FROM score_history WHERE version = 1 ORDER BY row")
    assert [value for (value,) in loss] == store.scores(1).scores["loss"].tolist()
    found = ask(store, "SELECT row, reason, step FROM measurements WHERE version = 2 ORDER BY row")
    table = store.measurement(2)
    columns = (table[name].to_pylist() for name in ("row", "reason", "step"))
    assert found == list(zip(*columns, strict=True))
    columns_of = {row[0] for row in ask(store, "DESCRIBE measurements")}
    assert columns_of == {
        "version", "row", "sample_id", "group_name", "reason", "step", "gradient_norm", "loss"
    }  # fmt: skip


def test_one_version_reads_one_file(store: Store) -> None:
    for view in ("score_history", "coresets"):
        query = f"EXPLAIN ANALYZE SELECT sum(importance) FROM {view} WHERE version = 2"
        assert "Total Files Read: 1" in str(ask(store, query)), view


def test_every_table_and_column_is_described(store: Store) -> None:
    bare = ask(
        store,
        "SELECT table_name, column_name FROM duckdb_columns() "
        "WHERE comment IS NULL AND NOT internal",
    )
    assert bare == []
    described = {**TABLES, **VIEWS}
    for name, what in described.items():
        columns = {row[0] for row in ask(store, f"DESCRIBE {name}")}
        assert set(what.names) <= columns, name


def test_works_from_any_directory_and_after_moving(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_store(tmp_path / "before")
    made.commit(make_draft(made, "one"))
    moved = (tmp_path / "before").rename(tmp_path / "after")
    for directory in (Path("/"), tmp_path):
        monkeypatch.chdir(directory)
        assert run_sql(moved, "SELECT count(*) FROM score_history")[1] == [(N,)]
    assert run_sql("after", "SELECT count(*) FROM measurements")[1] == [(N // 2,)]
    assert run_sql("after", "SELECT version, count(*) FROM coresets GROUP BY 1")[1] == [(1, N // 3)]
    assert Store.open(moved).recover() == []
    monkeypatch.chdir(moved)  # and without gracekit, from the store's own directory
    sql = (
        "SELECT version, count(*) FROM read_parquet('score_history/*/scores.parquet', "
        "hive_partitioning = true, hive_types = {'version': 'INTEGER'}) GROUP BY version"
    )
    with duckdb.connect() as connection:
        assert connection.execute(sql).fetchall() == [(1, N)]


def test_the_file_itself_can_be_opened_by_any_duckdb(tmp_path: Path) -> None:
    made = make_store(tmp_path / "store")
    made.commit(make_draft(made, "one"))
    with duckdb.connect(str(made.paths.database), read_only=True) as connection:
        for view, count in (("score_history", N), ("coresets", N // 3)):
            assert connection.execute(f"SELECT count(*) FROM {view}").fetchone() == (count,)
    assert not list(made.paths.root.glob("*.wal"))


def test_a_store_without_versions(tmp_path: Path) -> None:
    made = make_store(tmp_path / "store")
    for name in (*TABLES, *VIEWS):
        run_sql(made.paths.root, f"SELECT * FROM {name}")
    assert run_sql(made.paths.root, "SELECT count(*) FROM score_history")[1] == [(0,)]
    with pytest.raises(StoreNotFoundError):
        connect(tmp_path / "nowhere")


@pytest.mark.parametrize("content", [None, b"", b"no database" * 999])
def test_a_missing_or_damaged_database_is_replaced_by_the_files(
    tmp_path: Path, content: bytes | None
) -> None:
    made = make_store(tmp_path / "store")
    made.commit(make_draft(made, "one"))
    made.paths.database.unlink()
    if content is not None:
        made.paths.database.write_bytes(content)
    before = sorted(made.paths.root.rglob("*"))
    assert ask(made, "SELECT count(*) FROM score_history") == [(N,)]
    assert ask(made, "SELECT count(*) FROM coresets") == [(N // 3,)]
    assert sorted(made.paths.root.rglob("*")) == before, "reading writes nothing"


@pytest.mark.parametrize("content", [None, b"PAR1", b"no parquet" * 999])
def test_views_leave_out_what_was_damaged_after_it_was_published(
    tmp_path: Path, content: bytes | None
) -> None:
    made = make_store(tmp_path / "store")
    for refresh_id in ("one", "two", "three"):
        made.commit(make_draft(made, refresh_id))
    made.paths.manifest(2).unlink()
    if content is not None:
        made.paths.manifest(2).write_bytes(content)
    for view in ("coresets", "score_history", "measurements"):
        assert ask(made, f"SELECT DISTINCT version FROM {view} ORDER BY ALL") == [(1,), (3,)]
    made.commit(make_draft(made, "four"))
    assert ask(made, "SELECT DISTINCT version FROM coresets ORDER BY ALL") == [(1,), (3,), (4,)]


def test_a_database_of_another_schema_is_not_read(tmp_path: Path) -> None:
    made = make_store(tmp_path / "store")
    made.commit(make_draft(made, "one"))
    with duckdb.connect(str(made.paths.database)) as connection:
        connection.execute("UPDATE store SET schema_version = 999")
        connection.execute("DELETE FROM sample_rows")
    assert ask(made, "SELECT count(*) FROM scores") == [(N,)]
    assert made.recover() == ["published scores.duckdb"]


# --- while versions are made ---


def test_a_reader_keeps_its_version_and_a_new_one_sees_the_next(tmp_path: Path) -> None:
    made = make_store(tmp_path / "store")
    made.commit(make_draft(made, "one"))
    held = connect(made.paths.root)
    made.commit(make_draft(made, "two"))
    assert held.execute("SELECT latest_version FROM store").fetchone() == (1,)
    assert held.execute("SELECT count(*) FROM score_history").fetchone() == (N,)
    with connect(made.paths.root) as fresh:
        assert fresh.execute("SELECT latest_version FROM store").fetchone() == (2,)
    held.close()


def test_a_version_that_is_being_written_is_not_seen(tmp_path: Path) -> None:
    made = make_store(tmp_path / "store")
    made.commit(make_draft(made, "one"))
    orphan = made.paths.scores(2)
    orphan.parent.mkdir()
    orphan.write_bytes(b"half of a file")
    assert ask(made, "SELECT max(version), count(*) FROM score_history") == [(1, N)]


READER = """
import sys
from gracekit.store.sql.database import connect
root = sys.argv[1]
held = connect(root)
held.execute("SELECT count(*) FROM scores").fetchone()
print("ready", flush=True)
seen = set()
while True:
    with connect(root) as connection:
        (version,) = connection.execute("SELECT latest_version FROM store").fetchone()
        # Each answer must be one version's: all scores carry the version that made them.
        found = connection.execute(
            "SELECT list(DISTINCT measured_version), max(version) FROM scores, versions"
        ).fetchone()
        assert found == ([version], version), (found, version)
        for view in ("score_history", "coresets"):
            last = connection.execute(f"SELECT max(version) FROM {view}").fetchone()
            assert last == (version,), (view, last, version)
    seen.add(version)
    if version >= 5:
        break
assert held.execute("SELECT count(*) FROM score_history").fetchone()[0] > 0
print(len(seen))
"""


def test_another_process_reads_through_commits(tmp_path: Path) -> None:
    made = make_store(tmp_path / "store")
    made.commit(make_draft(made, "1"))
    reader = subprocess.Popen(
        [sys.executable, "-c", READER, str(made.paths.root)],
        cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert reader.stdout is not None and reader.stdout.readline() == "ready\n"
    for i in range(2, 6):
        assert made.commit(make_draft(made, str(i))) == i
    out, errors = reader.communicate(timeout=LAST_RESORT_S)
    assert reader.returncode == 0, errors
    assert int(out) >= 1


def test_a_failing_publish_is_a_store_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_store(tmp_path / "store")

    def fail(*arguments: object) -> None:
        raise duckdb.IOException("IO Error: could not write: No space left on device\n\nmore")

    monkeypatch.setattr(database, "fill", fail)
    with pytest.raises(StoreWriteError, match="No space left on device; the versions are safe"):
        database.publish(made)
    monkeypatch.undo()
    with pytest.raises(StoreWriteError), failing_at(3, 5):
        database.publish(made)
    assert not made.paths.database.exists() and not list(made.paths.root.glob("*.partial*"))


COMMITTER = """
import sys
from pathlib import Path
from gracekit import files
from gracekit.store import Store
from tests.stores import make_draft

store, where = Store.open(sys.argv[1]), sys.argv[2]
real = getattr(files, where)

def pause(path, *rest):
    if where == "link" or path.name.startswith("scores.duckdb"):
        print("here", flush=True)
        sys.stdin.readline()
    return real(path, *rest)

setattr(files, where, pause)
print(store.commit(make_draft(store, "next")), flush=True)
"""


@pytest.mark.parametrize("where", ["link", "fill", "replace"])
def test_questions_in_the_middle_of_a_commit(tmp_path: Path, where: str) -> None:
    """Another process commits and stands still: before the commit point, or before it publishes."""
    made = make_store(tmp_path / "store")
    made.commit(make_draft(made, "1"))
    with run_python(COMMITTER, made.paths.root, where) as committer:
        assert committer.stdout.readline() == "here\n"
        for view in ("versions", "coresets", "score_history", "measurements"):
            assert told(made.paths.root, f"SELECT DISTINCT version FROM {view}") == "version\n1\n"
        committer.stdin.write("go on\n")
        committer.stdin.flush()
        assert committer.stdout.readline() == "2\n"
    assert told(made.paths.root, "SELECT max(version) AS v FROM score_history") == "v\n2\n"


NOTEBOOK = """
import sys
import duckdb
connection = duckdb.connect(sys.argv[1], read_only=sys.argv[2] == "reads")
if sys.argv[2] == "writes":
    connection.execute("SET wal_autocheckpoint = '1GB'")
    connection.execute("CREATE TABLE mine AS SELECT 1 AS i")
print(connection.execute("SELECT count(*) FROM scores").fetchone()[0], flush=True)
sys.stdin.readline()
print(connection.execute("SELECT latest_version FROM store").fetchone()[0], flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("how", ["reads", "writes"])
def test_a_notebook_that_holds_the_file_open_stops_nobody(tmp_path: Path, how: str) -> None:
    """Also one that opened it to write, so that nobody else may attach it, and then is killed."""
    made = make_store(tmp_path / "store")
    made.commit(make_draft(made, "1"))
    database_file = made.paths.database
    with run_python(NOTEBOOK, database_file, how) as notebook:
        assert notebook.stdout.readline() == f"{N}\n"
        latest = "SELECT latest_version AS v FROM store"
        assert told(made.paths.root, latest) == "v\n1\n"
        made.commit(make_draft(made, "2"))
        assert told(made.paths.root, latest) == "v\n2\n"
        notebook.stdin.write("go on\n")
        notebook.stdin.flush()
        assert notebook.stdout.readline() == "1\n", "it goes on with what it opened"
        notebook.kill()
    assert told(made.paths.root, latest) == "v\n2\n"
    assert made.recover() == []
    with duckdb.connect(str(database_file), read_only=True) as connection:
        assert connection.execute("SELECT latest_version FROM store").fetchone() == (2,)


def test_a_journal_of_a_notebook_that_was_killed_is_cleared_away(tmp_path: Path) -> None:
    made = make_store(tmp_path / "store")
    made.commit(make_draft(made, "1"))
    with run_python(NOTEBOOK, made.paths.database, "writes") as notebook:
        assert notebook.stdout.readline() == f"{N}\n"
        notebook.kill()
    journal = made.paths.root / "scores.duckdb.wal"
    assert journal.exists()
    assert told(made.paths.root, "SELECT latest_version AS v FROM store") == "v\n1\n"
    made.commit(make_draft(made, "2"))
    assert not journal.exists()


def told(root: Path, sql: str) -> str:
    """What `gracekit sql --csv` says in a process of its own, in another directory."""
    run = subprocess.run(
        [sys.executable, "-m", "gracekit", "sql", "--csv", "--store", str(root), sql],
        cwd="/", env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return run.stdout


@contextmanager
def run_python(code: str, *arguments: object) -> Iterator[Any]:
    """A process that runs the code, with pipes; it is killed at the end if it still runs."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        try:
            yield process
        finally:
            process.kill()


def test_a_moved_store_from_another_directory(tmp_path: Path) -> None:
    made = make_store(tmp_path / "before")
    made.commit(make_draft(made, "1"))
    (tmp_path / "elsewhere").mkdir()
    moved = (tmp_path / "before").rename(tmp_path / "elsewhere" / "after it's moved")
    for view, count in (("score_history", N), ("coresets", N // 3), ("measurements", N // 2)):
        assert told(moved, f"SELECT count(*) AS n FROM {view}") == f"n\n{count}\n"
