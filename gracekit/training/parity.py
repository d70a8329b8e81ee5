"""Whether the trainer's tokens are those that gracekit measured, and which rows are which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from gracekit.samples import hashes_of
from gracekit.training.by_content import (
    Matched,
    hash_ids,
    is_packed,
    match,
)
from gracekit.training.drawn import NOT_IN_STORE
from gracekit.training.likeness import may_stand_at_places, stand_at_places
from gracekit.training.measured import Measured, Tokens
from gracekit.training.mending import find_mend
from gracekit.training.parity_report import (
    NOT_TOLD,
    OTHER_ORDER,
    OTHER_PLACE,
    OTHER_ROWS,
    PACKED,
    TokenCheck,
    TokenDifference,
    spans_of,
)
from gracekit.training.trainer_rows import FedRow, TrainerRows
from gracekit.types import Bool, Int64, Rows

MOST_SHOWN = 5
"""Differences that are told in full."""


def check_rows(
    rows: TrainerRows,
    measured: Measured,
    *,
    sample_ids: Sequence[Any] | None = None,
    tokenizer: Any = None,
    most: int | None = None,
) -> TokenCheck:
    """Compare a trainer's rows with the samples of a store.

    Args:
        rows: The trainer's.
        measured: The store's.
        sample_ids: The sample id of each row, where the trainer knows them.
        tokenizer: The trainer's, to show tokens as text and to look for settings that mend a
            difference.
        most: Compare no more rows whole than this, evenly spread; None: all. The ids of the others
            are compared too where that is cheap (`TrainerRows.has_cheap_ids`).

    Raises:
        DataError: The rows cannot be read.
    """
    positions = np.arange(len(rows))
    if most is not None and len(rows) > most:
        positions = np.unique(np.linspace(0, len(rows) - 1, most).astype(np.int64))
    seen = _see(rows, positions)
    told = _tell(rows, measured, seen, sample_ids)
    is_compared, is_different = _compare(seen, measured, told.rows, knows_loss=rows.knows_loss)
    differences = _first_differences(rows, measured, positions[is_different], told.rows)
    longest = int(seen.lengths[is_different].max(initial=0))
    return TokenCheck(
        num_rows=len(rows),
        num_samples=len(measured.rows),
        num_compared=int(is_compared.sum()),
        num_different=int(is_different.sum()),
        matched_by=told.by,
        has_seen_all=len(positions) == len(rows) or rows.has_cheap_ids,
        num_matched=int((told.rows >= 0).sum()),
        differences=tuple(_shown(differences, measured, tokenizer)),
        advice=_advice(differences, measured, tokenizer, longest=longest),
        problems=tuple(told.problems),
        sample_ids=told.ids,
    )


class _Seen(NamedTuple):
    """What is kept of the rows that are compared, each of which is asked for once."""

    positions: Int64
    """[k] in the trainer's dataset."""
    token_hashes: Int64
    loss_hashes: Int64
    lengths: Int64
    """[k] tokens."""


def _see(rows: TrainerRows, positions: Int64) -> _Seen:
    """Their hashes and lengths; the rows themselves may be more than memory holds."""
    found = np.empty((len(positions), 3), np.int64)
    for k, position in enumerate(positions.tolist()):
        (fed,) = rows.take([position])
        found[k] = (*hashes_of(fed.ids, fed.mask), len(fed.ids))
    return _Seen(positions, *found.T)


class _Told(NamedTuple):
    """Which sample each row of the trainer's dataset is."""

    rows: Rows
    """[m] row of the store; -1: none, or not to be told."""
    by: str
    ids: list[str] | None
    problems: list[str]


def _tell(
    rows: TrainerRows, measured: Measured, seen: _Seen, sample_ids: Sequence[Any] | None
) -> _Told:
    placed, by = _given_rows(rows, measured, sample_ids), "sample_ids"
    is_given = placed is not None
    if placed is None and len(rows) == measured.samples.num_source_rows:
        placed = np.array([measured.row_at.get(p, -1) for p in range(len(rows))], np.int64)
        by = "position"
    is_same = placed is not None and _same_ids(seen, measured, placed)
    is_whole = len(seen.positions) == len(rows)
    if placed is not None and is_same and (is_whole or not rows.has_cheap_ids):
        return _Told(placed, by, None, [])
    matched = match(rows, measured, placed)
    if placed is not None and is_same and _num_other(matched, measured, placed) == 0:
        return _Told(placed, by, None, [])
    is_found = matched.rows >= 0
    odd = np.flatnonzero(~is_found | (matched.lengths > measured.lengths[matched.rows]))
    if len(odd) * 2 > len(rows) and is_packed(rows, measured, odd[:MOST_SHOWN].tolist()):
        nothing = np.full(len(rows), -1, np.int64)
        return _Told(nothing, "nothing", None, [PACKED])
    if placed is None:
        if not is_found.any():
            why = NOT_TOLD.format(len(rows), measured.samples.num_source_rows)
            return _Told(matched.rows, "nothing", None, [why])
    elif not is_found.any():
        if is_given:
            return _Told(placed, by, None, [])  # where they should be, with other tokens
        if stand_at_places(rows, measured, placed):
            return _without_others(rows, measured, matched, placed)
        nothing = np.full(len(rows), -1, np.int64)
        return _Told(nothing, "nothing", None, [OTHER_ORDER.format(len(rows))])
    elif (matched.rows == placed)[is_found].all() or is_found.sum() <= _num_same(
        matched, measured, placed
    ):
        if is_given:
            return _Told(placed, by, None, [])
        return _without_others(rows, measured, matched, placed)
    problems = _described(matched, measured, len(rows), is_wrong_place=not is_given)
    return _Told(matched.rows, "content", _ids_of(matched.rows, measured), problems)


def _given_rows(
    rows: TrainerRows, measured: Measured, sample_ids: Sequence[Any] | None
) -> Rows | None:
    if sample_ids is None or len(sample_ids) != len(rows):
        return None
    return np.array([measured.row_of.get(str(i), -1) for i in sample_ids], np.int64)


def _without_others(rows: TrainerRows, measured: Measured, matched: Matched, placed: Rows) -> _Told:
    """Rows that stand where the data has them, without other rows that were put among them.

    One with the tokens of a sample of another place is such a row, and one with the tokens of none
    that has no more in common with the sample at its place than with others.
    """
    hashes = measured.samples.token_hashes
    is_open = (placed >= 0) & (matched.rows != placed) & (matched.hashes != hashes[placed])
    is_other = is_open & np.isin(matched.hashes, hashes[measured.rows])
    unknown = np.flatnonzero(is_open & ~is_other)
    is_other[unknown] = ~may_stand_at_places(rows, measured, placed, unknown)
    if not is_other.any():
        return _Told(placed, "position", None, [])
    kept = np.where(is_other, -1, placed)
    why = OTHER_ROWS.format(int(is_other.sum()), len(rows), int(np.argmax(is_other)))
    return _Told(kept, "position", _ids_of(kept, measured), [why])


def _same_ids(seen: _Seen, measured: Measured, store_rows: Rows) -> bool:
    """Whether all rows compared that the store has are those that it says."""
    found = store_rows[seen.positions]
    known = found >= 0
    hashes = measured.samples.token_hashes[found[known]]
    return bool(known.any() and (seen.token_hashes[known] == hashes).all())


def _num_other(matched: Matched, measured: Measured, store_rows: Rows) -> int:
    """How many rows of samples have other ids than the sample at their place."""
    return int((store_rows >= 0).sum()) - _num_same(matched, measured, store_rows)


def _num_same(matched: Matched, measured: Measured, store_rows: Rows) -> int:
    known = store_rows >= 0
    return int((matched.hashes[known] == measured.samples.token_hashes[store_rows[known]]).sum())


def _ids_of(store_rows: Rows, measured: Measured) -> list[str]:
    ids = measured.samples.sample_ids
    return [
        str(ids[row]) if row >= 0 else NOT_IN_STORE.format(position)
        for position, row in enumerate(store_rows.tolist())
    ]


def _described(
    matched: Matched, measured: Measured, num_rows: int, *, is_wrong_place: bool
) -> list[str]:
    """What became of rows that were brought together by their tokens."""
    found = matched.rows[matched.rows >= 0]
    in_order = bool((np.diff(measured.samples.source_rows[found]) > 0).all())
    where = "in another order than the data" if not in_order else "not at their places in the data"
    told = []
    if is_wrong_place or not in_order:
        told.append(
            f"the rows of the trainer's dataset stand {where} (shuffled, filtered or mapped "
            f"before training): {len(found):,} of {num_rows:,} are matched by their tokens. "
            "Without that, rows would be drawn by position, and others than meant"
        )
    absent = len(measured.rows) - len(found)
    lost = measured.rows[~np.isin(measured.rows, found)]
    no_loss = int((measured.samples.num_response_tokens[lost] == 0).sum())
    if absent:
        told.append(
            f"{absent:,} of {len(measured.rows):,} samples are not in the trainer's dataset"
            + (f", {no_loss:,} of them without a token that carries loss" if no_loss else "")
            + "; the rest is drawn"
        )
    for places, why in (
        (matched.ambiguous, "are cut off so that several samples have their tokens"),
        (matched.repeated, "repeat tokens more often than the store's samples do"),
        (
            (matched.rows < 0) & ~matched.ambiguous & ~matched.repeated,
            "have tokens that no sample of the store has",
        ),
    ):
        if places.any():
            told.append(
                f"{int(places.sum()):,} rows of the trainer's dataset {why} (the first is row "
                f"{int(np.argmax(places))}); they are never drawn"
            )
    return told


class _Different:
    """A row that differs, on both sides."""

    def __init__(self, position: int, row: int, fed: FedRow, ours: Tokens | None) -> None:
        self.position, self.row, self.fed, self.ours = position, row, fed, ours


def _compare(
    seen: _Seen, measured: Measured, store_rows: Rows, *, knows_loss: bool
) -> tuple[Bool, Bool]:
    """[k] rows seen that are samples, and [k] those of them with other tokens or loss."""
    samples, found = measured.samples, store_rows[seen.positions]
    is_compared: Bool = found >= 0
    is_same = samples.token_hashes[found] == seen.token_hashes
    if knows_loss:
        is_same &= samples.loss_hashes[found] == seen.loss_hashes
    return is_compared, is_compared & ~is_same


def _first_differences(
    rows: TrainerRows, measured: Measured, positions: Int64, store_rows: Rows
) -> list[_Different]:
    """The first rows that differ, on both sides."""
    chosen = positions[: 10 * MOST_SHOWN]
    return [
        _Different(position, row, fed, measured.tokens(row))
        for position, row, fed in zip(
            chosen.tolist(), store_rows[chosen].tolist(), rows.take(chosen.tolist()), strict=True
        )
    ]


def _shown(
    differences: list[_Different], measured: Measured, tokenizer: Any
) -> list[TokenDifference]:
    """The first of each kind, and then others, at most `MOST_SHOWN`."""
    told = [_describe(each, measured, tokenizer) for each in differences]
    first = list({d.what: d for d in reversed(told)}.values())
    others = [d for d in told if d not in first]
    return sorted([*first, *others][:MOST_SHOWN], key=lambda d: d.position)


def _describe(each: _Different, measured: Measured, tokenizer: Any) -> TokenDifference:
    ours, fed = each.ours, each.fed
    what, index = "ids", None
    if ours is None:
        same = hash_ids(fed.ids) == int(measured.samples.token_hashes[each.row])
        what = "loss" if same else "ids"
    else:
        length = min(len(ours.ids), len(fed.ids))
        unequal = np.flatnonzero(ours.ids[:length] != fed.ids[:length])
        if len(unequal):
            index = int(unequal[0])
        elif len(ours.ids) != len(fed.ids):
            what, index = "length", length
        else:
            what, index = "loss", int(np.flatnonzero(ours.mask != fed.mask)[0])
    return TokenDifference(
        position=each.position,
        sample_id=str(measured.samples.sample_ids[each.row]),
        source_row=int(measured.samples.source_rows[each.row]),
        what=what,
        index=index,
        here=_token(None if ours is None else ours.ids, index),
        there=_token(fed.ids, index),
        here_text=_text(tokenizer, None if ours is None else ours.ids, index),
        there_text=_text(tokenizer, fed.ids, index),
        here_length=int(measured.lengths[each.row]),
        there_length=len(fed.ids),
        here_loss=None if ours is None else spans_of(ours.mask),
        there_loss=spans_of(fed.mask),
    )


def _token(ids: Any, index: int | None) -> int | None:
    return None if ids is None or index is None or index >= len(ids) else int(ids[index])


def _text(tokenizer: Any, ids: Any, index: int | None) -> str | None:
    token = _token(ids, index)
    return None if tokenizer is None or token is None else str(tokenizer.decode([token]))


def _advice(
    differences: list[_Different], measured: Measured, tokenizer: Any, *, longest: int
) -> str | None:
    """What would mend the differences; `longest` is the trainer's longest row that differs."""
    if not differences:
        return None
    first = differences[:MOST_SHOWN]
    doubled = _begins_twice(first[0])
    if tokenizer is not None:
        mend = find_mend(
            measured,
            [d.row for d in first],
            [d.fed for d in first],
            tokenizer,
            longest=longest,
        )
        if mend is not None and not mend.settings:
            if mend.num_mended == mend.num_tried:
                return OTHER_PLACE
        elif mend is not None:
            how_many = "all rows" if mend.num_mended == mend.num_tried else "rows"
            return (
                f"set {mend.settings} in the recipe, and name a new store: with it "
                f"{mend.num_mended} of {mend.num_tried} {how_many} tried have the trainer's tokens "
                "and loss"
            )
        if not doubled and "strftime_now" in str(tokenizer.chat_template):
            return (
                "the chat template asks for today's date, which is 26 July 2024 here on every day "
                "(docs/templates.md): put the trainer's date into the template"
            )
    if doubled:
        return (
            "the trainer's rows begin twice with the same token: the texts hold the beginning of "
            "a sequence already (a chat template was applied to them). Take it out of the texts; "
            "data.rendering: trl measures them as TRL has them"
        )
    ours, fed = first[0].ours, first[0].fed
    if ours is not None and len(fed.ids) != len(ours.ids):
        length = min(len(fed.ids), len(ours.ids))
        if np.array_equal(fed.ids[:length], ours.ids[:length]):
            return (
                f"set data.max_length to what the trainer cuts its rows at (its row has "
                f"{len(fed.ids)} tokens), or see whether one side puts an end-of-sequence token"
            )
    if ours is not None and np.array_equal(fed.ids, ours.ids):
        if fed.mask[1:].all():
            return "set data.loss_on: all (or data.rendering: trl), and name a new store"
        return (
            "set data.loss_on, or data.rendering, to what the trainer does; docs/templates.md says "
            "where masks differ on purpose"
        )
    return (
        "set data.rendering or data.chat_template to what the trainer does; name its tokenizer to "
        "have settings tried (--tokenizer DIR)"
        if tokenizer is None
        else "none of the settings gives these tokens: compare the trainer's tokenizer, its chat "
        "template and its special tokens with those of the checkpoint"
    )


def _begins_twice(each: _Different) -> bool:
    ids, ours = each.fed.ids, each.ours
    twice = len(ids) > 1 and ids[0] == ids[1]
    return bool(twice and (ours is None or len(ours.ids) < 2 or ours.ids[1] != ids[1]))
