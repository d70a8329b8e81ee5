"""What selection follows towards the target, and how far it has come, in words."""

from __future__ import annotations

import math

import numpy as np

from gracekit.scores.rows import places_without
from gracekit.store import StoreReader
from gracekit.types import Places, SampleTable
from gracekit.version.header import Header
from gracekit.version.outcomes import Aim


def aim_in_words(aim: Aim | None) -> list[str]:
    """What a version found of the target, for people, a sentence an entry; empty without one."""
    if aim is None:
        return []
    found = [_loss(aim)] if math.isfinite(aim.target_loss) else []
    parts = [
        f"{share:.0%} of what is trained on follows {name}"
        for name, share in (
            ("smoothed influence", aim.share_influence),
            ("likeness of features", aim.share_likeness),
            ("groups", aim.share_group),
            ("the target's samples in turn", _rest(aim)),
        )
        if share > 0
    ]
    if parts:
        found.append(f"{', '.join(parts)}, {aim.share_uniform:.0%} is all samples alike: {aim.why}")
    else:
        found.append(f"all samples are alike: {aim.why}")
    if math.isfinite(aim.num_alike):
        found.append(_left(aim))
    if aim.num_overlap:
        what = "are not trained on" if aim.is_overlap_dropped else "may be trained on all the same"
        found.append(f"{aim.num_overlap:,} samples have the content of a target sample and {what}")
    if aim.advice is not None:
        found.append(f"more steps are not advised: {aim.advice}")
    return found


def _loss(aim: Aim) -> str:
    lowest = "" if aim.best_step is None else f" (lowest so far at step {aim.best_step:,})"
    return f"the loss on its {aim.num_target:,} samples is {aim.target_loss:.3f}{lowest}"


def _rest(aim: Aim) -> float:
    """The share that neither of the signals has, nor all rows alike."""
    known = (aim.share_influence, aim.share_likeness, aim.share_group, aim.share_uniform)
    rest = 1 - sum(share for share in known if math.isfinite(share))
    return rest if rest > 1e-6 else 0.0


def _left(aim: Aim) -> str:
    text = f"about {aim.num_alike:,.0f} samples resemble it, used {aim.uses_of_alike:.1f} times"
    if math.isfinite(aim.steps_left):
        text += f": enough for about {aim.steps_left:,.0f} more steps, with four uses of each"
    return text


def places_behind(store: StoreReader, header: Header) -> Places | None:
    """What a version was to be trained on; that of the version whose coreset it has.

    Samples that joined the data since then have the places of plain ones.
    """
    made = header
    while made.rollback_of is not None and made.rollback_of in store.versions():
        made = store.header(made.rollback_of)
    places = store.places(made.version)
    if places is None:
        return None
    forgotten = np.ones(len(store.samples(header.version)), np.bool_)
    forgotten[: len(places)] = False
    return places_without(places, forgotten)


_NUM_SHOWN = 3


def trust_in_words(places: Places, samples: SampleTable) -> list[str]:
    """How many samples are distrusted, and those of which their prompts tell least, in words."""
    factor, evidence = places.factors.get("trust"), places.signals.get("evidence")
    if factor is None or evidence is None:
        return []
    rows = np.flatnonzero((factor < 1) & samples.present)
    known = int((np.isfinite(evidence) & samples.present).sum())
    found = [
        f"{len(rows):,} of {known:,} samples, whose prompts tell a reference model little of their "
        "responses"
    ]
    worst = rows[np.argsort(evidence[rows], kind="stable")][:_NUM_SHOWN]
    found += [
        f"{samples.sample_ids[r]} (evidence {evidence[r]:+.1f}): {samples.previews[r]}"
        for r in worst
    ]
    if len(rows) > len(worst):
        found.append("`gracekit sql distrusted` lists all")
    return found


_FACTOR_WORDS = {
    "allowed": "{:.0f} times because it has the content of a target sample",
    "aim": "{:.2f} times by what follows the target",
    "dose": "{:.2f} times for how often it was used",
    "copies": "{:.2f} times because {num:.0f} samples that say the same share one place",
    "trust": "{:.2f} times because its prompt tells a reference model little of its response",
    "excess": "{:.2f} times by its loss above that under a reference model",
    "group": "{:.2f} times by what is left to learn of its group",
    "learned": "{:.2f} times because its loss is below the mean",
}
"""Factors of a place, in words."""


def place_in_words(place: float, factors: dict[str, float]) -> str:
    """How often a sample is wanted beside a plain one, and why, for people."""
    reasons = [
        _FACTOR_WORDS[name].format(factor, num=1 / factor if factor else 0.0)
        for name, factor in factors.items()
        if abs(factor - 1) > 1e-6
    ]
    if not reasons:
        return "It is wanted as often as a plain sample."
    return f"It is wanted {place:.2f} times as often as a plain sample: {' and '.join(reasons)}."
