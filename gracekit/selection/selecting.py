"""One selection, start to finish: candidates, budget, quotas, selector, weights."""

from __future__ import annotations

import dataclasses
import logging
import math

import numpy as np

from gracekit.errors import SelectionError
from gracekit.protocols import SelectionInputs, SelectionTask
from gracekit.recipe import SelectionSection
from gracekit.selection.balanced import Balanced, Probabilities, probabilities_of
from gracekit.selection.pool import make_pool, make_task, row_tokens
from gracekit.selection.repetition import repetition
from gracekit.selection.selectors import selector_for
from gracekit.selection.weights import STRATA, represent, weigh
from gracekit.types import Draw, Json, Rows, SampleTable, Selection

logger = logging.getLogger(__name__)


def select(
    settings: SelectionSection, inputs: SelectionInputs, *, seed: int, version: int
) -> Selection:
    """Choose the coreset of `version` as the recipe asks.

    The result depends on the sample ids, not on the order of the rows. Its `details` hold

    - `num_usable`, `num_candidates` (without the hardest, near-duplicates and what is never in),
      `num_always` (what is in anyway: listed, or of a small group), `budget`, `num_tokens`,
      `quotas` by group;
    - `importance`: mean over the coreset;
    - `coverage`: mean over the rows it stands for of the similarity to the best selected one, in
      [0, 1];
    - `num_uncovered`: such rows without a selected neighbour;
    - `num_kept`: rows that the parent's coreset had too;
    - `num_at_max_uses`: rows that were used as often as `max_uses` allows, where that is set;
    - `num_distinct`: samples that were used at least once up to and including this version, and
      `num_distinct_random`: as many as random re-drawing would have used by now
      (`repetition`);
    - `tokens_per_row`, of a selector that draws: target tokens of a row of the pool on average;
    - what the selector adds.

    Args:
        settings: The recipe's section.
        inputs: Scores, samples, graph, and what else a selector may look at.
        seed: Of everything random.
        version: That will be published.

    Raises:
        RecipeError: There is no such selector.
        SelectionError: Nothing can be selected, or what is asked for cannot be met.
    """
    selector = selector_for(settings.selector)
    scores, samples, graph, parent = inputs.scores, inputs.samples, inputs.graph, inputs.parent
    pool = make_pool(settings, inputs)
    task = make_task(pool, settings, inputs, seed=seed, version=version)
    if task.budget and task.candidates.any():
        selection = selector.select(task)
        _require_valid(selection, task)
    else:
        selection = Selection(
            rows=np.zeros(0, np.int64),
            gains=np.zeros(0, np.float32),
            weights=np.zeros(0, np.float32),
            objective=0.0,
        )
    rows = np.concatenate([pool.initial, selection.rows])
    if not len(rows):
        raise SelectionError(
            f"selection.tokens is {settings.tokens}, and no sample is that short (or fits its "
            f"group's quota): the shortest has {row_tokens(samples)[pool.candidates].min()} "
            "tokens. Raise the budget"
        )
    zeros = np.zeros(len(pool.initial), np.float32)
    represented = represent(graph, rows, pool.represented)
    details: Json = {
        "num_usable": int(pool.usable.sum()),
        "num_candidates": int(pool.candidates.sum()) + len(pool.initial),
        "num_always": len(pool.initial),
        "budget": pool.budget,
        "num_tokens": int(row_tokens(samples)[rows].sum()),
        "importance": float(np.nan_to_num(scores.importance[rows]).mean(dtype=np.float64)),
        "coverage": represented.coverage,
        "num_uncovered": represented.num_uncovered,
    }
    if parent is not None:
        details["num_kept"] = len(np.intersect1d(rows, parent))
    if settings.max_uses is not None:
        details["num_at_max_uses"] = int(pool.used_up.sum())
    if inputs.state is not None:
        details |= repetition(
            rows,
            samples=samples,
            state=inputs.state,
            num_distinct_random=inputs.num_distinct_random,
            num_usable=details["num_usable"],
        )
    if pool.places.quotas is not None:
        details["quotas"] = dict(zip(samples.group_names, pool.places.quotas.tolist(), strict=True))
    selection = dataclasses.replace(
        selection,
        rows=rows,
        gains=np.concatenate([zeros, selection.gains]),
        weights=np.concatenate([zeros + 1, selection.weights]),
        details=details | selection.details,
    )
    if selection.draw is not None:
        draw = _with_initial(selection.draw, pool.initial)
        tokens = {"tokens_per_row": _tokens_per_row(draw, samples)}
        selection = dataclasses.replace(selection, draw=draw, details=selection.details | tokens)
    if isinstance(selector, Balanced) and settings.weights in ("coverage", "inverse-probability"):
        logger.warning(
            "selection.weights %s does not make up for unequal chances, so balanced draws all rows "
            "alike; leave weights out to draw by norms, or choose the selector coverage",
            settings.weights,
        )
    kind = settings.weights or ("selector" if isinstance(selector, Balanced) else "coverage")
    weights = weigh(kind, selection, represented, samples, pool.represented)
    published = {key: value for key, value in selection.details.items() if key != STRATA}
    return dataclasses.replace(selection, weights=weights, details=published)


def _tokens_per_row(draw: Draw, samples: SampleTable) -> float:
    """Target tokens of a row of the pool on average: Σ t_i n_i, with t ∝ weight · probability.

    A trainer divides by it in place of the tokens of its batch, which depend on the draw.
    """
    masses = draw.weights.astype(np.float64) * draw.probabilities
    tokens = samples.num_response_tokens.astype(np.float64)
    return math.fsum(masses * tokens) / math.fsum(masses)


def balanced_probabilities(settings: SelectionSection, inputs: SelectionInputs) -> Probabilities:
    """How likely `balanced` would draw each row with these settings, whatever their selector is.

    Of what is left to draw: rows that are always in are none of it.

    Raises:
        SelectionError: Nothing can be selected, or what is asked for cannot be met.
    """
    pool = make_pool(settings, inputs)
    return probabilities_of(make_task(pool, settings, inputs, seed=0, version=0))


def _with_initial(draw: Draw, initial: Rows) -> Draw:
    """The draw with what is always in, which counts like the mean of the others."""
    probabilities, weights = draw.probabilities.copy(), draw.weights.copy()
    probabilities[initial] = 1
    weights[initial] = 1
    return dataclasses.replace(draw, probabilities=probabilities, weights=weights)


def _require_valid(selection: Selection, task: SelectionTask) -> None:
    """A selector of the user's own may be wrong; say so before it is published."""
    rows = np.asarray(selection.rows)
    inside = rows.size == 0 or (rows.min() >= 0 and rows.max() < len(task.candidates))
    if not inside or len(np.unique(rows)) < len(rows) or not task.candidates[rows].all():
        wrong = "picks a row twice, or one that is no candidate"
    elif (len(rows) if task.costs is None else task.costs[rows].sum()) > task.budget:
        wrong = f"picks more than the budget of {task.budget}"
    elif task.quotas is not None:
        used = np.bincount(
            task.samples.groups[rows],
            None if task.costs is None else task.costs[rows],
            minlength=len(task.quotas),
        )
        if np.maximum(used - task.quotas, 0).sum() <= task.free:
            return
        wrong = "picks more of a group than its quota"
    else:
        return
    raise SelectionError(
        f"selection.selector {task.settings.selector!r} {wrong}; see gracekit.protocols.Selector"
    )
