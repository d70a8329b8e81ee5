"""What came of a comparison: numbers of each arm and differences; `verdict` says it in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gracekit.comparing.arms import STRONGEST_CONTROLS, Arm
from gracekit.comparing.outcome import ArmOutcome
from gracekit.comparing.run_result import RunResult
from gracekit.comparing.statistics import (
    Difference,
    difference,
    first_reached,
    share_closed,
)
from gracekit.comparing.verdict import metric_sentences, verdict_of
from gracekit.tabular import ShortRepr
from gracekit.types import Float64, Json
from gracekit.version.json_text import plain_json


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
                        **{
                            name: apart and apart.to_json()
                            for name in ("against_control", "metric_against_control")
                            for apart in [getattr(arm, name)]
                        },
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
    control = _lowest([name for name in STRONGEST_CONTROLS if name in by_arm], by_arm, weights)
    oracles = [arm.name for arm in arms if arm.is_oracle and arm.name in by_arm]
    oracle = _lowest(oracles, by_arm, weights)
    outcomes = [
        _outcome(arm, by_arm, weights, control, oracle) for arm in arms if arm.name in by_arm
    ]
    return Comparison(
        arms=outcomes,
        control=control,
        average=average,
        metric=metric,
        verdict=[
            *verdict_of(outcomes, arms, control, oracle),
            *metric_sentences(outcomes, metric, control),
        ],
        remarks=list(remarks),
        missing=missing,
    )


def _lowest(
    names: list[str], by_arm: dict[str, dict[int, RunResult]], weights: Float64
) -> str | None:
    """The arm that ends lowest, over the seeds that all of them have; None of none."""
    if not names:
        return None
    runs = [by_arm[name] for name in names]
    common = _in_common(*runs)
    ends = [float(_final(each, weights).mean()) for each in (common if common[0] else runs)]
    return names[int(np.argmin(ends))]


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
    to_control = _reaching(runs, by_arm, control, weights)
    full = "full" if "full" in by_arm and arm.name != "full" else None
    to_full = _reaching(runs, by_arm, full, weights)
    metrics = [np.mean(run.metric) for run in runs.values() if run.metric]
    apart = metric_apart = None
    if control is not None and arm.name != control:
        apart = _paired(runs, by_arm[control], weights)
        metric_apart = _paired_metrics(runs, by_arm[control])
    closed = math.nan
    if control is not None and oracle is not None and arm.name != control:
        three = _in_common(by_arm[control], runs, by_arm[oracle])
        if three[0]:
            closed = share_closed(*(float(_final(each, weights).mean()) for each in three))
    return ArmOutcome(
        arm=arm.name,
        about=arm.about,
        seeds=len(runs),
        num_steps=next(iter(runs.values())).num_steps,
        ended_at=[run.ended_at for run in runs.values() if run.ended_at is not None],
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
        metric_against_control=metric_apart,
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


def _paired_metrics(own: dict[int, RunResult], other: dict[int, RunResult]) -> Difference | None:
    """Of the metric, row by row; None where the same rows were not judged under the same seeds."""
    pairs = [(own[seed].metric, other[seed].metric) for seed in sorted({*own} & {*other})]
    both = [(np.array(one), np.array(two)) for one, two in pairs if one and two]
    if not both or len({len(values) for pair in both for values in pair}) > 1:
        return None
    num_rows = len(both[0][0])
    return difference(
        np.stack([one for one, _ in both]),
        np.stack([two for _, two in both]),
        np.full(num_rows, 1 / num_rows),
    )


def _in_common(*arms: dict[int, RunResult]) -> list[dict[int, RunResult]]:
    """The runs of each arm under the seeds that all of them have."""
    seeds = sorted(set.intersection(*({*runs} for runs in arms)))
    return [{seed: runs[seed] for seed in seeds} for runs in arms]


def _reaching(
    runs: dict[int, RunResult],
    by_arm: dict[str, dict[int, RunResult]],
    other: str | None,
    weights: Float64,
) -> tuple[float, float]:
    """Steps and compute until the loss that another arm ends with, as shares of that arm's."""
    if other is None:
        return math.nan, math.nan
    own, others = _in_common(runs, by_arm[other])
    if not own:
        return math.nan, math.nan
    steps, losses, compute = _curve(own, weights)
    other_steps, other_losses, other_compute = _curve(others, weights)
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
