"""Preference pairs: the chosen side is what the sample is, the other one is content beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gracekit.errors import RecipeError
from gracekit.recipe import DataSection, Recipe
from gracekit.samples import Conversation, load_samples, tokenize
from gracekit.samples.formats import choose_format
from gracekit.samples.messages import MalformedRowError
from gracekit.types import Json
from tests.tiny import make_tokenizer

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


def test_the_margin_is_refused_by_name_and_the_key_changes_no_hash() -> None:
    content = {"data": {"path": "x", "columns": {"prompt": "q"}}}
    with pytest.raises(RecipeError, match=r"data\.pair.*'chosen', found 'margin'"):
        Recipe.from_dict({"data": {"path": "x", "pair": "margin"}})
    recipe = Recipe.from_dict(content)
    assert recipe.digest() == recipe.override({"data.pair": "chosen"}).digest()
    assert recipe.digest() != recipe.override({"data.columns.chosen": "c"}).digest()
