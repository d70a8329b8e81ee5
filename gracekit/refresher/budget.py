"""The plan's budget: how many rows a refresh measures, first and at most, and which.

`first_plan` is what a refresh begins with and what `gracekit plan` shows: there is no other. Later
rounds go on by `next_round`, as the audit says; the next refresh starts with `next_start`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from gracekit.recipe import Recipe, RefreshSection
from gracekit.refresher.allowance import LEAST_ROWS, Allowance
from gracekit.refresher.last import LastRefresh
from gracekit.refresher.ways import best_way, ways
from gracekit.staleness import first_rows, full_plan, plan_rows
from gracekit.types import Int64, Origin, RefreshPlan, Rows, SampleTable
from gracekit.version.outcomes import Audit, Meter

_START = 0.8
"""Share of the rows that the last refresh needed with which the next one starts."""
_MOST_OF_THE_WAY, _NEAR = 0.8, 0.02
"""A round adds this share of the rows that are missing; all of them where they are at most the
second share of all rows."""
_LEAST_STEP = 0.005
"""Least share of all rows that a round adds: every round costs a propagation."""
LEAST_FIRST = 256
"""Rows that a first version measures at least, as far as it may: the number of rows tells how well
the others are known, not their share. Of fewer than twice as many all are measured."""
NEVER_FULL = -1.0
"""`refresh.full_below` that no rank correlation is below."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstPlan:
    """What the first round measures, and how far later ones may go."""

    plan: RefreshPlan
    is_full: bool
    """Whether everything is measured, whatever an audit would say."""
    num_rows: int
    """Samples in the data, n."""
    limit: int
    """Rows that rounds may come to while the audit misses its target."""
    most: int
    """Rows that may be measured in the end: `limit`, or all where `refresh.full_below` can ask."""
    looks: bool = False
    """Whether all other rows get features."""

    def most_tokens(self, lengths: Int64) -> int:
        """Tokens that may be measured in the end: further rows may be the longest there are.

        Args:
            lengths: [n] tokens of each row of the store; 0 of a removed one.
        """
        others = np.delete(lengths, self.plan.rows)
        num_more = self.most - len(self.plan.rows)
        longest = np.sort(others)[len(others) - num_more :]
        return int(lengths[self.plan.rows].sum() + longest.sum())


def first_plan(
    last: LastRefresh | None,
    recipe: Recipe,
    *,
    samples: SampleTable,
    step: int,
    allowance: Allowance,
) -> FirstPlan:
    """Plan the first round of a refresh.

    It measures everything where there is no limit and no last refresh, where `refresh.full_every`
    says so, or where the budget covers everything. Else it measures a little less than the last
    refresh needed, at least `refresh.min_fraction`; a first version measures at least
    `LEAST_FIRST` rows. Never more than the allowance pays for: nothing, where that is too little to
    tell anything.

    Args:
        last: The last refresh, as it stands for the samples; None: nothing is known.
        recipe: All settings.
        samples: The sample table as it is now.
        step: Training step of the checkpoint.
        allowance: What may be spent.
    """
    settings, n = recipe.refresh, int(samples.present.sum())
    if last is None:
        return _plan_of_first_version(recipe, samples, step, allowance)
    waiting = np.flatnonzero((last.scores.origin == Origin.NEVER) & (allowance.lengths > 0))
    paid = _paid(allowance, n, waiting)
    if is_full(settings, last, paid):
        return _everything(samples, n)
    least, limit, _ = budgets(settings, n, last.num_never, paid)
    plan = plan_round(
        last, recipe, None, budget=min(max(least, last.next_budget), limit), step=step, paid=paid
    )
    most = n if settings.full_below > NEVER_FULL and paid >= n else limit
    return FirstPlan(plan=plan, is_full=False, num_rows=n, limit=limit, most=most)


def _everything(samples: SampleTable, n: int) -> FirstPlan:
    everything = full_plan(samples.present)
    return FirstPlan(plan=everything, is_full=True, num_rows=n, limit=n, most=n)


def _paid(allowance: Allowance, n: int, waiting: Rows | None = None) -> int:
    """Rows that the allowance pays for; none where these are too few to tell anything.

    Rows that wait to be measured come first, and may be longer than the others.
    """
    rows = allowance.num_rows(longer=waiting)
    return rows if rows >= min(LEAST_ROWS, n) else 0


def _plan_of_first_version(
    recipe: Recipe, samples: SampleTable, step: int, allowance: Allowance
) -> FirstPlan:
    settings, n = recipe.refresh, int(samples.present.sum())
    least, most = of_first_version(settings, n)
    if not allowance.has_budget or (n < 2 * LEAST_FIRST and _paid(allowance, n) >= n):
        return _everything(samples, n)
    found = ways(allowance, n=n, least=least, most=most)
    found = [way for way in found if way.num_rows <= most]  # refresh.max_fraction holds here too
    way = best_way(found, allowance, min(LEAST_ROWS, n))
    if way.num_rows >= n:
        return _everything(samples, n)
    measurable = samples.present & (samples.num_response_tokens > 0)
    plan = first_rows(measurable, min(way.num_rows, least), seed=recipe.seed, step=step)
    return FirstPlan(
        plan=plan,
        is_full=False,
        num_rows=n,
        limit=way.num_rows,
        most=way.num_rows,
        looks=way.looks,
    )


def of_first_version(settings: RefreshSection, n: int) -> tuple[int, int]:
    """Rows that a first version of n samples measures at least, and at most."""
    least = min(max(math.ceil(settings.min_fraction * n), LEAST_FIRST), n)
    return least, min(max(math.ceil(settings.max_fraction * n), least), n)


def plan_round(
    last: LastRefresh,
    recipe: Recipe,
    before: RefreshPlan | None,
    *,
    budget: int,
    step: int,
    paid: int | None = None,
) -> RefreshPlan:
    """The plan of all rounds so far: that of the rounds `before`, and more rows up to `budget`.

    `paid` is how many rows the allowance pays for; None: all.
    """
    num_rows = int(last.samples.present.sum())
    return plan_rows(
        recipe.refresh,
        scores=last.scores,
        graph=last.graph,
        values=last.values[recipe.scoring.importance],
        measurable=last.samples.num_response_tokens > 0,
        step=step,
        budget=budget,
        num_probe=budgets(recipe.refresh, num_rows, last.num_never, paid)[2],
        before=before,
        seed=recipe.seed,
    )


def is_full(settings: RefreshSection, last: LastRefresh, paid: int | None = None) -> bool:
    """Whether a refresh measures everything by count, or because its budget covers it.

    Neither where the allowance does not pay for so many rows.
    """
    by_count = settings.full_every > 0 and last.num_since_full + 1 >= settings.full_every
    num_rows = int(last.samples.present.sum())
    if paid is not None and paid < num_rows:
        return False
    return by_count or budgets(settings, num_rows, last.num_never)[0] >= num_rows


def budgets(
    settings: RefreshSection, num_rows: int, num_never: int, paid: int | None = None
) -> tuple[int, int, int]:
    """Rows measured at least, rows measured at most, and how many of the least are the probe.

    The probe never takes more than half of what is measured at least without the rows that were
    never measured. These come on top of both (`new_samples: all`), or raise the least as far as
    the most allows. None is above what the allowance pays for (None: everything).
    """
    paid = num_rows if paid is None else min(paid, num_rows)
    least = min(paid, math.ceil(settings.min_fraction * num_rows))
    most = min(paid, max(least, math.ceil(settings.max_fraction * num_rows)))
    probe = max(settings.min_probe, math.ceil(settings.probe_fraction * num_rows))
    probe = min(probe, least // 2)
    if settings.new_samples == "all":
        least, most = min(least + num_never, paid), min(most + num_never, paid)
    elif num_never:
        least = min(max(least, num_never + probe), most)
    return least, most, probe


def next_round(audit: Audit, num_rows: int, meter: Meter | None = None) -> int:
    """Rows to measure in all in the next round.

    With more measured the others will be better predicted. So it goes most of the way to what is
    needed now, all of it when that is near, and never to more than twice as many as so far.
    """
    missing = _needed_share(audit, num_rows, meter) * num_rows - audit.num_measured
    if missing > _NEAR * num_rows:
        missing *= _MOST_OF_THE_WAY
    wanted = audit.num_measured + math.ceil(max(missing, _LEAST_STEP * num_rows))
    return min(wanted, 2 * audit.num_measured, num_rows)


def next_start(
    audit: Audit | None, num_measured: int, num_rows: int, meter: Meter | None = None
) -> int:
    """Rows with which the next refresh should start, given what this one needed.

    Somewhat less: training mostly slows down, and a further round costs no model pass. Never more
    than half of all, so that a run that slows down at once is noticed.
    """
    if audit is None:
        needed = float(num_measured)
    elif audit.num_measured >= num_rows:  # it says nothing of fewer
        needed = float(num_rows)
    else:
        needed = _needed_share(audit, num_rows, meter) * num_rows
    return min(math.ceil(_START * needed), num_rows // 2)


def _needed_share(audit: Audit, num_rows: int, meter: Meter | None) -> float:
    """Share of all rows that reaches each target if the others are then predicted no better."""
    share = audit.num_measured / num_rows
    needed = 0.0
    if not math.isnan(audit.target):
        needed = _share_for(audit.target, audit.rank_correlation_all, 1.0, share)
    if meter is None or math.isnan(meter.target):
        return needed
    if meter.can_gain is None:  # too few rows tell
        few = meter.target_met is False
        told_by = max(meter.num_told_by, 1)
        return max(needed, min(1.0, share * LEAST_ROWS / told_by)) if few else needed
    if not meter.can_gain or meter.target == 0:
        return needed
    at_most = max(meter.kept_if_measured, meter.value_kept)
    return max(needed, _share_for(meter.target, meter.value_kept, at_most, share))


def _share_for(target: float, found: float, at_most: float, share: float) -> float:
    """Share to measure, where what is missing of `at_most` goes with the share that is not."""
    missing, allowed = at_most - found, at_most - target
    if allowed < 0:
        return 1.0  # out of reach even then: as near as may be
    return max(0.0, 1 - allowed * (1 - share) / missing) if missing > 0 else 0.0
