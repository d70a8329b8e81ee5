"""Data that changes under a store, end to end on a tiny real model."""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch

import gracekit
from gracekit.api.reading import diff, status, versions
from gracekit.api.samples import explain, similar
from gracekit.checkpoints import check_checkpoint
from gracekit.daemon import watch
from gracekit.errors import (
    DataError,
    ExportError,
    QueryError,
    SelectionError,
    StoreDataMismatchError,
)
from gracekit.exports import export, rows_of
from gracekit.recipe import Recipe
from gracekit.refresher import Refresher, RefreshResult, estimate, preview, refresh, reselect
from gracekit.store import Store, verify
from gracekit.training import CoresetSampler
from gracekit.types import Json, Origin
from gracekit.version.columns import DATA_COLUMNS
from tests.faults import Killed, count_operations, killed_at
from tests.stores import origins_of, outcome, strings
from tests.tiny import make_tokenizer, tiny_recipe, write_checkpoint, write_data

torch.set_num_threads(1)

STEPS = (10, 20, 30, 40, 50)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run")
    for step in STEPS:
        write_checkpoint(run, step)
    return run


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Json]:
    """200 rows with ids `s000` …; the tests take from them."""
    path = write_data(tmp_path_factory.mktemp("rows") / "rows.jsonl", num_samples=200)
    return [{"id": f"s{k:03d}", **row} for k, row in enumerate(read(path))]


def read(path: Path) -> list[Json]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(folder: Path, rows: list[Json]) -> None:
    """As programs should write a file that others read: by a rename."""
    temporary = folder / "train.jsonl.new"
    temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
    os.replace(temporary, folder / "train.jsonl")


def with_ids(folder: Path, **sections: Any) -> Recipe:
    data = {"id_column": "id", **sections.pop("data", {})}
    return tiny_recipe(folder, data=data, **sections)


def check(store: Store, rows: list[Json], version: int) -> None:
    """A version speaks of exactly these rows, wherever one looks."""
    assert verify(store) == []
    samples, scores = store.samples(version), store.scores(version)
    present = samples.present
    assert set(samples.sample_ids[present]) == {row["id"] for row in rows}
    np.testing.assert_array_equal(scores.origin == Origin.REMOVED, ~present)
    for values in scores.scores.values():
        assert np.isnan(values[~present]).all()
    assert (scores.importance[~present] == 0).all()
    for row, sample_id, source_row, group in zip(
        *(store.coreset(version)[c].to_pylist() for c in ("row", "sample_id", "source_row",
                                                         "group")), strict=True,
    ):  # fmt: skip
        assert samples.sample_ids[row] == sample_id == rows[source_row]["id"]
        assert group == rows[source_row]["source"]
    if cache := store.load_cache(version):  # the newest are kept
        assert len(cache.features) == len(samples)
        np.testing.assert_array_equal(cache.valid, scores.usable)


def test_rows_join_leave_change_move_and_come_back(
    tmp_path: Path, run_dir: Path, rows: list[Json]
) -> None:
    recipe = with_ids(tmp_path, data={"group_column": "source"})
    first = rows[:120]
    write(tmp_path, first)
    refresh(recipe, run_dir / "checkpoint-10")
    store = Store.open(tmp_path / "store")

    # Ten join in the middle, five leave, two say something else, one is of another group.
    changed = [{**row, "response": row["response"] + " red"} for row in first[20:22]]
    moved = {**first[50], "source": "new group"}
    second = [*first[5:20], *rows[120:130], *changed, *first[22:50], moved, *first[51:]]
    write(tmp_path, second)
    result = refresh(recipe, run_dir / "checkpoint-20")
    check(store, second, 2)
    stats = result.header.stats
    told = [getattr(stats, f"num_{name}") for name in ("samples", "added", "removed", "changed")]
    assert told == [125, 10, 5, 2]
    scores, samples = store.scores(2), store.samples(2)
    new = samples.added_versions == 2
    assert (scores.origin[new] == Origin.MEASURED).all(), "new samples are measured first"
    assert (scores.origin[20:22] == Origin.MEASURED).all(), "and those with other content"
    measured = store.measurement(2)
    reasons = dict(zip(measured["row"].to_pylist(), measured["reason"].to_pylist(), strict=True))
    assert {row for row, reason in reasons.items() if reason == "never_measured"} == {
        20, 21, *range(120, 130),
    }  # fmt: skip
    assert "new group" in samples.group_names and "new group" not in store.samples(1).group_names
    assert (samples.content_versions[20:22] == 2).all()
    assert len(store.samples(1)) == 120 and store.coreset(1)["row"].to_numpy().max() < 120

    # Everything in another order; two of those that left are back, one of them with other content.
    other = {**first[1], "response": "one two three"}
    third = [*second[::-1], first[0], other]
    write(tmp_path, third)
    refresh(recipe, run_dir / "checkpoint-30")
    check(store, third, 3)
    scores, samples = store.scores(3), store.samples(3)
    assert (scores.origin[[0, 1]] == Origin.MEASURED).all()
    assert (scores.measured_step[[0, 1]] == 30).all()
    assert samples.content_versions[[0, 1]].tolist() == [1, 3]
    assert (samples.removed_versions[[0, 1]] == 0).all(), "the old rows again"
    check(store, first, 1)  # an old version speaks of its own data

    # Nothing changed: the table is that of the version before, and so is a selection's.
    refresh(recipe, run_dir / "checkpoint-40")
    assert store.dataset(4).samples_file == store.dataset(3).samples_file
    assert reselect(recipe.override({"selection.count": 9})).version == 5
    check(store, third, 5)

    # What the readers tell.
    found = status(tmp_path / "store").to_json()
    assert (found["num_samples"], found["num_removed_samples"], found["scores"]["removed"]) == (
        127,
        3,
        3,
    )
    rows = versions(tmp_path / "store").to_json()
    told = [[v[f"num_{name}"] for name in ("samples", "added", "removed")] for v in rows]
    assert told == [[120, 120, 0], [125, 10, 5], [127, 2, 0], [127, 0, 0], [127, 0, 0]]
    found = diff(tmp_path / "store", 1, 3).to_json()
    assert found["data"] == {"num_added": 10, "num_removed": 3, "num_changed": 3}
    back = diff(tmp_path / "store", 3, 1).to_json()["data"]
    assert back == {"num_added": 3, "num_removed": 10, "num_changed": 3}
    connection = gracekit.connect(tmp_path / "store")
    gone = connection.sql(
        "SELECT samples.sample_id, removed_version, source_row, importance "
        "FROM samples JOIN scores USING (row) WHERE removed_version IS NOT NULL ORDER BY ALL"
    ).fetchall()
    assert gone == [(f"s{k:03d}", 2, None, None) for k in (2, 3, 4)]
    history = connection.sql("SELECT count(*) FROM score_history WHERE row = 2").fetchall()
    assert history == [(4,)], "the history stays, and goes on without scores"
    why = explain(tmp_path / "store", "s003").to_json()
    assert why["reason"] == "it is no longer in the data, since version 2"
    assert not why["is_selected"] and why["origin"] == "removed"
    assert similar(tmp_path / "store", "s003").to_json() == []
    ids = {record.sample_id for record in similar(tmp_path / "store", "s030", count=200)}
    assert len(ids) == 126 and not ids & {"s002", "s003", "s004"}
    with pytest.raises(QueryError, match="it joined the data at version 2"):
        explain(tmp_path / "store", "s125", version=1)


def test_exports_and_trainers_take_the_positions_of_the_version(
    tmp_path: Path, run_dir: Path, rows: list[Json]
) -> None:
    recipe = with_ids(tmp_path)
    first, second = rows[:100], [*rows[100:110], *rows[:100]]
    third = [*second[1:], rows[150]]
    write(tmp_path, first)
    refresh(recipe, run_dir / "checkpoint-10")
    store = Store.open(tmp_path / "store")
    write(tmp_path, second)
    refresh(recipe, run_dir / "checkpoint-20")

    export(rows_of(store, 2), "jsonl", tmp_path / "subset")
    exported = read(tmp_path / "subset/coreset.jsonl")
    assert [e["id"] for e in exported] == [
        second[k]["id"] for k in sorted(store.coreset(2)["source_row"].to_pylist())
    ]
    with pytest.raises(ExportError, match=r"has changed since.*newer version"):
        export(rows_of(store, 1), "jsonl", tmp_path / "old")
    assert not (tmp_path / "old").exists()

    # A trainer that holds the first data: by position it keeps the version that fits.
    sampler = CoresetSampler(tmp_path / "store", 100)
    sampler.set_epoch(0)
    assert sampler.version == 1
    coreset = gracekit.Coreset.load(tmp_path / "store")
    with pytest.raises(DataError, match="100 rows and the data of coreset version 2 has 110"):
        coreset.select(first)
    assert [row["id"] for row in coreset.select(second)] == coreset.sample_ids.tolist()
    # Other content or groups leave the positions as they are.
    write(
        tmp_path, [{**row, "response": row["response"] + " cat"} for row in second[:9]] + second[9:]
    )
    refresh(recipe, run_dir / "checkpoint-20")
    sampler = CoresetSampler(tmp_path / "store", 110)
    sampler.set_epoch(0)
    assert sampler.version == 3
    coreset = gracekit.Coreset.load(tmp_path / "store")
    # By ids it draws what it has of the newest.
    by_id = [row["id"] for row in first]
    sampler = CoresetSampler(tmp_path / "store", by_id, redraw="never")
    sampler.set_epoch(0)
    assert sampler.version == 3
    drawn = {first[position]["id"] for position in sampler.order()}
    assert drawn == set(coreset.sample_ids) & {row["id"] for row in first}

    # Two data of one length cannot be told apart by it, whichever version is asked for.
    write(tmp_path, third)
    refresh(recipe, run_dir / "checkpoint-30")
    assert len(second) == len(third)
    for version, data in ((2, second), (3, second), (4, third)):
        coreset = gracekit.Coreset.load(tmp_path / "store", version)
        with pytest.raises(DataError, match="cannot be told which"):
            coreset.select(data)
    named = coreset.select(datasets.Dataset.from_list(third), id_column="id")
    assert {row["id"] for row in named} == set(coreset.sample_ids)
    sampler = CoresetSampler(tmp_path / "store", 110)
    sampler.set_epoch(0)
    assert sampler.version == 0, "all samples rather than wrong ones"


def test_a_store_that_grew_selects_like_one_of_the_final_data(
    tmp_path: Path, run_dir: Path, rows: list[Json]
) -> None:
    """The oracle: grown in three steps and measured whole, or made of the final data at once."""
    whole = {"min_fraction": 1.0, "max_fraction": 1.0, "max_lost": 0.5}
    sections: Json = {"refresh": whole, "graph": {"moved_above": 0},
                      "data": {"group_column": "source"},
                      "selection": {"selector": "coverage"}}  # fmt: skip
    recipe = with_ids(tmp_path, **sections)
    final = [*rows[150:200], *rows[30:120], *rows[10:20]]
    chain = [rows[:100], [*rows[90:150], *rows[20:90]], [*rows[30:180], rows[3]], final]
    for step, data in zip(STEPS, chain, strict=False):
        write(tmp_path, data)
        refresh(recipe, run_dir / f"checkpoint-{step}")
    fresh = with_ids(tmp_path, store="fresh", **sections)
    refresh(fresh, run_dir / "checkpoint-40")
    grown, made = Store.open(tmp_path / "store"), Store.open(tmp_path / "fresh")
    check(grown, final, 4)
    one, other = (
        {
            sample_id: (weight, source_row)
            for sample_id, weight, source_row in zip(
                *(store.coreset(v)[c].to_pylist() for c in ("sample_id", "weight", "source_row")),
                strict=True,
            )
        }
        for store, v in ((grown, 4), (made, 1))
    )
    assert one.keys() == other.keys()
    for sample_id, (weight, source_row) in one.items():
        assert source_row == other[sample_id][1]
        assert weight == pytest.approx(other[sample_id][0], abs=1e-5)
    samples, scores = grown.samples(), grown.scores(4)
    place = {sample_id: row for row, sample_id in enumerate(samples.sample_ids)}
    mapped = np.array([place[i] for i in made.samples().sample_ids])
    for name, values in made.scores(1).scores.items():
        np.testing.assert_allclose(scores.scores[name][mapped], values, rtol=1e-4)


def test_a_rollback_to_before_the_data_changed(
    tmp_path: Path, run_dir: Path, rows: list[Json]
) -> None:
    recipe = with_ids(tmp_path)
    write(tmp_path, rows[:100])
    refresh(recipe, run_dir / "checkpoint-10")
    second = [*rows[100:120], *rows[10:100]]
    write(tmp_path, second)
    refresh(recipe, run_dir / "checkpoint-20")
    old = gracekit.Coreset.load(tmp_path / "store", 1)
    assert gracekit.rollback(tmp_path / "store", 1).version == 3
    store = Store.open(tmp_path / "store")
    coreset = gracekit.Coreset.load(tmp_path / "store")
    kept = {row["id"] for row in second} & set(old.sample_ids)
    assert set(coreset.sample_ids) == kept
    assert {row["id"] for row in coreset.select(second)} == kept, "where they are now"
    assert verify(store) == []
    assert diff(tmp_path / "store", 2, 3).to_json()["data"] == dict.fromkeys(DATA_COLUMNS, 0)
    found = status(tmp_path / "store").to_json()
    assert found["scores"] == {"measured": 90, "never": 20, "removed": 10}, "as the data is now"
    assert found["data_changes"] == dict.fromkeys(DATA_COLUMNS, 0)
    with gracekit.connect(tmp_path / "store") as connection:
        sql = "SELECT count(*), count(loss) FILTER (NOT isnan(loss)), count(importance) FROM scores"
        assert connection.sql(sql).fetchall() == [(120, 90, 110)]
    new = [explain(tmp_path / "store", row["id"]).to_json() for row in second[:20]]
    assert {why["reason"] for why in new} == {"cannot be selected: its score is never"}
    picked = explain(tmp_path / "store", str(coreset.sample_ids[0])).to_json()
    assert (picked["is_selected"], picked["graph_version"]) == (True, 2), "the graph that is kept"
    assert len(similar(tmp_path / "store", picked["sample_id"], count=4)) == 4
    assert reselect(recipe).version == 4
    check(store, second, 4)
    third = second[:-3]
    write(tmp_path, third)
    assert refresh(recipe, run_dir / "checkpoint-30").header.stats.num_removed == 3
    check(store, third, 5)


def test_new_samples_share_the_budget_or_not(
    tmp_path: Path, run_dir: Path, rows: list[Json], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    limits = {"min_fraction": 0.2, "max_fraction": 0.3, "min_probe": 12, "max_lost": 0.5,
              "target_value": 0.0}  # fmt: skip
    write(tmp_path, rows[:100])
    recipe = with_ids(tmp_path, refresh=limits)
    refresh(recipe, run_dir / "checkpoint-10")
    shutil.copytree(tmp_path / "store", tmp_path / "all")
    write(tmp_path, rows[:180])

    header = refresh(recipe, run_dir / "checkpoint-20").header
    assert header.stats.num_measured == 54, "as many as max_fraction allows, a target met or not"
    num_never = origins_of(header)["never"]
    assert 80 - 54 < num_never <= 80 - 54 + 12
    assert f"{num_never} new samples are not measured yet" in caplog.text
    check(Store.open(tmp_path / "store"), rows[:180], 2)
    for step in (30, 40):
        header = refresh(recipe, run_dir / f"checkpoint-{step}").header
    assert origins_of(header)["never"] == 0
    assert outcome(header).num_measured < 54, "then it is as without them"

    at_once = with_ids(tmp_path, store="all", refresh={**limits, "new_samples": "all"})
    header = refresh(at_once, run_dir / "checkpoint-20").header
    assert origins_of(header)["never"] == 0
    assert header.stats.num_measured == 80 + 36


def test_other_data_is_refused_and_wipes_nothing(
    tmp_path: Path, run_dir: Path, rows: list[Json]
) -> None:
    recipe = with_ids(tmp_path)
    write(tmp_path, rows[:100])
    refresh(recipe, run_dir / "checkpoint-10")
    other = [{**row, "response": "cat dog tree"} for row in rows[:100]]
    for wrong, says in (
        (rows[100:], "100 are missing"), (other, "100 have other content"),
        (rows[:60], "40 are missing"), (rows[40:41], "99 are missing"),
    ):  # fmt: skip
        write(tmp_path, wrong)
        with pytest.raises(StoreDataMismatchError, match=f"made from other data.*{says}"):
            refresh(recipe, run_dir / "checkpoint-20")
        assert Store.open(tmp_path / "store").versions() == [1]
    write(tmp_path, rows[:60])
    meant = recipe.override({"refresh.max_lost": 1})
    assert refresh(meant, run_dir / "checkpoint-20").header.stats.num_removed == 40
    write(tmp_path, rows[100:])
    result = refresh(meant, run_dir / "checkpoint-30")
    assert result.header.stats.num_measured == 100, "nothing was left, so everything is measured"
    check(Store.open(tmp_path / "store"), rows[100:], 3)


def test_a_running_refresher_notices_changed_data(
    tmp_path: Path, run_dir: Path, rows: list[Json], caplog: pytest.LogCaptureFixture
) -> None:
    recipe = with_ids(tmp_path)
    write(tmp_path, rows[:100])
    refresher = Refresher.from_recipe(recipe)
    found = [check_checkpoint(run_dir / f"checkpoint-{step}", recipe.checkpoints) for step in STEPS]
    with refresher.locked():
        refresher.refresh(found[0])
        write(tmp_path, rows[:110])
        assert refresher.refresh(found[1]).header.stats.num_added == 10

        text = (tmp_path / "train.jsonl").read_text()
        for broken in (text + '{"id": "s1', "", '{"id": 1, "prompt": 5}\n', text[:2000]):
            (tmp_path / "train.jsonl").write_text(broken)
            caplog.clear()
            version = refresher.refresh(found[2]).version  # made once, then it is there
            assert version == 3 and "goes on with what it was before" in caplog.text
        (problem,) = status(tmp_path / "store").to_json()["problems"]
        assert problem.startswith("version 3 was made with the data before it changed")
        (tmp_path / "train.jsonl").unlink()
        assert refresher.refresh(found[3]).header.stats.num_samples == 110
        store = Store.open(tmp_path / "store")
        check(store, rows[:110], 4)
        write(tmp_path, rows[:120])
        assert refresher.refresh(found[4]).header.stats.num_added == 10
        check(store, rows[:120], 5)
        assert status(tmp_path / "store").to_json()["problems"] == []
    (tmp_path / "train.jsonl").write_text("{")
    with pytest.raises(DataError):
        Refresher.from_recipe(recipe)


def test_the_daemon_takes_up_data_that_grows_while_it_runs(
    tmp_path: Path, run_dir: Path, rows: list[Json]
) -> None:
    recipe = with_ids(tmp_path, checkpoints={"on_backlog": "all"})
    write(tmp_path, rows[:100])

    def grow(result: RefreshResult) -> None:
        write(tmp_path, rows[: 100 + 10 * result.version])

    refresher = Refresher.from_recipe(recipe)
    watch(refresher, run_dir, stop=threading.Event(), max_checkpoints=3, on_version=grow)
    store = Store.open(tmp_path / "store")
    assert [store.header(v).stats.num_samples for v in store.versions()] == [100, 110, 120]
    check(store, rows[:120], 3)


def test_a_new_sample_that_the_chat_template_refuses_stops_nobody(
    tmp_path: Path, rows: list[Json], caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if 'sum sum' in m['content'] %}{{ raise_exception('no sums') }}"
        "{% endif %}{{ m['content'] }} {% endfor %}"
    )
    recipe = with_ids(tmp_path)
    fine = [row for row in rows if "sum sum" not in str(row)][:61]
    grown = [*fine[:60], {**rows[150], "response": "sum sum"}, fine[60]]
    write(tmp_path, fine[:60])
    refresher = Refresher.from_recipe(recipe)
    with refresher.locked():
        for step, data in ((10, fine[:60]), (20, grown)):
            write(tmp_path, data)
            checkpoint = write_checkpoint(tmp_path / "run", step)
            tokenizer.save_pretrained(checkpoint)
            (checkpoint / "trainer_state.json").touch()
            result = refresher.refresh(check_checkpoint(checkpoint, recipe.checkpoints))
    assert result.version == 2 and "row 60: " in caplog.text and "no sums" in caplog.text
    store = Store.open(tmp_path / "store")
    check(store, grown, 2)
    assert result.header.stats.num_added == 2, "the rows beside it are taken up"
    samples = store.samples()
    (refused,) = samples.sample_ids.places_of(strings([rows[150]["id"]]))
    assert samples.num_response_tokens[refused] == samples.num_prompt_tokens[refused] == 0
    assert rows[150]["id"] not in store.coreset(2)["sample_id"].to_pylist()


def test_a_refresh_of_grown_data_that_is_killed_anywhere(
    tmp_path: Path, run_dir: Path, rows: list[Json]
) -> None:
    recipe = with_ids(tmp_path)
    write(tmp_path, rows[:100])
    refresh(recipe, run_dir / "checkpoint-10")
    write(tmp_path, rows[5:130])
    shutil.copytree(tmp_path / "store", tmp_path / "kept")
    steps = count_operations(lambda: refresh(recipe, run_dir / "checkpoint-20"))
    expected = Store.open(tmp_path / "store").coreset(2)["sample_id"].to_pylist()
    for k in range(2, len(steps), max(1, len(steps) // 7)):
        shutil.rmtree(tmp_path / "store")
        shutil.copytree(tmp_path / "kept", tmp_path / "store")
        with pytest.raises(Killed), killed_at(k):
            refresh(recipe, run_dir / "checkpoint-20")
        store = Store.open(tmp_path / "store")
        if store.versions() == [1]:
            assert set(store.samples().sample_ids) == {row["id"] for row in rows[:100]}
        result = refresh(recipe, run_dir / "checkpoint-20")
        assert result.version == 2 and store.coreset(2)["sample_id"].to_pylist() == expected
        check(store, rows[5:130], 2)


def test_without_an_id_column_other_text_is_another_sample(
    tmp_path: Path, run_dir: Path, rows: list[Json]
) -> None:
    recipe = tiny_recipe(tmp_path)
    write(tmp_path, rows[:100])
    refresh(recipe, run_dir / "checkpoint-10")
    doubled = [rows[0], *rows[:99], {**rows[99], "response": "red"}]
    write(tmp_path, doubled)
    stats = refresh(recipe, run_dir / "checkpoint-20").header.stats
    assert [getattr(stats, f"num_{n}") for n in ("added", "removed", "changed")] == [2, 1, 0]
    assert verify(Store.open(tmp_path / "store")) == []


def test_changes_of_the_loss_are_of_one_content(
    tmp_path: Path, run_dir: Path, rows: list[Json]
) -> None:
    scores = ["loss", "gradient-norm", "delta-loss", "delta-loss-first"]
    whole = {"min_fraction": 1.0, "max_fraction": 1.0}
    recipe = with_ids(tmp_path, scoring={"scores": scores}, refresh=whole)
    write(tmp_path, rows[:100])
    refresh(recipe, run_dir / "checkpoint-10")
    changed = {**rows[1], "response": "green green green"}
    write(tmp_path, [changed, *rows[2:103]])
    refresh(recipe, run_dir / "checkpoint-20")
    write(tmp_path, [rows[0], changed, *rows[2:103]])
    refresh(recipe, run_dir / "checkpoint-30")
    store = Store.open(tmp_path / "store")
    loss = [store.scores(version).scores["loss"] for version in (1, 2, 3)]
    second, third = (store.scores(version).scores for version in (2, 3))
    assert (second["delta-loss"][[1, 100, 101, 102]] == 0).all(), "nothing to compare with"
    np.testing.assert_allclose(
        second["delta-loss"][2:100], (loss[1][:100] - loss[0])[2:], atol=1e-6
    )
    assert third["delta-loss"][0] == pytest.approx(loss[2][0] - loss[0][0], abs=1e-6)
    assert third["delta-loss-first"][1] == pytest.approx(loss[2][1] - loss[1][1], abs=1e-6)


def test_plan_and_lists_know_the_change(
    tmp_path: Path, run_dir: Path, rows: list[Json], caplog: pytest.LogCaptureFixture
) -> None:
    lists = {"always_in": ["s002", "s030"], "never_in": ["s003", "s031"],
             "never_in_where": "num_response_tokens < 0 OR row = 4"}  # fmt: skip
    recipe = with_ids(tmp_path, selection=lists)
    write(tmp_path, rows[:100])
    refresh(recipe, run_dir / "checkpoint-10")
    write(tmp_path, rows[5:115])
    before = sorted((tmp_path / "store").rglob("*"))
    found = check_checkpoint(run_dir / "checkpoint-20", recipe.checkpoints)
    plan = preview(recipe, found)
    assert (plan.num_samples, plan.reasons["never measured"]) == (110, 15)
    assert estimate(recipe, found).plan.to_json() == plan.to_json()
    assert sorted((tmp_path / "store").rglob("*")) == before, "nothing is written"
    result = refresh(recipe, run_dir / "checkpoint-20")
    store = Store.open(tmp_path / "store")
    assert plan.num_rows <= outcome(result.header).num_measured <= plan.max_rows
    assert "sample 's002': no longer in the data, left out" in caplog.text
    assert {"s030"} == {"s030", "s031", "s002"} & set(store.coreset(2)["sample_id"].to_pylist())
    with pytest.raises(SelectionError, match="'s999'"):
        reselect(recipe.override({"selection.always_in": ["s999"]}))
    equal = recipe.override({"selection.group_quota": "equal", "selection.count": 30})
    assert reselect(equal).header.stats.groups == {"a": 10, "b": 10, "c": 10}
