"""The command line as a user types it: results on stdout, the rest on stderr, exit codes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner, Result

from gracekit.cli import main
from tests.tiny import NUM_SAMPLES, recipe_content, write_checkpoint, write_data

torch.set_num_threads(1)
COMMANDS = [
    "init",
    "watch",
    "plan",
    "doctor",
    "check",
    "compare",
    "refresh",
    "reference",
    "select",
    "explain",
    "similar",
    "export",
    "publish",
    "sql",
    "report",
    "status",
    "versions",
    "diff",
    "verify",
    "rollback",
    "pin",
    "unpin",
    "gc",
    "work",
]


def invoke(*arguments: str) -> Result:
    """Run a command in this process; a traceback is a failure of the test."""
    result = CliRunner().invoke(main, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def ok(*arguments: str) -> str:
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, a recipe, two checkpoints, and a store with three versions."""
    folder = tmp_path_factory.mktemp("world")
    write_data(folder / "train.jsonl")
    (folder / "gracekit.yaml").write_text(yaml.safe_dump(recipe_content()))
    for step in (10, 20):
        write_checkpoint(folder / "run", step)
        ok("refresh", str(folder / "run" / f"checkpoint-{step}"),
           "--recipe", str(folder / "gracekit.yaml"))  # fmt: skip
    ok("select", "--recipe", str(folder / "gracekit.yaml"), "--set", "selection.count=9")
    return folder


@pytest.fixture
def recipe(world: Path) -> list[str]:
    return ["--recipe", str(world / "gracekit.yaml")]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str) -> None:
    text = ok(command, "--help")
    assert "Example" in text
    assert f"gracekit {command}" in text


def test_the_list_of_commands_is_in_whole_sentences() -> None:
    listed = ok("--help").partition("Commands:")[2].partition("A first run:")[0]
    lines = [line for line in listed.splitlines() if line.strip()]
    assert [line.split()[0] for line in lines] == sorted(COMMANDS)
    assert all(line.endswith(".") and not line.endswith("...") for line in lines)


def test_every_command_is_in_the_readme_and_the_other_way_round() -> None:
    assert sorted(main.commands) == sorted(COMMANDS)
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    for command in COMMANDS:
        assert command in readme


def test_pin_and_gc(world: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(world / "store", store)
    at = ("--store", str(store))
    assert "version 1 is pinned" in ok("pin", "1", "--note", "first", *at)
    result = invoke("gc", *at)
    assert result.exit_code == 2 and "--keep N" in result.stderr
    told = json.loads(ok("gc", "--keep", "1", "--dry-run", "--json", *at))
    assert told["removed"] == [] and told["kept"][0] == {"version": 1, "why": "pinned: first"}
    assert json.loads(ok("unpin", "1", "--json", *at)) == {"version": 1, "was_pinned": True}
    assert "would remove version 1, would free" in ok("gc", "--keep", "1", "--dry-run", *at)
    text = ok("gc", "--keep", "1", *at)
    assert "removed version 1, freed" in text and "keeps versions 2 to 3" in text
    assert "version 2: the next refresh builds on its scores" in text
    assert "removed 2" in ok("versions", *at)
    assert ok("verify", *at) == "2 versions verify\n"
    assert "version 1 was removed by gc on" in invoke("pin", "1", *at).stderr


@pytest.mark.parametrize(
    "statement",
    [
        "import gracekit",
        "import gracekit.cli; gracekit.cli.main(['--help'], standalone_mode=False)",
        "import gracekit.cli; gracekit.cli.main(['watch', '--help'], standalone_mode=False)",
        "import gracekit; gracekit.Coreset; gracekit.Recipe",
    ],
)
def test_starting_is_light(statement: str) -> None:
    heavy = ["torch", "transformers", "duckdb", "datasets", "hnswlib", "numba", "scipy"]
    code = f"import sys; {statement}; print([m for m in {heavy} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "[]"


def test_versions(recipe: list[str]) -> None:
    rows = json.loads(ok("versions", "--json", *recipe))
    assert [r["operation"] for r in rows] == ["init", "refresh", "reselect"]
    assert [r["num_selected"] for r in rows] == [48, 48, 9]
    assert rows[0]["measured_percent"] == 100
    table = ok("versions", *recipe)
    assert "audit corr" in table
    assert "\x1b" not in table


def test_status_and_diff_and_verify(world: Path, recipe: list[str]) -> None:
    found = json.loads(ok("status", "--json", *recipe))
    assert found["latest_version"] == 3
    assert found["num_samples"] == NUM_SAMPLES
    assert "latest version" in ok("status", *recipe)
    changed = json.loads(ok("diff", "1", "2", "--json", *recipe))
    assert changed["num_kept"] + changed["num_added"] == 48
    assert "kept" in ok("diff", "1", "2", *recipe)
    assert ok("verify", *recipe) == "3 versions verify\n"
    missing = invoke("diff", "1", "9", *recipe)
    assert missing.exit_code == 1
    assert "no version 9" in missing.stderr


def test_verify_says_what_is_wrong(world: Path, tmp_path: Path) -> None:
    import shutil

    store = tmp_path / "store"
    shutil.copytree(world / "store", store)
    history = store / "score_history" / "version=000002" / "scores.parquet"
    content = bytearray(history.read_bytes())
    content[len(content) // 2] ^= 0xFF
    history.write_bytes(bytes(content))
    result = invoke("verify", "--json", "--store", str(store))
    assert result.exit_code == 1
    problems = json.loads(result.stdout)["problems"]
    assert any("version=000002" in p["path"] for p in problems)


def test_sql(recipe: list[str], tmp_path: Path) -> None:
    query = "SELECT count(*) AS n FROM samples"
    assert json.loads(ok("sql", "--json", query, *recipe)) == [{"n": NUM_SAMPLES}]
    assert ok("sql", "--csv", query, *recipe) == f"n\n{NUM_SAMPLES}\n"
    (tmp_path / "q.sql").write_text(query)
    assert str(NUM_SAMPLES) in ok("sql", "--file", str(tmp_path / "q.sql"), *recipe)
    for named in json.loads(ok("sql", "--list", "--json")):
        params = ["--param=sample_id=?"] if "sample_id" in named["parameters"] else []
        ok("sql", "--named", named["name"], *params, *recipe)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["sql", "SELEC 1"], 1, "SELEC"),
        (["sql", "DROP TABLE samples"], 1, "read-only"),
        (["sql", "SELECT * FROM read_csv('/etc/passwd')"], 1, "store"),
        (["sql"], 1, "the query is empty"),
        (["sql", "--named", "moovers"], 1, "movers"),
        (["select", "--set", "selection.fration=0.1"], 2, "fraction"),
        (["select", "--set", "selection.fraction=7"], 2, "less than or equal to 1"),
        (["select", "--set", "selection.selector=best"], 2, "coverage"),
        (["select", "--set", "nonsense"], 2, "KEY=VALUE"),
        (["refresh", "nowhere"], 1, "nowhere"),
    ],
)
def test_mistakes_are_one_message_and_a_code(
    recipe: list[str], arguments: list[str], code: int, message: str
) -> None:
    result = invoke(*arguments, *recipe)
    assert result.exit_code == code
    assert message in result.stderr
    assert result.stdout == ""


def test_without_a_recipe_or_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for command in (["status"], ["watch", "run"], ["select"]):
        result = invoke(*command)
        assert result.exit_code == 2
        assert "recipe" in result.stderr
    (tmp_path / "gracekit.yaml").write_text(yaml.safe_dump(recipe_content()))
    result = invoke("status")
    assert result.exit_code == 1
    assert "store" in result.stderr


def test_a_half_written_checkpoint_is_named(world: Path, recipe: list[str]) -> None:
    directory = write_checkpoint(world / "broken", 30)
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    (directory / "trainer_state.json").touch()
    result = invoke("refresh", str(directory), *recipe)
    assert result.exit_code == 1
    assert "checkpoint-30" in result.stderr
    assert "model.safetensors" in result.stderr


def test_explain_and_similar(recipe: list[str]) -> None:
    query = (
        "SELECT sample_id, version FROM samples "
        "LEFT JOIN (FROM coresets WHERE version = 2) USING (row)"
    )
    ids = json.loads(ok("sql", "--json", query, *recipe))
    inside = next(r["sample_id"] for r in ids if r["version"] == 2)
    outside = next(r["sample_id"] for r in ids if r["version"] is None)
    found = json.loads(ok("explain", inside, "--version", "2", "--json", *recipe))
    assert found["is_selected"]
    assert found["reason"] == f"picked as number {found['rank'] + 1} of 48"
    assert found["num_covered"] >= 1
    found = json.loads(ok("explain", outside, "--version", "2", "--json", *recipe))
    assert not found["is_selected"]
    assert "not drawn: balanced draws by chance" in found["reason"]
    assert 0 <= found["percentile"] <= 100
    assert len(found["nearest_selected"]) == 5
    assert all(r["preview"] for r in found["nearest_selected"])
    assert "nearest selected" in ok("explain", outside, *recipe)
    near = json.loads(ok("similar", inside, "-n", "7", "--json", *recipe))
    cosines = [r["similarity"] for r in near]
    assert len(near) == 7
    assert cosines == sorted(cosines, reverse=True)
    assert near[0]["sample_id"] in ok("similar", inside, *recipe)
    for command in ("explain", "similar"):
        missing = invoke(command, inside[:-1], *recipe)
        assert missing.exit_code == 1
        assert f"did you mean {inside!r}" in missing.stderr
        assert invoke(command, inside, "--version", "9", *recipe).exit_code == 1


def test_compare_prints_and_makes_no_version(recipe: list[str]) -> None:
    names = ["coverage", "random", "top-loss", "k-center"]
    found = json.loads(ok("select", "--compare", ",".join(names), "--json", *recipe))
    assert [r["selector"] for r in found] == names
    for record in found:
        assert sum(record["groups"].values()) == record["num_selected"] == 48
        assert record["overlaps"][record["selector"]] == 1
    assert found[0]["coverage"] == max(r["coverage"] for r in found)
    table = ok("select", "--compare", "coverage,random", *recipe)
    assert "selected by group" in table
    assert len(json.loads(ok("versions", "--json", *recipe))) == 3
    assert invoke("select", "--compare", "coverage,coverage", *recipe).exit_code == 2
    assert invoke("select", "--compare", "best", *recipe).exit_code == 2


def test_init_then_watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_data(tmp_path / "my data.jsonl")
    found = json.loads(ok("init", "my data.jsonl", "--group-column", "source", "--json"))
    assert found["num_samples"] == NUM_SAMPLES
    assert found["groups"] == ["a", "b", "c"]
    assert invoke("init", "my data.jsonl").exit_code == 2
    write_checkpoint(tmp_path / "run", 10)
    plan = json.loads(ok("watch", "run", "--once", "--dry-run", "--json"))
    assert plan["num_rows"] == NUM_SAMPLES
    cost = json.loads(ok("plan", "run/checkpoint-10", "--json"))
    assert cost["fits"] and cost["plan"]["num_rows"] == NUM_SAMPLES
    assert "tokens/s on cpu" in ok("plan", "run/checkpoint-10")
    assert not (tmp_path / "gracekit-store").exists()
    out = ok("watch", "run", "--once")
    assert out.startswith("version 1 · step 10 · measured 160 of 160")
    assert "nothing to do" in ok("watch", "run", "--once")


def test_init_counts_rows_it_cannot_use(tmp_path: Path) -> None:
    data = write_data(tmp_path / "train.jsonl")
    with data.open("a") as file:
        file.write('{"prompt": "p", "response": "", "source": "a"}\n')
    out = ok("init", str(data), "-o", str(tmp_path / "r.yaml"))
    assert f"row {NUM_SAMPLES}" in out
    strict = invoke("init", str(data), "-o", str(tmp_path / "s.yaml"), "--strict")
    assert strict.exit_code == 1
    assert not (tmp_path / "s.yaml").exists()


@pytest.mark.parametrize("content", ["", "[]\n", "{not json\n"])
def test_init_on_bad_data(tmp_path: Path, content: str) -> None:
    (tmp_path / "bad.jsonl").write_text(content)
    result = invoke("init", str(tmp_path / "bad.jsonl"), "-o", str(tmp_path / "r.yaml"))
    assert result.exit_code == 1
    assert "bad.jsonl" in result.stderr


@pytest.mark.parametrize("name", ["jsonl", "parquet", "ids", "indices-npy", "hf-dataset"])
def test_export(world: Path, recipe: list[str], tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    written: dict[str, Any] = json.loads(
        ok("export", "--format", name, "-o", str(out), "--version", "2", "--json", *recipe)
    )
    assert written["version"] == 2
    assert written["num_rows"] == 48
    assert any(out.iterdir())
    again = invoke("export", "--format", name, "-o", str(out), *recipe)
    assert again.exit_code == 1
    ok("export", "--format", name, "-o", str(out), "--force", *recipe)


def test_doctor_says_what_is_there(world: Path, recipe: list[str], tmp_path: Path) -> None:
    found = json.loads(ok("doctor", str(world / "run"), *recipe, "--json"))
    assert found["ok"] and found["newest"] == "checkpoint-20"
    states = {c["name"]: (c["layout"], c["step"], c["state"]) for c in found["checkpoints"]}
    assert states == {f"checkpoint-{step}": ("hf-trainer", step, "complete") for step in (10, 20)}
    assert found["plan"]["num_samples"] == 160
    text = ok("doctor", str(world / "run"), *recipe)
    assert "checkpoint-20 can be used: step 20, safetensors, a llama of 2 layers" in text
    assert "would make   version" in text
    for folder, reason in ((tmp_path, "it is empty"), (world / "run/checkpoint-10", None)):
        result = invoke("doctor", str(folder), "--depth", "0")
        assert result.exit_code == (1 if reason else 0) and (reason or "") in result.stdout


def test_once_without_a_complete_checkpoint_fails_with_the_reason(
    recipe: list[str], tmp_path: Path
) -> None:
    result = invoke("watch", str(tmp_path), "--once", *recipe)
    assert result.exit_code == 1 and "there is no checkpoint in" in result.stderr
    directory = write_checkpoint(tmp_path, 30)
    (directory / "trainer_state.json").unlink()
    (directory / "training_args.bin").touch()
    for command in ("--once", "--dry-run"):
        result = invoke("watch", str(tmp_path), command, *recipe)
        assert result.exit_code == 1
        assert "checkpoint-30: trainer_state.json is not there yet" in result.stderr


def test_options_for_checkpoints_of_other_trainers(
    world: Path, recipe: list[str], tmp_path: Path
) -> None:
    """A command that copies, as the only layout that has what the marker says."""
    write_checkpoint(tmp_path, 10).rename(tmp_path / "it-10")
    for name in ("trainer_state.json", "config.json"):
        (tmp_path / "it-10" / name).unlink()
    (tmp_path / "it-10/model.safetensors").rename(tmp_path / "it-10/weights")
    options = [
        "--ready-marker", "DONE", "--convert-cmd", "cp {src}/weights {dst}/model.safetensors",
        "--set", f"checkpoints.base_model={world}/run/checkpoint-20",
        "--store", str(tmp_path / "store"),
    ]  # fmt: skip
    result = invoke("refresh", str(tmp_path / "it-10"), *options, *recipe)
    assert result.exit_code == 1 and "DONE" in result.stderr
    (tmp_path / "it-10/DONE").touch()
    assert "step 10" in ok("refresh", str(tmp_path / "it-10"), *options, *recipe)
    assert json.loads(ok("versions", "--store", str(tmp_path / "store"), "--json"))
