"""Rows that are tokenised already, as trainers cache them: read as they are.

`input_ids`, and what takes loss or padding away: `labels` (-100: no loss), `completion_mask` and
`assistant_masks` (TRL: 0: no loss), `attention_mask` (0: padding). Without any of them every token
carries loss, as with the collators of Hugging Face and TRL.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from gracekit.errors import DataError
from gracekit.recipe import DataSection
from gracekit.samples.conversation import Conversation, GivenTokens
from gracekit.samples.messages import MalformedRowError, from_json_text
from gracekit.samples.row import Row
from gracekit.types import Bool, Int32

NO_LOSS = -100
"""A label that the loss of torch ignores."""
MOST_ID = 2**31 - 1
LOSS_MASKS = ("completion_mask", "assistant_masks")
"""Columns of TRL: a token carries loss where all that are there say so."""
OTHER_LOSS = (
    *("loss_mask", "loss_masks", "loss_weights", "label_mask", "labels_mask", "target_mask"),
    *("response_mask", "prompt_mask", "prompt_length", "prompt_lengths", "prompt_len"),
    *("prompt_lens", "source_length", "source_len", "label_ids", "target_ids"),
)
"""Columns of other trainers that say where loss is. What they mean (whether a token's own place or
that of the token before it, what is 0) differs, so they are not read."""


def read_token_row(row: Row) -> Conversation:
    """The row's tokens; raises `MalformedRowError` for what no trainer could have made."""
    ids = _integers(row, "input_ids")
    if not ids:
        raise MalformedRowError("input_ids is empty")
    outside = next((k for k, token in enumerate(ids) if not 0 <= token <= MOST_ID), None)
    if outside is not None:
        raise MalformedRowError(f"input_ids[{outside}] is {ids[outside]}, which is no token id")
    _require_one_sequence(row, len(ids))
    require_known_loss(row.values)
    has_loss = [True] * len(ids)
    if row.get("labels") is not None:
        labels = _integers(row, "labels", len(ids))
        _require_own_places(ids, labels)
        has_loss = [label != NO_LOSS for label in labels]
    for name in LOSS_MASKS:
        if row.get(name) is not None:
            mask = _mask(row, name, len(ids))
            has_loss = [a and b for a, b in zip(has_loss, mask, strict=True)]
    start, end = 0, len(ids)
    if row.get("attention_mask") is not None:
        attended = _mask(row, "attention_mask", len(ids))
        start, end = _unpadded(attended, has_loss, has_labels=row.get("labels") is not None)
    if not any(has_loss[start + 1 : end]):
        raise MalformedRowError("no token of the row carries loss")
    return Conversation((), tokens=GivenTokens(tuple(ids[start:end]), tuple(has_loss[start:end])))


def require_known_loss(row: Mapping[str, Any]) -> None:
    """`MalformedRowError` where a row says where loss is only in a column that is not read."""
    if any(row.get(name) is not None for name in ("labels", *LOSS_MASKS)):
        return
    other = next((name for name in OTHER_LOSS if row.get(name) not in (None, "")), None)
    if other is not None:
        raise MalformedRowError(
            f"it has {other}, which trainers read in ways of their own; say which tokens carry "
            "loss in labels (-100 where there is none) or completion_mask (0)"
        )


def as_trained(tokens: GivenTokens, data: DataSection, *, num_ids: int) -> tuple[Int32, Bool]:
    """(ids, loss mask), cut off at `data.max_length` as trainers do.

    Args:
        tokens: Those of the row.
        data: The recipe's section.
        num_ids: Size of the tokenizer's vocabulary.

    Raises:
        MalformedRowError: An id is not in the vocabulary.
        DataError: The recipe says itself where loss is.
    """
    if data.loss_on != "auto":
        raise DataError(
            f"data.loss_on is {data.loss_on!r}, but tokenised data says itself which tokens carry "
            "loss; set it to auto"
        )
    if max(tokens.ids) >= num_ids:
        raise MalformedRowError(
            f"it holds the id {max(tokens.ids)}, but the tokenizer of the checkpoint has the ids "
            f"below {num_ids}; the row was tokenised with another one"
        )
    mask = np.array(tokens.has_loss[: data.max_length], bool)
    mask[:1] = False  # nothing predicts the first token
    return np.array(tokens.ids[: data.max_length], np.int32), mask


def _integers(row: Row, what: str, expected: int | None = None) -> list[int]:
    value: Any = row.get(what)
    if value is None:
        raise MalformedRowError(f"{row.shown(what)} is missing")
    values = from_json_text(value, what)
    if not isinstance(values, list):
        raise MalformedRowError(f"{what} is a {type(value).__name__}, expected a list of integers")
    for k, item in enumerate(values):
        if not isinstance(item, int):
            raise MalformedRowError(
                f"{what}[{k}] is a {type(item).__name__}, expected an integer (one sequence a row)"
            )
    if expected is not None and len(values) != expected:
        raise MalformedRowError(f"{what} has {len(values)} entries, input_ids has {expected}")
    return values


def _mask(row: Row, what: str, expected: int) -> list[bool]:
    values = _integers(row, what, expected)
    wrong = next((k for k, value in enumerate(values) if value not in (0, 1)), None)
    if wrong is not None:
        raise MalformedRowError(f"{what}[{wrong}] is {values[wrong]}, expected 0 or 1")
    return [bool(value) for value in values]


def _require_own_places(ids: list[int], labels: list[int]) -> None:
    """Each label is that of no loss, or the id at its own place; the model shifts them itself."""
    wrong = [
        k
        for k, (token, label) in enumerate(zip(ids, labels, strict=True))
        if label not in (NO_LOSS, token)
    ]
    if not wrong:
        return
    k = wrong[0]
    following = [*ids[1:], NO_LOSS]
    is_shifted = all(labels[k] in (NO_LOSS, following[k]) for k in range(len(ids) - 1))
    why = " (they look shifted by one place, which the model does itself)" if is_shifted else ""
    raise MalformedRowError(
        f"labels[{k}] is {labels[k]}, neither {NO_LOSS} nor the id {ids[k]} at its place{why}"
    )


def _unpadded(attended: list[bool], has_loss: list[bool], *, has_labels: bool) -> tuple[int, int]:
    """Where the sequence stands between its padding: [start, end)."""
    if not any(attended):
        raise MalformedRowError("attention_mask is 0 everywhere")
    start = attended.index(True)
    end = len(attended) - attended[::-1].index(True)
    if not all(attended[start:end]):
        raise MalformedRowError("attention_mask is 0 within the sequence; only padding is left out")
    outside = [k for k in (*range(start), *range(end, len(attended))) if has_loss[k]]
    if has_labels and outside:
        raise MalformedRowError(
            f"labels[{outside[0]}] carries loss where attention_mask is 0: set it to {NO_LOSS}"
        )
    return start, end


def _require_one_sequence(row: Row, length: int) -> None:
    """`MalformedRowError` for rows that a trainer has packed from several samples."""
    lengths, positions = row.get("seq_lengths"), row.get("position_ids")
    is_packed = isinstance(lengths, list) and len(lengths) > 1
    if isinstance(positions, list) and not is_packed:
        is_packed = len(positions) == length and positions.count(0) > 1 and positions[0] == 0
        is_packed = is_packed and positions != sorted(positions)
    if is_packed:
        raise MalformedRowError(
            "the row is packed from several samples; name the data before it was packed"
        )
