"""Preference pairs: the chosen side is what the sample is, the other one is content beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

import gracekit
from gracekit.errors import DataError, RecipeError
from gracekit.recipe import DataSection, Recipe
from gracekit.samples import Conversation, load_samples, tokenize, tokenize_pairs
from gracekit.samples.formats import choose_format
from gracekit.samples.messages import MalformedRowError
from gracekit.types import Json
from tests.tiny import COLOURS, NUMBERS, THINGS, make_tokenizer, tiny_recipe, write_checkpoint

U: Json
A: Json
B: Json
U, A, B = ({"role": r, "content": c} for r, c in [("user", "Q"), ("assistant", "A"),
                                                  ("assistant", "B")])  # fmt: skip
S: Json = {"role": "system", "content": "S"}
EARLIER: list[Json] = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
QUIET: list[Json] = [EARLIER[0], EARLIER[1] | {"has_loss": False}]


def read(row: Json, **keys: Any) -> Conversation:
    settings = DataSection.model_validate({"path": "x", **keys})
    layout = choose_format(settings, row)
    assert layout.name == "preference"
    return layout.conversation(row)


PAIRS: list[tuple[Json, list[Json], list[Json]]] = [
    ({"prompt": "Q", "chosen": "A", "rejected": "B"}, [U, A], [B]),
    ({"question": "Q", "chosen": "A", "rejected": "B", "system": "S"}, [S, U, A], [B]),
    ({"instruction": "Q", "input": "C", "chosen": "A", "rejected": "B"},
     [U | {"content": "Q\n\nC"}, A], [B]),
    ({"prompt": [*EARLIER, U], "chosen": [A], "rejected": [B]}, [*QUIET, U, A], [B]),
    ({"prompt": [S, U], "chosen": "A", "rejected": "B"}, [S, U, A], [B]),
    ({"chosen": [*EARLIER, U, A], "rejected": [*EARLIER, U, B]}, [*QUIET, U, A], [B]),
    ({"prompt": "Q", "chosen": [U, A], "rejected": [U, B]}, [U, A], [B]),
    ({"prompt": "Q", "chosen": [A], "rejected": [B]}, [U, A], [B]),
    ({"conversations": [{"from": "human", "value": "Q"}], "chosen": {"from": "gpt", "value": "A"},
      "rejected": {"from": "gpt", "value": "B"}}, [U, A], [B]),
    ({"messages": [*EARLIER, U], "chosen": A, "rejected": B}, [*QUIET, U, A], [B]),
    # As TRL finds the prompt of two texts: what both begin with, but for a last space.
    ({"chosen": "Human: Q Bot: yes", "rejected": "Human: Q Bot: no"},
     [U | {"content": "Human: Q Bot:"}, A | {"content": " yes"}], [B | {"content": " no"}]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("row", "given_as", "num_prompt_messages"),
    [
        ({"prompt": "Q", "chosen": "A", "rejected": "B"}, "strings", 1),
        ({"chosen": "Q: yes", "rejected": "Q: no"}, "strings", 1),
        ({"question": "Q", "chosen": "A", "rejected": "B", "system": "S"}, "several columns", 2),
        ({"prompt": [*EARLIER, U], "chosen": [A], "rejected": [B]}, "lists", 3),
        ({"prompt": [S, U], "chosen": "A", "rejected": "B"}, "lists", 2),
        ({"chosen": [U, A], "rejected": [U, B]}, "lists", 1),
    ],
)
def test_a_pair_says_how_it_was_given(row: Json, given_as: str, num_prompt_messages: int) -> None:
    found = read(row)
    assert (found.given_as, found.num_prompt_messages) == (given_as, num_prompt_messages)


@pytest.mark.parametrize(("row", "messages", "rejected"), PAIRS)
def test_the_chosen_side_is_read_with_loss_on_the_answer_alone(
    row: Json, messages: list[Json], rejected: list[Json]
) -> None:
    found = read(row)
    assert (list(found.messages), list(found.rejected or ())) == (messages, rejected)
    layout = choose_format(DataSection(path="x"), [*row, "other"])
    assert sorted(layout.columns([*row, "other"])) == sorted(row)


def test_sides_can_be_named() -> None:
    columns = {"prompt": "q", "chosen": "better", "rejected": "worse"}
    row = {"q": "Q", "better": "A", "worse": "B"}
    assert read(row, columns=columns) == read({"prompt": "Q", "chosen": "A", "rejected": "B"})


BAD: list[tuple[Json, str]] = [
    ({"prompt": "Q", "chosen": "A", "rejected": None}, "'rejected' is missing"),
    ({"prompt": "Q", "chosen": "A", "rejected": "A"}, "chosen and rejected are the same"),
    ({"prompt": "Q", "chosen": " ", "rejected": "A"}, "the chosen side has no answer"),
    ({"prompt": "Q", "chosen": "A", "rejected": [B]}, "one of chosen and rejected is text"),
    ({"chosen": "A", "rejected": "B"}, "no beginning in common"),
    ({"chosen": [A], "rejected": [B]}, "do not begin with the same message"),
    ({"prompt": [U, A], "chosen": [A], "rejected": [B]}, "ends with a message of the assistant"),
    ({"prompt": "Q", "chosen": [A | {"weight": 0}], "rejected": [B]}, "chosen side has no answer"),
    ({"prompt": "Q", "chosen": "A", "rejected": "B", "images": ["a.png"]}, "the row has images"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "reason"), BAD)
def test_what_is_no_pair_says_why(row: Json, reason: str) -> None:
    with pytest.raises(MalformedRowError, match=reason):
        read(row)


def test_the_rejected_side_is_content_and_has_no_tokens(tmp_path: Path) -> None:
    path, tokenizer = tmp_path / "t.jsonl", make_tokenizer()
    rows = [
        {"prompt": "sum", "chosen": "two", "rejected": r} for r in ("red", "blue")
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataSection(path=str(path))
    raw = load_samples(data)
    assert len(set(raw.content_hashes)) == 2
    for ids, mask in tokenize(raw, tokenizer, data, tmp_path).take(np.arange(2)):
        assert tokenizer.decode(ids).split() == ["sum", "two", "<eos>"]
        assert tokenizer.decode(ids[mask]).split() == ["two", "<eos>"]


def test_the_margin_adds_its_score_and_the_key_changes_no_hash() -> None:
    content = {"data": {"path": "x", "columns": {"prompt": "q"}}}
    recipe = Recipe.from_dict(content)
    assert recipe.digest() == recipe.override({"data.pair": "chosen"}).digest()
    assert recipe.digest() != recipe.override({"data.columns.chosen": "c"}).digest()
    margin = recipe.override({"data.pair": "margin"})
    assert margin.scoring.scores == (*recipe.scoring.scores, "pair-margin")
    assert recipe.digest() != margin.digest()
    named = {"scores": ["pair-margin", "loss"], "importance": "pair-margin"}
    recipe = Recipe.from_dict({"data": {"path": "x", "pair": "margin"}, "scoring": named})
    assert recipe.scoring.scores == ("pair-margin", "loss")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"data": {"path": "x", "pair": "both"}}, r"data\.pair.*'margin', found 'both'"),
        ({"data": {"path": "x"}, "scoring": {"scores": ["gradient-norm", "pair-margin"]}},
         "compares the sides of preference pairs; set data.pair to margin"),
        ({"data": {"path": "x"}, "target": {"path": "y", "pair": "margin"}}, r"target\.pair"),
    ],
)  # fmt: skip
def test_a_margin_that_cannot_be_is_no_recipe(content: Json, reason: str) -> None:
    with pytest.raises(RecipeError, match=reason):
        Recipe.from_dict(content)


def pairs_of(i: int) -> Json:
    words = (COLOURS, NUMBERS, THINGS)[i % 3]
    bad = "red" if i != 3 else " ".join(COLOURS * 20)  # longer than max_length
    return {
        "prompt": f"{i} sum of" if i != 4 else " ".join(THINGS * 20),
        "chosen": " ".join(words[: 1 + i % 5]),
        "rejected": f"{bad} {i % 7} tree",
        "kept": {"nested": [i, "1.10"]},
    }


@pytest.fixture(scope="module")
def refreshed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the margin and one without, of one checkpoint."""
    folder = tmp_path_factory.mktemp("pairs")
    lines = [json.dumps(pairs_of(i)) + "\n" for i in range(30)]
    (folder / "train.jsonl").write_text("".join(lines))
    checkpoint = write_checkpoint(folder / "run", 10)
    for pair in ("chosen", "margin"):
        recipe = tiny_recipe(
            folder,
            data={"group_column": None, "max_length": 24, "pair": pair},
            selection={
                "count": 5,
                **({"never_in_where": "pair_margin > 0"} if pair == "margin" else {}),
            },
        )
        gracekit.refresh(recipe.model_copy(update={"store": str(folder / pair)}), checkpoint)
    return folder


def measured(folder: Path) -> Any:
    store = gracekit.Store.open(folder)
    order = np.argsort(store.samples().source_rows)
    return {name: s[order] for name, s in store.scores(1).scores.items()}


def test_the_margin_is_the_difference_of_plain_losses_and_chosen_scores_stay(
    refreshed: Path,
) -> None:
    plain, found = measured(refreshed / "chosen"), measured(refreshed / "margin")
    assert {*found} == {*plain, "pair-margin"}
    model = LlamaForCausalLM.from_pretrained(refreshed / "run" / "checkpoint-10").eval()
    tokenizer = make_tokenizer()

    def loss(prompt: str, answer: str) -> float:
        given = tokenizer(prompt)["input_ids"]
        ids = torch.tensor([given + tokenizer(answer)["input_ids"] + [tokenizer.eos_token_id]])
        ids = ids[:, :24]
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, :-1].double()
        losses = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
        return float(losses[len(given) - 1 :].mean())

    for i in range(30):
        row = pairs_of(i)
        if i == 4:  # the prompt fills max_length: nothing to learn on either side
            assert np.isnan(found["pair-margin"][i]) and np.isnan(found["loss"][i])
            continue
        expected = loss(row["prompt"], row["rejected"]) - loss(row["prompt"], row["chosen"])
        assert found["pair-margin"][i] == pytest.approx(expected, abs=2e-4)
        for name, values in plain.items():
            assert found[name][i] == pytest.approx(values[i], rel=1e-5)


def test_a_pair_is_exported_whole_and_can_be_picked_by_its_margin(
    refreshed: Path, tmp_path: Path
) -> None:
    rows = {json.dumps(pairs_of(i)) for i in range(30)}
    gracekit.export(refreshed / "margin", tmp_path / "out", format="jsonl")
    (file,) = (tmp_path / "out").glob("*.jsonl")
    exported = [json.loads(line) for line in file.read_text().splitlines()]
    names = [*pairs_of(0)]
    assert exported and {json.dumps({k: row[k] for k in names}) for row in exported} <= rows
    found = gracekit.sql(
        refreshed / "margin",
        "SELECT max(pair_margin) FROM score_history WHERE NOT isnan(pair_margin)",
    )
    ((largest,),) = found.rows()
    margins = measured(refreshed / "margin")["pair-margin"]
    assert largest == pytest.approx(np.nanmax(margins)) and largest > 0
    picked = margins[gracekit.Coreset.load(refreshed / "margin").source_rows]
    assert len(picked) == 5 and (picked <= 0).all()


def test_data_without_pairs_has_no_margin(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": "sum", "completion": "two"}) + "\n")
    data = DataSection(path=str(tmp_path / "a.jsonl"), pair="margin")
    folders = tmp_path / "tokens", tmp_path / "rejected"
    with pytest.raises(DataError, match="read as prompt-completion, which has no rejected sides"):
        tokenize_pairs(load_samples(data), make_tokenizer(), data, *folders)


def test_a_rejected_answer_that_is_cut_off_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows: list[Json] = [
        {"chosen": "Q is one", "rejected": "Q is two"},
        {"prompt": "sum", "chosen": "two", "rejected": "red"},
        {"chosen": "sum sum red", "rejected": "sum sum " + "cat " * 9},
    ]
    long = "sum is the tree of red small large cat dog " * 2
    rows.append({"prompt": [{"role": "user", "content": "one"}], "chosen": [A | {"content": "two"}],
                 "rejected": [{"role": "user", "content": long}, B]})  # fmt: skip
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataSection(path=str(tmp_path / "a.jsonl"), pair="margin", max_length=12)
    raw = load_samples(data)
    table = tokenize_pairs(raw, make_tokenizer(), data, tmp_path / "a", tmp_path / "b")
    assert table.rejected is not None and len(table.rejected) == len(table) == 4
    assert table.rejected.num_targets.tolist()[-1] == 0 and table.num_targets.all()
    assert "1 of 4 pairs have a token to train on only on the chosen side" in caplog.text
    places = np.array([3, -1, 0])
    arranged = table.arranged(places).rejected
    assert arranged is not None
    assert arranged.lengths.tolist() == [table.rejected.lengths[3], 0, table.rejected.lengths[0]]
