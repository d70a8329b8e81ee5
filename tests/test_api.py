"""The public verbs: the same from Python as on the command line, on a path and on an open store."""

from __future__ import annotations

import inspect
import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

import gracekit
from gracekit.cli import main
from gracekit.errors import QueryError, RecipeError, UsageError, VersionNotFoundError
from gracekit.files import sha256
from gracekit.store import Store
from gracekit.tabular import MOST_LINES
from tests.tiny import NUM_SAMPLES, recipe_content, write_checkpoint, write_data

NO_VERSIONS: list[Any] = ["2", "newest", 1.5, True, -1, 0, 99]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, a recipe, two checkpoints, and a store with three versions."""
    folder = tmp_path_factory.mktemp("api")
    write_data(folder / "train.jsonl")
    (folder / "gracekit.yaml").write_text(yaml.safe_dump(recipe_content()))
    for step in (10, 20):
        made = gracekit.refresh(folder / "gracekit.yaml", write_checkpoint(folder / "run", step))
        assert made.is_new
    assert gracekit.select(folder / "gracekit.yaml", set={"selection.count": 9}).version == 3
    return folder


@pytest.fixture(params=["path", "text", "open"])
def store(request: pytest.FixtureRequest, world: Path) -> gracekit.Store | Path | str:
    root = world / "store"
    kinds: dict[str, Store | Path | str] = {
        "path": root, "text": str(root), "open": Store.open(root),
    }  # fmt: skip
    return kinds[request.param]


def ids_of(store: Path) -> list[str]:
    return [str(sample_id) for sample_id in gracekit.Coreset.load(store, 2).sample_ids]


def test_every_command_is_a_verb_with_its_options() -> None:
    renamed = {"recipe_path": "recipe", "store_path": "store", "changes": "set", "as_json": None,
               "all_columns": None, "names": "compare", "format_name": "format",
               "data_path": "data", "directory": "out", "max_age_s": "max_age",
               "store_or_recipe": "store", "max_idle": "max_idle_s", "path": "checkpoint_dir",
               # short for changes to the recipe
               "depth": "set", "ready_marker": "set", "convert_cmd": "set"}  # fmt: skip
    verb_of = {"check": "check_tokens"}
    of_the_terminal = {
        "named", "params", "list_named", "show", "show_schema", "file", "as_csv", "parquet",
        "whole", "follow", "every_s"}  # fmt: skip
    for name, command in main.commands.items():
        verb = getattr(gracekit, verb_of.get(name, name))
        assert "Example" in (inspect.getdoc(verb) or ""), name
        takes = set(inspect.signature(verb).parameters)
        if "recipe_or_store" in takes:
            takes.add("recipe")
        for parameter in command.params:
            option = renamed.get(parameter.name, parameter.name)
            if option is None or option in of_the_terminal:
                continue
            if option == "recipe" and "recipe" not in takes:
                continue  # it names the store
            assert option in takes, f"gracekit.{name} lacks {option}"


def test_importing_names_loads_only_what_they_need() -> None:
    heavy = ["torch", "transformers", "scipy", "datasets", "duckdb", "pandas", "numba", "hnswlib"]
    for names, allowed in (
        ("Coreset Recipe Store", ()),
        ("status versions diff verify rollback pin gc", ("duckdb",)),
        ("init export", ("duckdb",)),
        ("select", ("duckdb", "scipy", "numba", "hnswlib")),
        ("sql connect", ("duckdb",)),
        ("explain similar", ("duckdb", "scipy", "numba", "hnswlib")),
    ):
        get = "; ".join(f"gracekit.{name}" for name in names.split())
        code = f"import sys, gracekit; {get}; print([m for m in {heavy} if m in sys.modules])"
        run = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert set(json.loads(run.stdout.replace("'", '"'))) <= set(allowed), names


def test_versions_and_status(store: Store) -> None:
    found = gracekit.versions(store)
    assert [record.version for record in found] == [1, 2, 3]
    assert found[1].header.audit is not None and found[-1].header.operation == "reselect"
    frame = found.to_pandas()
    assert list(frame["num_selected"]) == [48, 48, 9]
    status = gracekit.status(store)
    assert status.latest is not None and status.latest.version == 3
    sentences = status.sentences()
    assert "The latest version is 3" in str(status)
    assert sentences[-1].startswith("Next: ") and sum("Next:" in s for s in sentences) == 1
    health = gracekit.status(store, check=True)
    assert not health.is_healthy and health.reason == "no daemon has run on this store"


def test_diff_and_explain_and_similar(store: Store, world: Path) -> None:
    changed = gracekit.diff(store, 1, 2)
    assert changed.num_kept + changed.num_added == 48
    assert changed == gracekit.diff(store, 1, 2)
    assert gracekit.diff(store, 1, "latest").second.version == 3
    assert changed.movers.to_arrow().num_rows == len(changed.movers) == 10
    inside = ids_of(world / "store")[0]
    why = gracekit.explain(store, inside, version=2)
    assert why.is_selected and why.rank is not None and why.reason in str(why)
    near = gracekit.similar(store, inside, version=2, count=7)
    assert len(near) == 7 and near[0].similarity >= near[1].similarity
    assert list(near.to_pandas()["similarity"]) == [one.similarity for one in near]


def test_whoever_looks_at_the_graph_hashes_it_once(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: Counter[str] = Counter()

    def counted(path: Path) -> str:
        hashed[path.name] += 1
        return sha256(path)

    for module in ("graph.seal", "store.files.cache"):
        monkeypatch.setattr(f"gracekit.{module}.sha256", counted)
    root = world / "store"
    inside = ids_of(root)[0]
    for look in (
        lambda: gracekit.explain(root, inside, version=2),
        lambda: gracekit.export(root, tmp_path / "atlas", format="atlas"),
        lambda: gracekit.report(root, tmp_path / "report.html"),
    ):
        hashed.clear()
        look()
        assert hashed["index.json"] == 1 and set(hashed.values()) == {1}, hashed


def test_sql_by_text_and_by_name(store: Store) -> None:
    answer = gracekit.sql(store, "SELECT count(*) AS n FROM samples WHERE row < $most", most=50)
    assert answer.columns == ["n"] and list(answer.rows()) == [(50,)]
    movers = gracekit.sql(store, "movers", count=3)
    assert len(movers) == 3 and movers.to_pandas().shape[0] == 3
    assert movers.to_arrow() == gracekit.sql(store, " movers ", count="3").to_arrow()
    with gracekit.sql_batches(store, "FROM samples") as batches:
        assert sum(batch.num_rows for batch in batches.batches) == NUM_SAMPLES
    with pytest.raises(QueryError, match=r"no query named 'moovers' \(did you mean 'movers'\?\)"):
        gracekit.sql(store, "moovers")
    with pytest.raises(QueryError, match="samples is a table: `FROM samples`"):
        gracekit.sql(store, "samples")
    with pytest.raises(QueryError, match="whole number"):
        gracekit.sql(store, "movers", count="x")
    assert len(gracekit.sql(store, "DESCRIBE")) > 3
    with gracekit.connect(store) as connection:
        assert connection.sql("SELECT count(*) FROM versions").fetchall() == [(3,)]
    assert {q.name for q in gracekit.named_queries()} >= {"movers", "trajectory"}
    assert {table["name"] for table in gracekit.schema(store)} >= {"samples", "coresets"}


def test_export_pin_gc_verify_and_rollback(world: Path, tmp_path: Path) -> None:
    root = tmp_path / "store"
    shutil.copytree(world / "store", root)
    for store in (root, Store.open(root)):
        out = tmp_path / f"out-{type(store).__name__}"
        written = gracekit.export(store, out, version=2, format="ids")
        assert (written.version, written.num_rows) == (2, 48)
        pinned = gracekit.pin(store, 1, note="first")
        assert (pinned.version, pinned.note) == (1, "first")
        report = gracekit.gc(store, keep=1, dry_run=True)
        assert report.removed == () and report.kept[1] == "pinned: first"
        assert gracekit.unpin(store, 1) and not gracekit.unpin(store, 1)
        assert gracekit.verify(store).ok
    assert gracekit.rollback(root, 1).header.rollback_of == 1
    with pytest.raises(UsageError, match="keep, the number of newest"):
        gracekit.gc(root, keep=0)


def test_plan_and_dry_runs(world: Path) -> None:
    recipe, checkpoint = world / "gracekit.yaml", world / "run" / "checkpoint-20"
    preview = gracekit.refresh(recipe, checkpoint, dry_run=True, set=["refresh.max_fraction=0.6"])
    assert preview.version == 4 and preview.num_samples == NUM_SAMPLES
    assert gracekit.watch(recipe, world / "run", dry_run=True).num_rows == preview.num_rows
    assert gracekit.plan(recipe, checkpoint).obstacles == []


def test_select_from_a_store_and_compare(world: Path, tmp_path: Path) -> None:
    root = tmp_path / "store"
    shutil.copytree(world / "store", root)
    compared = gracekit.select(root, compare=["coverage", "random"], set={"selection.count": 20})
    assert [outcome.num_selected for outcome in compared] == [20, 20]
    assert compared.to_arrow().column_names[0] == "selector"
    again = gracekit.select(root)
    assert not again.is_new and again.version == 3, "the settings of the latest version"
    more = gracekit.select(Store.open(root), set={"selection.count": 30})
    assert more.is_new and more.header.stats.num_selected == 30
    other = gracekit.select(world / "gracekit.yaml", store=root, set=["selection.count=31"])
    assert other.header.stats.num_selected == 31 and other.version == 5


def test_old_names_work_and_say_the_new_one(world: Path, tmp_path: Path) -> None:
    root = tmp_path / "store"
    shutil.copytree(world / "store", root)
    recipe = gracekit.Recipe.load(world / "gracekit.yaml").override(
        {"store": str(root), "selection.count": 12}
    )
    with pytest.warns(DeprecationWarning, match=r"gracekit\.reselect is now gracekit\.select"):
        made = gracekit.reselect(recipe)
    assert made.header.stats.num_selected == 12


@pytest.mark.parametrize("version", NO_VERSIONS)
def test_what_is_no_version_is_one_clear_error(world: Path, version: Any, tmp_path: Path) -> None:
    root = world / "store"
    sample = ids_of(root)[0]
    verbs: list[Callable[[], Any]] = [
        lambda: gracekit.Coreset.load(root, version),
        lambda: gracekit.diff(root, 1, version),
        lambda: gracekit.diff(root, version, 1),
        lambda: gracekit.explain(root, sample, version=version),
        lambda: gracekit.similar(root, sample, version=version),
        lambda: gracekit.export(root, tmp_path / "out", version=version),
        lambda: gracekit.rollback(root, version),
        lambda: gracekit.pin(root, version),
        lambda: gracekit.unpin(root, version),
    ]
    for verb in verbs:
        with pytest.raises((UsageError, VersionNotFoundError)) as caught:
            verb()
        text = str(caught.value)
        assert str(root) in text and "versions 1 to 3" in text and "\n" not in text
        assert repr(version) in text


@pytest.mark.parametrize("version", ["two", "1.5", "-1", "0", "99", "Latest"])
def test_the_same_on_the_command_line(world: Path, version: str) -> None:
    at = ["--store", str(world / "store")]
    for arguments in (["diff", "1", version], ["export", "-o", "x", "--version", version],
                      ["explain", "a", f"--version={version}"], ["pin", version]):  # fmt: skip
        if version == "-1" and arguments[0] in ("diff", "pin"):
            arguments = [arguments[0], "--", *arguments[1:]]
        result = CliRunner().invoke(main, [arguments[0], *at, *arguments[1:]])
        assert result.exit_code in (1, 2) and "versions 1 to 3" in result.stderr
        assert len(result.stderr.splitlines()) == 1 and result.stdout == ""


def test_what_is_no_store_or_recipe_is_told() -> None:
    nothing: Any = None
    for verb in (gracekit.status, gracekit.versions, gracekit.verify, gracekit.connect):
        with pytest.raises(
            UsageError, match=r"a store is its directory or an open gracekit\.Store"
        ):
            verb(nothing)
    with pytest.raises(UsageError, match="a recipe is its path"):
        gracekit.refresh(nothing, "checkpoint-1")
    for what in (gracekit.select, lambda path: gracekit.refresh(path, "checkpoint-1")):
        with pytest.raises(RecipeError, match=r"no recipe at nowhere\.yaml"):
            what("nowhere.yaml")


def test_reprs_are_short_and_arrays_read_only(world: Path) -> None:
    root = world / "store"
    opened, sample = Store.open(root), ids_of(root)[0]
    coreset = gracekit.Coreset.load(root)
    assert gracekit.Coreset.load(opened).sample_ids.tolist() == coreset.sample_ids.tolist()
    things = [
        coreset, gracekit.Recipe.load(world / "gracekit.yaml"), opened.header(2),
        opened.scores(2), opened.samples(), gracekit.versions(root), gracekit.status(root),
        gracekit.diff(root, 1, 2), gracekit.explain(root, sample, version=2),
        gracekit.similar(root, sample, version=2), gracekit.verify(root),
        gracekit.sql(root, "FROM samples"), gracekit.gc(root, keep=1, dry_run=True),
        gracekit.select(root, compare=["coverage", "top"]),
        gracekit.refresh(world / "gracekit.yaml", world / "run" / "checkpoint-10"),
    ]  # fmt: skip
    for thing in things:
        text = repr(thing)
        assert len(text.splitlines()) <= MOST_LINES, text
        assert len(text) < 1200, text
        html = getattr(thing, "_repr_html_", None)
        assert html is None or html().startswith("<table>")
    assert coreset.to_pandas().shape == (9, 4)
    assert list(opened.scores(2).to_pandas()["origin"].unique()) != []
    assert opened.samples().to_arrow().num_rows == NUM_SAMPLES
    assert repr(opened) == f"Store({str(root)!r})"
    scores, samples = opened.scores(2), opened.samples()
    for array in (coreset.rows, coreset.weights, coreset.sample_ids, coreset.source_rows,
                  scores.importance, scores.scores["loss"], samples.source_rows):  # fmt: skip
        assert not array.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        coreset.weights[0] = np.float32(2)
    assert not hasattr(samples.sample_ids, "__setitem__")


verbs: Any = gracekit
"""The same without types, as a caller who does not check them sees it."""


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s, o: verbs.explain(s, 5), "sample_id is a text"),
        (lambda s, o: verbs.similar(s, "?", count=0), "count is a whole number of 1 or more"),
        (lambda s, o: verbs.similar(s, "?", count="3"), "count is a whole number"),
        (lambda s, o: verbs.diff(s, 1, 2, num_movers=-1), "num_movers is a whole number of 0"),
        (lambda s, o: verbs.gc(s, keep=True), "newest versions, is a whole number of 1 or more"),
        (lambda s, o: verbs.pin(s, 1, note=None), "note is a text"),
        (lambda s, o: verbs.sql(s, None), "query is a text"),
        (lambda s, o: verbs.find_query(5), "name of a query is a text"),
        (lambda s, o: verbs.select(s, compare="random"), "compare is a list of names"),
        (lambda s, o: verbs.select(s, set=[5]), "list of changes is a list of names"),
        (lambda s, o: verbs.select(s, set={1: 2}), "a key of the changes is a text"),
        (lambda s, o: verbs.export(s, 5), "out is a path"),
        (lambda s, o: verbs.export(s, o, weights="bar"), "no way 'bar' to write weights"),
        (lambda s, o: verbs.Coreset.load(5), "a store is its directory or an open"),
    ],
)
def test_a_wrong_argument_is_one_clear_error(
    world: Path, tmp_path: Path, call: Callable[[Path, Path], object], message: str
) -> None:
    with pytest.raises(gracekit.GracekitError, match=message):
        call(world / "store", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_numpy_numbers_count(world: Path) -> None:
    report = verbs.gc(world / "store", keep=np.int64(30), dry_run=True)
    assert report.removed == ()


def test_what_may_not_be_read_is_one_message(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied", "pinned")

    monkeypatch.setattr("gracekit.api.reading.list_versions", refuse)
    result = CliRunner().invoke(main, ["versions", "--store", str(world / "store")])
    assert result.exit_code == 1 and "cannot read pinned: Permission denied" in result.output
