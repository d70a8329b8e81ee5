"""The pool of a selection: which rows may be picked, which are in anyway, and how much in all."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, fields

import numpy as np

from gracekit.errors import SelectionError
from gracekit.greedy import apart
from gracekit.protocols import SelectionInputs, SelectionTask
from gracekit.recipe import SelectionSection
from gracekit.selection.lists import listed
from gracekit.selection.quotas import GroupPlaces, group_places
from gracekit.texts import Texts
from gracekit.types import (
    Bool,
    Float32,
    Int64,
    Origin,
    Rows,
    SampleTable,
    ScoreTable,
    SparseGraph,
)

logger = logging.getLogger(__name__)

DEFAULT_FRACTION = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """What may be picked, what is in anyway, and how much in all."""

    usable: Bool
    """[n] rows with a score and something to train on."""
    candidates: Bool
    """[n] rows that the selector may pick."""
    represented: Bool
    """[n] rows that the coreset stands for."""
    used_up: Bool
    """[n] rows that were used as often as `max_uses` allows, but for those always in."""
    initial: Rows
    """Rows that are in anyway, by id."""
    budget: int
    """Rows or tokens that the coreset has in all, the initial rows included."""
    places: GroupPlaces
    """How much may be picked of each group, in rows or tokens, the initial rows included."""
    costs: Int64 | None
    """[n] tokens of each row; None where the budget is in rows."""
    order: Int64
    """[n] rank of the sample id."""


def make_pool(settings: SelectionSection, inputs: SelectionInputs) -> Pool:
    """Apply the recipe's lists, cuts, budget and quotas; raises `SelectionError`."""
    scores, samples = inputs.scores, inputs.samples
    order = id_order(samples.sample_ids)
    usable = usable_rows(scores, samples)
    lists = listed(settings, scores=scores, samples=samples, store=inputs.store)
    allowed = usable & ~lists.never
    is_barred = usable & barred_rows(inputs)
    allowed &= ~is_barred
    if (lists.always & is_barred).any():
        logger.warning(
            "%d samples are always in and have the content of a target sample: they are trained "
            "on, and the target's loss is partly that of samples seen",
            (lists.always & is_barred).sum(),
        )
    represented = lists.always | without_hardest(
        settings.drop_hardest, allowed, scores.importance, order
    )
    used_up = represented & ~lists.always & _at_max_uses(settings, inputs)
    candidates = without_near_duplicates(
        settings.max_similarity,
        inputs.graph,
        kept=represented & ~used_up,
        always=lists.always,
        importance=scores.importance,
        order=order,
    )
    if not candidates.any():
        raise SelectionError(_why_nothing_is_left(settings, usable, used_up, is_barred))
    sizes = np.bincount(samples.groups[candidates | used_up], minlength=len(samples.group_names))
    forced = lists.always | (candidates & (sizes < settings.keep_groups_below)[samples.groups])
    costs = None if settings.tokens is None else row_tokens(samples)
    budget = settings.tokens or row_budget(
        settings,
        num_usable=int(usable.sum()),
        num_candidates=int(candidates.sum()),
        num_used_up=int(used_up.sum()),
    )
    if costs is not None and used_up.any() and int(costs[candidates].sum()) < budget:
        logger.warning(
            "%d tokens are to be selected, but the samples that can be have %d, for %d were used "
            "%d times, as often as selection.max_uses allows: all that are left are selected",
            budget,
            costs[candidates].sum(),
            used_up.sum(),
            settings.max_uses,
        )
    needed = int(forced.sum() if costs is None else costs[forced].sum())
    if needed > budget:
        raise SelectionError(
            f"what is always in (selection.always_in, always_in_where, keep_groups_below) takes "
            f"{needed} {'samples' if costs is None else 'tokens'}, and the budget is {budget}: "
            "raise fraction, count or tokens, or shorten the lists"
        )
    places = group_places(
        settings,
        budget,
        samples=samples,
        usable=usable,
        candidates=candidates,
        forced=forced,
        costs=costs,
    )
    initial = np.flatnonzero(forced)
    return Pool(
        usable=usable,
        candidates=candidates & ~forced,
        represented=represented,
        used_up=used_up,
        initial=initial[np.argsort(order[initial])],
        budget=budget,
        places=places,
        costs=costs,
        order=order,
    )


def make_task(
    pool: Pool, settings: SelectionSection, inputs: SelectionInputs, *, seed: int, version: int
) -> SelectionTask:
    """What is left to pick once the initial rows are in."""
    taken = np.ones(len(pool.initial), np.int64)
    if pool.costs is not None:
        taken = pool.costs[pool.initial]
    quotas = pool.places.quotas
    if quotas is not None:
        groups = inputs.samples.groups[pool.initial]
        quotas = quotas - np.bincount(groups, taken, minlength=len(quotas)).astype(np.int64)
    return SelectionTask(
        **{field.name: getattr(inputs, field.name) for field in fields(SelectionInputs)},
        budget=pool.budget - int(taken.sum()),
        costs=pool.costs,
        candidates=pool.candidates,
        represented=pool.represented,
        initial=pool.initial,
        quotas=quotas,
        free=pool.places.free,
        order=pool.order,
        settings=settings,
        seed=seed,
        version=version,
    )


def barred_rows(inputs: SelectionInputs) -> Bool:
    """[n] rows that are not trained on because they have the content of a target sample."""
    factors = {} if inputs.places is None else inputs.places.factors
    if "allowed" not in factors:
        return np.zeros(len(inputs.samples), np.bool_)
    return np.asarray(factors["allowed"] == 0, np.bool_)


def id_order(sample_ids: Texts) -> Int64:
    """[n] rank of each id among all: ties are broken by it, so the order of rows is no matter."""
    order = np.empty(len(sample_ids), np.int64)
    order[sample_ids.order()] = np.arange(len(order))
    return order


def usable_rows(scores: ScoreTable, samples: SampleTable) -> Bool:
    """[n] rows with scores, a finite importance and at least one target token.

    Where nothing was ever measured, nor tried, nobody has scores: then all rows are alike. A row
    without a target token is invalid without being tried.
    """
    has_scores = scores.usable
    has_failed = (scores.origin == Origin.INVALID) & (samples.num_response_tokens > 0)
    if not has_scores.any() and not has_failed.any():
        has_scores = scores.origin == Origin.NEVER
    usable: Bool = has_scores & np.isfinite(scores.importance) & (samples.num_response_tokens > 0)
    if not usable.any():
        origins = np.bincount(scores.origin, minlength=len(Origin))
        raise SelectionError(
            f"none of the {samples.present.sum()} samples can be selected: "
            f"{origins[Origin.NEVER]} were "
            f"never measured, {origins[Origin.INVALID]} gave no finite score or have no target "
            "token. Measure with another checkpoint, or look at the data (`gracekit status`)"
        )
    return usable


def hardest_first(rows: Bool, importance: Float32, order: Int64) -> Int64:
    """The rows, most important first; of equals the larger id."""
    found = np.flatnonzero(rows)
    return found[np.lexsort((-order[found], -importance[found]))]


def without_hardest(share: float, usable: Bool, importance: Float32, order: Int64) -> Bool:
    """[n] the usable rows but for the most important `share` of them, rounded down."""
    kept = usable.copy()
    if share:
        hardest = hardest_first(usable, importance, order)
        kept[hardest[: math.floor(share * len(hardest))]] = False
    return kept


def without_near_duplicates(
    most: float | None,
    graph: SparseGraph,
    *,
    kept: Bool,
    always: Bool,
    importance: Float32,
    order: Int64,
) -> Bool:
    """[n] `kept` but for rows more similar than `most` to one that stays, or that is always in.

    Of near-duplicates the most important stays, of equals the smaller id. Only pairs that the
    graph joins are known.
    """
    if most is None:
        return kept
    others = np.flatnonzero(kept & ~always)
    ranking = others[np.lexsort((order[others], -importance[others]))]
    stay = apart(graph, ranking, initial=np.flatnonzero(always), most=most)
    stay[kept & always] = True
    return stay


def _at_max_uses(settings: SelectionSection, inputs: SelectionInputs) -> Bool:
    """[n] rows that were used as often as `max_uses` allows."""
    if settings.max_uses is None or inputs.state is None:
        return np.zeros(len(inputs.samples), np.bool_)
    found: Bool = inputs.state.uses >= settings.max_uses
    return found


def _why_nothing_is_left(
    settings: SelectionSection, usable: Bool, used_up: Bool, is_barred: Bool
) -> str:
    """The message where there is no candidate."""
    if is_barred.any() and not used_up.any():
        return (
            f"no sample is left to select: {is_barred.sum()} of {usable.sum()} usable ones have "
            "the content of a target sample, and target.overlap is drop. Set it to keep, or give "
            "a target set of other samples"
        )
    if used_up.any():
        return (
            f"no sample is left to select: {used_up.sum()} of {usable.sum()} usable ones were used "
            f"{settings.max_uses} times, as often as selection.max_uses allows. Raise max_uses (or "
            "set it to null), end the training, or add samples to the data"
        )
    return f"all {usable.sum()} usable samples are never in (selection.never_in, never_in_where)"


def row_budget(
    settings: SelectionSection, *, num_usable: int, num_candidates: int, num_used_up: int = 0
) -> int:
    """The budget in rows: `count`, or `fraction` of the usable rows rounded, at least 1.

    Never more than there are candidates; then a warning says so, and how many were used too often.
    """
    fraction = DEFAULT_FRACTION if settings.fraction is None else settings.fraction
    asked = settings.count or max(1, math.floor(fraction * num_usable + 0.5))
    if asked > num_candidates:
        why = (
            f", for {num_used_up} were used {settings.max_uses} times, as often as "
            "selection.max_uses allows"
            if num_used_up
            else ""
        )
        logger.warning(
            "%d samples are to be selected, but only %d can be%s: all of them are",
            asked,
            num_candidates,
            why,
        )
    return min(asked, num_candidates)


def row_tokens(samples: SampleTable) -> Int64:
    """[n] tokens that training on a row takes: prompt and response, at least 1."""
    tokens = samples.num_prompt_tokens.astype(np.int64) + samples.num_response_tokens
    at_least_one: Int64 = np.maximum(tokens, 1)
    return at_least_one
