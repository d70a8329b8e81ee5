"""Exports of a real store: scores beside the rows, the map, a directory per version."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner

import gracekit
from gracekit.cli import main
from gracekit.errors import ExportError, RecipeError, UsageError
from gracekit.recipe import Recipe
from gracekit.remote import RemoteFolder
from gracekit.store import Store
from gracekit.types import Json
from tests.faults import Killed, as_a_process_that_ends, count_operations, killed_at
from tests.tiny import write_checkpoint

torch.set_num_threads(1)
NUM_ROWS = 30


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Of a store with two versions, in which a column of the data is called as a score."""
    folder = tmp_path_factory.mktemp("exports")
    rows = [
        {"prompt": f"is {i} large", "completion": f"the {i} is small", "loss": f"mine {i}",
         "source": "ab"[i % 2]}
        for i in range(NUM_ROWS)
    ]  # fmt: skip
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    gracekit.init(folder / "train.jsonl", output=folder / "gracekit.yaml", group_column="source")
    found = Recipe.load(folder / "gracekit.yaml").override(
        {"scoring.device": "cpu", "selection.fraction": 0.5, "refresh.max_cost": None}
    )
    for step in (10, 20):
        gracekit.refresh(found, write_checkpoint(folder / "run", step))
    return found


def lines(path: Path) -> list[Json]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("name", ["jsonl", "trl", "parquet", "hf-dataset"])
def test_scores_stand_beside_the_rows(tmp_path: Path, recipe: Recipe, name: str) -> None:
    gracekit.export(recipe.store, tmp_path / "out", format=name, with_scores=True)
    if name == "parquet":
        found = pq.read_table(tmp_path / "out/coreset.parquet").to_pylist()
    elif name == "hf-dataset":
        found = datasets.load_from_disk(str(tmp_path / "out")).to_list()
    else:
        found = lines(tmp_path / "out/coreset.jsonl")
    store = Store.open(recipe.store)
    scores, drawn = store.scores(2), store.drawn(2)
    assert drawn is not None and drawn.draw is not None
    coreset = store.coreset(2).sort_by("source_row").to_pylist()
    assert len(found) == len(coreset) > 5
    for row, selected in zip(found, coreset, strict=True):
        at = selected["row"]
        assert row["sample_id"] == selected["sample_id"]
        assert row["weight"] == selected["weight"]
        assert row["importance"] == scores.importance[at]
        assert row["origin"] == selected["origin"]
        assert row["probability"] == drawn.draw.probabilities[at]
        assert row["gracekit_loss"] == scores.scores["loss"][at]
        if name != "trl":  # which has none of the user's other columns
            assert row["loss"] == f"mine {selected['source_row']}"


def test_scores_are_not_joined_to_lists(tmp_path: Path, recipe: Recipe) -> None:
    for name in ("ids", "indices-npy", "domain-weights", "atlas"):
        with pytest.raises(RecipeError, match=f"the format {name} does not hold the rows"):
            gracekit.export(recipe.store, tmp_path / "out", format=name, with_scores=True)
    assert not (tmp_path / "out").exists()


def test_atlas_has_all_samples(tmp_path: Path, recipe: Recipe) -> None:
    report = gracekit.export(recipe.store, tmp_path / "out", format="atlas")
    assert report.details["num_samples"] == NUM_ROWS
    table = pq.read_table(tmp_path / "out/atlas.parquet")
    rows = table.to_pylist()
    store = Store.open(recipe.store)
    samples, scores = store.samples(2), store.scores(2)
    weights = {r["row"]: r["weight"] for r in store.coreset(2).to_pylist()}
    for k, row in enumerate(rows):
        assert (row["id"], row["text"]) == (samples.sample_ids[k], samples.previews[k])
        assert row["selected"] == (k in weights) and row["weight"] == weights.get(k)
        assert row["importance"] == scores.importance[k]
        assert row["loss"] == scores.scores["loss"][k]
        assert row["group"] in "ab"
        ids, distances = row["neighbors"]["ids"], row["neighbors"]["distances"]
        assert len(ids) == len(distances) > 3 and k not in ids
        assert distances == sorted(distances)
    # The neighbours are those that `similar` finds.
    nearest = gracekit.similar(recipe.store, rows[0]["id"], count=3)
    assert {rows[i]["id"] for i in rows[0]["neighbors"]["ids"][:3]} == {
        s.sample_id for s in nearest
    }
    # On the plane neighbours are nearer than others.
    plane = np.array([[r["projection_x"], r["projection_y"]] for r in rows])
    apart = np.linalg.norm(plane[:, None] - plane, axis=2)
    near = [apart[k, r["neighbors"]["ids"][:5]].mean() for k, r in enumerate(rows)]
    assert np.mean(near) < 0.8 * apart.mean()
    with pytest.raises(RecipeError, match="has a row for each sample of the data"):
        gracekit.export(recipe.store, tmp_path / "again", format="atlas", weights="repeat")
    gracekit.export(recipe.store, tmp_path / "again", format="atlas")
    assert pq.read_table(tmp_path / "again/atlas.parquet").equals(table)


def test_domain_weights_of_a_store(tmp_path: Path, recipe: Recipe) -> None:
    report = gracekit.export(recipe.store, tmp_path / "out", format="domain-weights")
    assert sum(report.details["shares"].values()) == pytest.approx(1)
    assert sorted(report.details["shares"]) == ["a", "b"]


# --- a directory for each version ---


def test_each_version_has_a_directory_and_latest_names_the_newest(
    tmp_path: Path, recipe: Recipe
) -> None:
    folder = tmp_path / "coresets"
    first = gracekit.export(recipe.store, versions_in=folder, version=1)
    assert first.path == str(folder / "v000001")
    assert (folder / "latest").readlink().name == "v000001"
    second = gracekit.export(recipe.store, versions_in=folder)
    assert second.details["latest"] == str(folder / "latest")
    assert (folder / "latest").readlink().name == "v000002"
    assert sorted(p.name for p in folder.iterdir()) == ["latest", "v000001", "v000002"]
    for number, name in ((1, "v000001"), (2, "v000002"), (2, "latest")):
        assert json.loads((folder / name / "manifest.json").read_text())["version"] == number
    # An older one that is asked for or written again does not become the latest.
    again = gracekit.export(recipe.store, versions_in=folder, version=1)
    assert again.details["was_there"] and again.num_rows == first.num_rows
    assert (folder / "latest").readlink().name == "v000002"
    with pytest.raises(ExportError, match=r"is in .*v000001 already, as jsonl with weights column"):
        gracekit.export(recipe.store, versions_in=folder, version=1, format="ids")
    gracekit.export(recipe.store, versions_in=folder, version=1, force=True, format="ids")
    assert (folder / "latest").readlink().name == "v000002"
    moved = folder.rename(tmp_path / "moved")
    assert len(lines(moved / "latest/coreset.jsonl")) == second.num_rows


def test_scores_that_were_not_joined_before_are_not_left_out_in_silence(
    tmp_path: Path, recipe: Recipe
) -> None:
    folder = tmp_path / "all"
    gracekit.export(recipe.store, versions_in=folder)
    with pytest.raises(ExportError, match=r"asked for was jsonl with weights column and with sc"):
        gracekit.export(recipe.store, versions_in=folder, with_scores=True)
    gracekit.export(recipe.store, versions_in=folder, with_scores=True, force=True)
    again = gracekit.export(recipe.store, versions_in=folder, with_scores=True)
    assert again.details["was_there"] and again.with_scores
    with pytest.raises(ExportError, match=r"as jsonl with weights column and with scores; asked"):
        gracekit.export(recipe.store, versions_in=folder)
    path = folder / "v000002/manifest.json"  # of a release that did not say
    manifest = json.loads(path.read_text())
    del manifest["export"]["with_scores"]
    path.write_text(json.dumps(manifest))
    for asked in (False, True):
        assert gracekit.export(recipe.store, versions_in=folder, with_scores=asked).details


def test_an_export_that_lost_a_file_is_not_said_to_be_there(tmp_path: Path, recipe: Recipe) -> None:
    folder = tmp_path / "all"
    gracekit.export(recipe.store, versions_in=folder)
    (folder / "v000002/coreset.jsonl").unlink()
    with pytest.raises(ExportError, match=r"v000002 holds an .* lacks coreset.jsonl.*--force"):
        gracekit.export(recipe.store, versions_in=folder)
    gracekit.export(recipe.store, versions_in=folder, force=True)
    assert lines(folder / "latest/coreset.jsonl")


def test_an_export_that_was_killed_before_the_link_is_finished(
    tmp_path: Path, recipe: Recipe
) -> None:
    command = ("export", "--store", str(recipe.store), "--versions-in", str(tmp_path / "all"))
    assert run(*command).exit_code == 0
    (tmp_path / "all/latest").unlink()
    before = (tmp_path / "all/v000002/coreset.jsonl").stat().st_mtime_ns
    result = run(*command)
    assert result.exit_code == 0, result.output
    assert "was there already" in result.stderr
    assert (tmp_path / "all/latest").readlink().name == "v000002"
    assert (tmp_path / "all/latest/coreset.jsonl").stat().st_mtime_ns == before


def test_a_kill_at_any_file_call_of_an_export_of_versions(tmp_path: Path, recipe: Recipe) -> None:
    """Whatever is entered for LLaMA-Factory is there, and the next export enters what is not."""

    def work(folder: Path) -> None:
        gracekit.export(recipe.store, versions_in=folder, format="llamafactory")

    def prepared(name: str) -> Path:
        (tmp_path / name).mkdir()
        (tmp_path / name / "dataset_info.json").write_text("{}")
        return tmp_path / name

    counted = prepared("counted")
    num = len(count_operations(lambda: work(counted)))
    for k in range(1, num + 2):
        folder = prepared(f"{k}")
        with as_a_process_that_ends(), suppress(Killed), killed_at(k):
            work(folder)
        for entry in json.loads((folder / "dataset_info.json").read_text()).values():
            assert lines(folder / entry["file_name"])
        work(folder)
        (entry,) = json.loads((folder / "dataset_info.json").read_text()).values()
        assert lines(folder / entry["file_name"]) == lines(folder / "latest/coreset.jsonl")
        names = {path.name for path in folder.iterdir()}
        assert names == {"dataset_info.json", "latest", "v000002"}, f"killed at {k}"


def test_latest_always_leads_to_a_whole_export(tmp_path: Path, recipe: Recipe) -> None:
    """At each rename that an export makes, a reader that opens `latest` finds all files."""
    from gracekit import files

    folder, seen = tmp_path / "coresets", []
    gracekit.export(recipe.store, versions_in=folder, version=1)
    rename = files.replace

    def look(source: Path, final: Path) -> None:
        rename(source, final)
        seen.append(json.loads((folder / "latest/manifest.json").read_text())["version"])
        assert lines(folder / "latest/coreset.jsonl")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "replace", look)
        gracekit.export(recipe.store, versions_in=folder)
    assert set(seen) == {1, 2} and seen == sorted(seen)


def test_what_is_called_latest_is_left_alone(tmp_path: Path, recipe: Recipe) -> None:
    (tmp_path / "latest").mkdir()
    with pytest.raises(ExportError, match=r"is no link, so it is left alone; the export is in"):
        gracekit.export(recipe.store, versions_in=tmp_path)
    assert (tmp_path / "v000002/coreset.jsonl").exists()


def test_one_place_is_named(tmp_path: Path, recipe: Recipe) -> None:
    with pytest.raises(UsageError, match="found neither"):
        gracekit.export(recipe.store)
    urls = ("memory://one/subset", "memory://another/subset")
    places: tuple[str | Path, ...] = (urls[0], Path(urls[1]))
    for url, place in zip(urls, places, strict=True):
        assert gracekit.export(recipe.store, place, format="ids").path == url
        assert "ids.txt" in RemoteFolder.open(url).list()
    with pytest.raises(UsageError, match="found both"):
        gracekit.export(recipe.store, tmp_path / "a", versions_in=tmp_path / "b")


def run(*arguments: str) -> Any:
    return CliRunner().invoke(main, arguments, catch_exceptions=False)


def test_the_command(tmp_path: Path, recipe: Recipe) -> None:
    store = ("--store", str(recipe.store))
    result = run("export", *store, "--versions-in", str(tmp_path / "all"), "--with-scores")
    assert result.exit_code == 0, result.output
    assert f"rows (jsonl) in {tmp_path / 'all/v000002'}" in result.stdout.replace("\n  ", " ")
    assert "importance" in lines(tmp_path / "all/latest/coreset.jsonl")[0]
    assert run("export", *store).exit_code == 2
    assert "give either --out or --versions-in" in run("export", *store).stderr
