"""What can be said of a comparison in words, and what cannot."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gracekit.comparing.arms import Arm
from gracekit.comparing.outcome import ArmOutcome
from gracekit.comparing.statistics import LEAST_SEEDS
from gracekit.words import count_of

TURNED = 0.1
"""Of the control's fall, from which a later rise needs a word."""
MORE_COMPUTE = 1.05
"""Of the control's compute, above which a gain at equal steps needs a word."""


def verdict_of(
    outcomes: list[ArmOutcome], arms: Sequence[Arm], control: str | None, oracle: str | None
) -> list[str]:
    """What can be said, and what cannot."""
    if control is None:
        return [
            "Nothing can be said: neither of the controls `random` and `once` was run; add one to "
            "compare.arms."
        ]
    sentences = []
    seeds = min(outcome.seeds for outcome in outcomes)
    if seeds < LEAST_SEEDS:
        sentences.append(
            f"With {seeds} seed{'' if seeds == 1 else 's'} nothing is shown: two runs of one arm "
            f"differ too. Intervals are over held-out rows alone; run at least {LEAST_SEEDS} seeds."
        )
    if oracle is not None:
        sentences.append(_head_room(outcomes, oracle, control))
    known = {arm.name: arm for arm in arms}
    of_control = next(outcome for outcome in outcomes if outcome.arm == control)
    sentences += _course(of_control)
    known_compute = max(of_control.compute[-1], 1e-12)
    for outcome in outcomes:
        arm, apart = known[outcome.arm], outcome.against_control
        if apart is None or arm.is_oracle or arm.is_full:
            continue
        numbers = f"{apart.mean:+.4f} [{apart.low:+.4f}, {apart.high:+.4f}]"
        if apart.is_better:
            reached = (
                f", and reaches its last loss in {outcome.steps_to_control:.0%} of its steps and "
                f"{outcome.compute_to_control:.0%} of its compute"
                if 0 < outcome.steps_to_control < of_control.steps_to_control  # NaN: never
                else ""
            )
            sentences.append(f"`{outcome.arm}` is better than `{control}`: {numbers}{reached}.")
        elif apart.is_worse:
            sentences.append(f"`{outcome.arm}` is worse than `{control}`: {numbers}.")
        elif not apart.over_seeds:
            sentences.append(
                f"`{outcome.arm}` less `{control}`: {numbers}, over held-out rows alone."
            )
        else:
            sentences.append(f"`{outcome.arm}`: no difference from `{control}` found: {numbers}.")
        share = outcome.compute[-1] / known_compute
        if arm.overlay is not None and arm.overlay.ends_early:
            sentences.append(_end(outcome, f"{share:.0%} of the compute of `{control}`"))
        elif apart.mean < 0 and share > MORE_COMPUTE:
            hint = "" if outcome.arm == "longest" else " See whether `longest` does as well."
            sentences.append(
                f"`{outcome.arm}` took {share:.0%} of the compute of `{control}` in as many steps: "
                f"longer rows, or selection.{hint}"
            )
    return sentences


def _end(outcome: ArmOutcome, compute: str) -> str:
    """Where an arm ended that may end before the others."""
    if not outcome.ended_at:
        return (
            f"No version of `{outcome.arm}` advised an end, so it took all {outcome.num_steps:,} "
            f"steps, with {compute}."
        )
    steps = ", ".join(f"{step:,}" for step in outcome.ended_at)
    others = outcome.seeds - len(outcome.ended_at)
    where = "where its versions advised it"
    if others:
        where = (
            f"where its versions advised it, under {len(outcome.ended_at)} of {outcome.seeds} "
            "seeds, and took all steps under the others"
        )
    return (
        f"`{outcome.arm}` ended after {steps} of {outcome.num_steps:,} steps, {where}; with "
        f"{compute}."
    )


def _course(control: ArmOutcome) -> list[str]:
    """What to know of a training that does not lower the held-out loss to its end."""
    first, last = control.losses[0], control.losses[-1]
    place = min(range(len(control.losses)), key=control.losses.__getitem__)
    lowest = control.losses[place]
    if place == 0:
        return [
            f"The training lowers no held-out loss: `{control.arm}` begins at {first:.4f} and ends "
            f"at {last:.4f}, so arms differ in how much they harm. Lower compare.learning_rate, or "
            "look at whether the held-out rows are of the task that is trained."
        ]
    if last - lowest > TURNED * (first - lowest):
        return [
            f"`{control.arm}` is lowest at step {control.steps[place]:,.0f} ({lowest:.4f}) and "
            f"ends at {last:.4f}: the training goes on too long, and arms are compared by how they "
            "bear that. Fewer compare.epochs tell which is better at its best."
        ]
    return []


def metric_sentences(
    outcomes: list[ArmOutcome], metric: str | None, control: str | None
) -> list[str]:
    """A sentence for each arm; a metric of the user's own may be good high or low."""
    sentences = []
    for outcome in outcomes:
        apart = outcome.metric_against_control
        if apart is None:
            continue
        numbers = f"{apart.mean:+.3f} [{apart.low:+.3f}, {apart.high:+.3f}]"
        found = "no difference found" if apart.over_seeds else "over held-out rows alone"
        if apart.is_better or apart.is_worse:
            found = "higher" if apart.is_worse else "lower"
        sentences.append(
            f"{metric} of `{outcome.arm}`, less that of `{control}`: {numbers}, {found}."
        )
    return sentences


def _head_room(outcomes: list[ArmOutcome], oracle: str, control: str) -> str:
    outcome = next(outcome for outcome in outcomes if outcome.arm == oracle)
    apart = outcome.against_control
    if apart is None:
        return f"`{oracle}` and `{control}` have no seed in common."
    error = apart.standard_error
    numbers = f"{apart.mean:+.4f} [{apart.low:+.4f}, {apart.high:+.4f}]"
    if not apart.over_seeds:
        of_seeds = count_of(len(apart.by_seed), "seed")
        return f"Head-room: `{oracle}` less `{control}` is {numbers}, of {of_seeds}."
    errors = abs(apart.mean) / error if error > 0 else math.inf
    if apart.mean < 0 and errors >= 3:
        return (
            f"Head-room: the best oracle `{oracle}` is {numbers} from `{control}`, "
            f"{errors:.1f} standard errors over seeds."
        )
    if apart.mean > 0 and outcome.steps_to_control < 1:
        return (
            f"Head-room at the end is not known: the best oracle `{oracle}` has the last loss of "
            f"`{control}` after {outcome.steps_to_control:.0%} of its steps and ends at {numbers} "
            "from it. It uses its few rows too often for so long a run."
        )
    if apart.mean >= 0:
        return (
            f"No head-room: even the best oracle `{oracle}` ends no lower than `{control}`: "
            f"{numbers}. No selection of this kind can be told apart here."
        )
    return (
        f"No head-room: even the best oracle `{oracle}` is {numbers} from `{control}`, "
        f"{errors:.1f} standard errors over seeds; three were asked for. No selection of this "
        "kind can be told apart here."
    )
