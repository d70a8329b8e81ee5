"""The answer: what the newest coreset is worth, what it cost, and what to do, a sentence each."""

from __future__ import annotations

from dataclasses import dataclass

from gracekit.reporting.curves import Curves
from gracekit.types import Json
from gracekit.version.header import Header
from gracekit.views.aim_words import aim_in_words
from gracekit.views.cost_words import cost_in_words
from gracekit.views.meter_words import worth_in_words
from gracekit.views.status import Status


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Three sentences."""

    worth: str
    cost: str
    advice: str

    def to_json(self) -> Json:
        """As a JSON object."""
        return {"worth": self.worth, "cost": self.cost, "advice": self.advice}


def answer(
    status: Status, newest: Header | None, metered: Header | None, curves: Curves | None
) -> Answer:
    """The three sentences.

    Args:
        status: Of the store.
        newest: Header of the newest version; None: there is none.
        metered: That of the newest version that has a meter; None: none has.
        curves: Of a comparison, if there is one.
    """
    if newest is None:
        return Answer(
            worth="What a coreset of this data is worth is not known yet: there is no version.",
            cost="Nothing was measured yet, so nothing was spent.",
            advice=_advice(status, newest, metered, curves),
        )
    return Answer(
        worth=_worth(newest, metered, curves),
        cost=_cost(newest, metered),
        advice=_advice(status, newest, metered, curves),
    )


def _worth(newest: Header, metered: Header | None, curves: Curves | None) -> str:
    if metered is None:
        told = (
            f"What the coreset of version {newest.version} is worth is not known: no version "
            "tells it"
        )
    else:
        about = worth_in_words(metered)[0]
        told = f"What the coreset of version {metered.version} is worth: {about}"
        if metered.version != newest.version:
            told += (
                f" (version {newest.version} was selected from stored scores, and what it is "
                "worth was not measured)"
            )
    aim = aim_in_words(newest.aim)
    if aim:
        told += f"; of the target, {aim[0]}"
    if curves is not None and curves.verdict:
        told += f"; trained with, {curves.verdict[0].rstrip('.')}"
    return f"{told}."


def _cost(newest: Header, metered: Header | None) -> str:
    of = newest if newest.cost is not None else metered
    sentences = cost_in_words(None if of is None else of.cost)
    if not sentences:
        return "What it cost is not known: an earlier release made it, or nothing was measured."
    in_all = sentences[1:]  # the first tells of the last version alone, in tokens
    return f"What it cost: {'; '.join(in_all or sentences)}."


def _advice(
    status: Status, newest: Header | None, metered: Header | None, curves: Curves | None
) -> str:
    """What to do: the reasons against going on first, then what `gracekit status` says."""
    then = status.sentences()[-1].removeprefix("Next: ").rstrip(".")
    aim = None if newest is None else newest.aim
    if aim is not None and aim.advice is not None:
        return f"What to do: end the training, since {aim.advice}."
    meter = None if metered is None else metered.meter
    if curves is not None and curves.is_worse:
        return (
            "What to do: train on random rows, each once before any comes twice; on this data the "
            "comparison found selection worse."
        )
    if meter is not None and meter.no_gain and aim is None:
        return (
            f"What to do: {meter.no_gain}, so train on random rows unless `gracekit compare` "
            "shows that this data is different."
        )
    if curves is None and newest is not None:
        then += "; `gracekit compare` tells whether it pays in training, which this report cannot"
    return f"What to do: {then}."
