"""Rows that are tokenised already are read as they are."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gracekit.errors import DataError
from gracekit.recipe import DataSection
from gracekit.samples import (
    Conversation,
    can_be_trl,
    load_samples,
    open_records,
    rendered_tokens,
    tokenize,
)
from gracekit.samples.conversation import GivenTokens
from gracekit.samples.formats import choose_format
from gracekit.samples.messages import MalformedRowError
from gracekit.types import Json
from tests.tiny import make_tokenizer

ROWS: list[Json] = [
    {"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8], "attention_mask": [1, 1, 1, 1]},
    {"input_ids": [5, 6, 9, 1], "labels": [5, 6, 9, 1], "attention_mask": [1, 1, 1, 1]},
]


def read(row: Json) -> tuple[list[int], list[int]]:
    """Ids, and those of them that carry loss."""
    tokens = choose_format(DataSection(path="x"), row).conversation(row).tokens
    assert tokens is not None
    return list(tokens.ids), [t for t, has in zip(tokens.ids, tokens.has_loss, strict=True) if has]


GOOD: list[tuple[Json, list[int], list[int]]] = [
    ({"input_ids": [5, 6, 7], "labels": [-100, -100, 7]}, [5, 6, 7], [7]),
    ({"input_ids": [5, 6, 7]}, [5, 6, 7], [5, 6, 7]),
    ({"input_ids": [5, 6, 7], "attention_mask": [1, 1, 1]}, [5, 6, 7], [5, 6, 7]),
    ({"input_ids": [5, 6, 7], "completion_mask": [0, 1, 1]}, [5, 6, 7], [6, 7]),
    ({"input_ids": [5, 6, 7], "completion_mask": [0, 1, 1], "assistant_masks": [0, 0, 1]},
     [5, 6, 7], [7]),
    ({"input_ids": [5, 6, 7], "labels": [5, 6, 7], "completion_mask": [False, False, True]},
     [5, 6, 7], [7]),
    # Padding on either side; without labels a collator puts no loss on it.
    ({"input_ids": [5, 6, 0, 0], "attention_mask": [1, 1, 0, 0]}, [5, 6], [5, 6]),
    ({"input_ids": [0, 5, 6], "labels": [-100, 5, 6], "attention_mask": [0, 1, 1]},
     [5, 6], [5, 6]),
    # A token of the pad's id within the sequence is a token like others.
    ({"input_ids": [5, 0, 6], "attention_mask": [1, 1, 1]}, [5, 0, 6], [5, 0, 6]),
    ({"input_ids": "[5, 6]", "labels": "[-100, 6]"}, [5, 6], [6]),  # of a CSV file
    ({"input_ids": [5, 6], "labels": None, "text": "five six"}, [5, 6], [5, 6]),
    ({"input_ids": [5, 6], "position_ids": [0, 1], "seq_lengths": [2]}, [5, 6], [5, 6]),
    ({"input_ids": [5, 6], "labels": [-100, 6], "loss_mask": [0, 1]}, [5, 6], [6]),
]  # fmt: skip


@pytest.mark.parametrize(("row", "ids", "with_loss"), GOOD)
def test_ids_and_loss_are_those_of_the_row(row: Json, ids: list[int], with_loss: list[int]) -> None:
    assert read(row) == (ids, with_loss)


BAD: list[tuple[Json, str]] = [
    ({"input_ids": []}, "input_ids is empty"),
    ({"input_ids": None}, "'input_ids' is missing"),
    ({"input_ids": [[5, 6]]}, r"input_ids\[0\] is a list, expected an integer \(one sequence"),
    ({"input_ids": [5, -6]}, r"input_ids\[1\] is -6, which is no token id"),
    ({"input_ids": [5, 2**31]}, "is no token id"),
    ({"input_ids": [5, 6.0]}, r"input_ids\[1\] is a float"),
    ({"input_ids": "five"}, "input_ids is text, but not a JSON list"),
    ({"input_ids": [5, 6], "labels": [6]}, "labels has 1 entries, input_ids has 2"),
    ({"input_ids": [5, 6], "attention_mask": [1, 1, 1]}, "attention_mask has 3 entries"),
    ({"input_ids": [5, 6], "attention_mask": [1, 2]}, r"attention_mask\[1\] is 2, expected 0 or"),
    ({"input_ids": [5, 6, 7], "labels": [5, 9, 7]}, r"labels\[1\] is 9, neither -100 nor the id 6"),
    ({"input_ids": [5, 6, 7], "labels": [6, 7, -100]}, "look shifted by one place"),
    ({"input_ids": [5, 6], "labels": [5, -1]}, r"labels\[1\] is -1, neither"),
    ({"input_ids": [5, 6], "labels": [-100, -100]}, "no token of the row carries loss"),
    ({"input_ids": [5, 6], "labels": [5, -100]}, "no token of the row carries loss"),
    ({"input_ids": [5, 6, 7], "attention_mask": [1, 0, 1]}, "0 within the sequence"),
    ({"input_ids": [5, 6], "attention_mask": [0, 0]}, "0 everywhere"),
    ({"input_ids": [5, 6, 0], "labels": [5, 6, 0], "attention_mask": [1, 1, 0]},
     r"labels\[2\] carries loss where attention_mask is 0"),
    ({"input_ids": [5, 6, 7, 8], "position_ids": [0, 1, 0, 1]}, "packed from several samples"),
    ({"input_ids": [5, 6, 7, 8], "seq_lengths": [2, 2]}, "packed from several samples"),
    ({"input_ids": [5, 6], "loss_mask": [0, 1]}, "has loss_mask, which trainers.*in labels"),
    ({"input_ids": [5, 6], "prompt_length": 1}, "has prompt_length, which trainers"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "reason"), BAD)
def test_what_no_trainer_would_make_says_why(row: Json, reason: str) -> None:
    with pytest.raises(MalformedRowError, match=reason):
        read(row)


@given(
    st.lists(st.tuples(st.integers(0, 63), st.booleans()), min_size=2, max_size=30),
    st.integers(0, 3),
    st.integers(0, 3),
)
def test_padding_and_the_way_to_say_it_change_nothing(
    tokens: list[tuple[int, bool]], left: int, right: int
) -> None:
    ids, loss = [t for t, _ in tokens], [has for _, has in tokens]
    if not any(loss[1:]):
        loss[-1] = True
    labels = [t if has else -100 for t, has in zip(ids, loss, strict=True)]
    expected = (ids, [t for t, has in zip(ids, loss, strict=True) if has])
    assert read({"input_ids": ids, "labels": labels}) == expected
    assert read({"input_ids": ids, "completion_mask": [int(x) for x in loss]}) == expected
    padded = {
        "input_ids": [0] * left + ids + [0] * right,
        "labels": [-100] * left + labels + [-100] * right,
        "attention_mask": [0] * left + [1] * len(ids) + [0] * right,
    }
    assert read(padded) == expected


def write(path: Path, rows: list[Json], kind: str) -> DataSection:
    if kind == "jsonl":
        path = path.with_suffix(".jsonl")
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "parquet":
        path = path.with_suffix(".parquet")
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        datasets.Dataset.from_list(rows).save_to_disk(str(path))
    return DataSection(path=str(path), max_length=8)


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "saved"])
def test_tokens_of_a_file_are_as_they_stand_cut_as_trainers_do(tmp_path: Path, kind: str) -> None:
    long = {"input_ids": list(range(3, 15)), "labels": [-100] * 5 + list(range(8, 15)),
            "attention_mask": [1] * 12}  # fmt: skip
    rows = [*ROWS, long]
    data = write(tmp_path / "t", rows, kind)
    raw = load_samples(data)
    assert (raw.format, len(raw), raw.skipped) == ("tokens", 3, [])
    assert raw.previews[0] == "4 tokens, 2 with loss: 5 6 7 8"
    table = tokenize(raw, make_tokenizer(), data, tmp_path / "cache")
    taken = [(ids.tolist(), ids[mask].tolist()) for ids, mask in table.take(np.arange(3))]
    assert taken == [
        ([5, 6, 7, 8], [7, 8]),
        ([5, 6, 9, 1], [6, 9, 1]),  # nothing predicts the first token
        (list(range(3, 11)), [8, 9, 10]),
    ]
    assert list(open_records(data, raw.source_rows)) == rows
    for rendering in ("auto", "trl"):  # they are what they are
        settings = data.model_copy(update={"rendering": rendering})
        found = rendered_tokens(raw.records[:3], make_tokenizer(), settings)
        assert [(ids.tolist(), ids[mask].tolist()) for ids, mask in found] == taken
    unknown = Conversation((), tokens=GivenTokens((5, 999), (False, True)))
    with pytest.raises(DataError, match="the id 999"):
        rendered_tokens([unknown], make_tokenizer(), data)
    assert not can_be_trl(raw, make_tokenizer())


def test_ids_that_the_tokenizer_lacks_are_listed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = write(tmp_path / "t", [*ROWS, {"input_ids": [5, 999], "labels": [-100, 999]}], "jsonl")
    with caplog.at_level(logging.WARNING):
        table = tokenize(load_samples(data), make_tokenizer(), data, tmp_path)
    (skipped,) = table.unrendered
    assert (skipped.source_row, table.lengths.tolist()) == (2, [4, 4, 0])
    assert "the id 999, but the tokenizer of the checkpoint has the ids below 31" in skipped.reason
    assert "row 2: it holds the id 999" in caplog.text


@pytest.mark.parametrize("loss_on", ["response", "all"])
def test_where_loss_is_stands_in_the_data(tmp_path: Path, loss_on: Any) -> None:
    data = write(tmp_path / "t", ROWS, "jsonl").model_copy(update={"loss_on": loss_on})
    with pytest.raises(DataError, match=rf"loss_on is '{loss_on}'.*set it to auto"):
        tokenize(load_samples(data), make_tokenizer(), data, tmp_path)
