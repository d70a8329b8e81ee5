"""`gracekit sql` as a user types it: what comes out, and in which form."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

import gracekit
from gracekit.cli import main
from gracekit.cli.json_text import print_csv
from gracekit.cli.sql import TABLE_ROWS
from gracekit.store import StorePaths
from gracekit.store.sql.queries import NAMED_QUERIES
from gracekit.version.columns import TABLES, VIEWS
from tests.stores import N, make_draft, make_reselect, make_store

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = make_store(tmp_path_factory.mktemp("sql") / "store")
    made.commit(make_draft(made, "one"))
    made.commit(make_draft(made, "two"))
    made.commit(make_reselect(made, "three"))
    return made.paths.root


def invoke(root: Path, *arguments: str, stdin: str | bytes | None = None) -> Result:
    result = CliRunner().invoke(main, ["sql", "--store", str(root), *arguments], input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def ok(root: Path, *arguments: str, stdin: str | None = None) -> str:
    result = invoke(root, *arguments, stdin=stdin)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_from_an_argument_a_file_and_stdin(root: Path, tmp_path: Path) -> None:
    query = "SELECT count(*) AS n FROM samples"
    (tmp_path / "q.sql").write_text(query)
    for arguments, stdin in (
        ([query], None), (["-"], query), ([], query), (["-f", "-"], query),
        (["--file", str(tmp_path / "q.sql")], None), (["--store", str(root), query], None),
    ):  # fmt: skip
        assert json.loads(ok(root, "--json", *arguments, stdin=stdin)) == [{"n": N}]


def test_all_forms_tell_the_same(root: Path, tmp_path: Path) -> None:
    sql = (
        "SELECT row, row * 1000000000000 AS big, sample_id, importance, row % 2 = 0 AS even, "
        "CASE WHEN row > 1 THEN row END AS maybe, DATE '2026-01-02' AS day, sum(row) OVER () AS s "
        "FROM samples JOIN scores USING (row) ORDER BY row"
    )
    ok(root, sql, "--parquet", str(tmp_path / "deep" / "x.parquet"))
    table = pq.read_table(tmp_path / "deep" / "x.parquet")
    assert table.schema.types == [
        pa.int64(), pa.int64(), pa.string(), pa.float32(), pa.bool_(), pa.int64(), pa.date32(),
        pa.decimal128(38, 0),
    ]  # fmt: skip
    expected = table.to_pylist()
    assert len(expected) == N
    for found, record in zip(json.loads(ok(root, sql, "--json")), expected, strict=True):
        assert found == {**record, "day": "2026-01-02", "s": int(record["s"])}
    read = list(csv.DictReader(io.StringIO(ok(root, sql, "--csv"))))
    for found, record in zip(read, expected, strict=True):
        assert found == {k: "" if v is None else str(v) for k, v in record.items()}
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["x.parquet"]


def test_json_is_one_document_as_it_always_was(root: Path) -> None:
    assert ok(root, "--json", "SELECT row FROM samples LIMIT 0") == "[]\n"
    out = ok(root, "--json", "SELECT row, 'nan'::FLOAT AS x, [1, 2] AS l FROM samples LIMIT 12000")
    assert out == json.dumps(json.loads(out), indent=2) + "\n"
    assert json.loads(out)[0] == {"row": 0, "x": None, "l": [1, 2]}
    twice = json.loads(ok(root, "--json", "SELECT 1 AS a, 2 AS a"))
    assert twice == [{"a": 1, "a_1": 2}]


def test_a_table_is_cut_with_a_note(root: Path) -> None:
    for extra, cut in ((0, False), (1, True)):
        many = invoke(root, f"SELECT i FROM range({TABLE_ROWS + extra}) t(i)")
        assert len(many.stdout.splitlines()) == TABLE_ROWS + 2
        assert ("--all" in many.stderr) == cut
    whole = ok(root, "--all", f"SELECT i FROM range({TABLE_ROWS + 1}) t(i)")
    assert len(whole.splitlines()) == TABLE_ROWS + 3
    long = invoke(root, "SELECT repeat('x', 1000000) AS text")
    assert len(long.stdout) < 1000 and "…" in long.stdout and "--all" in long.stderr
    assert "x" * 10**6 in ok(root, "--all", "SELECT repeat('x', 1000000) AS text")
    assert invoke(root, "SELECT row FROM samples LIMIT 0").stderr == "no rows\n"


def test_terminal_sequences_do_not_reach_the_terminal(root: Path) -> None:
    codes = (27, 155, 8238, 8203, 13, 7, 127)
    parts = " || ".join(f"chr({code})" for code in codes)
    sql = f"SELECT {parts} || 'é語 x' AS \"a\x1b[31m\""
    table, document = ok(root, sql), ok(root, sql, "--json")
    for code in codes:
        assert chr(code) not in table + document
    assert "é語 x" in table and "é語 x" in document
    assert list(json.loads(document)[0].values()) == ["".join(map(chr, codes)) + "é語 x"]
    exact = ok(root, sql, "--csv")  # a pipe gets what there is
    assert all(chr(code) in exact for code in codes)
    error = invoke(root, f"SELECT error({parts})")
    assert error.exit_code == 1 and "\x1b" not in error.stderr and "\x9b" not in error.stderr


def test_named_queries_with_parameters(root: Path) -> None:
    one = json.loads(ok(root, "--named", "trajectory", "--param", "sample_id=id-003", "--json"))
    assert [record["version"] for record in one] == [1, 2, 3]
    assert len(json.loads(ok(root, "--named", "movers", "-p", "count=2", "--json"))) == 2
    group = json.loads(ok(root, "--named", "hardest", "-p", "group=code", "--json"))
    assert {record["group_name"] for record in group} == {"code"}


def test_a_ready_made_query_runs_by_its_name(root: Path) -> None:
    for options in (["-p", "count=2", "--json"], ["--csv"], ["--show"]):
        assert ok(root, "movers", *options) == ok(root, "--named", "movers", *options)
    assert ok(root, "-", "--csv", stdin="churn\n") == ok(root, "--named", "churn", "--csv")
    for arguments, message in (
        (["moovers"], "did you mean 'movers'"),
        (["samples"], "samples is a table: `FROM samples`"),
        (["trajectory"], "--param sample_id=VALUE"),
        (["moovers", "--show"], "did you mean 'movers'"),
    ):
        result = invoke(root, *arguments)
        assert result.exit_code == 1 and message in result.stderr and result.stdout == ""
    assert invoke(root, "movers", "--named", "movers").exit_code == 2


def test_shown_sql_can_be_run_again(root: Path, tmp_path: Path) -> None:
    for name in NAMED_QUERIES:
        text = ok(root, "--named", name, "--show")
        (tmp_path / "mine.sql").write_text(text)
        given = {"count": "5", "sample_id": "id-003", "group": "code", "before": "1", "now": "2"}
        params = [f"--param={k}={v}" for k, v in given.items()
                  if k in NAMED_QUERIES[name].parameters]  # fmt: skip
        again = ok(root, "-f", str(tmp_path / "mine.sql"), *params, "--json")
        assert json.loads(again) == json.loads(ok(root, "--named", name, *params, "--json"))


def test_list_and_schema(root: Path) -> None:
    listed = {q["name"]: q for q in json.loads(ok(root, "--list", "--json"))}
    assert listed.keys() == NAMED_QUERIES.keys()
    assert listed["trajectory"]["parameters"]["sample_id"]["is_required"]
    assert "sample_id" in ok(root, "--list")
    tables = {t["name"]: t for t in json.loads(ok(root, "--schema", "--json"))}
    assert tables.keys() == {**TABLES, **VIEWS}.keys()
    for name, described in {**TABLES, **VIEWS}.items():
        columns = {c["name"]: c for c in tables[name]["columns"]}
        assert set(described.names) <= columns.keys()
        assert all(c["about"] and c["type"] for c in columns.values())
    assert tables["scores"]["columns"][-1]["name"] in ("importance", "loss", "gradient_norm")
    text = ok(root, "--schema")
    assert "score_history (view): Scores of every sample" in text and "gradient_norm" in text


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 1, "the query is empty"),
        (["SELECT 1", "--named", "movers"], 2, "give one query"),
        (["SELECT 1", "--json", "--csv"], 2, "give one of"),
        (["--show"], 2, "--named"),
        (["--named", "moovers"], 1, "did you mean 'movers'"),
        (["--named", "trajectory"], 1, "--param sample_id=VALUE"),
        (["--named", "movers", "-p", "count=x"], 1, "whole number"),
        (["--named", "movers", "-p", "count"], 2, "NAME=VALUE"),
        (["--named", "movers", "-p", "count=1", "-p", "count=2"], 2, "twice"),
        (["SELECT $a", "-p", "b=1"], 1, "--param a=VALUE"),
        (["SELECT INTERVAL 1 DAY AS i", "--parquet", "{tmp}/x.parquet"], 1, "cast it"),
        (["SELECT 1 AS i", "--parquet", "{tmp}"], 1, "cannot write"),
        (["-f", "nowhere.sql"], 2, "cannot read the query from nowhere.sql"),
        (["FROM read_csv('/etc/passwd')"], 1, "--allow"),
        (["FROM read_csv('/etc/passwd')", "--allow", "nowhere"], 1, "no file or directory nowhere"),
    ],
)
def test_mistakes(
    root: Path, tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    result = invoke(root, *[a.format(tmp=tmp_path) for a in arguments])
    assert (result.exit_code, message in result.stderr) == (code, True), result.stderr
    assert list(tmp_path.iterdir()) == []


MOST = str(2**128 - 1)
BORDERS = {
    f"SELECT {MOST}::UHUGEINT": MOST,
    "SELECT (-170141183460469231731687303715884105728)::HUGEINT": -(2**127),
    "SELECT 18446744073709551615::UBIGINT": 2**64 - 1,
    "SELECT 'infinity'::DATE": "infinity",
    "SELECT '5881580-07-10'::DATE": "5881580-07-10",
    "SELECT '5877642-06-25 (BC)'::DATE": "5877642-06-25 (BC)",
    "SELECT '9999-12-31'::DATE": "9999-12-31",
    "SELECT '-infinity'::TIMESTAMP": "-infinity",
    "SELECT '294247-01-10 04:00:54.775806'::TIMESTAMP": "294247-01-10 04:00:54.775806",
    "SELECT '290000-01-01'::TIMESTAMP_S": "290000-01-01 00:00:00",
    "SELECT '2262-04-11 23:47:16.854775806'::TIMESTAMP_NS": "2262-04-11 23:47:16.854775806",
    "SELECT 'infinity'::TIMESTAMPTZ": "infinity",
    "SELECT '24:00:00'::TIME": "24:00:00",
    "SELECT '12:00:00+15:59:59'::TIMETZ": "12:00:00+15:59:59",
    "SELECT '10101'::BIT": "10101",
    "SELECT 'nan'::DOUBLE": None,
    "SELECT 5e-324::DOUBLE": 5e-324,
    f"SELECT [{MOST}::UHUGEINT]": [MOST],
    "SELECT {'a': 'infinity'::DATE}": "{'a': infinity}",
    "SELECT NULL::UHUGEINT": None,
}  # fmt: skip


@pytest.mark.parametrize("query", BORDERS)
def test_values_at_the_borders_of_their_types(root: Path, tmp_path: Path, query: str) -> None:
    """As JSON the value or its text; CSV, a table and Parquet do not fail."""
    sql = f"{query} AS v, 1 AS v UNION ALL SELECT NULL, 2 ORDER BY 2"
    rows = json.loads(ok(root, sql, "--json"))
    assert rows == [{"v": BORDERS[query], "v_1": 1}, {"v": None, "v_1": 2}]
    assert len(list(csv.reader(io.StringIO(ok(root, sql, "--csv"))))) == 3
    ok(root, sql)
    ok(root, sql, "--parquet", str(tmp_path / "x.parquet"))
    assert pq.read_table(tmp_path / "x.parquet").num_rows == 2
    assert "v_1" in repr(gracekit.sql(root, sql))


def test_only_a_file_outside_of_every_store_is_written(root: Path, tmp_path: Path) -> None:
    paths = StorePaths(root)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    link, loop, earlier = tmp_path / "link", tmp_path / "loop", tmp_path / "x.parquet"
    link.symlink_to(root / "samples.parquet")
    loop.symlink_to(loop)
    for place in (paths.samples, root / "new", root / "uses" / "run" / "s1", link):
        refused = invoke(root, "SELECT 1 AS i", "--parquet", str(place))
        assert (refused.exit_code, "it lies in the store" in refused.stderr) == (1, True)
    odd = ("/dev/null", str(loop), str(tmp_path / ("x" * 300)), str(tmp_path / "f/g" / "\udcff"))
    earlier.write_text("an earlier file")
    (tmp_path / "f").write_text("a file")
    for name in odd:
        refused = invoke(root, "SELECT 1 AS i", "--parquet", name)
        assert refused.exit_code == 1 and "cannot write" in refused.stderr, name
    assert Path("/dev/null").is_char_device()
    assert {path: path.read_bytes() for path in before} == before
    link.unlink()
    link.symlink_to(earlier)
    ok(root, "SELECT 1 AS i", "--parquet", str(link))
    assert link.is_symlink() and pq.read_table(earlier).to_pylist() == [{"i": 1}]


def test_bytes_that_are_no_text(root: Path, tmp_path: Path) -> None:
    (tmp_path / "q.sql").write_bytes(b"SELECT '\xff'")
    assert invoke(root, "-f", str(tmp_path / "q.sql")).exit_code == 2
    assert invoke(root, "-", stdin=b"SELECT '\xff'").exit_code == 2
    assert invoke(root, "SELECT '\udcff'").exit_code == 1


def test_own_files_when_they_are_allowed(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "-labels here.csv").write_text("sample_id,label\nid-003,good\n")
    monkeypatch.chdir(tmp_path)
    takes_relative = tuple(map(int, duckdb.__version__.split(".")[:2])) >= (1, 5)
    name = f"{'.' if takes_relative else tmp_path}/-labels here.csv"
    sql = f"SELECT row, label FROM samples JOIN '{name}' USING (sample_id)"
    for allow in (["--allow", "."], ["--allow=-labels here.csv"], ["--unconfined"]):
        assert json.loads(ok(root, sql, "--json", *allow)) == [{"row": 3, "label": "good"}]
    assert invoke(root, sql).exit_code == 1


def test_a_large_parquet_file_is_written_in_batches(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    ok(root, "SELECT i FROM range(300000) t(i)", "--parquet", str(path))
    file = pq.ParquetFile(path)
    assert file.metadata.num_rows == 300_000 and file.metadata.num_row_groups > 1


def test_other_alphabets_on_a_terminal_that_lacks_them(root: Path) -> None:
    sql = "SELECT 'é語' AS text"
    for arguments in ([], ["--json"], ["--csv"]):
        run = subprocess.run(
            [sys.executable, "-m", "gracekit", "sql", "--store", str(root), sql, *arguments],
            env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(REPOSITORY)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert run.returncode == 0 and "Traceback" not in run.stderr, run.stderr
        if arguments == ["--json"]:
            assert json.loads(run.stdout) == [{"text": "é語"}]


def test_csv_on_a_terminal_is_shown_and_not_obeyed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for is_terminal, expected in ((True, "a\n\\x1b[31m\n"), (False, "a\n\x1b[31m\n")):
        monkeypatch.setattr(sys.stdout, "isatty", lambda answer=is_terminal: answer)
        print_csv(["a"], [["\x1b[31m"]])
        assert capsys.readouterr().out == expected
