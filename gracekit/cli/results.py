"""What `watch`, `refresh` and `select` print of a new version, and of a plan."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from gracekit.cli.output import Output
from gracekit.words import count_of, duration, size

if TYPE_CHECKING:
    from gracekit.api.results import PlanPreview, RefreshResult


def show_result(out: Output, result: RefreshResult) -> None:
    """A version that was made, in one line."""
    found = {"is_new": result.is_new, **result.header.to_json()}
    out.show(found, lambda: out.line(_in_one_line(result)))


def _in_one_line(result: RefreshResult) -> str:
    if not result.is_new:
        return f"version {result.version} was made of the same before: nothing to do"
    header = result.header
    stats, timings = header.stats, header.timings
    parts = [f"version {header.version}", f"step {header.checkpoint.step}"]
    if header.refresh is not None:
        parts.append(f"measured {header.refresh.num_measured:,} of {header.refresh.num_rows:,}")
    changes = [stats.num_added or 0, stats.num_removed or 0, stats.num_changed or 0]
    if header.parent_version is not None and any(changes):
        parts.append("data: {:,} joined, {:,} left, {:,} changed".format(*changes))
    if header.audit is not None:
        parts.append(
            f"audit rank correlation {header.audit.rank_correlation:.2f} "
            f"(stale {header.audit.rank_correlation_stale:.2f}, "
            f"over all {header.audit.rank_correlation_all:.2f})"
        )
    meter = header.meter
    if meter is not None and not math.isnan(meter.value):
        parts.append(f"1,000 are worth {1000 * meter.value:,.0f} random ones")
    if header.aim is not None and not math.isnan(header.aim.target_loss):
        parts.append(f"target loss {header.aim.target_loss:.3f}")
    parts.append(f"coreset {stats.num_selected:,}")
    if header.cost is not None and not math.isnan(header.cost.share):
        parts.append(f"all selection so far: {header.cost.share:.1%} of the training")
    parts.append(
        f"{timings.model_pass_s or 0:.1f} s in the model pass, "
        f"{timings.other_s or 0:.1f} s outside it"
    )
    return " · ".join(parts)


def show_plan(out: Output, plan: PlanPreview) -> None:
    """The plan without its cost."""
    out.show(plan, lambda: print_plan(out, plan))


def print_plan(out: Output, plan: PlanPreview) -> None:
    """The same as text."""
    share = plan.num_rows / max(plan.num_samples, 1)
    out.line(f"checkpoint   {plan.checkpoint} (step {plan.step})")
    out.line(f"would make   version {plan.version}")
    out.line(
        f"measure      {plan.num_rows:,} of {plan.num_samples:,} rows ({share:.0%}), "
        f"{plan.num_tokens:,} tokens in {plan.num_shards} shards"
    )
    for reason, count in plan.reasons.items():
        out.line(f"  {reason:<16} {count:,}")
    if plan.max_rows > plan.num_rows:
        out.line(f"at most      {plan.max_rows:,} rows while what is found misses the target")
    if plan.num_looked:
        out.line(f"look at      {plan.num_looked:,} rows: their features alone")
    _print_cost(out, plan)
    out.line(f"model        {size(plan.weight_bytes)} of weights")


def _print_cost(out: Output, plan: PlanPreview) -> None:
    """What the plan costs of the training, and the run in all."""
    cost, run = plan.cost, plan.run
    if math.isnan(cost.share):
        out.line(
            "cost         cannot be told as a share of the training, whose pace is not known: set "
            "training.samples_a_step and training.steps"
        )
        return
    limit = (
        ""
        if math.isnan(cost.max_cost)
        else (f"; refresh.max_cost allows {100 * cost.max_cost:.3g}%")
    )
    out.line(
        f"cost         {cost.cost / cost.training_tokens:.1%} of the training of "
        f"{cost.training_tokens:,.0f} tokens{limit}"
    )
    for way in plan.ways:
        out.line(
            f"  {way.name:<32} {way.num_rows:>8,} rows  {way.cost / cost.training_tokens:>6.1%}"
            f"  1,000 worth about {1000 * way.value:,.0f}"
        )
    both = run.training + run.selection
    elsewhere = ""
    if run.selection_elsewhere > 1.05 * run.selection:
        elsewhere = (
            " if the training runs on this machine, on another one about "
            f"{run.selection_elsewhere / run.training:.1%}"
        )
    if run.refreshes is None:
        is_limited = not math.isnan(run.selection)
        most = f"at most {run.selection / run.training:.1%} for selection" if is_limited else ""
        out.line(
            f"run in all   {most or 'cannot be told'}{elsewhere}: how many steps lie between two "
            "checkpoints is not known yet; training.checkpoint_every tells it"
        )
        return
    since = "" if run.from_step is None else f" from step {run.from_step:,} on"
    out.line(
        f"run in all   about {run.selection / run.training:.1%} for selection in "
        f"{count_of(run.refreshes, 'refresh', 'refreshes')}{since}{elsewhere}; training and "
        f"selection {both:,.0f} tokens, training on everything {run.everything:,.0f} "
        f"({both / run.everything:.0%})"
    )


def in_at_most(seconds: float, most: float) -> str:
    """A duration, and how long it may take at most where that is more."""
    found = duration(seconds)
    return found if most <= 1.01 * seconds else f"{found}, at most {duration(most)}"
