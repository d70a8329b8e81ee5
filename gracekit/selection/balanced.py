"""A weighted draw whose mean gradient is that of the pool: by the norm, spread over the graph.

    π_i ∝ t_i · (α + (1 - α) · q_i / mean q),   none above 1, Σ π_i = budget
    w_i = t_i / π_i, in units of their mean

t is what to train on: all candidates alike, or as the places of the task say (towards a target
set), within their group where quotas say how much of each group. q is the root of the second moment
of the row's gradient norm (`scores.norms`); with a budget in tokens it is divided by the root of
the row's tokens, which gives the least variance for them. Then Σ w_i g_i over the coreset is on
average the mean gradient of t, whatever the norms are worth: a wrong one costs variance and no
direction (Horvitz and Thompson 1952). The variance is least for π ∝ t · |g|, and less still where
rows with like gradients exclude each other: so neighbours in the graph compete (`gracekit.draw`).
α bounds what wrong norms can do: no weight is above 1/α of what the row's place asks for.

A version is a new draw, the same for the same seed and version.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from gracekit.draw.over_time import kept_shares, next_shares
from gracekit.draw.pivotal import draw_spread
from gracekit.draw.probabilities import Inclusion, inclusion, with_shares
from gracekit.draw.walk import RankedGraph, places_along
from gracekit.greedy import fit
from gracekit.protocols import SelectionTask
from gracekit.scores.norms import expected_norms
from gracekit.selection.ranking import ranked, seed_of
from gracekit.types import Bool, Draw, Float64, Int32, Int64, Rows, Selection

OWN_WEIGHTS = (None, "selector")
"""Values of `selection.weights` with which the draw's own weights are used."""


class Balanced:
    """Sampling by expected gradient norm, spread over the graph, with inverse weights.

    Weights other than its own (`weights: uniform`) cannot make up for unequal probabilities; with
    them all candidates are drawn alike, and the draw is spread only.
    """

    def select(self, task: SelectionTask) -> Selection:
        """Rows in the order in which the draw decided them; gains are 0.

        A budget in rows, and quotas, are met exactly. Tokens are never exceeded: a row that would
        is replaced by those of largest probability that fit.
        """
        law = probabilities_of(task)
        drawable, groups, chances = law.drawable, law.groups, law.chances
        probabilities = chances.probabilities
        graph = RankedGraph.of(task.graph, task.order)
        given = _given_before(task, chances, groups)
        rows = draw_spread(
            graph,
            given,
            seed=seed_of(task.seed, task.version),
            groups=groups,
            across=task.costs is None,
        )
        if task.costs is not None:
            rows = np.concatenate([rows, _that_fit(task, given, rows, groups)])
        # The mean weight is 1 on average over draws, so that samples which are always in, with a
        # weight of 1, count like the mean of the others.
        mean = _group_means(probabilities, drawable, groups)[groups]
        per_place = _group_means(law.targets, drawable, groups)[groups]
        wanted = mean * np.divide(law.targets, per_place, out=np.zeros_like(mean), where=drawable)
        of_all = np.divide(wanted, probabilities, out=np.zeros_like(mean), where=probabilities > 0)
        weights = of_all[rows]
        return Selection(
            rows=rows,
            gains=np.zeros(len(rows), np.float32),
            weights=weights.astype(np.float32),
            draw=Draw(
                probabilities=probabilities,
                weights=of_all.astype(np.float32),
                places=places_along(graph, groups),
                parts=groups,
            ),
            objective=0.0,
            details={
                "alpha": law.alpha,
                "num_certain": int((chances.masses == chances.wholes).sum()),
                "smallest_probability": float(np.min(probabilities[drawable], initial=1.0)),
                "largest_weight": float(np.max(weights, initial=0.0)),
            },
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Probabilities:
    """How likely each of n rows is to be drawn, whatever was drawn before, and by what rule."""

    chances: Inclusion
    drawable: Bool
    """[n] rows with a probability above 0."""
    targets: Float64
    """[n] t, in any unit: 1 where all are to be trained on alike."""
    groups: Int32
    """[n] rows of a group have a total of their own; all 0 without quotas."""
    alpha: float
    costs: Int64 | None
    """[n] tokens; None where the budget is in rows."""


def probabilities_of(task: SelectionTask) -> Probabilities:
    """The rule by which `Balanced` draws; without weights of its own all are drawn alike."""
    groups = np.zeros(len(task.order), np.int32)
    if task.quotas is not None:
        groups = task.samples.groups
    drawable = _drawable(task)
    alpha = task.settings.alpha if task.settings.weights in OWN_WEIGHTS else 1.0
    norms = expected_norms(task.scores, task.samples.num_response_tokens, task.scoring)
    norms = _for_costs(norms, task.costs)
    means = _group_means(norms, drawable, groups)
    targets = np.ones(len(norms)) if task.places is None else task.places.total(len(norms))
    drawable &= targets > 0
    sizes = np.where(drawable, targets * _mixed(norms, means[groups], alpha), 0)
    return Probabilities(
        chances=inclusion(
            sizes,
            budget=task.budget,
            order=task.order,
            costs=task.costs,
            groups=None if task.quotas is None else groups,
            quotas=task.quotas,
            free=task.free,
        ),
        drawable=drawable,
        targets=targets,
        groups=groups,
        alpha=alpha,
        costs=task.costs,
    )


def _given_before(task: SelectionTask, chances: Inclusion, groups: Int32) -> Inclusion:
    """The probabilities of this draw given the draws before, with the same totals.

    Rows are added up in the order of their ids, so that their numbers do not matter.
    """
    n = len(task.order)
    by_id = np.argsort(task.order)
    now, parts = chances.probabilities[by_id], groups[by_id]
    costs = None if task.costs is None else task.costs[by_id]
    is_kept = task.settings.redraw == "keep"
    if is_kept and task.parent is not None and task.parent_probabilities is not None:
        was_drawn = np.zeros(n, np.bool_)
        was_drawn[task.parent] = True
        before = task.parent_probabilities[by_id]
        of_id = kept_shares(before, was_drawn[by_id], now, parts, costs)
    elif task.state is not None:
        of_id = next_shares(task.state.take(by_id), now, parts, costs)
    else:
        return chances
    shares = np.empty(n)
    shares[by_id] = of_id
    return with_shares(chances, shares, order=task.order, groups=groups, costs=task.costs)


def _drawable(task: SelectionTask) -> Bool:
    """[n] candidates, but for those that alone have more tokens than the budget or their quota."""
    if task.costs is None:
        return task.candidates
    fits = task.costs <= task.budget
    if task.quotas is not None:
        fits &= task.costs <= task.quotas[task.samples.groups]
    return task.candidates & fits


def _for_costs(norms: Float64, costs: Int64 | None) -> Float64:
    """Norms by the root of what a row costs."""
    return norms if costs is None else norms / np.sqrt(costs.astype(np.float64))


def _mixed(norms: Float64, means: Float64, alpha: float) -> Float64:
    """α + (1 - α) · norm / mean; 1 where the mean is 0."""
    relative = np.divide(norms, means, out=np.ones(len(norms)), where=means > 0)
    return alpha + (1 - alpha) * relative


def _group_means(values: Float64, rows: Bool, groups: Int32) -> Float64:
    """[g] mean over the rows of each group, the same in every order of them; 0 of none."""
    index = np.flatnonzero(rows)
    index = index[np.argsort(groups[index], kind="stable")]
    counts = np.bincount(groups[index], minlength=int(groups.max()) + 1)
    parts = np.split(values[index], np.cumsum(counts)[:-1])
    return np.array([math.fsum(part.tolist()) / max(1, len(part)) for part in parts])


def _that_fit(task: SelectionTask, given: Inclusion, drawn: Rows, groups: Int32) -> Rows:
    """Candidates that fit into the tokens that the draw has left, largest probability first.

    Those are the probabilities given the draws before, so that what is filled up with is what has
    waited longest.
    """
    assert task.costs is not None
    ranking = ranked(given.probabilities, task)
    taken = np.zeros(len(task.order), bool)
    taken[drawn] = True
    quotas = task.quotas
    if quotas is not None:
        used = np.bincount(groups[drawn], task.costs[drawn], minlength=len(quotas))
        quotas = quotas - used.astype(np.int64)
    return fit(
        ranking[~taken[ranking]],
        budget=task.budget - int(task.costs[drawn].sum()),
        groups=None if quotas is None else groups,
        quotas=quotas,
        free=task.free,
        costs=task.costs,
    )
