"""What a selection starts from: who may be picked, who is in anyway, and how much in all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gracekit.errors import SelectionError
from gracekit.protocols import SelectionTask
from gracekit.recipe import SelectionSection
from gracekit.selection.candidates import (
    row_budget,
    row_tokens,
    usable_rows,
    without_hardest,
    without_near_duplicates,
)
from gracekit.selection.lists import listed
from gracekit.selection.quotas import Places, group_places
from gracekit.types import Bool, Float32, Int64, Rows, SampleTable, ScoreTable, SparseGraph


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What may be picked, what is in anyway, and how much in all."""

    usable: Bool
    candidates: Bool
    """[n] rows that the selector may pick."""
    represented: Bool
    """[n] rows that the coreset stands for."""
    initial: Rows
    """Rows that are in anyway, by id."""
    budget: int
    """In rows or tokens, the initial rows included."""
    places: Places
    """Likewise."""
    costs: Int64 | None


def start_from(
    settings: SelectionSection,
    *,
    scores: ScoreTable,
    samples: SampleTable,
    graph: SparseGraph,
    store: Path | None,
    order: Int64,
) -> Start:
    """Apply the recipe's lists, cuts, budget and quotas; raises `SelectionError`."""
    usable = usable_rows(scores, samples)
    lists = listed(settings, scores=scores, samples=samples, store=store)
    allowed = usable & ~lists.never
    represented = lists.always | without_hardest(
        settings.drop_hardest, allowed, scores.importance, order
    )
    candidates = without_near_duplicates(
        settings.max_similarity, graph, kept=represented, always=lists.always,
        importance=scores.importance, order=order,
    )  # fmt: skip
    if not candidates.any():
        raise SelectionError(
            f"all {usable.sum()} usable samples are never in (selection.never_in, never_in_where)"
        )
    sizes = np.bincount(samples.groups[candidates], minlength=len(samples.group_names))
    forced = lists.always | (candidates & (sizes < settings.keep_groups_below)[samples.groups])
    costs = None if settings.tokens is None else row_tokens(samples)
    budget = settings.tokens or row_budget(
        settings, num_usable=int(usable.sum()), num_candidates=int(candidates.sum())
    )
    needed = int(forced.sum() if costs is None else costs[forced].sum())
    if needed > budget:
        raise SelectionError(
            f"what is always in (selection.always_in, always_in_where, keep_groups_below) takes "
            f"{needed} {'samples' if costs is None else 'tokens'}, and the budget is {budget}: "
            "raise fraction, count or tokens, or shorten the lists"
        )
    places = group_places(
        settings, budget, samples=samples, usable=usable, candidates=candidates, forced=forced,
        costs=costs,
    )  # fmt: skip
    initial = np.flatnonzero(forced)
    return Start(
        usable=usable,
        candidates=candidates & ~forced,
        represented=represented,
        initial=initial[np.argsort(order[initial])],
        budget=budget,
        places=places,
        costs=costs,
    )


def task_of(
    start: Start,
    *,
    order: Int64,
    scores: ScoreTable,
    samples: SampleTable,
    graph: SparseGraph,
    settings: SelectionSection,
    seed: int,
    version: int,
    features: NDArray[np.float16] | Float32 | None,
    target_features: NDArray[np.float16] | Float32 | None,
    parent: Rows | None,
) -> SelectionTask:
    """What is left to pick once the initial rows are in."""
    taken = np.ones(len(start.initial), np.int64)
    if start.costs is not None:
        taken = start.costs[start.initial]
    quotas = start.places.quotas
    if quotas is not None:
        groups = samples.groups[start.initial]
        quotas = quotas - np.bincount(groups, taken, minlength=len(quotas)).astype(np.int64)
    return SelectionTask(
        budget=start.budget - int(taken.sum()),
        costs=start.costs,
        candidates=start.candidates,
        represented=start.represented,
        initial=start.initial,
        quotas=quotas,
        free=start.places.free,
        order=order,
        scores=scores,
        samples=samples,
        graph=graph,
        settings=settings,
        seed=seed,
        version=version,
        parent=parent,
        features=features,
        target_features=target_features,
    )
