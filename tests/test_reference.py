"""Losses under a reference model: measured once, kept in a file, and followed by selections."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM

import gracekit
from gracekit.aim.losses import LEAST_TRUST, distrusted, excess, group_shares, learned, trust
from gracekit.checkpoints import check_checkpoint
from gracekit.cli import main
from gracekit.errors import DataError, RecipeError, RefreshStoppedError
from gracekit.progress import Progress
from gracekit.recipe import Recipe
from gracekit.refresher import measure_reference
from gracekit.samples import load_samples, tokenize
from gracekit.samples.other_prompts import WithOtherPrompts, partners
from gracekit.samples.reference import ReferenceLosses
from gracekit.store import Store, connect
from tests.flips import flip_bit
from tests.stores import strings
from tests.tiny import make_tokenizer, tiny_recipe, write_checkpoint, write_data


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def losses(path: Path) -> ReferenceLosses:
    return ReferenceLosses.read(path)


def reference_of(recipe: Recipe, evidence: np.ndarray[Any, Any], path: Path) -> Path:
    """A file by which the samples of a recipe's data have given values."""
    samples = load_samples(recipe.data)
    loss = np.ones(len(samples), np.float32)
    ReferenceLosses(
        content_hashes=samples.content_hashes,
        sample_ids=samples.sample_ids,
        loss=loss,
        loss_other=loss + evidence.astype(np.float32),
        loss_alone=loss + evidence.astype(np.float32),
        num_targets=np.ones(len(samples), np.int32),
    ).write(path)
    return path


def test_losses_are_those_of_the_model(tmp_path: Path) -> None:
    """Beside the model called row by row, without our pass."""
    write_data(tmp_path / "train.jsonl", num_samples=30)
    recipe = tiny_recipe(tmp_path)
    checkpoint = write_checkpoint(tmp_path / "run", 100)
    found = gracekit.reference(recipe, checkpoint, output=tmp_path / "reference.parquet")
    assert found.num_known == found.num_samples == found.num_measured == 30
    samples = load_samples(recipe.data)
    tokens = tokenize(samples, make_tokenizer(), recipe.data, tmp_path / "tokens")
    loss, evidence = losses(tmp_path / "reference.parquet").of(samples.content_hashes)
    model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()

    def mean_loss(ids: list[int], counted: list[bool]) -> float:
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, :-1].double()
        of_token = torch.nn.functional.cross_entropy(
            logits, torch.tensor(ids[1:], dtype=torch.long), reduction="none"
        )
        return float(of_token[torch.tensor(counted[1:])].mean())

    taken = tokens.take(np.arange(30))
    partner_of = WithOtherPrompts(tokens, samples.groups, samples.content_hashes).partners
    for row, (ids, mask) in enumerate(taken):
        own = mean_loss(ids.tolist(), mask.tolist())
        others, other_mask = taken[partner_of[row]]
        assert samples.groups[partner_of[row]] == samples.groups[row]
        prompt, response = others[~other_mask].tolist(), ids[mask].tolist()
        assert prompt != ids[~mask].tolist()
        other = mean_loss(prompt + response, [False] * len(prompt) + [True] * len(response))
        assert loss[row] == pytest.approx(own, rel=1e-4)
        alone = mean_loss([int(ids[0]), *response], [False] + [True] * len(response))
        both = 0.75 * min(other, alone) + 0.25 * max(other, alone)
        told = (both - own) * np.sqrt(len(response))
        assert evidence[row] == pytest.approx(told, abs=5e-4)


def test_only_what_is_new_is_measured(tmp_path: Path) -> None:
    data = write_data(tmp_path / "train.jsonl", num_samples=40)
    recipe, checkpoint = tiny_recipe(tmp_path), write_checkpoint(tmp_path / "run", 100)
    place = tmp_path / "reference.parquet"
    lines = data.read_text().splitlines(keepends=True)
    data.write_text("".join(lines[:25]))
    assert gracekit.reference(recipe, checkpoint, output=place).num_measured == 25
    data.write_text("".join(lines))
    assert gracekit.reference(recipe, checkpoint, output=place).num_measured == 15
    at_once = tmp_path / "at-once.parquet"
    gracekit.reference(recipe, checkpoint, output=at_once)
    hashes = load_samples(recipe.data).content_hashes
    (ours, evidence), (theirs, at_once_evidence) = (
        losses(place).of(hashes),
        losses(at_once).of(hashes),
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    # Partners are those of the data at that time, so most are the same.
    assert np.isfinite(evidence).all()
    assert (abs(evidence - at_once_evidence) < 1e-4).mean() > 0.5


def test_a_stopped_pass_goes_on(tmp_path: Path) -> None:
    write_data(tmp_path / "train.jsonl", num_samples=40)
    recipe = tiny_recipe(tmp_path).override({"scoring.shard_rows": 8})
    checkpoint, place = write_checkpoint(tmp_path / "run", 100), tmp_path / "reference.parquet"
    found = check_checkpoint(checkpoint, recipe.checkpoints)

    class StopsLate(Progress):
        """Stops once most of the samples are done, as a user would."""

        num_done = 0

        def advance(self, num_rows: int, num_tokens: int) -> None:
            super().advance(num_rows, num_tokens)
            self.num_done += num_rows

        @property
        def is_stopping(self) -> bool:
            return self.num_done > 100

    with pytest.raises(RefreshStoppedError, match="goes on from there"):
        measure_reference(recipe, found, place, progress=StopsLate())
    before = len(losses(place))
    assert 0 < before < 40
    done = gracekit.reference(recipe, checkpoint, output=place)
    assert done.num_measured == 40 - before and done.num_known == 40


def test_copies_are_measured_once_and_rows_without_a_prompt_tell_nothing(tmp_path: Path) -> None:
    rows = [{"text": f"red green blue {i % 10} yellow", "source": "a"} for i in range(20)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe, place = tiny_recipe(tmp_path), tmp_path / "reference.parquet"
    found = gracekit.reference(recipe, write_checkpoint(tmp_path / "run", 100), output=place)
    assert (found.num_samples, found.num_measured, found.num_known) == (20, 10, 20)
    assert found.num_without_prompt == 20 and found.num_distrusted == 0


@pytest.mark.parametrize("spoil", ["model", "rendering", "columns", "bytes", "folder", "no folder"])
def test_a_file_that_does_not_fit_is_refused_and_kept(tmp_path: Path, spoil: str) -> None:
    write_data(tmp_path / "train.jsonl", num_samples=20)
    recipe, place = tiny_recipe(tmp_path), tmp_path / "reference.parquet"
    checkpoint = write_checkpoint(tmp_path / "run", 100)
    gracekit.reference(recipe, checkpoint, output=place)
    if spoil == "model":
        checkpoint = write_checkpoint(tmp_path / "run", 200)
    elif spoil == "rendering":
        recipe = recipe.override({"data.max_length": 12})
    elif spoil == "columns":
        pq.write_table(pq.read_table(place).drop_columns("loss"), place)
    elif spoil == "bytes":
        place.write_bytes(place.read_bytes()[:-20])
    elif spoil == "folder":
        place = tmp_path
    else:
        place = tmp_path / "none/reference.parquet"
    before = place.read_bytes() if place.is_file() else None
    with pytest.raises(DataError, match=str(place)):
        gracekit.reference(recipe, checkpoint, output=place)
    assert before is None or place.read_bytes() == before


def test_a_flipped_bit_is_another_file_and_never_another_loss(tmp_path: Path) -> None:
    place, n = tmp_path / "reference.parquet", 50
    rng = np.random.default_rng(0)
    values = rng.random((3, n), np.float32)
    whole = ReferenceLosses(
        content_hashes=strings([f"{i:032x}" for i in range(n)]),
        sample_ids=strings([str(i) for i in range(n)]),
        loss=values[0], loss_other=values[1], loss_alone=values[2],
        num_targets=rng.integers(1, 90, n).astype(np.int32),
        facts={"model": "m", "rendering": "r"},
    )  # fmt: skip
    whole.write(place)
    expected = whole.of(whole.content_hashes)
    size = place.stat().st_size
    num_refused = 0
    for bit in rng.integers(0, 8 * size, 300).tolist():
        before = flip_bit(place, bit)
        try:
            found = ReferenceLosses.read(place)
        except DataError:
            num_refused += 1
        else:
            np.testing.assert_array_equal(found.of(whole.content_hashes), expected)
            assert found.facts == whole.facts
        place.write_bytes(before)
    assert num_refused > 150


def test_a_file_without_a_checksum_is_read_as_it_is(tmp_path: Path) -> None:
    """As an earlier release wrote it."""
    place = tmp_path / "reference.parquet"
    ReferenceLosses(
        content_hashes=strings(["a"]), sample_ids=strings(["1"]), facts={"model": "m"},
        loss=np.ones(1, np.float32), loss_other=np.ones(1, np.float32),
        loss_alone=np.ones(1, np.float32), num_targets=np.ones(1, np.int32),
    ).write(place)  # fmt: skip
    table = pq.read_table(place)
    old = {b"gracekit.reference": json.dumps({"format": 1, "model": "m"})}
    pq.write_table(table.replace_schema_metadata(old), place)
    assert losses(place).facts == {"model": "m"}
    old = {b"gracekit.reference": json.dumps({"format": 2, "model": "m"})}
    pq.write_table(table.replace_schema_metadata(old), place)
    with pytest.raises(DataError, match="it differs from its checksum"):
        losses(place)


def test_a_distrusted_response_is_drawn_less(tmp_path: Path) -> None:
    write_data(tmp_path / "train.jsonl")
    recipe = tiny_recipe(tmp_path)
    n = len(load_samples(recipe.data))
    evidence = np.where(np.arange(n) % 10 == 3, -0.5, 1.0)
    evidence[4] = np.nan
    place = reference_of(recipe, evidence, tmp_path / "reference.parquet")
    checkpoint = write_checkpoint(tmp_path / "run", 100)
    changes: dict[str, Any] = {"selection.reference": str(place), "selection.trust": "weigh"}
    gracekit.refresh(recipe, checkpoint, set=changes)
    store = Store.open(recipe.store)
    places, drawn = store.places(1), store.drawn(1)
    assert places is not None and drawn is not None and drawn.draw is not None
    np.testing.assert_allclose(
        places.factors["trust"], np.where(evidence < 0, LEAST_TRUST, 1.0), rtol=1e-6
    )
    np.testing.assert_allclose(places.signals["evidence"], evidence, rtol=1e-6)
    bad = evidence < 0
    chances = drawn.draw.probabilities
    assert chances[bad].mean() < 0.2 * chances[~bad].mean()
    words = str(gracekit.status(recipe.store))
    assert f"{bad.sum()} of {n - 1} samples, whose prompts tell a reference model little" in words
    samples = store.samples()
    row = int(np.flatnonzero(bad)[0])
    assert samples.previews[row] in words
    why = str(gracekit.explain(recipe.store, samples.sample_ids[row]))
    assert "0.10 times because its prompt tells a reference model little" in why
    with connect(recipe.store) as connection:
        listed = connection.execute(
            "SELECT count(*) FROM places WHERE factor_trust < 1 AND evidence < 0"
        ).fetchone()
    assert listed == (int(bad.sum()),)
    assert gracekit.sql(recipe.store, "distrusted", count=5).to_arrow().num_rows == 5
    # From the stored scores, without a model: a cut, and nothing.
    gracekit.select(recipe.store, set={**changes, "selection.trust": "cut"})
    cut = Store.open(recipe.store).drawn(2)
    assert cut is not None and cut.draw is not None
    assert cut.draw.probabilities[bad].max() < 1e-3 < cut.draw.probabilities[~bad].min()
    gracekit.select(recipe.store, set={"selection.trust": "off", "selection.reference": None})
    assert Store.open(recipe.store).places(3) is None


def test_what_is_distrusted_after_rollbacks_and_in_grown_data(tmp_path: Path) -> None:
    """A rollback has no places of its own, nor has one to a rollback."""
    write_data(tmp_path / "train.jsonl", num_samples=60)
    recipe = tiny_recipe(tmp_path)
    evidence = np.where(np.arange(60) % 10 == 3, -0.5, 1.0)
    place = reference_of(recipe, evidence, tmp_path / "reference.parquet")
    changes: dict[str, Any] = {"selection.reference": str(place), "selection.trust": "weigh"}
    gracekit.refresh(recipe, write_checkpoint(tmp_path / "run", 100), set=changes)
    write_data(tmp_path / "train.jsonl", num_samples=70)
    gracekit.refresh(recipe, write_checkpoint(tmp_path / "run", 200))  # without trust
    for back_to, is_trusting in ((1, True), (2, False), (3, True)):
        gracekit.rollback(recipe.store, back_to)
        words = str(gracekit.status(recipe.store))
        assert ("6 of 60 samples, whose prompts tell a reference" in words) == is_trusting
        listed = gracekit.sql(recipe.store, "distrusted").to_arrow().num_rows
        assert listed == (6 if is_trusting else 0)


def test_excess_and_learned_change_places(tmp_path: Path) -> None:
    write_data(tmp_path / "train.jsonl")
    recipe = tiny_recipe(tmp_path, training={"steps": 1000})
    n = len(load_samples(recipe.data))
    place = reference_of(recipe, np.ones(n), tmp_path / "reference.parquet")
    changes = {
        "selection.reference": str(place),
        "selection.excess": 1.0,
        "selection.learned": 0.5,
        "selection.group_quota": "learned",
    }
    gracekit.refresh(recipe, write_checkpoint(tmp_path / "run", 100), set=changes)
    store = Store.open(recipe.store)
    places, loss = store.places(1), store.scores(1).scores["loss"]
    assert places is not None and set(places.factors) == {"excess", "group", "learned"}
    factor = places.factors["excess"]
    assert 0.5 <= factor.min() < 0.6 and 1.8 < factor.max() <= 2
    groups = store.samples().groups
    for group in np.unique(groups):
        of_group = groups == group
        order = np.argsort(loss[of_group], kind="stable")
        assert (np.diff(factor[of_group][order]) >= 0).all()
    np.testing.assert_array_equal(
        places.factors["learned"], np.where(loss < loss.mean(dtype=np.float64), 0.5, 1.0)
    )
    # In the last eighth of the run what is learned counts in full.
    gracekit.refresh(recipe, write_checkpoint(tmp_path / "run", 900), set=changes)
    last = Store.open(recipe.store).places(2)
    assert last is not None and (last.factors["learned"] == 1).all()


def test_partners_have_other_prompts() -> None:
    rng = np.random.default_rng(0)
    for n in (1, 2, 7, 300):
        groups = rng.integers(0, 3, n).astype(np.int32)
        prompts = rng.integers(0, 4, n).astype(np.int64)
        prompts[groups == 2] = 9  # a group of one prompt takes partners elsewhere
        hashes = strings([f"h{i}" for i in range(n)])
        has_prompt = rng.random(n) < 0.9
        found = partners(groups, hashes, prompts, has_prompt)
        there = found >= 0
        assert (prompts[found[there]] != prompts[there]).all() and has_prompt[found[there]].all()
        assert not there[~has_prompt].any()
        if len(np.unique(prompts[has_prompt])) > 1:
            assert there[has_prompt].all()
        for group in (0, 1):
            own = there & (groups == group)
            if len(np.unique(prompts[has_prompt & (groups == group)])) > 1:
                assert (groups[found[own]] == group).all()
        order = rng.permutation(n)  # the order of the data does not matter
        again = partners(groups[order], hashes[order], prompts[order], has_prompt[order])
        np.testing.assert_array_equal(np.where(again >= 0, order[again], -1), found[order])


def test_a_long_prompt_of_another_is_cut_in_its_middle(tmp_path: Path) -> None:
    words = " ".join(["red"] * 20)
    rows = [
        {"prompt": words, "response": "blue", "source": "a"},
        {"prompt": "green green", "response": " ".join(["blue"] * 18), "source": "a"},
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = tiny_recipe(tmp_path)
    samples = load_samples(recipe.data)
    tokens = tokenize(samples, make_tokenizer(), recipe.data, tmp_path / "tokens")
    both = WithOtherPrompts(tokens, samples.groups, samples.content_hashes)
    taken = both.take(np.arange(6))
    assert [len(ids) for ids, _ in taken] == both.lengths.tolist()
    assert both.lengths.max() == tokens.lengths.max()
    for (ids, mask), (own, own_mask) in zip(taken[2:4], tokens.take(np.arange(2)), strict=True):
        np.testing.assert_array_equal(ids[mask], own[own_mask])


def test_trust_falls_where_evidence_is_small() -> None:
    evidence = np.array([-5, 0.3, 0.8, 2, np.nan, np.inf], np.float32)
    found = trust(evidence)
    assert found[0] == np.float32(LEAST_TRUST) and LEAST_TRUST < found[1] < 1
    assert (found[2:] == 1).all()
    np.testing.assert_array_equal(distrusted(evidence), [True, True, False, False, False, False])


def test_excess_is_the_same_in_every_order() -> None:
    rng = np.random.default_rng(0)
    loss = rng.integers(0, 5, 60).astype(np.float32)
    groups = rng.integers(0, 3, 60).astype(np.int32)
    reference = np.ones(60, np.float32)
    reference[7] = np.nan
    found, order = excess(loss, reference, groups, 1.0), rng.permutation(60)
    again = excess(loss[order], reference[order], groups[order], 1.0)
    np.testing.assert_array_equal(again, found[order])
    assert found[7] == 1 and (excess(loss, reference, groups, 0.0) == 1).all()
    alone = excess(
        np.ones(3, np.float32), np.ones(3, np.float32), np.arange(3, dtype=np.int32), 2.0
    )
    assert (alone == 1).all()  # groups of one row


def test_the_rounding_of_a_loss_is_no_excess() -> None:
    """Where the reference is the very model, all rows are alike."""
    rng = np.random.default_rng(0)
    loss = rng.normal(3, 0.5, 60).astype(np.float32)
    groups = rng.integers(0, 3, 60).astype(np.int32)
    again = loss + rng.normal(0, 1e-5, 60).astype(np.float32)
    assert (excess(loss, again, groups, 1.0) == 1).all()
    later = loss - rng.random(60).astype(np.float32)
    assert excess(later, again, groups, 1.0).std() > 0.3


def test_what_changes_nothing_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What is learned of a run of unknown length, and trust in rows without prompts."""
    write_data(tmp_path / "train.jsonl", num_samples=40)
    recipe = tiny_recipe(tmp_path)
    place = reference_of(recipe, np.full(40, np.nan), tmp_path / "reference.parquet")
    changes: dict[str, Any] = {"selection.reference": str(place), "selection.learned": 0.5}
    changes["selection.trust"] = "weigh"
    checkpoint = write_checkpoint(tmp_path / "run", 100)
    gracekit.refresh(recipe, checkpoint, set=changes)
    assert "selection.learned changes nothing; set training.steps" in caplog.text
    assert "selection.trust changes nothing: no sample has a prompt" in caplog.text
    caplog.clear()
    changes["training.steps"] = 1000
    changes["store"] = str(tmp_path / "other")
    gracekit.refresh(recipe, checkpoint, set={**changes, "selection.trust": "off"})
    assert "changes nothing" not in caplog.text


def test_learned_waits_for_a_known_length_and_a_known_loss() -> None:
    loss, counted = np.array([1, 2, 9, np.nan], np.float32), np.ones(4, bool)
    np.testing.assert_array_equal(learned(loss, counted, 0.5, 0.2), [0.5, 0.5, 1, 1])
    for share in (0.9, 1.5, float("nan")):
        assert (learned(loss, counted, 0.5, share) == 1).all()
    assert (learned(loss * np.nan, counted, 0.5, 0.2) == 1).all()


def test_groups_share_by_what_is_left_to_learn() -> None:
    loss = np.repeat(np.array([4, 2.6, 9, 1.2], np.float32), (20, 20, 3, 20))
    groups = np.repeat(np.arange(4, dtype=np.int32), (20, 20, 3, 20))
    reference, counted = np.ones(63, np.float32), np.ones(63, bool)
    found = group_shares(loss, reference, counted, groups)
    mean = (loss - 1).mean()
    expected = {0: 2.0, 1: np.exp(1.6 - mean), 2: 1.0, 3: 0.5}
    for group, share in expected.items():
        np.testing.assert_allclose(found[groups == group], share, rtol=1e-5)
    assert (group_shares(loss, reference * np.nan, counted, groups) == 1).all()


def test_a_recipe_needs_the_file_that_it_goes_by(tmp_path: Path) -> None:
    write_data(tmp_path / "train.jsonl", num_samples=20)
    recipe = tiny_recipe(tmp_path)
    with pytest.raises(RecipeError, match="gracekit reference CHECKPOINT"):
        recipe.override({"selection.trust": "weigh"})
    missing = {"selection.trust": "weigh", "selection.reference": str(tmp_path / "none.parquet")}
    with pytest.raises(DataError, match="there are no losses of a reference model"):
        gracekit.refresh(recipe, write_checkpoint(tmp_path / "run", 100), set=missing)
    assert recipe.digest() == recipe.override({"selection.reference": "other"}).digest()


def test_another_file_is_another_selection(tmp_path: Path) -> None:
    write_data(tmp_path / "train.jsonl")
    recipe, checkpoint = tiny_recipe(tmp_path), write_checkpoint(tmp_path / "run", 100)
    n, place = len(load_samples(recipe.data)), tmp_path / "reference.parquet"
    changes = {"selection.reference": str(place), "selection.trust": "weigh"}
    for version, bad in enumerate((3, 7), 1):
        evidence = np.where(np.arange(n) % 10 == bad, -0.5, 1.0)
        reference_of(recipe, evidence, place)
        assert gracekit.refresh(recipe, checkpoint, set=changes).version == version
        again = gracekit.refresh(recipe, checkpoint, set=changes)
        assert again.version == version and not again.is_new


def test_a_cut_of_nearly_all_still_fills_the_budget(tmp_path: Path) -> None:
    write_data(tmp_path / "train.jsonl")
    recipe = tiny_recipe(tmp_path)
    n, place = len(load_samples(recipe.data)), tmp_path / "reference.parquet"
    reference_of(recipe, np.where(np.arange(n) < 5, 1.0, -1.0), place)
    changes = {"selection.reference": str(place), "selection.trust": "cut"}
    gracekit.refresh(recipe, write_checkpoint(tmp_path / "run", 100), set=changes)
    rows = Store.open(recipe.store).coreset(1)["row"].to_numpy()
    assert set(range(5)) <= set(rows.tolist()) and len(rows) == round(0.3 * n)


def test_a_row_alone_is_asked_again_when_it_has_company(tmp_path: Path) -> None:
    data = write_data(tmp_path / "train.jsonl", num_samples=20)
    recipe, checkpoint = tiny_recipe(tmp_path), write_checkpoint(tmp_path / "run", 100)
    lines, place = data.read_text().splitlines(keepends=True), tmp_path / "reference.parquet"
    data.write_text(lines[0])
    assert gracekit.reference(recipe, checkpoint, output=place).num_without_prompt == 1
    data.write_text("".join(lines))

    class StopsAtOnce(Progress):
        """As a user does who thinks better of it while the model is loaded."""

        is_stopping = True

    with pytest.raises(RefreshStoppedError, match=r"stopped after 0 of 20"):
        measure_reference(
            recipe, check_checkpoint(checkpoint, recipe.checkpoints), place, progress=StopsAtOnce()
        )
    assert len(losses(place)) == 1, "what it had is lost only for something better"
    found = gracekit.reference(recipe, checkpoint, output=place)
    assert (found.num_measured, found.num_without_prompt) == (20, 0)
    assert len(losses(place)) == 20


def test_recipes_of_before_keep_their_hash() -> None:
    """By it a version is recognised: a restarted daemon makes none anew."""
    before = {"feature_width": None}  # as a store of then has it, and so its refreshes
    recipe = Recipe.from_dict({"data": {"path": "x.jsonl"}, "scoring": before})
    assert recipe.digest() == "56239a26b1c5a852"


def test_the_command_says_what_it_measured(tmp_path: Path) -> None:
    write_data(tmp_path / "train.jsonl", num_samples=20)
    recipe = tmp_path / "gracekit.yaml"
    recipe.write_text(
        "data: {path: train.jsonl, group_column: source}\nselection: {reference: ref.parquet}\n"
    )
    checkpoint = write_checkpoint(tmp_path / "run", 100)
    command = ["reference", str(checkpoint), "--recipe", str(recipe)]
    shown = CliRunner().invoke(main, command)
    assert shown.exit_code == 0, shown.output
    assert "20 contents" in shown.output and (tmp_path / "ref.parquet").exists()
    again = CliRunner().invoke(main, [*command, "--json"])
    assert json.loads(again.stdout)["num_measured"] == 0


def test_weights_alone_take_the_rest_from_the_base_model(tmp_path: Path) -> None:
    """As for a refresh: what `accelerate save_state` leaves has neither config nor tokenizer."""
    write_data(tmp_path / "train.jsonl", num_samples=20)
    base, state = write_checkpoint(tmp_path / "run", 100), tmp_path / "states/step_5"
    state.mkdir(parents=True)
    shutil.copy(base / "model.safetensors", state)
    for name in ("optimizer.bin", "random_states_0.pkl"):
        (state / name).write_bytes(b"not read")
    recipe = tiny_recipe(tmp_path).override({"checkpoints.base_model": str(base)})
    found = gracekit.reference(recipe, state, output=tmp_path / "reference.parquet")
    expected = gracekit.reference(tiny_recipe(tmp_path), base, output=tmp_path / "of-base.parquet")
    assert found.num_known == 20 and found.mean_loss == pytest.approx(expected.mean_loss)
