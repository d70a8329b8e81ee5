"""Refreshes towards a target, with real models: what is measured, stored, said and done."""

from __future__ import annotations

import itertools
import json
import logging
import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import gracekit
from gracekit import explain, status
from gracekit.cli import main
from gracekit.errors import DataError, RecipeError
from gracekit.graph import load_index, symmetric
from gracekit.recipe import Recipe
from gracekit.refresher import refresh, reselect
from gracekit.refresher.factors import tell_of_copies
from gracekit.refresher.model import rows_of_target
from gracekit.samples import load_samples, tokenize
from gracekit.store import Store, connect
from tests.stores import make_samples
from tests.tiny import COLOURS, recipe_content, tiny_recipe, write_checkpoint, write_data


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def write_target(path: Path, *, count: int = 12, seed: int = 9) -> Path:
    """Rows worded like those of group `a`, of none of the data's contents."""
    rng = np.random.default_rng(seed)
    with path.open("w", encoding="utf-8") as file:
        for i in range(count):
            words = rng.choice(COLOURS, 9).tolist()
            row = {"prompt": f"{500 + i} " + " ".join(words[:3]), "response": " ".join(words[3:])}
            file.write(json.dumps(row) + "\n")
    return path


def aimed(folder: Path, **sections: Any) -> Recipe:
    """A recipe with a target, over data with rows like it."""
    if not (folder / "train.jsonl").exists():
        write_data(folder / "train.jsonl")
    write_target(folder / "target.jsonl")
    target = {"path": "target.jsonl", "max_length": 64, **sections.pop("target", {})}
    return tiny_recipe(folder, target=target, **sections)


def test_a_refresh_follows_what_is_like_the_target(tmp_path: Path) -> None:
    recipe = aimed(tmp_path)
    header = refresh(recipe, write_checkpoint(tmp_path / "run", 100)).header
    aim = header.aim
    assert aim is not None and aim.num_target == 12 and np.isfinite(aim.target_loss)
    assert aim.share_influence + aim.share_likeness + aim.share_group == pytest.approx(0.9)
    assert aim.num_told_by > 30 and aim.best_step == 100
    store = Store.open(recipe.store)
    places, samples = store.places(1), store.samples()
    assert places is not None and set(places.factors) == {"aim", "dose"}
    is_like = samples.groups == samples.group_names.index("a")
    place = places.factors["aim"]
    assert place[is_like].mean() > 2 * place[~is_like].mean(), aim.why
    drawn = store.drawn(1)
    assert drawn is not None and drawn.draw is not None
    probabilities = drawn.draw.probabilities
    assert probabilities[is_like].mean() > 2 * probabilities[~is_like].mean()
    # The weighted draw stands for t: weight times probability is the place, up to a factor.
    wanted = drawn.draw.weights * probabilities
    np.testing.assert_allclose(wanted / wanted.mean(), place / place.mean(), rtol=1e-4)


def test_what_is_stored_is_read_in_sql_and_in_words(tmp_path: Path) -> None:
    recipe = aimed(tmp_path)
    refresh(recipe, write_checkpoint(tmp_path / "run", 100))
    refresh(recipe, write_checkpoint(tmp_path / "run", 200))
    with connect(recipe.store) as connection:
        rows = connection.execute(
            "SELECT version, count(*), avg(place), min(factor_aim), count(signal_likeness), "
            "count(factor_copies) FROM places GROUP BY version ORDER BY version"
        ).fetchall()
        shares = connection.execute(
            "SELECT share_influence + share_likeness + share_group + share_uniform, target_loss "
            "FROM versions"
        ).fetchall()
    assert [row[:2] for row in rows] == [(1, 160), (2, 160)]
    assert all(row[3] == pytest.approx(0.1) and row[4] == 160 and row[5] == 0 for row in rows)
    assert all(share == pytest.approx(1) and loss > 0 for share, loss in shares)
    text = str(status(recipe.store))
    assert "the loss on its 12 samples is" in text and "all samples alike" in text
    sample_id = Store.open(recipe.store).samples().sample_ids[0]
    told = explain(recipe.store, sample_id)
    assert told.place == pytest.approx(np.prod(list(told.factors.values())))
    assert "times as often as a plain sample" in str(told)
    assert gracekit.verify(recipe.store, deep=True).ok


def test_the_dose_counts_the_uses_of_the_coresets_so_far(tmp_path: Path) -> None:
    recipe = aimed(tmp_path)
    refresh(recipe, write_checkpoint(tmp_path / "run", 100))
    refresh(recipe, write_checkpoint(tmp_path / "run", 200))
    store = Store.open(recipe.store)
    first = store.coreset(1)["row"].to_numpy()
    places = store.places(2)
    assert places is not None
    expected = np.ones(160)
    expected[first] = 0.6
    np.testing.assert_allclose(places.factors["dose"], expected, rtol=1e-6)
    aim = store.header(2).aim
    assert aim is not None and 0 < aim.uses_of_alike <= 1


def test_a_group_of_the_data_as_the_target(tmp_path: Path) -> None:
    write_data(tmp_path / "train.jsonl")
    recipe = tiny_recipe(tmp_path, target={"group": "b"})
    header = refresh(recipe, write_checkpoint(tmp_path / "run", 100)).header
    assert header.aim is not None
    assert header.aim.num_target == header.aim.num_overlap == 10  # a fifth of 53
    assert header.aim.is_overlap_dropped
    store = Store.open(recipe.store)
    places, samples = store.places(1), store.samples()
    assert places is not None
    barred = places.factors["allowed"] == 0
    assert barred.sum() == 10
    assert (samples.groups[barred] == samples.group_names.index("b")).all()
    assert not np.isin(store.coreset(1)["row"].to_numpy(), np.flatnonzero(barred)).any()
    told = explain(recipe.store, samples.sample_ids[np.flatnonzero(barred)[0]])
    assert "never in: it has the content of a target sample" in str(told)


def test_the_rows_of_a_group_stay_the_same_as_the_data_grows(tmp_path: Path) -> None:
    small = load_samples(tiny_recipe(tmp_path).data.model_copy(
        update={"path": str(write_data(tmp_path / "a.jsonl", num_samples=150))}
    ))  # fmt: skip
    large = load_samples(tiny_recipe(tmp_path).data.model_copy(
        update={"path": str(write_data(tmp_path / "b.jsonl", num_samples=165))}
    ))  # fmt: skip
    first = small.sample_ids[rows_of_target(small, "a", 6)]
    later = large.sample_ids[rows_of_target(large, "a", 6)]
    assert len(set(first) & set(later)) >= 5
    with pytest.raises(DataError, match=r"'a', 'b', 'c'"):
        rows_of_target(small, "d", 6)


def test_rows_of_the_data_in_the_target_set(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = write_data(tmp_path / "train.jsonl").read_text().splitlines()
    recipe = aimed(tmp_path)
    (tmp_path / "target.jsonl").write_text("\n".join(rows[:9:3]))
    checkpoint = write_checkpoint(tmp_path / "run", 100)
    kept = refresh(recipe, checkpoint).header.aim
    assert kept is not None and kept.num_overlap == 3 and not kept.is_overlap_dropped
    assert "3 samples of the data have the content of a target sample" in caplog.text
    dropping = aimed(tmp_path, target={"overlap": "drop"}, store="other")
    (tmp_path / "target.jsonl").write_text("\n".join(rows[:9:3]))
    dropped = refresh(dropping, checkpoint).header
    assert dropped.aim is not None and dropped.aim.is_overlap_dropped
    coreset = Store.open(dropping.store).coreset(1)["row"].to_numpy()
    assert not {0, 3, 6} & set(coreset.tolist())


def test_all_of_the_data_as_its_own_target_that_is_dropped(tmp_path: Path) -> None:
    recipe = aimed(tmp_path, target={"overlap": "drop"})
    (tmp_path / "target.jsonl").write_text((tmp_path / "train.jsonl").read_text())
    with pytest.raises(gracekit.GracekitError, match=r"target\.overlap"):
        refresh(recipe, write_checkpoint(tmp_path / "run", 100))


@pytest.mark.parametrize("aim", ["likeness", "influence", "group", "round-robin"])
def test_one_signal_alone(tmp_path: Path, aim: str) -> None:
    recipe = aimed(tmp_path, selection={"aim": aim})
    header = refresh(recipe, write_checkpoint(tmp_path / "run", 100)).header
    assert header.aim is not None and header.aim.share_uniform == pytest.approx(0.1)
    places, samples = Store.open(recipe.store).places(1), Store.open(recipe.store).samples()
    assert places is not None
    assert (aim in places.signals) == (aim != "round-robin")
    is_like = samples.groups == samples.group_names.index("a")
    place = places.factors["aim"]
    if aim in ("likeness", "round-robin"):  # of so young a model gradients tell little
        assert place[is_like].mean() > 2 * place[~is_like].mean()
    assert "the recipe says so" in str(status(recipe.store))


def test_an_aim_of_none_changes_nothing(tmp_path: Path) -> None:
    recipe = aimed(tmp_path, selection={"aim": "none"})
    checkpoint = write_checkpoint(tmp_path / "run", 100)
    header = refresh(recipe, checkpoint).header
    plain = tiny_recipe(tmp_path, store="plain")
    refresh(plain, checkpoint)
    assert header.aim is None and Store.open(recipe.store).places(1) is None
    one, other = (Store.open(r.store).coreset(1)["row"].to_pylist() for r in (recipe, plain))
    assert one == other


def test_a_stopped_refresh_goes_on_with_the_sketches_that_it_has(tmp_path: Path) -> None:
    recipe = aimed(tmp_path)
    checkpoint = write_checkpoint(tmp_path / "run", 100)
    whole = refresh(aimed(tmp_path, store="whole"), checkpoint)
    stop = threading.Event()
    stop.set()
    with pytest.raises(gracekit.GracekitError):
        refresh(recipe, checkpoint, stop=stop)
    resumed = refresh(recipe, checkpoint)
    stores = [Store.open(tmp_path / name) for name in ("store", "whole")]
    first, other = (store.places(1) for store in stores)
    assert first is not None and other is not None
    for name, factor in first.factors.items():
        np.testing.assert_array_equal(factor, other.factors[name])
    assert resumed.header.aim == whole.header.aim


def test_a_reselect_keeps_the_aim_and_counts_the_dose_anew(tmp_path: Path) -> None:
    recipe = aimed(tmp_path)
    refresh(recipe, write_checkpoint(tmp_path / "run", 100))
    smaller = recipe.override({"selection.fraction": 0.2})
    assert reselect(smaller).version == 2
    store = Store.open(recipe.store)
    first, second = store.places(1), store.places(2)
    assert first is not None and second is not None
    np.testing.assert_array_equal(first.factors["aim"], second.factors["aim"])
    assert (second.factors["dose"] < 1).sum() == len(store.coreset(1))
    assert set(second.factors) == {"aim", "dose"}  # nothing says what another sample says
    with pytest.raises(RecipeError, match=r"selection\.aim is 'likeness'"):
        reselect(recipe.override({"selection.aim": "likeness"}))
    assert reselect(recipe.override({"selection.aim": "none"})).version == 3
    assert store.renew().places(3) is None


def test_duplicates_that_share_a_place(tmp_path: Path) -> None:
    rows = write_data(tmp_path / "train.jsonl").read_text().splitlines()
    texts = [*rows, *[rows[0]] * 40]
    (tmp_path / "train.jsonl").write_text("\n".join(texts))
    content = recipe_content(selection={"duplicates": "share", "fraction": 0.5})
    with (tmp_path / "train.jsonl").open() as file:
        lines = [json.loads(line) | {"id": i} for i, line in enumerate(file)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    content["data"]["id_column"] = "id"
    recipe = Recipe.from_dict(content, folder=tmp_path)
    refresh(recipe, write_checkpoint(tmp_path / "run", 100))
    store = Store.open(recipe.store)
    places, hashes = store.places(1), store.samples().content_hashes
    assert places is not None and set(places.factors) == {"copies"}
    copied = np.flatnonzero(np.asarray(hashes) == hashes[0])
    assert len(copied) == 41
    assert places.factors["copies"][copied] == pytest.approx(
        np.full(41, places.factors["copies"][0])
    )
    assert places.factors["copies"][copied].sum() <= 1 + 1e-6
    selected = store.coreset(1)["row"].to_numpy()
    assert np.isin(selected, copied).sum() <= 5
    cache = store.load_cache(1)
    assert cache is not None
    index = load_index(cache.index_directory, settings=recipe.graph)
    assert index is not None and len(symmetric(index.graph).indptr) == 201


@pytest.mark.parametrize(
    ("duplicates", "words"),
    [
        ("share", ["of 220 samples 61 say", "they count as 1", "`gracekit sql copies`"]),
        ("keep", ["of 220 samples 60 say", "each counts by itself", "`share` gives all"]),
    ],
)
def test_what_becomes_of_many_copies_is_told_once(
    duplicates: str, words: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [json.loads(x) for x in write_data(tmp_path / "train.jsonl").read_text().splitlines()]
    rows = [row | {"id": i} for i, row in enumerate([*rows, *[rows[0]] * 60])]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    content = recipe_content(selection={"fraction": 0.5, "duplicates": duplicates})
    content["data"]["id_column"] = "id"
    recipe = Recipe.from_dict(content, folder=tmp_path)
    refresh(recipe, write_checkpoint(tmp_path / "run", 100))
    (told,) = [r.getMessage() for r in caplog.records if "word for word" in r.getMessage()]
    assert all(part in told for part in words)
    caplog.clear()
    refresh(recipe, write_checkpoint(tmp_path / "run", 200))
    assert not any("word for word" in r.getMessage() for r in caplog.records)


def test_near_copies_share_a_place_and_other_answers_do_not(tmp_path: Path) -> None:
    """By default: what one passage tells apart shares a place, also where nothing is measured."""
    rows = [json.loads(x) for x in write_data(tmp_path / "train.jsonl").read_text().splitlines()]
    assert {"prompt", "response"} <= rows[0].keys()
    greeted = [row | {"prompt": f"Please, {row['prompt']}"} for row in rows[:20]]
    other = [row | {"response": " ".join(reversed(row["response"].split()))} for row in rows[20:40]]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, [*rows, *greeted, *other])))
    recipe = Recipe.from_dict(recipe_content(selection={"fraction": 0.5}), folder=tmp_path)
    refresh(recipe, write_checkpoint(tmp_path / "run", 100))
    store = Store.open(recipe.store)
    places, samples = store.places(1), store.samples()
    assert places is not None and set(places.factors) == {"copies"}
    shared = np.flatnonzero(places.factors["copies"] < 1)
    originals = shared[shared < 160]
    assert set(originals) <= set(range(20)) and len(originals) >= 10
    np.testing.assert_array_equal(shared[len(originals) :], originals + 160)
    assert (places.factors["copies"][shared] == 0.5).all()
    answer = gracekit.sql(recipe.store, "copies", count=100)
    found = {row[answer.columns.index("sample_id")] for row in answer.rows()}
    assert found == set(samples.sample_ids[shared].tolist())
    assert reselect(recipe.override({"selection.fraction": 0.2})).version == 2
    again = store.renew().places(2)
    assert again is not None
    np.testing.assert_array_equal(again.factors["copies"], places.factors["copies"])
    assert reselect(recipe.override({"selection.duplicates": "keep"})).version == 3
    assert store.renew().places(3) is None


def test_copies_that_are_never_in_leave_their_part_to_the_others(tmp_path: Path) -> None:
    """At a refresh and in a selection without tokens; the copies of a place are listed together."""
    rows = [json.loads(x) for x in write_data(tmp_path / "train.jsonl").read_text().splitlines()]
    greeted = [row | {"prompt": f"Please, {row['prompt']}"} for row in rows[:20]]
    rows = [row | {"id": f"s{i}"} for i, row in enumerate([*rows, *rows[:2], *greeted])]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    content = recipe_content(selection={"fraction": 0.5, "never_in": ["s160"]})
    content["data"]["id_column"] = "id"
    recipe = Recipe.from_dict(content, folder=tmp_path)
    refresh(recipe, write_checkpoint(tmp_path / "run", 100))
    store = Store.open(recipe.store)
    places = store.places(1)
    assert places is not None and places.copy_of is not None
    assert places.copy_of[[0, 160, 1, 161, 150]].tolist() == [0, 0, 1, 1, -1]
    near = int((places.copy_of == 0).sum()) == 3  # the greeted one is found where it is near
    assert places.factors["copies"][0] == pytest.approx(1 / 2 if near else 1)
    others = int((places.copy_of == 1).sum())
    assert places.factors["copies"][1] == pytest.approx(1 / others)
    answer = gracekit.sql(recipe.store, "copies", count=100)
    listed = [row[answer.columns.index("copy_of")] for row in answer.rows()]
    together = [key for key, _ in itertools.groupby(listed)]
    assert len(set(listed)) == len(together) > 3 and "s0" in listed
    told = explain(recipe.store, "s1")
    assert f"because {others} samples that say the same share one place" in str(told)
    where = {"selection.never_in_where": "sample_id IN ('s1', 's161')", "selection.never_in": []}
    assert reselect(recipe.override(where)).version == 2
    again = store.renew().places(2)
    assert again is not None and again.copy_of is not None
    np.testing.assert_array_equal(again.copy_of, places.copy_of)
    np.testing.assert_allclose(again.factors["copies"][[0, 160]], 1 / (3 if near else 2))
    left = np.asarray(again.copy_of == 1)
    left[[1, 161]] = False
    np.testing.assert_allclose(again.factors["copies"][left], 1 / max(1, left.sum()))


def test_a_version_of_a_release_that_knew_no_sharing(tmp_path: Path) -> None:
    """Its header says nothing of duplicates: each counted by itself, whatever the default is."""
    write_data(tmp_path / "train.jsonl")
    recipe = tiny_recipe(tmp_path)
    header = refresh(recipe, write_checkpoint(tmp_path / "run", 100)).header
    assert header.settings.selection.duplicates == "share"
    content = header.settings.model_dump(mode="json")
    assert type(header.settings).model_validate(content).selection.duplicates == "share"
    del content["selection"]["duplicates"]
    assert type(header.settings).model_validate(content).selection.duplicates == "keep"


@pytest.mark.parametrize("selector", ["coverage", "balanced"])
def test_a_selector_that_goes_by_no_places_says_nothing_of_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, selector: str
) -> None:
    rows = [json.loads(x) for x in write_data(tmp_path / "train.jsonl").read_text().splitlines()]
    rows = [row | {"id": i} for i, row in enumerate([*rows, *rows[:40]])]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    content = recipe_content(selection={"fraction": 0.5, "selector": selector})
    content["data"]["id_column"] = "id"
    recipe = Recipe.from_dict(content, folder=tmp_path)
    refresh(recipe, write_checkpoint(tmp_path / "run", 100))
    assert (Store.open(recipe.store).places(1) is None) == (selector == "coverage")
    reselect(recipe.override({"selection.selector": "balanced", "selection.fraction": 0.3}))
    places = Store.open(recipe.store).places(2)
    assert places is not None and (places.factors["copies"] < 1).sum() >= 80
    assert ("selector: coverage, so only" in caplog.text) == (selector == "coverage")


def test_copies_that_come_with_later_data_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_data(tmp_path / "train.jsonl")
    rows = [json.loads(x) | {"id": i} for i, x in enumerate(path.read_text().splitlines())]
    path.write_text("\n".join(map(json.dumps, rows)))
    content = recipe_content(selection={"fraction": 0.5})
    content["data"]["id_column"] = "id"
    recipe = Recipe.from_dict(content, folder=tmp_path)
    refresh(recipe, write_checkpoint(tmp_path / "run", 100))
    assert "word for word" not in caplog.text
    more = [rows[0] | {"id": 1000 + i} for i in range(60)]
    path.write_text("\n".join(map(json.dumps, [*rows, *more])))
    refresh(recipe, write_checkpoint(tmp_path / "run", 200))
    (told,) = [r.getMessage() for r in caplog.records if "word for word" in r.getMessage()]
    assert "Most of all, 61, share that of 0:" in told


def test_a_selection_without_tokens_shares_by_content_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [json.loads(x) for x in write_data(tmp_path / "train.jsonl").read_text().splitlines()]
    rows = [*rows, *rows[:5], *[row | {"prompt": f"Please, {row['prompt']}"} for row in rows[:20]]]
    rows = [row | {"id": i} for i, row in enumerate(rows)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    content = recipe_content(selection={"fraction": 0.5, "duplicates": "keep"})
    content["data"]["id_column"] = "id"
    recipe = Recipe.from_dict(content, folder=tmp_path)
    refresh(recipe, write_checkpoint(tmp_path / "run", 100))
    assert reselect(recipe.override({"selection.duplicates": "share"})).version == 2
    places = Store.open(recipe.store).places(2)
    assert places is not None and int((places.factors["copies"] < 1).sum()) == 10
    assert "the next refresh finds those that nearly say the same" in caplog.text


def test_samples_that_resemble_each_other_are_not_told_as_copies(
    caplog: pytest.LogCaptureFixture,
) -> None:
    recipe = Recipe.from_dict(recipe_content())
    for duplicates in ("share", "keep"):
        changed = recipe.override({"selection.duplicates": duplicates})
        tell_of_copies(changed, make_samples(3), None)
        tell_of_copies(changed, make_samples(0), None)
    assert not caplog.records


def test_init_writes_a_target_and_the_recipe_works(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    write_data(tmp_path / "train.jsonl")
    write_target(tmp_path / "target.jsonl")
    args = ["init", "train.jsonl", "--target", "target.jsonl", "--group-column", "source"]
    result = CliRunner().invoke(main, args)
    assert result.exit_code == 0, result.output
    recipe = Recipe.load(tmp_path / "gracekit.yaml")
    assert recipe.target is not None and recipe.follows_target
    assert "12 samples, whose loss is followed" in (tmp_path / "gracekit.yaml").read_text()
    header = refresh(recipe, write_checkpoint(tmp_path / "run", 100)).header
    assert header.aim is not None
    missing = ["init", "train.jsonl", "--target", "none.jsonl", "--force"]
    result = CliRunner().invoke(main, missing)
    assert result.exit_code != 0 and "none.jsonl" in result.output


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ({}, "name a file"),
        ({"path": "a.jsonl", "group": "b"}, "two ways to name a target"),
        ({"path": "a.jsonl", "overlap": "x"}, "overlap"),
    ],
)
def test_a_target_that_is_none_is_named(target: dict[str, Any], told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        Recipe.from_dict({"data": {"path": "train.jsonl"}, "target": target})


def test_the_loss_of_the_target_is_that_of_the_model(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    recipe = aimed(tmp_path)
    checkpoint = write_checkpoint(tmp_path / "run", 100)
    header = refresh(recipe, checkpoint).header
    model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    assert recipe.target is not None
    raw = load_samples(recipe.target)
    tokens = tokenize(raw, tokenizer, recipe.target, tmp_path / "tokens")
    losses = []
    for ids, mask in tokens.take(np.arange(len(raw))):
        inputs = torch.tensor(ids)[None].long()
        labels = torch.where(torch.tensor(mask)[None], inputs, -100)
        with torch.no_grad():
            losses.append(float(model(input_ids=inputs, labels=labels).loss))
    assert header.aim is not None
    assert header.aim.target_loss == pytest.approx(np.mean(losses), rel=1e-4)
    by_content = np.argsort(np.asarray(raw.content_hashes, str), kind="stable")
    np.testing.assert_allclose(header.aim.losses, np.array(losses)[by_content], atol=1e-3)


def test_a_loss_that_turns_up_is_told_in_the_log_and_in_status(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The second checkpoint is the same model, spoiled: every target sample loses."""

    def spoil(model: Any) -> None:
        with torch.no_grad():
            model.lm_head.weight.mul_(8)

    recipe = aimed(tmp_path, training={"stop": "stop"})
    refresh(recipe, write_checkpoint(tmp_path / "run", 100))
    with caplog.at_level(logging.WARNING):
        header = refresh(recipe, write_checkpoint(tmp_path / "run", 200, spoil=spoil)).header
    assert header.aim is not None and header.aim.advice is not None
    assert header.aim.best_step == 100 and header.aim.stop == "stop"
    assert "lowest at step 100" in caplog.text
    assert "more steps are not advised" in str(status(recipe.store))


def test_rows_that_were_used_enough_are_told_with_the_checkpoint_that_was_best(
    tmp_path: Path,
) -> None:
    """Each coreset holds all rows and counts as trained on once; the loss moves within noise."""
    recipe = aimed(tmp_path, selection={"fraction": 1.0})
    for step in range(1, 6):
        header = refresh(recipe, write_checkpoint(tmp_path / "run", step)).header
        assert header.aim is not None
        assert header.aim.uses_of_alike == pytest.approx(step - 1)
        assert (header.aim.advice is not None) == (step == 5)
    aim = header.aim
    assert aim is not None
    assert "used 4.0 times on average, and more than 4 uses teach little" in str(aim.advice)
    is_now = "is lowest now, at" if aim.best_step == 5 else "was lowest at"
    assert str(aim.advice).endswith(f"the target's loss {is_now} step {aim.best_step}")


# --- what a target set that changes, or is not paid for, may not do ---


def test_all_of_a_group_target_is_kept_out_however_much_of_it_is_measured(tmp_path: Path) -> None:
    write_data(tmp_path / "train.jsonl", num_samples=300)
    recipe = tiny_recipe(
        tmp_path,
        target={"group": "b"},
        refresh={"max_cost": 0.02},
        training={"steps": 100, "samples_a_step": 8},
    )
    header = refresh(recipe, write_checkpoint(tmp_path / "run", 50)).header
    assert header.aim is not None and header.aim.num_overlap == 20 > header.aim.num_target
    places = Store.open(recipe.store).places(1)
    assert places is not None and (places.factors["allowed"] == 0).sum() == 20
    selected = Store.open(recipe.store).coreset(1)["row"].to_numpy()
    assert not (places.factors["allowed"][selected] == 0).any()


def test_other_selectors_and_reselects_keep_the_target_out_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_data(tmp_path / "train.jsonl")
    recipe = tiny_recipe(tmp_path, target={"group": "a"}, selection={"selector": "target-coverage"})
    refresh(recipe, write_checkpoint(tmp_path / "run", 100))
    store = Store.open(recipe.store)
    places = store.places(1)
    assert places is not None and set(places.factors) == {"allowed"}
    barred = np.flatnonzero(places.factors["allowed"] == 0)
    assert len(barred) == 10
    reselect(recipe.override({"selection.selector": "random"}))
    for version in (1, 2):
        assert not np.isin(store.renew().coreset(version)["row"].to_numpy(), barred).any()
    listed = {"selection.always_in": store.samples().sample_ids[barred[:2]].tolist()}
    reselect(recipe.override(listed))
    assert np.isin(barred[:2], store.renew().coreset(3)["row"].to_numpy()).all()
    assert "2 samples are always in and have the content of a target sample" in caplog.text


def test_rows_of_a_target_that_cannot_be_used_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = aimed(tmp_path)
    with (tmp_path / "target.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": "x", "response": ""}) + "\n")
        file.write(json.dumps({"prompt": "red cat " * 90, "response": "dog"}) + "\n")
    aim = refresh(recipe, write_checkpoint(tmp_path / "run", 100)).header.aim
    assert aim is not None and aim.num_target == 12
    told = "2 of 14 rows of the target .*, and the target is the others: the first is row 12: the"
    assert re.search(told, caplog.text)
    found = gracekit.init(
        tmp_path / "train.jsonl", target=tmp_path / "target.jsonl", output=tmp_path / "new.yaml"
    )
    assert any("1 of 14 rows of the target cannot be used" in note for note in found.warnings)


def test_a_first_version_that_measures_nothing_goes_by_likeness(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """All rows are left to later, and half of what is drawn is like the target all the same."""
    sections: dict[str, Any] = {
        "refresh": {"max_cost": 1e-6}, "training": {"steps": 100, "samples_a_step": 8},
    }  # fmt: skip
    recipe = aimed(tmp_path, **sections)
    with caplog.at_level(logging.INFO):
        first = refresh(recipe, write_checkpoint(tmp_path / "run", 100)).header
    assert first.aim is not None and first.aim.share_likeness == 0.5 == first.aim.share_uniform
    assert "nan" not in caplog.text
    assert "target: loss not measured; what is trained on follows 50% likeness" in caplog.text
    said = str(status(recipe.store))
    assert "it allowed no measuring, so no norms are known" in said and "nan" not in said
    store, samples = Store.open(recipe.store), Store.open(recipe.store).samples()
    places = store.places(1)
    assert places is not None
    of_a = samples.groups == samples.group_names.index("a")
    assert places.factors["aim"][of_a].mean() > 1.3 * places.factors["aim"][~of_a].mean()
    drawn = store.drawn(1)
    assert drawn is not None and drawn.draw is not None
    place = places.factors["aim"] * places.factors["dose"]
    expected = place * len(store.coreset(1)["row"]) / place.sum()
    np.testing.assert_allclose(drawn.draw.probabilities, np.minimum(expected, 1), atol=1e-5)
    second = refresh(recipe, write_checkpoint(tmp_path / "run", 200)).header
    assert second.aim is not None and second.aim.uses_of_alike > 0, "the dose goes on"


def test_another_target_set_begins_anew(tmp_path: Path) -> None:
    recipe = aimed(tmp_path)
    refresh(recipe, write_checkpoint(tmp_path / "run", 100))
    words = ["one", "two", "three", "four", "five", "sum"]
    rng = np.random.default_rng(2)
    with (tmp_path / "target.jsonl").open("w") as file:
        for i in range(12):
            text = rng.choice(words, 9).tolist()
            file.write(json.dumps({"prompt": f"{i} " + " ".join(text[:3]),
                                   "response": " ".join(text[3:])}) + "\n")  # fmt: skip
    checkpoint = write_checkpoint(tmp_path / "run", 200)
    second = refresh(recipe, checkpoint).header
    fresh = refresh(recipe.model_copy(update={"store": str(tmp_path / "fresh")}), checkpoint).header
    assert second.aim is not None and fresh.aim is not None
    assert second.aim.best_step == 200 and second.aim.advice is None
    assert np.isnan(second.aim.lasts_influence) or second.aim.lasts_influence == 1
    places, samples = Store.open(recipe.store).places(2), Store.open(recipe.store).samples()
    assert places is not None
    of_b = samples.groups == samples.group_names.index("b")
    assert places.factors["aim"][of_b].mean() > 2 * places.factors["aim"][~of_b].mean()


def test_losses_of_other_tokens_of_the_target_are_not_compared(tmp_path: Path) -> None:
    """Here the loss rises much, and would end the training where the target is read as before."""

    def spoil(model: Any) -> None:
        with torch.no_grad():
            model.lm_head.weight.mul_(8)

    refresh(aimed(tmp_path), write_checkpoint(tmp_path / "run", 100))
    later = write_checkpoint(tmp_path / "run", 200, spoil=spoil)
    aim = refresh(aimed(tmp_path, target={"max_length": 9}), later).header.aim
    assert aim is not None and aim.advice is None and aim.best_step == 200
    aim = refresh(aimed(tmp_path, selection={"fraction": 0.2}), later).header.aim
    assert aim is not None and aim.advice is not None and aim.best_step == 100


def test_copies_in_a_target_set_count_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A copy in the other half would judge what it has chosen itself."""
    recipe = aimed(tmp_path)
    rows = (tmp_path / "target.jsonl").read_text().splitlines()
    checkpoint = write_checkpoint(tmp_path / "run", 100)
    once = refresh(recipe, checkpoint).header.aim
    (tmp_path / "target.jsonl").write_text("\n".join([*rows, *rows[:5]]) + "\n")
    again = refresh(recipe.model_copy(update={"store": str(tmp_path / "s")}), checkpoint).header.aim
    assert once is not None and again is not None
    assert again.num_target == 12 and again.target_digest == once.target_digest
    assert again.gain_influence == once.gain_influence
    assert "5 of 17 target samples are copies of others: each counts once" in caplog.text
    (tmp_path / "target.jsonl").write_text("\n".join(rows[:1] * 9) + "\n")
    alone = refresh(recipe.model_copy(update={"store": str(tmp_path / "a")}), checkpoint).header.aim
    assert alone is not None and alone.num_target == 1
    assert "one sample is the whole target" in alone.why or "all rows are alike" in alone.why


def test_a_group_target_stays_the_same_while_the_data_grows(tmp_path: Path) -> None:
    write_data(tmp_path / "train.jsonl", num_samples=150)
    recipe = tiny_recipe(tmp_path, target={"group": "a", "group_count": 6})
    first = refresh(recipe, write_checkpoint(tmp_path / "run", 100)).header.aim
    write_data(tmp_path / "train.jsonl", num_samples=180)
    second = refresh(recipe, write_checkpoint(tmp_path / "run", 200)).header.aim
    assert first is not None and second is not None
    assert first.contents == second.contents and first.target_digest == second.target_digest


def test_a_rollback_to_before_the_data_grew_is_explained(tmp_path: Path) -> None:
    from gracekit.refresher import rollback

    write_data(tmp_path / "train.jsonl", num_samples=150)
    recipe = aimed(tmp_path)
    refresh(recipe, write_checkpoint(tmp_path / "run", 100))
    write_data(tmp_path / "train.jsonl", num_samples=160)
    refresh(recipe, write_checkpoint(tmp_path / "run", 200))
    assert rollback(recipe.store, 1).version == 3
    for sample_id in Store.open(recipe.store).samples().sample_ids[[0, 155]]:
        assert explain(recipe.store, sample_id).place is not None


def test_a_reselect_keeps_the_advice_and_asks_for_a_refresh_where_there_was_no_aim(
    tmp_path: Path,
) -> None:
    recipe = aimed(tmp_path, training={"stop": "stop"})
    first = refresh(recipe, write_checkpoint(tmp_path / "run", 100)).header.aim
    again = reselect(recipe.override({"selection.fraction": 0.2})).header.aim
    assert first is not None and again == first and again.stop == "stop"
    plain = tiny_recipe(tmp_path, store="plain")
    refresh(plain, tmp_path / "run/checkpoint-100")
    with pytest.raises(RecipeError, match="followed no target"):
        reselect(aimed(tmp_path, store="plain"))


def test_where_no_target_sample_is_paid_for_likeness_has_half(tmp_path: Path) -> None:
    recipe = aimed(
        tmp_path, refresh={"max_cost": 0.0}, training={"steps": 100, "samples_a_step": 8}
    )
    header = refresh(recipe, write_checkpoint(tmp_path / "run", 50)).header
    assert header.cost is not None and header.cost.cost == 0
    assert header.aim is not None and header.aim.share_likeness == 0.5
    assert np.isnan(header.aim.target_loss)
    places, samples = Store.open(recipe.store).places(1), Store.open(recipe.store).samples()
    assert places is not None
    is_like = samples.groups == samples.group_names.index("a")
    place = places.factors["aim"]
    assert place[is_like].mean() > 1.5 * place[~is_like].mean()


def test_the_target_is_measured_where_rows_are_left_to_a_later_refresh(tmp_path: Path) -> None:
    recipe = aimed(
        tmp_path, refresh={"max_cost": 0.06}, training={"steps": 400, "samples_a_step": 8}
    )
    first = refresh(recipe, write_checkpoint(tmp_path / "run", 40)).header
    second = refresh(recipe, write_checkpoint(tmp_path / "run", 80)).header
    assert (first.stats.num_measured or 0) >= 30 and second.stats.num_measured == 0
    assert first.aim is not None and first.aim.num_target >= 8
    assert second.aim is not None and second.aim.num_target >= 8
    assert np.isfinite(second.aim.target_loss), "its loss is wanted of every checkpoint"
    assert second.cost is not None and second.cost.cost > 0
    assert second.aim.share_uniform < 0.5, "what was found before holds"
    assert second.aim.gain_likeness == first.aim.gain_likeness
