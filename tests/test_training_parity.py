"""Whether a trainer's rows are what was measured: told by the tokens themselves."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Trainer, TrainerCallback

import gracekit
from gracekit import Recipe, check_tokens
from gracekit.errors import CheckpointIncompleteError, DataError, RecipeError
from gracekit.recipe import DataSection
from gracekit.samples import Conversation, hashes_of, rendered_tokens, tokens_key, trl_templates
from gracekit.store import StoreReader
from gracekit.training import Coreset, CoresetCallback, likeness
from gracekit.training.measured import Measured
from gracekit.training.parity import check_rows
from gracekit.training.parity_report import spans_of
from gracekit.training.trainer_rows import TrainerRows
from gracekit.types import Json
from tests.test_training_callback import train
from tests.tiny import make_tokenizer, recipe_content, tiny_recipe, write_checkpoint, write_data

NUM_ROWS = 40
ONCE: dict[str, Any] = {"num_train_epochs": 1, "save_strategy": "no"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a checkpoint and a store with one version."""
    folder = tmp_path_factory.mktemp("parity")
    write_data(folder / "train.jsonl", num_samples=NUM_ROWS)
    checkpoint = write_checkpoint(folder / "run", 10)
    gracekit.refresh(tiny_recipe(folder), checkpoint)
    return folder


@pytest.fixture(scope="module")
def fed(world: Path) -> list[dict[str, Any]]:
    """The rows as a trainer feeds them that does the same as gracekit."""
    return rows_of(world / "train.jsonl")


def rows_of(path: Path, *, max_length: int = 64) -> list[dict[str, Any]]:
    tokenizer = make_tokenizer()
    rows = []
    for line in path.read_text().splitlines():
        row = json.loads(line)
        prompt = tokenizer(row["prompt"] + "\n")["input_ids"]
        answer = tokenizer(row["response"])["input_ids"] + [tokenizer.eos_token_id]
        ids = (prompt + answer)[:max_length]
        rows.append({"input_ids": ids, "labels": ([-100] * len(prompt) + answer)[:max_length]})
    return rows


def as_dataset(rows: list[dict[str, Any]]) -> Any:
    return datasets.Dataset.from_list(rows)


def test_equal_tokens_are_equal_in_every_form(world: Path, fed: list[dict[str, Any]]) -> None:
    store = world / "store"
    masks = [
        {
            "input_ids": row["input_ids"],
            "completion_mask": [int(label != -100) for label in row["labels"]],
            "assistant_masks": [1] * len(row["labels"]),
        }
        for row in fed
    ]
    padded = [
        {
            "input_ids": [0, 0, *row["input_ids"]],
            "labels": [-100, -100, *row["labels"]],
            "attention_mask": [0, 0] + [1] * len(row["labels"]),
        }
        for row in fed
    ]
    for rows in (fed, as_dataset(fed), as_dataset(fed).with_format("torch"), masks, padded):
        found = check_tokens(rows, store)
        assert found.ok and found.num_compared == NUM_ROWS, found.lines()
        assert found.matched_by == "position" and found.sample_ids is None


def test_the_first_token_that_differs_is_told_on_both_sides(
    world: Path, fed: list[dict[str, Any]]
) -> None:
    rows = [dict(row) for row in fed]
    rows[7] = {**rows[7], "input_ids": [*rows[7]["input_ids"][:3], 2, *rows[7]["input_ids"][4:]]}
    rows[9] = {**rows[9], "labels": [-100, *rows[9]["input_ids"][1:]]}
    rows[11] = {name: values[:-1] for name, values in rows[11].items()}
    found = check_tokens(rows, world / "store", tokenizer=make_tokenizer())
    assert not found.ok and found.num_different == 3
    ids, loss, length = found.differences
    assert (ids.position, ids.what, ids.index, ids.there, ids.there_text) == (
        7, "ids", 3, 2, "<unk>",
    )  # fmt: skip
    assert ids.here == fed[7]["input_ids"][3] and ids.sample_id == ids_of(world)[7]
    assert (loss.position, loss.what) == (9, "loss")
    num_prompt = fed[9]["labels"].count(-100)
    last = len(fed[9]["input_ids"]) - 1
    assert (loss.here_loss, loss.there_loss) == (((num_prompt, last),), ((1, last),))
    assert (length.position, length.what, length.index) == (11, "length", length.there_length)
    assert (length.here_text, length.there_text) == ("<eos>", None)
    text = "\n".join(found.lines())
    assert f"gracekit puts loss on tokens {num_prompt}..{last}, the trainer on tokens 1.." in text
    assert json.loads(json.dumps(found.to_json()))["differences"][0]["index"] == 3


def as_held(rows: list[dict[str, Any]], how: str) -> Any:
    """The rows as a list, in Arrow, or made by a transform as they are asked for."""
    if how == "list":
        return rows
    dataset = datasets.Dataset.from_list(rows)
    return dataset.with_transform(lambda batch: batch) if how == "transform" else dataset


@pytest.mark.parametrize("how", ["list", "arrow", "transform"])
def test_rows_between_those_of_the_first_check_are_told_too(
    world: Path, fed: list[dict[str, Any]], how: str
) -> None:
    measured = Measured.of_store(StoreReader.open(world / "store"))
    same = check_rows(TrainerRows(as_held(fed, how)), measured, most=8)
    assert same.ok and (same.num_compared, same.matched_by) == (8, "position")
    is_cheap = how != "transform"
    told = "so are the tokens of all 40 rows" if is_cheap else "were not looked at"
    assert same.has_seen_all is is_cheap and told in same.lines()[0]
    moved = [*fed[:1], *fed[1:5][::-1], *fed[5:]]  # none of these five is among the eight
    found = check_rows(TrainerRows(as_held(moved, how)), measured, most=8)
    assert found.ok is not is_cheap
    if is_cheap:
        expected = ids_of(world)
        expected[1:5] = expected[1:5][::-1]
        assert (found.matched_by, found.sample_ids) == ("content", expected)


@pytest.mark.parametrize("ids", ["abc", ["a", "b"], [[1, 2]], [0.5], None, 7])
def test_ids_that_are_none_are_refused(world: Path, fed: list[dict[str, Any]], ids: Any) -> None:
    with pytest.raises(DataError, match=r"row [01] of the trainer's dataset has no tokens"):
        check_tokens([*fed[:1], {"input_ids": ids}], world / "store")
    with pytest.raises(DataError, match=r"row 0 of the dataset .* has loss_mask, which trainers"):
        check_tokens([{"input_ids": [5, 6], "loss_mask": [0, 1]}], world / "store")


def ids_of(world: Path) -> list[str]:
    store = gracekit.Store.open(world / "store")
    samples = store.samples()
    return [str(i) for i in samples.sample_ids[np.argsort(samples.source_rows)]]


def test_settings_that_mend_are_tried(world: Path, fed: list[dict[str, Any]]) -> None:
    everything = [{"input_ids": row["input_ids"]} for row in fed]
    found = check_tokens(everything, world / "store", tokenizer=make_tokenizer())
    assert found.advice is not None and "data.loss_on: all" in found.advice
    assert "5 of 5 all rows" in found.advice
    without = check_tokens(everything, world / "store")
    assert without.advice is not None and "data.loss_on: all" in without.advice
    cut = [{name: values[:6] for name, values in row.items()} for row in fed]
    found = check_tokens(cut, world / "store", tokenizer=make_tokenizer())
    assert found.advice is not None and "data.max_length: 6" in found.advice


@settings(max_examples=6)
@given(order=st.permutations(range(NUM_ROWS)), num_kept=st.integers(5, NUM_ROWS))
def test_rows_are_told_by_their_tokens_wherever_they_stand(
    world: Path, fed: list[dict[str, Any]], order: list[int], num_kept: int
) -> None:
    kept = order[:num_kept]
    found = check_tokens([fed[i] for i in kept], world / "store")
    assert not found.num_different
    if kept == list(range(NUM_ROWS)):
        assert found.ok
        return
    assert found.sample_ids == [ids_of(world)[i] for i in kept]
    assert found.matched_by == "content" and not found.ok
    assert ("the rest is drawn" in " ".join(found.problems)) == (num_kept < NUM_ROWS)


def test_rows_that_are_cut_are_told_where_that_is_unique(
    world: Path, fed: list[dict[str, Any]]
) -> None:
    shortest = min(len(row["input_ids"]) for row in fed)
    cut = [{name: values[:8] for name, values in row.items()} for row in fed[::-1]]
    found = check_tokens(cut, world / "store")
    ids = ids_of(world)[::-1]
    assert found.sample_ids is not None and shortest > 4
    told = [(a, b) for a, b in zip(found.sample_ids, ids, strict=True) if "not in" not in a]
    assert len(told) > NUM_ROWS // 2 and all(a == b for a, b in told)


def test_packed_rows_and_other_data_are_refused_by_name(
    world: Path, fed: list[dict[str, Any]]
) -> None:
    packed = [
        {name: fed[i][name] + fed[i + 1][name] for name in fed[i]} for i in range(0, NUM_ROWS, 2)
    ]
    found = check_tokens(packed, world / "store")
    assert found.matched_by == "nothing" and "packed" in found.problems[0]
    other = [{"input_ids": [50, 51, i], "labels": [50, 51, i]} for i in range(7)]
    found = check_tokens(other, world / "store")
    assert found.matched_by == "nothing" and "7 rows and the data 40" in found.problems[0]
    with pytest.raises(DataError, match="no column input_ids; found text"):
        check_tokens([{"text": "a"}], world / "store")
    with pytest.raises(DataError, match="no rows"):
        check_tokens([], world / "store")


def test_repeated_rows_are_told_once(world: Path, fed: list[dict[str, Any]]) -> None:
    found = check_tokens([*fed, fed[3]], world / "store")
    assert found.sample_ids is not None and len(set(found.sample_ids)) == NUM_ROWS + 1
    assert found.sample_ids[:NUM_ROWS] == ids_of(world)
    assert "1 rows of the trainer's dataset repeat tokens" in " ".join(found.problems)


def test_hashes_do_without_the_cache_of_tokens(
    world: Path, fed: list[dict[str, Any]], tmp_path: Path
) -> None:
    import shutil

    shutil.copytree(world / "store", tmp_path / "store")
    shutil.rmtree(tmp_path / "store" / "cache")
    assert check_tokens(fed, tmp_path / "store").ok
    found = check_tokens(fed[::-1], tmp_path / "store")
    assert found.sample_ids == ids_of(world)[::-1]
    rows = [{"input_ids": row["input_ids"]} for row in fed]
    found = check_tokens(rows, tmp_path / "store")
    assert found.num_different and found.differences[0].here_loss is None
    assert {d.what for d in found.differences} == {"loss"}


def test_the_command(world: Path, fed: list[dict[str, Any]], tmp_path: Path) -> None:
    file = tmp_path / "tokenised.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in fed))
    recipe = tmp_path / "gracekit.yaml"
    content = recipe_content(data={"path": str(world / "train.jsonl")})
    recipe.write_text(json.dumps(content))
    make_tokenizer().save_pretrained(tmp_path / "tokenizer")

    def run(*arguments: Any) -> Any:
        command = [sys.executable, "-m", "gracekit", "check", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = run(recipe, "--dataset", file, "--tokenizer", tmp_path / "tokenizer", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["ok"] is True, done.stderr
    with pytest.raises(DataError, match="name the trainer's tokenizer"):
        check_tokens(fed, recipe)
    file.write_text("".join(json.dumps({"input_ids": r["input_ids"]}) + "\n" for r in fed))
    done = run(world / "store", "--dataset", file)
    assert done.returncode == 1 and "data.loss_on: all" in done.stdout


def test_the_callback_draws_the_right_rows_of_a_shuffled_dataset(
    world: Path, fed: list[dict[str, Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    order = np.random.default_rng(0).permutation(NUM_ROWS)[:35]
    callback = CoresetCallback(world / "store", redraw="never", record=tmp_path / "drawn.jsonl")
    rows = [{"input_ids": fed[i]["input_ids"][:12], "labels": fed[i]["labels"][:12]} for i in order]
    lengths = {len(row["input_ids"]) for row in rows}
    assert len(lengths) > 1
    with caplog.at_level(logging.WARNING):
        train(
            tmp_path / "run", callback, dataset=rows, kind=OwnRows,
            num_train_epochs=1, save_strategy="no",
        )  # fmt: skip
    assert "matched by their tokens" in caplog.text
    assert "data.max_length" in caplog.text
    drawn = json.loads((tmp_path / "drawn.jsonl").read_text().splitlines()[0])
    assert drawn["version"] == 1
    ids = ids_of(world)
    assert [ids[order[p]] for p in drawn["positions"]] == drawn["sample_ids"]
    assert set(drawn["sample_ids"]) <= set(Coreset.load(world / "store").sample_ids.tolist())


class OwnRows(Trainer):  # type: ignore[misc]
    """Pads its batches."""

    def __init__(self, **arguments: Any) -> None:
        from transformers import DataCollatorForSeq2Seq

        collator = DataCollatorForSeq2Seq(make_tokenizer(), padding=True)
        super().__init__(data_collator=collator, **arguments)


def test_hashes_and_spans() -> None:
    ids = np.array([3, 1, 2], np.int32)
    mask = np.array([False, True, True])
    assert hashes_of(ids, mask) != hashes_of(ids[::-1], mask)
    assert hashes_of(ids, mask)[0] == hashes_of(ids, ~mask)[0]
    assert spans_of(np.array([0, 1, 1, 0, 1], bool)) == ((1, 2), (4, 4))
    assert spans_of(np.zeros(0, bool)) == ()


def test_a_rendering_that_is_not_built_is_no_recipe() -> None:
    for value in ("axolotl:qwen", "llamafactory", "llamafactory:", "nemo"):
        with pytest.raises(RecipeError, match=r"data\.rendering"):
            Recipe.from_dict({"data": {"path": "a", "rendering": value}})
    with pytest.raises(RecipeError, match="contradict"):
        Recipe.from_dict({"data": {"path": "a", "rendering": "trl", "chat_template": True}})


def test_init_warns_of_texts_that_are_rendered_already(tmp_path: Path) -> None:
    rows = ["<s>[INST] a [/INST] b</s>", "<|im_start|>user\na", "plain"]
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    found = gracekit.init(file, output=tmp_path / "a.yaml")
    (warning,) = found.warnings
    assert warning.startswith("2 of the first 3 samples (row 0 is one) hold what a chat template")
    assert "gracekit check" in warning
    file.write_text(json.dumps({"text": "plain <s>"}) + "\n")
    assert gracekit.init(file, output=tmp_path / "b.yaml").warnings == ()


def test_a_store_takes_up_what_comes_late(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """More tokens, a chat template, and a checkpoint that has lost it again."""
    write_data(tmp_path / "train.jsonl", num_samples=NUM_ROWS)
    recipe = tiny_recipe(tmp_path)
    checkpoints = [write_checkpoint(tmp_path / "run", step) for step in (1, 2, 3, 4)]
    gracekit.refresh(recipe, checkpoints[0])
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<more>", "<and more>"])
    tokenizer.save_pretrained(checkpoints[1])
    before = gracekit.Store.open(recipe.store).samples()
    assert gracekit.refresh(recipe, checkpoints[1]).version == 2
    after = gracekit.Store.open(recipe.store).samples()
    assert np.array_equal(before.token_hashes, after.token_hashes) and before.token_hashes.all()

    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role + ' ' + m.content + eos_token }}{% endfor %}"
    )
    tokenizer.save_pretrained(checkpoints[2])
    result = gracekit.refresh(recipe, checkpoints[2])
    assert "has a chat template now" in caplog.text
    assert result.header.refresh is not None and result.header.refresh.num_measured == NUM_ROWS
    late = gracekit.Store.open(recipe.store).samples()
    assert (late.token_hashes != before.token_hashes).all()
    assert (late.content_versions == 3).all()
    with pytest.raises(CheckpointIncompleteError, match="no chat template, and those of earlier"):
        gracekit.refresh(recipe, checkpoints[3])
    tokenizer.save_pretrained(checkpoints[3])
    assert gracekit.refresh(recipe, checkpoints[3]).version == 4


def test_the_template_that_trl_trains_with_is_read_from_where_trl_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = "{% for m in messages %}{{ m.role + ' ' + m.content + eos_token }}{% endfor %}"
    marked = (
        "{% for m in messages %}{{ m.role }}{% if m.role == 'assistant' %}{% generation %}"
        "{{ ' ' + m.content + eos_token }}{% endgeneration %}{% else %}{{ ' ' + m.content }}"
        "{% endif %}{% endfor %}"
    )
    (tmp_path / "a.jinja").write_text(own)
    (tmp_path / "a_training.jinja").write_text(marked)
    (tmp_path / "b_training.jinja").write_text("alone")
    tokenizer = make_tokenizer()
    tokenizer.chat_template = own
    messages = (
        {"role": "user", "content": "red two"},
        {"role": "assistant", "content": "blue"},
    )
    conversation = Conversation(messages=messages)

    def tokens(**settings: Any) -> tuple[list[str], list[str]]:
        data = DataSection(path="-", **{"rendering": "trl", "loss_on": "response", **settings})
        ((ids, mask),) = rendered_tokens([conversation], tokenizer, data)
        return tokenizer.decode(ids).split(), tokenizer.decode(ids[mask]).split()

    def key(**settings: Any) -> str:
        data = DataSection(path="-", **{"rendering": "trl", "loss_on": "response", **settings})
        return tokens_key(tokenizer, data, "")

    monkeypatch.setattr(trl_templates, "templates_folder", lambda: None)
    without, key_without, key_of_all = tokens(), key(), key(loss_on="all")
    assert without[0].count("<eos>") == 2
    monkeypatch.setattr(trl_templates, "templates_folder", lambda: tmp_path)
    assert tokens()[0].count("<eos>") == 1 and tokens()[1] == ["blue", "<eos>"]
    assert key() != key_without and key(loss_on="all") == key_of_all
    assert tokens(loss_on="all")[0] == tokens(rendering="chat")[0] == without[0]
    assert trl_templates.training_template(marked) is None  # TRL keeps a template with marks
    assert trl_templates.training_template(own + " ") is None


def test_each_row_is_asked_for_once(world: Path, fed: list[dict[str, Any]]) -> None:
    asked: list[int] = []

    def collate(batch: list[dict[str, Any]]) -> dict[str, Any]:
        asked.append(len(batch))
        return {name: [row[name] for row in batch] for name in batch[0]}

    assert check_tokens(fed, world / "store", collate=collate).ok
    assert asked == [1] * NUM_ROWS


def other_tokens(fed: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same rows with a token more before each, which no setting gives."""
    return [{name: [2, *values] for name, values in row.items()} for row in fed]


@pytest.mark.parametrize("with_cache", [True, False], ids=["tokens", "lengths"])
def test_rows_with_other_tokens_are_drawn_by_position_only_where_they_resemble_the_samples(
    world: Path, fed: list[dict[str, Any]], tmp_path: Path, with_cache: bool
) -> None:
    store = world / "store" if with_cache else without_cache(world, tmp_path)
    rows = other_tokens(fed)
    found = check_tokens(rows, store)
    assert found.matched_by == "position" and found.num_different == NUM_ROWS
    order = np.random.default_rng(1).permutation(NUM_ROWS).tolist()
    shuffled = [rows[i] for i in order]
    found = check_tokens(shuffled, store)
    assert found.matched_by == "nothing" and found.num_compared == 0
    assert "may stand in another order" in found.problems[0]
    ids = [ids_of(world)[i] for i in order]
    found = check_tokens(shuffled, store, sample_ids=ids)
    assert found.matched_by == "sample_ids" and found.num_compared == NUM_ROWS


@pytest.mark.parametrize("num_rows", [NUM_ROWS, 400])
def test_other_rows_among_rows_with_other_tokens_are_not_drawn(
    tmp_path: Path, num_rows: int
) -> None:
    """No row has the tokens of a sample; still each is the one at its place, or of other data."""
    write_data(tmp_path / "train.jsonl", num_samples=num_rows)
    gracekit.refresh(tiny_recipe(tmp_path), write_checkpoint(tmp_path / "run", 10))
    rows = other_tokens(rows_of(tmp_path / "train.jsonl"))
    replaced = [3, 11, num_rows - 1]
    write_data(tmp_path / "others.jsonl", num_samples=num_rows + 3)
    others = other_tokens(rows_of(tmp_path / "others.jsonl"))[num_rows:]
    for position, other in zip(replaced, (0, 0, 1), strict=True):
        rows[position] = others[other]  # of another group: other words
    rows[0] = rows[1]
    found = check_tokens(rows, tmp_path / "store")
    assert not found.ok and found.matched_by == "position"
    assert f"4 of {num_rows} rows" in found.problems[0] and "is row 0)" in found.problems[0]
    assert found.sample_ids is not None
    told = {i for i, given in enumerate(found.sample_ids) if "not in the store" in given}
    assert told == {0, *replaced}
    ids = ids_of(tmp_path)
    assert all(found.sample_ids[i] == ids[i] for i in range(num_rows) if i not in told)
    assert found.num_different == num_rows - 4


@pytest.mark.parametrize("capped", ["MOST_COMPARED", "MOST_TOKENS"])
def test_of_many_rows_with_other_tokens_some_speak_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capped: str
) -> None:
    """Every second row is compared, or a third of them, in blocks of about three."""
    monkeypatch.setattr(likeness, "BLOCK_TOKENS", 100)
    monkeypatch.setattr(likeness, capped, 200)
    write_data(tmp_path / "train.jsonl", num_samples=400)
    gracekit.refresh(tiny_recipe(tmp_path), write_checkpoint(tmp_path / "run", 10))
    rows = other_tokens(rows_of(tmp_path / "train.jsonl"))
    write_data(tmp_path / "others.jsonl", num_samples=403)
    others = other_tokens(rows_of(tmp_path / "others.jsonl"))[400:]
    for position in (0, 1, 399):  # the first and the last are always compared
        rows[position] = others[0]
    found = check_tokens(rows, tmp_path / "store")
    assert found.matched_by == "position" and "2 of 400 rows" in found.problems[0]
    assert found.sample_ids is not None
    told = [i for i, given in enumerate(found.sample_ids) if "not in the store" in given]
    assert told == [0, 399]


@pytest.mark.parametrize("order", ["as the data", "shuffled", "other rows"])
def test_a_cut_row_that_a_shorter_sample_is_equal_to(tmp_path: Path, order: str) -> None:
    """Both have the same tokens in the trainer, and each of them is one of the two samples."""
    rng = np.random.default_rng(0)
    samples = [rng.integers(3, 30, rng.integers(6, 12)).tolist() for _ in range(12)]
    samples[2] = [5, 6, 7, 8, 9, 10, 11, 12]
    samples[7] = samples[2][:5]
    lines = [json.dumps({"input_ids": ids, "labels": ids, "source": "a"}) + "\n" for ids in samples]
    (tmp_path / "train.jsonl").write_text("".join(lines))
    gracekit.refresh(tiny_recipe(tmp_path), write_checkpoint(tmp_path / "run", 10))
    ids, places = ids_of(tmp_path), [*range(12)]
    if order == "shuffled":
        places = rng.permutation(12).tolist()
    rows = [{"input_ids": samples[i][:5], "labels": samples[i][:5]} for i in places]
    if order == "other rows":
        rows[4] = {name: [28, 3, 29, 4] for name in rows[4]}
    found = check_tokens(rows, tmp_path / "store")
    given = [ids[i] for i in places] if found.sample_ids is None else found.sample_ids
    if order == "shuffled":  # which of the two rows is which is no matter
        given = [ids[2] if i == ids[7] else i for i in given]
        assert given == [ids[2] if i == 7 else ids[i] for i in places]
        assert len({*(found.sample_ids or [])} & {*ids}) == 12
    elif order == "other rows":
        assert [i for i, sample in enumerate(given) if sample != ids[i]] == [4]
    else:
        assert found.sample_ids is None and not found.problems
        assert found.matched_by == "position" and found.num_different == 11


def test_rows_that_were_put_in_the_place_of_others_are_not_taken_for_these(
    world: Path, fed: list[dict[str, Any]]
) -> None:
    """As many rows as the data has, some of them repeated, and some of other data."""
    rows = [*fed[:10], *[fed[3]] * 4, *fed[14:]]
    found = check_tokens(rows, world / "store")
    assert found.matched_by == "position" and not found.ok and not found.num_different
    assert f"4 of {NUM_ROWS} rows of the trainer's dataset are not the samples" in found.problems[0]
    ids = ids_of(world)
    assert found.sample_ids is not None
    assert [*found.sample_ids[:10], *found.sample_ids[14:]] == [*ids[:10], *ids[14:]]
    assert all("not in the store" in given for given in found.sample_ids[10:14])
    others = [{name: [9, 11, 13] * 5 for name in fed[0]} for _ in range(5)]
    found = check_tokens([*fed[:20], *others, *fed[25:]], world / "store")
    assert f"5 of {NUM_ROWS} rows" in found.problems[0] and "is row 20)" in found.problems[0]


def test_a_row_that_the_trainer_changes_a_little_stays_the_sample_at_its_place(
    world: Path, fed: list[dict[str, Any]]
) -> None:
    changed = {name: [*values[:-2], 7] for name, values in fed[8].items()}
    longer = {name: [5, *values, 6] for name, values in fed[9].items()}
    found = check_tokens([*fed[:8], changed, longer, *fed[10:]], world / "store")
    assert found.sample_ids is None and found.num_different == 2 and not found.problems


def without_cache(world: Path, folder: Path) -> Path:
    """The store without its cache of tokens."""
    shutil.copytree(world / "store", folder / "store")
    shutil.rmtree(folder / "store/cache")
    return folder / "store"


@pytest.mark.parametrize("with_cache", [True, False], ids=["tokens", "lengths"])
def test_rows_that_the_trainer_changes_all_the_same_stay_where_they_are(
    world: Path, fed: list[dict[str, Any]], tmp_path: Path, with_cache: bool
) -> None:
    """Every other row has a token more; without kept tokens lengths alone are compared."""
    store = world / "store" if with_cache else without_cache(world, tmp_path)
    longer = [{name: [*values, 7] for name, values in row.items()} for row in fed]
    found = check_tokens([(fed, longer)[i % 2][i] for i in range(NUM_ROWS)], store)
    assert found.sample_ids is None and found.matched_by == "position" and not found.problems


@pytest.mark.parametrize("is_fixed", [False, True], ids=["lists", "fixed"])
def test_padded_rows_are_told_wherever_they_stand(
    world: Path, fed: list[dict[str, Any]], is_fixed: bool
) -> None:
    most = max(len(row["input_ids"]) for row in fed)
    rows = []
    for row in fed:
        num_more = most - len(row["input_ids"])
        rows.append({
            "input_ids": [*row["input_ids"], *[0] * num_more],
            "labels": [*row["labels"], *[-100] * num_more],
            "attention_mask": [*[1] * len(row["input_ids"]), *[0] * num_more],
        })  # fmt: skip
    kind = datasets.List(datasets.Value("int64"), length=most if is_fixed else -1)
    padded = datasets.Dataset.from_list(
        rows, features=datasets.Features(dict.fromkeys(rows[0], kind))
    )
    assert check_tokens(padded, world / "store").ok
    order = np.random.default_rng(1).permutation(NUM_ROWS).tolist()
    for shuffled in (padded.select(order), [rows[i] for i in order]):
        found = check_tokens(shuffled, world / "store")
        assert found.sample_ids == [ids_of(world)[i] for i in order] and not found.num_different


def as_pairs(fed: list[dict[str, Any]], prompt: str, chosen: str) -> Any:
    """As TRL's trainers of preferences have rows; those of rewards join prompt and answer."""
    rows = []
    for row in fed:
        at = row["labels"].count(-100) if prompt else 0
        parts = {chosen: row["input_ids"][at:], "rejected_ids": [5, 6]}
        rows.append(parts | ({prompt: row["input_ids"][:at]} if prompt else {}))
    return as_dataset(rows)


@pytest.mark.parametrize(
    ("prompt", "chosen"),
    [
        ("prompt_ids", "chosen_ids"),
        ("", "chosen_ids"),
        ("prompt_input_ids", "chosen_input_ids"),
        ("", "input_ids_chosen"),
    ],
    ids=["pairs", "rewards", "older pairs", "older rewards"],
)
def test_rows_of_preferences_are_told_by_the_chosen_side(
    world: Path, fed: list[dict[str, Any]], prompt: str, chosen: str
) -> None:
    rows = as_pairs(fed, prompt, chosen)
    assert check_tokens(rows, world / "store").ok
    shuffled = rows.shuffle(seed=1)
    found = check_tokens(shuffled, world / "store")
    assert found.matched_by == "content" and not found.num_different
    order = [rows[chosen].index(ids) for ids in shuffled[chosen]]
    assert found.sample_ids == [ids_of(world)[i] for i in order]
    assert check_tokens(list(shuffled), world / "store").sample_ids == found.sample_ids


def test_rows_that_cannot_be_compared_are_not_drawn_by_position(
    world: Path, fed: list[dict[str, Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def train_on_texts(**settings: Any) -> Json:
        record = tmp_path / "drawn.jsonl"
        callback = CoresetCallback(world / "store", redraw="never", record=record, **settings)
        rows = [{"text": str(k)} for k in range(NUM_ROWS)]
        train(tmp_path / "run", callback, dataset=rows, kind=OfTexts, **ONCE)
        line: Json = json.loads(record.read_text().splitlines()[-1])
        return line

    with caplog.at_level(logging.WARNING):
        assert train_on_texts()["version"] is None
    assert "cannot be compared with what was measured" in caplog.text
    assert "CoresetCallback(sample_ids=...)" in caplog.text
    caplog.clear()
    assert train_on_texts(sample_ids=ids_of(world))["version"] == 1
    assert "cannot be compared" not in caplog.text


class OfTexts(Trainer):  # type: ignore[misc]
    """Makes two rows of tokens of each text."""

    def __init__(self, **arguments: Any) -> None:
        arguments["args"].remove_unused_columns = False
        super().__init__(data_collator=self.collate, **arguments)

    def collate(self, rows: list[Any]) -> Any:
        ids = torch.tensor([[3, 4, 5]] * (2 * len(rows)))
        return {"input_ids": ids, "labels": ids}


def test_the_callback_draws_no_coreset_from_rows_that_are_not_told(
    world: Path, fed: list[dict[str, Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    order = np.random.default_rng(1).permutation(NUM_ROWS).tolist()
    rows = [other_tokens(fed)[i] for i in order]
    callback = CoresetCallback(world / "store", record=tmp_path / "drawn.jsonl")
    with caplog.at_level(logging.WARNING):
        train(tmp_path / "run", callback, dataset=rows, kind=OwnRows, **ONCE)
    assert "may stand in another order" in caplog.text
    drawn = json.loads((tmp_path / "drawn.jsonl").read_text().splitlines()[0])
    assert drawn["version"] is None and sorted(drawn["positions"]) == [*range(NUM_ROWS)]


def test_ids_of_all_rows_do_where_the_trainer_has_dropped_some(
    world: Path, fed: list[dict[str, Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Before the store is there, too: then rows are told by their tokens once it is."""
    import shutil

    kept = [i for i in range(NUM_ROWS) if i % 9]
    store = tmp_path / "store"

    class ArrivesLate(TrainerCallback):  # type: ignore[misc]
        def on_epoch_end(self, *_: Any, **__: Any) -> None:
            if not store.exists():
                shutil.copytree(world / "store", store)

    callback = CoresetCallback(
        store, sample_ids=ids_of(world), redraw="never", record=tmp_path / "drawn.jsonl"
    )
    rows = [fed[i] for i in kept]
    settings = {**ONCE, "num_train_epochs": 2}
    with caplog.at_level(logging.WARNING):
        train(tmp_path / "run", callback, ArrivesLate(), dataset=rows, kind=OwnRows, **settings)
    assert f"{len(rows)} rows but {NUM_ROWS} sample_ids were given" in caplog.text
    lines = [json.loads(line) for line in (tmp_path / "drawn.jsonl").read_text().splitlines()]
    assert [line["version"] for line in lines] == [None, 1]
    ids = ids_of(world)
    assert [ids[kept[p]] for p in lines[1]["positions"]] == lines[1]["sample_ids"]
    in_coreset = set(Coreset.load(store).sample_ids.tolist())
    assert set(lines[1]["sample_ids"]) == in_coreset & {ids[i] for i in kept}
    absent = NUM_ROWS - len(kept)
    assert f"{absent} of {NUM_ROWS} samples are not in the trainer's dataset" in caplog.text
    assert "id_column" not in caplog.text
