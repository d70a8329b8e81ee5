"""What a trained model writes, and how it is judged.

It writes greedily after the prompts of held-out rows, in batches of like length, until it ends
its answer. Rows whose answer was cut off at `max_length` are left out: their end, where the result
stands, is not known.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Protocol

import numpy as np
import torch

from gracekit.comparing.bed import Judges
from gracekit.comparing.evaluation import looking
from gracekit.errors import MeasureError, RecipeError
from gracekit.foreign import foreign
from gracekit.plugins import load_class
from gracekit.types import Int32, Rows

NEW_TOKENS = 256
"""Most tokens that a model writes after a prompt."""
BATCH_ROWS = 16
"""Prompts that a model goes on with at once."""
RESULT_MARK = "####"
"""Before the result of an answer in the data of grade-school maths."""
_NUMBER = re.compile(r"(?<![\d.])-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")


class Metric(Protocol):
    """Judges what a model writes; a class of the user's own is made without arguments."""

    def __call__(self, written: str, answer: str) -> float:
        """The value for what a model wrote after a prompt, where `answer` was right."""


class ExactMatch:
    """1 where the result is that of the answer, as a number where both have one.

    A result is the number after the first `####`, as in grade-school maths (Cobbe et al. 2021), or
    without that mark the last number; a text without numbers is its own result.
    """

    def __call__(self, written: str, answer: str) -> float:
        """0 or 1."""
        return float(_result(written) == _result(answer))


METRICS: dict[str, type[Metric]] = {"exact-match": ExactMatch}


def metric_of(name: str) -> Metric:
    """The metric of that name; raises `RecipeError` where there is none."""
    if name in METRICS:
        return METRICS[name]()
    if ":" not in name:
        raise RecipeError(
            f"compare.metric: there is no metric {name!r}; known: {', '.join(METRICS)}, or a class "
            "of your own as package.module:Class"
        )
    found = load_class(name, "the metric")
    with foreign(f"the metric {name!r}", RecipeError, doing="make"):
        metric: Metric = found()
    if not callable(metric):
        raise RecipeError(
            f"compare.metric: {name!r} cannot be called; expected __call__(written, answer)"
        )
    return metric


def try_metric(metric: Metric, judges: Judges, tokenizer: Any) -> None:
    """Judge an answer by itself, before hours of training.

    Raises:
        MeasureError: The metric fails, or gives no number.
    """
    answer = _text(tokenizer, _prompt(judges, int(judges.whole[0]), 2**31).answer)
    _value(metric, answer, answer)


def metric_values(model: Any, judges: Judges, tokenizer: Any, metric: Metric, most: int) -> (
    list[float]
):  # fmt: skip
    """The metric on the first held-out rows that were not cut off."""
    found = answers(model, judges, tokenizer, judges.whole[:most])
    return [_value(metric, written, answer) for written, answer in found]


def _value(metric: Metric, written: str, answer: str) -> float:
    """What a metric says, as a finite number."""
    name = type(metric).__name__
    with foreign(f"what a model wrote ({written[:80]!r})", MeasureError, doing=f"judge by {name}"):
        said: Any = metric(written, answer)
    try:
        value = float("nan" if isinstance(said, str) else said)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise MeasureError(
            f"compare.metric: {name} gave {said!r} for what a model wrote ({written[:80]!r}); "
            "expected a finite number"
        )
    return value


def answers(model: Any, judges: Judges, tokenizer: Any, rows: Rows) -> list[tuple[str, str]]:
    """What the model writes after each row's prompt, and the row's own answer.

    Args:
        model: Writes greedily, at most `NEW_TOKENS` and as far as its context reaches.
        judges: The held-out rows.
        tokenizer: Of the model.
        rows: [m] of `judges.tokens`; of a chat, its first answer.
    """
    context = getattr(model.config, "max_position_embeddings", None) or 2**31
    prompts = [_prompt(judges, row, context) for row in rows]
    texts = [""] * len(prompts)
    device = next(model.parameters()).device
    ends = {*_ids(tokenizer.eos_token_id), *_ids(model.generation_config.eos_token_id)}
    for places in _batches(prompts):
        width = max(len(prompts[place].ids) for place in places)
        ids = torch.full((len(places), width), tokenizer.pad_token_id, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for k, place in enumerate(places):
            own = torch.from_numpy(prompts[place].ids.astype(np.int64))
            ids[k, width - len(own) :] = own  # on the left: all go on at the same place
            mask[k, width - len(own) :] = 1
        with looking(model):
            written = model.generate(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                max_new_tokens=prompts[places[0]].room,
                do_sample=False,
                use_cache=True,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=sorted(ends) or None,
            )
        for k, place in enumerate(places):
            texts[place] = _text(tokenizer, written[k, width:])
    return [
        (text, _text(tokenizer, prompt.answer)) for text, prompt in zip(texts, prompts, strict=True)
    ]


def _text(tokenizer: Any, ids: Any) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prompt:
    ids: Int32
    """[a] tokens before the answer."""
    answer: Int32
    """[b] tokens of the answer."""
    room: int
    """Tokens that may be written after it."""


def _prompt(judges: Judges, row: int, context: int) -> _Prompt:
    ids, has_loss = judges.tokens.take(np.array([row]))[0]
    first = int(np.flatnonzero(has_loss)[0])
    others = np.flatnonzero(~has_loss[first:])
    stop = first + int(others[0]) if len(others) else len(ids)
    return _Prompt(
        ids=ids[:first],
        answer=ids[first:stop],
        room=max(1, min(NEW_TOKENS, context - first)),
    )


def _batches(prompts: list[_Prompt]) -> Iterator[list[int]]:
    """Places of prompts of like length, whose answers have the same room."""
    batch: list[int] = []
    for place in sorted(range(len(prompts)), key=lambda p: len(prompts[p].ids)):
        is_full = len(batch) == BATCH_ROWS
        if batch and (is_full or prompts[place].room != prompts[batch[0]].room):
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def _ids(value: int | list[int] | None) -> list[int]:
    return [] if value is None else [value] if isinstance(value, int) else list(value)


def _result(text: str) -> Decimal | str:
    """The number after `####`, or the last one; the text itself where it has none."""
    _, mark, after = text.partition(RESULT_MARK)
    numbers = _NUMBER.findall(after if mark else text)
    if not numbers:
        return text.strip()
    return Decimal((numbers[0] if mark else numbers[-1]).replace(",", ""))
