"""From what was measured to the factor `aim`: signals, what each is worth, and their mix.

    sketches ─smooth→ influence ┐
             ─mean→ group       ┼─gains on target samples not seen→ shares ─→ places
    features ─compare→ likeness ┘

A share that all rows have alike stays whatever the signals say, and each signal keeps a small one,
so that what it chooses goes on being seen. Where no signal is shown to gain anything, all rows are
alike.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from gracekit.aim.gains import LEAST_ROWS, PLAIN_WIDTH
from gracekit.aim.judging import JUDGED, LIKENESS, MASS, Evidence, Judged, judge
from gracekit.aim.places import chosen
from gracekit.types import Places
from gracekit.version.outcomes import Aim

if TYPE_CHECKING:
    from gracekit.recipe import SelectionSection

EXPLORED = 0.1
"""Share of the aimed part that the signals keep alike, whatever they are worth."""
UNTOLD = 0.5
"""Share that all rows have alike where nothing tells yet what a signal gains."""
SURE = 2.0
"""Standard errors of a gain below which it is said that it may be chance."""
SHARPNESS = 4.0
"""Power of the gains in the shares: a signal that gains 1.3 times as much gets nearly three times
the share, and equal ones get equal shares."""


def follow(settings: SelectionSection, evidence: Evidence) -> tuple[Places, Aim]:
    """The factor `aim` of all rows, the signals behind it, and what was found out.

    Args:
        settings: `aim`, `aim_width` and `aim_uniform` are read.
        evidence: What is known.
    """
    judged = judge(settings, evidence)
    shares, why = _shares(settings, judged)
    if settings.aim == "auto" and shares and judged.gains:
        why += _doubt(judged, len(evidence.target.features))
    uniform = settings.aim_uniform if shares else 1.0
    if shares and settings.aim == "auto" and not judged.gains:
        uniform = max(uniform, UNTOLD)
    place = np.full(len(evidence.valid), uniform, np.float32)
    widths = {}
    for name, share in shares.items():
        widths[name] = settings.aim_width or (
            judged.gains[name].width if name in judged.gains else PLAIN_WIDTH
        )
        known = evidence.valid & ~evidence.barred & np.isfinite(judged.signals[name])
        of_signal = chosen(judged.signals[name], known, widths[name])
        place += (1 - uniform) * share * of_signal
    num_alike = math.nan
    if shares:
        aimed = np.maximum(place[evidence.valid].astype(np.float64) - uniform, 0)
        num_alike = aimed.sum() ** 2 / max(np.square(aimed).sum(), 1e-30)
    signals = dict(judged.signals)
    if judged.mass is not None:
        signals[MASS] = judged.mass
    found = Aim(
        **_numbers(judged, {name: (1 - uniform) * share for name, share in shares.items()}),
        share_uniform=uniform,
        num_alike=num_alike,
        predicted_fall=judged.predicted(place),
        num_told_by=len(judged.rows),
        rounds=judged.rounds,
        widths=widths,
        why=why,
    )
    return Places(factors={"aim": place}, signals=signals), found


def _doubt(judged: Judged, num_target: int) -> str:
    """What to know of gains that tell little; empty where they tell enough."""
    gains = [gain for name, gain in judged.gains.items() if name in judged.signals]
    doubts = []
    if num_target == 1:
        doubts.append("one sample is the whole target, so it judges what it has chosen itself")
    if all(gain.gain < SURE * gain.error for gain in gains):
        doubts.append(f"no gain is {SURE:.0f} times its error, so it may be chance")
    return "".join(f"; {doubt}" for doubt in doubts)


def _numbers(judged: Judged, shares: dict[str, float]) -> dict[str, Any]:
    """Gain, error, what lasts of it, and share of each signal, as `Aim` has them."""
    numbers: dict[str, Any] = {}
    for name in JUDGED:
        gain = judged.gains.get(name)
        if gain is not None:
            numbers[f"gain_{name}"] = gain.gain
            numbers[f"error_{name}"] = gain.error
            numbers[f"width_{name}"] = gain.width
            numbers[f"lasts_{name}"] = gain.lasts
        numbers[f"share_{name}"] = shares.get(name, 0.0)
    return numbers


def _shares(settings: SelectionSection, judged: Judged) -> tuple[dict[str, float], str]:
    """Signal -> share of the aimed part, sum 1; none where nothing is followed. And why."""
    if settings.aim != "auto":
        if settings.aim not in judged.signals:
            return {}, f"nothing is known yet of {settings.aim}: all rows are alike"
        return {settings.aim: 1.0}, f"the recipe says so (selection.aim: {settings.aim})"
    gains = {name: gain for name, gain in judged.gains.items() if name in judged.signals}
    if not gains:
        untold = (
            f"fewer than {LEAST_ROWS} rows were measured, and nothing tells what a signal gains"
        )
        if LIKENESS in judged.signals:
            return {LIKENESS: 1.0}, f"{untold}: likeness, which costs nothing, has half"
        return {}, f"{untold}: all rows are alike"
    counts = {name: gain.counts for name, gain in gains.items()}
    if not any(counts.values()):
        return {}, (
            "no signal is shown to gain more than its error: nothing in the data is shown to "
            "resemble the target, and all rows are alike"
        )
    powers = {name: count**SHARPNESS for name, count in counts.items()}
    in_all = sum(powers.values())
    shares = {
        name: (1 - EXPLORED) * power / in_all + EXPLORED / len(powers)
        for name, power in powers.items()
    }
    best = max(shares, key=shares.__getitem__)
    told = ", ".join(f"{name} {count:.3f}" for name, count in counts.items())
    return shares, f"{best} gains most on target samples that it has not seen ({told})"
