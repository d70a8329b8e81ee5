"""What came of a comparison: numbers of each arm, differences, and a verdict in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gracekit.comparing.arms import STRONGEST_CONTROLS, Arm
from gracekit.comparing.run_result import RunResult
from gracekit.comparing.statistics import (
    LEAST_SEEDS,
    Difference,
    difference,
    first_reached,
    share_closed,
)
from gracekit.tabular import ShortRepr
from gracekit.types import Float64, Json
from gracekit.version.json_text import plain_json

MORE_COMPUTE = 1.05
"""Of the control's compute, above which a gain at equal steps needs a word."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmOutcome:
    """One arm over its seeds. Losses are means over seeds, in nats; compute in trained tokens."""

    arm: str
    about: str
    seeds: int
    num_steps: int
    steps: list[float]
    """[p] where the held-out rows were looked at."""
    losses: list[float]
    """[p] held-out loss."""
    compute: list[float]
    """[p] tokens trained and what selection cost in the same unit."""
    seconds: list[float]
    """[p] CPU seconds of training and selection."""
    loss: float
    """At the end."""
    spread: float
    """Standard deviation of it over seeds; NaN for one."""
    selection_share: float
    """What selection cost, as a share of the training's tokens."""
    selection_seconds_share: float
    """The same in CPU seconds."""
    metric: float
    """Mean of the metric; NaN where none was asked for."""
    num_distinct: float
    most_uses: int
    marked: dict[str, float]
    by_group: dict[str, float]
    """Loss at the end on each group of held-out rows, a mean over their tokens."""
    against_control: Difference | None
    """From the stronger control at equal steps; None for that control, and without one."""
    steps_to_control: float
    """Steps until the loss that the control ends with, as a share of the control's; NaN: never."""
    compute_to_control: float
    steps_to_full: float
    """The same of the loss that training on everything ends with, and its steps."""
    compute_to_full: float
    closed: float
    """Share of the distance from the control to the best oracle; NaN without one."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Comparison(ShortRepr):
    """All arms, in the order in which they were named."""

    arms: list[ArmOutcome]
    control: str | None
    """The stronger of `random` and `once`, as far as they were run."""
    average: str
    metric: str | None
    verdict: list[str]
    """Sentences."""
    remarks: list[str]
    missing: int
    """Runs that are not done."""
    page: str = ""
    """Where the page with the curves is."""

    def to_json(self) -> Json:
        """As a JSON object."""
        content: Json = plain_json(
            {
                "control": self.control,
                "average": self.average,
                "metric": self.metric,
                "verdict": self.verdict,
                "remarks": self.remarks,
                "missing": self.missing,
                "page": self.page,
                "arms": [
                    {
                        **{name: getattr(arm, name) for name in ArmOutcome.__slots__},
                        "against_control": arm.against_control and arm.against_control.to_json(),
                    }
                    for arm in self.arms
                ],
            }
        )
        return content


def compare_results(
    results: Sequence[RunResult],
    arms: Sequence[Arm],
    *,
    average: str,
    metric: str | None = None,
    missing: int = 0,
    remarks: Sequence[str] = (),
) -> Comparison:
    """Put the runs together. Arms are compared over the seeds that both have.

    Args:
        results: Of the runs that are done.
        arms: In the order to show.
        average: What the held-out loss is a mean over.
        metric: Its name.
        missing: Runs that are not done.
        remarks: To be told with it.
    """
    by_arm = {arm.name: _of_arm(results, arm.name) for arm in arms}
    by_arm = {name: found for name, found in by_arm.items() if found}
    weights = _weights(results[0], average) if results else np.zeros(0)
    ends = {name: _final(runs, weights) for name, runs in by_arm.items()}
    controls = [name for name in STRONGEST_CONTROLS if name in by_arm]
    control = min(controls, key=lambda name: ends[name].mean(), default=None)
    oracles = [arm.name for arm in arms if arm.is_oracle and arm.name in by_arm]
    oracle = min(oracles, key=lambda name: ends[name].mean(), default=None)
    outcomes = [
        _outcome(arm, by_arm, weights, control, oracle) for arm in arms if arm.name in by_arm
    ]
    return Comparison(
        arms=outcomes,
        control=control,
        average=average,
        metric=metric,
        verdict=_verdict(outcomes, arms, control, oracle),
        remarks=list(remarks),
        missing=missing,
    )


def _of_arm(results: Sequence[RunResult], name: str) -> dict[int, RunResult]:
    return {result.seed: result for result in results if result.arm == name}


def _weights(result: RunResult, average: str) -> Float64:
    if average == "tokens":
        weights = np.asarray(result.num_targets, np.float64)
    elif average == "samples":
        weights = np.ones(len(result.num_targets))
    else:
        groups = np.asarray(result.groups)
        weights = 1.0 / np.bincount(groups)[groups]
    return np.asarray(weights / weights.sum(), np.float64)


def _final(runs: dict[int, RunResult], weights: Float64) -> Float64:
    """[s] held-out loss at the end under each seed."""
    return np.array([run.losses() @ weights for run in runs.values()])


def _curve(runs: dict[int, RunResult], weights: Float64) -> tuple[Float64, Float64, Float64]:
    """[p] steps, losses, compute: means over seeds."""
    points = range(min(len(run.points) for run in runs.values()))
    steps = np.array([next(iter(runs.values())).points[p].step for p in points], np.float64)
    losses = np.array([np.mean([r.losses(p) @ weights for r in runs.values()]) for p in points])
    compute = np.array([np.mean([r.points[p].compute for r in runs.values()]) for p in points])
    return steps, losses, compute


def _outcome(
    arm: Arm,
    by_arm: dict[str, dict[int, RunResult]],
    weights: Float64,
    control: str | None,
    oracle: str | None,
) -> ArmOutcome:
    runs = by_arm[arm.name]
    last = [run.points[-1] for run in runs.values()]
    ends = _final(runs, weights)
    steps, losses, compute = _curve(runs, weights)
    seconds = [
        float(np.mean([r.points[p].training_s + r.points[p].selection_s for r in runs.values()]))
        for p in range(len(steps))
    ]
    to_control = _reaching(steps, losses, compute, by_arm, control, weights)
    full = "full" if "full" in by_arm and arm.name != "full" else None
    to_full = _reaching(steps, losses, compute, by_arm, full, weights)
    metrics = [np.mean(run.metric) for run in runs.values() if run.metric]
    apart = None
    if control is not None and arm.name != control:
        apart = _paired(runs, by_arm[control], weights)
    closed = math.nan
    if control is not None and oracle is not None and arm.name != control:
        closed = share_closed(
            float(_final(by_arm[control], weights).mean()),
            float(ends.mean()),
            float(_final(by_arm[oracle], weights).mean()),
        )
    return ArmOutcome(
        arm=arm.name,
        about=arm.about,
        seeds=len(runs),
        num_steps=next(iter(runs.values())).num_steps,
        steps=steps.tolist(),
        losses=losses.tolist(),
        compute=compute.tolist(),
        seconds=seconds,
        loss=float(ends.mean()),
        spread=float(ends.std(ddof=1)) if len(ends) > 1 else math.nan,
        selection_share=_share(
            [p.selection_tokens for p in last], [p.trained_tokens for p in last]
        ),
        selection_seconds_share=_share([p.selection_s for p in last], [p.training_s for p in last]),
        metric=float(np.mean(metrics)) if metrics else math.nan,
        num_distinct=float(np.mean([run.num_distinct for run in runs.values()])),
        most_uses=max(run.most_uses for run in runs.values()),
        marked={
            name: float(np.mean([run.marked[name] for run in runs.values()]))
            for name in next(iter(runs.values())).marked
        },
        by_group=_by_group(runs),
        against_control=apart,
        steps_to_control=to_control[0],
        compute_to_control=to_control[1],
        steps_to_full=to_full[0],
        compute_to_full=to_full[1],
        closed=closed,
    )


def _share(part: list[float], whole: list[float]) -> float:
    return sum(part) / sum(whole) if sum(whole) > 0 else math.nan


def _paired(
    own: dict[int, RunResult], other: dict[int, RunResult], weights: Float64
) -> Difference | None:
    seeds = sorted({*own} & {*other})
    if not seeds:
        return None
    return difference(
        np.stack([own[seed].losses() for seed in seeds]),
        np.stack([other[seed].losses() for seed in seeds]),
        weights,
    )


def _reaching(
    steps: Float64,
    losses: Float64,
    compute: Float64,
    by_arm: dict[str, dict[int, RunResult]],
    other: str | None,
    weights: Float64,
) -> tuple[float, float]:
    """Steps and compute until the loss that another arm ends with, as shares of that arm's."""
    if other is None:
        return math.nan, math.nan
    other_steps, other_losses, other_compute = _curve(by_arm[other], weights)
    level = float(other_losses[-1])
    return (
        first_reached(steps, losses, level) / float(other_steps[-1]),
        first_reached(compute, losses, level) / max(float(other_compute[-1]), 1e-12),
    )


def _by_group(runs: dict[int, RunResult]) -> dict[str, float]:
    first = next(iter(runs.values()))
    groups, targets = np.asarray(first.groups), np.asarray(first.num_targets, np.float64)
    losses = np.mean([run.losses() for run in runs.values()], axis=0)
    return {
        name: float(losses[groups == place] @ targets[groups == place] / targets[
            groups == place].sum())
        for place, name in enumerate(first.group_names) if (groups == place).any()
    }  # fmt: skip


def _verdict(
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
                if not math.isnan(outcome.steps_to_control)
                else ""
            )
            sentences.append(f"`{outcome.arm}` is better than `{control}`: {numbers}{reached}.")
        elif apart.is_worse:
            sentences.append(f"`{outcome.arm}` is worse than `{control}`: {numbers}.")
        else:
            sentences.append(f"`{outcome.arm}`: no difference from `{control}` found: {numbers}.")
        share = outcome.compute[-1] / known_compute
        if apart.mean < 0 and share > MORE_COMPUTE:
            sentences.append(
                f"`{outcome.arm}` took {share:.0%} of the compute of `{control}` in as many steps: "
                "longer rows, or selection. See whether `longest` does as well."
            )
    return sentences


def _head_room(outcomes: list[ArmOutcome], oracle: str, control: str) -> str:
    apart = next(outcome.against_control for outcome in outcomes if outcome.arm == oracle)
    if apart is None:
        return f"`{oracle}` and `{control}` have no seed in common."
    error = apart.standard_error
    numbers = f"{apart.mean:+.4f} [{apart.low:+.4f}, {apart.high:+.4f}]"
    if math.isnan(error):
        return f"Head-room: `{oracle}` less `{control}` is {numbers}, of one seed."
    errors = abs(apart.mean) / error if error > 0 else math.inf
    if apart.mean < 0 and errors >= 3:
        return (
            f"Head-room: the best oracle `{oracle}` is {numbers} from `{control}`, "
            f"{errors:.1f} standard errors over seeds."
        )
    return (
        f"No head-room: even the best oracle `{oracle}` is {numbers} from `{control}`, "
        f"{errors:.1f} standard errors over seeds; three were asked for. No selection of this "
        "kind can be told apart here."
    )
