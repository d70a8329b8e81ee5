"""Questions in SQL: they only read, see the store alone, and are answered in batches."""

from __future__ import annotations

import datetime
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from decimal import Decimal
from functools import partial
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from gracekit.errors import QueryError
from gracekit.store import Store
from gracekit.store.sql import database
from gracekit.store.sql.ask import parse_queries, run_sql
from gracekit.store.sql.connection import open_duckdb
from gracekit.store.sql.database import connect
from gracekit.store.sql.queries import NAMED_QUERIES, named_query
from gracekit.store.sql.schema import as_pattern
from tests.stores import N, make_draft, make_reselect, make_store

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Two refreshes and a reselect, in a directory with every sign that SQL or a glob minds."""
    made = make_store(tmp_path_factory.mktemp("lr=1e-4, [a]*") / "it's a störe")
    made.commit(make_draft(made, "one"))
    made.commit(make_draft(made, "two"))
    made.commit(make_reselect(made, "three"))
    return made


def rows(store: Store, sql: str) -> list[tuple[object, ...]]:
    return run_sql(store.paths.root, sql)[1]


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


# --- attacks ---

COPY = "COPY samples TO '{history}/out.csv'"
HIDDEN = f"WITH x AS ({COPY}) SELECT 1"


def serialised(sql: str) -> str:
    """A statement as DuckDB's tree: what `json_execute_serialized_sql` runs."""
    (tree,) = duckdb.execute("SELECT json_serialize_sql($sql)", {"sql": sql}).fetchall()[0]
    return str(tree).replace("'", "''").replace("{", "{{").replace("}", "}}")


TREE = serialised(HIDDEN.replace("'{history}", "'HISTORY")).replace("HISTORY", "{tree_history}")

WRITING = {
    "insert": "INSERT INTO samples SELECT * FROM samples",
    "update": "UPDATE scores SET importance = 0",
    "delete": "DELETE FROM versions",
    "drop": "DROP TABLE samples",
    "create": "CREATE TABLE mine (i INTEGER)",
    "create function": "CREATE MACRO f() AS TABLE FROM read_text('/etc/hostname')",
    "create secret": "CREATE SECRET s (TYPE s3, KEY_ID 'a', SECRET 'b')",
    "attach": "ATTACH '{history}/other.duckdb'",
    "detach": "DETACH published",
    "use": "USE published",
    "copy": COPY,
    "copy of a file": "COPY samples FROM '/etc/passwd'",
    "copy database": "COPY FROM DATABASE published TO memory",
    "export": "EXPORT DATABASE '{history}/out'",
    "import": "IMPORT DATABASE '{history}/out'",
    "copy in a with": HIDDEN,
    "copy in a lower-case with": "with x as materialized (copy samples to '{history}/o') from x",
    "copy in a with in a with": f"WITH y AS ({HIDDEN}) FROM y",
    "copy in a subquery": f"SELECT ({HIDDEN})",
    "copy behind a union": f"SELECT 1 UNION ALL ({HIDDEN})",
    "insert in a with": "WITH x AS (INSERT INTO published.samples FROM samples RETURNING *) FROM x",
    "delete in a with": "WITH x AS (DELETE FROM published.samples RETURNING *) FROM x",
    "update in a with": "WITH x AS (UPDATE published.scores SET row = 1 RETURNING *) FROM x",
    "explained copy": f"EXPLAIN ANALYZE {COPY}",
    "explained copy, spaces": f"explain  analyze  {COPY}",
    "explained copy, options": f"EXPLAIN (ANALYZE, FORMAT json) {COPY}",
    "explained copy, comment": f"EXPLAIN /* a */ ANALYZE {COPY}",
    "explained copy, comment in the options": "EXPLAIN (ANALYZE /* ) SELECT 1; -- */ ) " + COPY,
    "explained copy, line in the options": "EXPLAIN (ANALYZE -- ) SELECT 1;\n) " + COPY,
    "explained copy, string in the options": "EXPLAIN (ANALYZE, FORMAT ') SELECT 1; --') " + COPY,
    "explained copy in a with": f"EXPLAIN ANALYZE {HIDDEN}",
    "second statement": f"SELECT 1; {COPY}",
    "second statement after a comment": f"SELECT 1 -- ;\n; /* ; */ {COPY}",
    "second statement after a nul": f"SELECT 1 \0; {COPY}",
    "query()": f"FROM query('{COPY}')".replace("'{history}/out.csv'", "''{history}/out.csv''"),
    "query() in a subquery": "SELECT (SELECT a FROM query('SELECT 1 AS a'))",
    "a serialised tree": f"FROM json_execute_serialized_sql('{TREE}')",
    "a tree, quoted name": f"FROM system.main.\"JSON_Execute_serialized_sql\"('{TREE}')",
    "a tree in query()": "FROM query('FROM json_execute_serialized_sql(''{{}}'')')",
    "a tree by pragma": f"PRAGMA json_execute_serialized_sql('{TREE}')",
    "checkpoint": "CHECKPOINT",
    "checkpoint function": "FROM force_checkpoint('published')",
    "logging": "FROM enable_logging('QueryLog', storage = 'file')",
    "profiling": "FROM enable_profiling()",
    "external resource": "FROM register_external_resource_type('a', 'b', 'c', 'd', 'e', 'f', 'g')",
    "set": "SET enable_external_access = true",
    "reset": "RESET lock_configuration",
    "set variable": "SET VARIABLE a = 1",
    "install": "INSTALL httpfs",
    "load": "LOAD '/tmp/evil.so'",
    "pragma": "PRAGMA database_list",
    "pragma that sets": "PRAGMA enable_profiling = 'json'",
    "call": "CALL pragma_version()",
    "prepare": "PREPARE p AS SELECT 1",
    "execute": "EXECUTE p",
    "begin": "BEGIN",
    "vacuum": "VACUUM",
}  # fmt: skip
"""Refused by what they are, wherever they may read and write."""

LOOKING = {
    "text": "FROM read_text('/etc/hostname')",
    "blob": "FROM read_blob('/etc/hostname')",
    "csv": "FROM read_csv('/etc/passwd')",
    "json": "FROM read_json_objects('/etc/passwd')",
    "sniffed": "FROM sniff_csv('/etc/passwd')",
    "parquet": "FROM parquet_metadata('{outside}/x.parquet')",
    "another database": "FROM read_duckdb('{outside}/x.duckdb', table_name = 't')",
    "bare name": "FROM '/etc/hostname'",
    "bare csv": "FROM '{outside}/x.csv'",
    "directory": "FROM glob('/etc/*')",
    "names of home": "FROM glob('~/*')",
    "environment": "FROM read_text('/proc/self/environ')",
    "environment function": "SELECT getenv('HOME')",
    "standard input": "FROM read_csv('/dev/stdin')",
    "descriptor": "FROM read_csv('/dev/fd/0')",
    "web": "FROM read_parquet('https://example.org/x.parquet')",
    "bucket": "FROM 's3://bucket/x.parquet'",
    "file url": "FROM read_text('file:///etc/hostname')",
    "python's file system": "FROM read_text('memory://x')",
    "beside the history": "FROM read_text('{history}/../store.json')",
    "beside the manifests": "FROM read_text('{history}/../manifests/../store.json')",
    "above the store": "FROM read_text('{history}/../../outside.txt')",
    "with a wildcard": "FROM read_text('{pattern}/ver*/../../store.json')",
    "put together": "FROM read_text('{history}' || '/../' || 'store.json')",
    "linked file": "FROM read_text('{history}/link.txt')",
    "through a linked directory": "FROM read_text('{history}/etc/hostname')",
    "names in a linked directory": "FROM glob('{history}/etc/*')",
    "all links": "FROM read_text('{pattern}/*.txt')",
    "described": "DESCRIBE SELECT * FROM read_text('/etc/hostname')",
    "summarised": "SUMMARIZE FROM read_csv('/etc/passwd')",
    "explained": "EXPLAIN ANALYZE FROM read_csv('/etc/passwd')",
    "secrets": "FROM duckdb_secrets()",
    "python variable": "FROM a_frame",
    "table by name": "FROM query_table('/etc/passwd')",
}  # fmt: skip
"""Refused in a confined connection."""


@pytest.fixture
def attacked(store: Store, tmp_path: Path) -> Iterator[dict[str, str]]:
    """Names in the attacks; nothing in the store or the working directory may have changed."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "x.csv").write_text("secret\n1\n")
    links = {"link.txt": outside / "x.csv", "etc": Path("/etc")}
    before = files(store.paths.root)
    for name, target in links.items():
        (store.paths.score_history / name).symlink_to(target)
    history = str(store.paths.score_history).replace("'", "''")
    working = tmp_path / "working"
    working.mkdir()
    home = os.getcwd()
    os.chdir(working)
    try:
        pattern = as_pattern(history)
        yield {"history": history, "pattern": pattern, "outside": str(outside),
               "tree_history": history.replace("'", "''")}  # fmt: skip
    finally:
        os.chdir(home)
        for name in links:
            (store.paths.score_history / name).unlink()
    assert files(store.paths.root) == before
    assert list(working.iterdir()) == []


@pytest.mark.parametrize("confined", [True, False])
@pytest.mark.parametrize("name", WRITING)
def test_what_writes_is_refused(
    store: Store, attacked: dict[str, str], name: str, confined: bool
) -> None:
    with pytest.raises(QueryError):
        run_sql(store.paths.root, WRITING[name].format_map(attacked), confined=confined)


def test_the_attacks_would_work(tmp_path: Path) -> None:
    """They are attacks: DuckDB itself writes where the hidden ones say."""
    hidden = ("copy in a with", "a serialised tree", "explained copy in a with",
              "explained copy, comment in the options")  # fmt: skip
    for k, name in enumerate(hidden):
        target = tmp_path / str(k)
        target.mkdir()
        sql = WRITING[name].format(history=target, tree_history=target)
        with duckdb.connect() as connection:
            connection.execute("CREATE TABLE samples AS SELECT 1 AS row")
            connection.execute(sql)
        assert (target / "out.csv").exists(), name


@pytest.mark.parametrize("name", LOOKING)
def test_what_looks_elsewhere_is_refused(store: Store, attacked: dict[str, str], name: str) -> None:
    a_frame = pa.table({"row": [1]})
    with pytest.raises(QueryError):
        run_sql(store.paths.root, LOOKING[name].format_map(attacked))
    assert len(a_frame) == 1


def test_a_condition_of_the_recipe_is_confined_too(store: Store, attacked: dict[str, str]) -> None:
    from gracekit.errors import SelectionError
    from gracekit.selection.lists import where

    for attack in (
        f"true) UNION ALL ({HIDDEN}",
        f"row IN ({HIDDEN})",
        f"true); {COPY}; SELECT (1",
        "(SELECT count(*) FROM read_csv('/etc/passwd')) > 0",
        f"(SELECT count(*) FROM json_execute_serialized_sql('{TREE}')) > 0",
    ):
        with pytest.raises(SelectionError, match="never_in_where"):
            where(
                attack.format_map(attacked), scores=store.scores(1), samples=store.samples(),
                store=store.paths.root, key="never_in_where",
            )  # fmt: skip


def test_what_is_allowed_can_be_read_but_not_what_it_links_to(
    store: Store, attacked: dict[str, str], tmp_path: Path
) -> None:
    own = tmp_path / "my [own]"
    own.mkdir()
    (own / "labels.csv").write_text("sample_id,label\nid-003,good\n")
    (own / "link.csv").symlink_to(tmp_path / "outside" / "x.csv")
    (tmp_path / "alias").symlink_to(own)
    sql = f"SELECT label, row FROM samples JOIN '{own}/labels.csv' USING (sample_id)"
    escaped = sql.replace("[own]", "[[]own]")
    for allowed in (own, own / "labels.csv", tmp_path / "alias"):
        assert run_sql(store.paths.root, escaped, allow=[allowed])[1] == [("good", 3)]
    os.chdir(own)
    relative = "SELECT label FROM read_csv('labels.csv')"
    assert run_sql(store.paths.root, relative, allow=[own])[1] == [("good",)]
    assert run_sql(store.paths.root, relative, confined=False)[1] == [("good",)]
    os.chdir(tmp_path / "working")
    outside = f"FROM read_csv('{tmp_path}/outside/x.csv')"
    linked = f"FROM read_text('{own}/link.csv')".replace("[own]", "[[]own]")
    for sql in (outside, linked):
        with pytest.raises(QueryError, match="--allow"):
            run_sql(store.paths.root, sql, allow=[own])
    with pytest.raises(QueryError, match="no file or directory"):
        run_sql(store.paths.root, "SELECT 1", allow=[own / "nowhere"])


def test_no_connection_loads_extensions_by_itself_or_shares_a_known_directory(
    store: Store,
) -> None:
    names = ("autoinstall_known_extensions", "autoload_known_extensions",
             "allow_community_extensions", "allow_unsigned_extensions")  # fmt: skip
    for confined in (True, False):
        with connect(store.paths.root, confined=confined) as connection:
            for name in names:
                found = connection.execute(f"SELECT current_setting('{name}')").fetchone()
                assert found == (False,), name
            (spill,) = connection.execute("SELECT current_setting('temp_directory')").fetchall()[0]
            assert Path(spill).parent.stat().st_mode & 0o077 == 0


# --- what is fine ---


@pytest.mark.parametrize(
    "sql",
    [
        "WITH a AS (SELECT 1 AS i) SELECT * FROM a",
        "WITH a AS MATERIALIZED (SELECT 1 AS i) SELECT * FROM a",
        "WITH RECURSIVE t(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM t WHERE i < 3) FROM t",
        "VALUES (1), (2)",
        "(SELECT 1) UNION ALL (SELECT 2)",
        "SHOW TABLES",
        "DESCRIBE coresets",
        "SUMMARIZE scores",
        "EXPLAIN SELECT 1",
        "EXPLAIN (FORMAT json) SELECT 1",
        "-- a comment\nEXPLAIN ANALYZE SELECT 1",
        "SELECT 1; SELECT 2;",
        "FROM coresets PIVOT (count(*) FOR origin IN ('measured', 'propagated'))",
        "SELECT unnest(range(3)), repeat('a', 3) FROM generate_series(1, 2), repeat(1, 2)",
        "SELECT copy, \"insert\" FROM (SELECT 1 AS copy, 'COPY x TO ''y''' AS \"insert\")",
        'SELECT \'"type":"COPY_QUERY_NODE","function_name":"query"\'',
        "SELECT list_transform([1, 2], lambda x: x + 1), {'a': 1}.a, 'a' SIMILAR TO 'b'",
        "SELECT count(*) FROM duckdb_columns()",
        "SELECT row_number() OVER (ORDER BY importance) FROM scores QUALIFY true",
        "SELECT " + " + ".join(["1"] * 700),
    ],
)
def test_queries_that_only_read_are_fine(store: Store, sql: str) -> None:
    assert rows(store, sql)


def test_of_several_queries_the_last_one_answers(store: Store) -> None:
    assert rows(store, "SELECT 1; SELECT 2") == [(2,)]
    columns, found = run_sql(store.paths.root, "SELECT row, origin FROM scores LIMIT 3")
    assert columns == ["row", "origin"] and len(found) == 3


def test_values_names_and_nothing(store: Store) -> None:
    sql = "SELECT sum(row), now(), NULL, 'nul \0 in it', DATE '2026-01-02' FROM samples"
    ((total, moment, nothing, text, day),) = rows(store, sql)
    assert (total, nothing, text) == (Decimal(N * (N - 1) // 2), None, "nul \0 in it")
    assert isinstance(moment, datetime.datetime) and day == datetime.date(2026, 1, 2)
    columns, found = run_sql(store.paths.root, "SELECT 1 AS a, 2 AS a, 3 AS a_1, 4 AS a")
    assert columns == ["a", "a_2", "a_1", "a_3"] and found == [(1, 2, 3, 4)]
    assert run_sql(store.paths.root, "SELECT row FROM samples LIMIT 0") == (["row"], [])


def test_errors_help(store: Store) -> None:
    for sql, message in (
        ("SELECT * FROM score", "Tables: samples, scores"),
        ("SELECT importanc FROM scores", "importance"),
        ("SELEC 1", "syntax error"),
        (" -- nothing\n", "empty"),
        ("PIVOT coresets ON origin USING count(*)", "PIVOT needs its values"),
        ("SELECT 'a\udc80'", "UTF-8"),
        ("SELECT CASE WHEN i < 50000 THEN i ELSE error('late') END FROM range(99999) r(i)", "late"),
        ("SELECT " + "(" * 5000 + "1" + ")" * 5000, "depth"),
        ("SELECT $a", "--param a=VALUE"),
    ):
        with pytest.raises(QueryError, match=message):
            rows(store, sql)
    with pytest.raises(QueryError, match=r"no parameter \$b; it has \$a"):
        run_sql(store.paths.root, "SELECT $a", parameters={"a": 1, "b": 2})


def test_parameters_are_values_and_never_sql(store: Store) -> None:
    evil = "x' OR 1=1; COPY samples TO 'out.csv'; --"
    assert run_sql(store.paths.root, "SELECT $a", parameters={"a": evil})[1] == [(evil,)]
    query = named_query("hardest")
    parameters = query.bind({"group": evil})
    assert run_sql(store.paths.root, query.sql, parameters=parameters)[1] == []


def test_a_large_answer_is_not_held_in_memory(store: Store) -> None:
    """12 M rows of 16 bytes are 190 MiB at least; a fresh process takes them in far less."""
    code = (
        "import resource, sys\n"
        "from gracekit.store.sql.ask import ask\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "with ask(sys.argv[1], 'SELECT 1 AS a, row FROM samples') as answer:\n"
        "    list(answer.rows())\n"
        "before, num_rows = peak(), 0\n"
        "with ask(sys.argv[1], 'SELECT i, i + 1 AS j FROM range(12000000) t(i)') as answer:\n"
        "    for batch in answer.batches:\n"
        "        num_rows += batch.num_rows\n"
        "print(num_rows, (peak() - before) // 1024)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(store.paths.root)],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    )  # fmt: skip
    num_rows, grown_mib = map(int, run.stdout.split())
    assert num_rows == 12_000_000 and grown_mib < 64


def test_a_version_removed_meanwhile_is_asked_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gracekit.store.sql import ask as asking

    real, tries = asking._run, []

    def run(*arguments: object) -> object:
        tries.append(1)
        if len(tries) == 1:
            raise duckdb.IOException('No files found that match "scores.parquet"')
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(asking, "_run", run)
    assert rows(store, "SELECT count(*) FROM score_history") == [(2 * N,)]
    assert len(tries) == 2


def test_a_connection_is_read_only_and_confined_but_takes_frames(store: Store) -> None:
    with connect(store.paths.root) as connection:
        for sql in ("DELETE FROM published.scores", "FROM read_text('/etc/hostname')",
                    "SET lock_configuration = false", "ATTACH 'x.duckdb'"):  # fmt: skip
            with pytest.raises(duckdb.Error):
                connection.execute(sql)
        connection.register("mine", pa.table({"row": [1, 2]}))
        sql = "SELECT count(*) FROM scores JOIN mine USING (row)"
        assert connection.execute(sql).fetchall() == [(2,)]
        assert connection.cursor().execute("SELECT count(*) FROM score_history").fetchone() == (48,)


def test_an_open_connection_reads_other_files(store: Store, tmp_path: Path) -> None:
    path = str(tmp_path / "mine.parquet")
    with connect(store.paths.root, confined=False) as connection:
        connection.execute(f"COPY scores TO '{path}'")
        found = connection.execute(f"SELECT count(*) FROM '{path}'").fetchone()
    assert found == (N,)


# --- named queries ---


@pytest.mark.parametrize("name", NAMED_QUERIES)
def test_named_queries_answer(store: Store, name: str) -> None:
    query = named_query(name)
    given = {"sample_id": "id-003"} if "sample_id" in query.parameters else {}
    columns, found = run_sql(store.paths.root, query.sql, parameters=query.bind(given))
    # No version of this store distrusts anything, and none has copies; tests/test_reference.py and
    # tests/test_refresher_aim.py have such.
    assert columns and (found or name in ("copies", "distrusted"))
    (statement,) = parse_queries(query.sql)
    assert statement.named_parameters == query.parameters.keys()


def test_movers_are_the_movers(store: Store) -> None:
    change = store.scores(2).importance - store.scores(1).importance
    row = int(abs(change).argmax())
    query = named_query("movers")
    for given, sign, count in (
        ({}, 1, 20),
        ({"before": "2", "now": "1", "count": "3"}, -1, 3),
        ({"before": "1", "now": "3"}, 1, 20),  # a reselect has the scores of version 2
    ):
        columns, found = run_sql(store.paths.root, query.sql, parameters=query.bind(given))
        first = dict(zip(columns, found[0], strict=True))
        assert len(found) == count
        assert first["sample_id"] == f"id-{row:03d}"
        assert first["change"] == pytest.approx(sign * change[row], abs=1e-6)


def test_a_trajectory_goes_through_every_version(store: Store) -> None:
    query = named_query("trajectory")
    for row in (0, 7, 23):
        parameters = query.bind({"sample_id": f"id-{row:03d}"})
        columns, found = run_sql(store.paths.root, query.sql, parameters=parameters)
        records = [dict(zip(columns, r, strict=True)) for r in found]
        assert [r["version"] for r in records] == [1, 2, 3]
        for record, scored in zip(records, (1, 2, 2), strict=True):
            assert record["importance"] == store.scores(scored).importance[row]
            selected = store.coreset(record["version"])["row"].to_pylist()
            assert record["is_selected"] == (row in selected)
    assert run_sql(store.paths.root, query.sql, parameters=query.bind({"sample_id": "?"}))[1] == []


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("trajectory", {}, "needs sample_id"),
        ("movers", {"cuont": "1"}, "did you mean 'count'"),
        ("churn", {"count": "1"}, "it takes none"),
        ("movers", {"count": "many"}, "whole number, found 'many'"),
        ("movers", {"count": "-1"}, "whole number"),
        ("movers", {"count": "1; DROP"}, "whole number"),
        ("movers", {"count": "9" * 40}, "whole number"),
        ("mover", {}, "did you mean 'movers'"),
    ],
)
def test_wrong_parameters_and_names(name: str, given: dict[str, str], message: str) -> None:
    with pytest.raises(QueryError, match=message):
        named_query(name).bind(given)


def test_ctrl_c_ends_a_query(store: Store) -> None:
    forever = "SELECT sum(a.i * b.i) FROM range(10000000) a(i), range(10000000) b(i)"
    # A shell starts what runs in the background with the signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            rows(store, forever)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_column_called_interrupt_is_no_interruption(store: Store) -> None:
    with pytest.raises(QueryError, match="interrupted"):
        rows(store, "SELECT interrupted FROM samples")


# --- queries of before `sample_id` and `group_name` stood beside `row` ---


@pytest.mark.parametrize(
    ("narrow", "count"),
    [
        ("SELECT sample_id FROM scores JOIN samples USING (row)", N),
        ("SELECT sample_id, importance FROM samples JOIN score_history USING (row)", 2 * N),
        ("SELECT group_name FROM measurements JOIN samples USING (row)", N),
        ("SELECT group_name, avg(loss) FROM coresets JOIN samples USING (row) JOIN scores "
         "USING (row) WHERE version = (SELECT max(version) FROM versions) GROUP BY ALL", None),
        ("SELECT row FROM samples WHERE sample_id IN (SELECT sample_id FROM scores JOIN samples "
         "USING (row) WHERE group_name = 'code')", None),
        ("EXPLAIN SELECT sample_id FROM scores JOIN samples USING (row)", 1),
        ("DESCRIBE SELECT sample_id FROM scores JOIN samples USING (row)", 1),
        ("SELECT sample_id FROM coresets JOIN samples USING (row) WHERE rank < $most", 6),
    ],
)  # fmt: skip
def test_a_query_that_joins_samples_for_the_id_goes_on(
    store: Store, narrow: str, count: int | None
) -> None:
    parameters = {"most": 2} if "$most" in narrow else {}
    columns, found = run_sql(store.paths.root, narrow, parameters=parameters)
    assert len(found) == count if count is not None else found
    if not narrow.startswith(("EXPLAIN", "DESCRIBE")):
        qualified = narrow.replace("SELECT sample_id", "SELECT samples.sample_id")
        qualified = qualified.replace("SELECT group_name", "SELECT samples.group_name")
        qualified = qualified.replace("WHERE group_name", "WHERE samples.group_name")
        same, again = run_sql(store.paths.root, qualified, parameters=parameters)
        assert (columns, sorted(found, key=str)) == (same, sorted(again, key=str))


def test_an_id_of_one_of_two_tables_is_an_error_that_helps(store: Store) -> None:
    for sql in (
        "SELECT sample_id FROM scores JOIN coresets USING (row)",
        "SELECT scores.sample_id, group_name FROM scores JOIN samples USING (row)",
    ):
        with pytest.raises(QueryError, match="leave out the join with samples"):
            rows(store, sql)


def test_a_condition_of_the_recipe_may_join_samples_for_the_id(store: Store) -> None:
    from gracekit.selection.lists import where

    joined = "row IN (SELECT row FROM scores JOIN samples USING (row) WHERE group_name = 'code')"
    for condition in (joined, "group_name = 'code'"):
        found = where(
            condition, scores=store.scores(1), samples=store.samples(), store=store.paths.root,
            key="never_in_where",
        )  # fmt: skip
        assert found.nonzero()[0].tolist() == [
            row for (row,) in rows(store, "SELECT row FROM scores WHERE group_name = 'code'")
        ]


# --- a query for which there is no room ---


def test_neither_memory_nor_disk_for_a_query(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    little = partial(open_duckdb, memory_limit="60MB", max_temp_directory_size="1MB", threads="1")
    monkeypatch.setattr(database, "open_duckdb", little)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    big = "SELECT length(string_agg(range::VARCHAR, ',')) FROM range(20000000)"
    with pytest.raises(QueryError, match=r"Ask for less.*TMPDIR") as told:
        rows(store, big)
    assert str(tmp_path) in str(told.value) and "SET " not in str(told.value)
    assert rows(store, "SELECT count(*) FROM samples") == [(N,)]
    assert not list(tmp_path.rglob("*.tmp")), "left behind"


# --- standard output belongs to the answer ---


def test_no_connection_draws_a_progress_bar(store: Store) -> None:
    """`python -c` counts as a person at a terminal for DuckDB, which draws one there."""
    code = (
        "import sys, duckdb\n"
        "from gracekit.store.sql.connection import open_duckdb\n"
        "from gracekit.store.sql.database import connect\n"
        "is_on = \"SELECT current_setting('enable_progress_bar')\"\n"
        "print(duckdb.connect().execute(is_on).fetchone()[0])\n"
        "for confined in (True, False):\n"
        "    connection = connect(sys.argv[1], confined=confined)\n"
        "    print(connection.execute(is_on).fetchone()[0])\n"
        "    print(connection.cursor().execute(is_on).fetchone()[0])\n"
        "print(open_duckdb().execute(is_on).fetchone()[0])\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(store.paths.root)],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert run.stdout.split() == ["True"] + 5 * ["False"]
