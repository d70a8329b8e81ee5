"""One selection, start to finish: candidates, budget, quotas, selector, weights."""

from __future__ import annotations

import dataclasses

import numpy as np

from gracekit.protocols import SelectionTask
from gracekit.recipe import SelectionSection
from gracekit.selection.candidates import id_order, num_to_select, usable_rows, without_hardest
from gracekit.selection.quotas import group_quotas
from gracekit.selection.selectors import selector_for
from gracekit.selection.weights import represent
from gracekit.types import Json, SampleTable, ScoreTable, Selection, SparseGraph


def select(
    settings: SelectionSection,
    *,
    scores: ScoreTable,
    samples: SampleTable,
    graph: SparseGraph,
    seed: int,
    version: int,
) -> Selection:
    """Choose the coreset of `version` as the recipe asks.

    The result depends on the sample ids, not on the order of the rows. Its `details` hold

    - `num_usable`, `num_candidates` (without the hardest), `budget`, `quotas` by group;
    - `importance`: mean over the coreset;
    - `coverage`: mean over the candidates of the similarity to the best selected one, in [0, 1];
    - `num_uncovered`: candidates without a selected neighbour;
    - what the selector adds.

    Raises:
        RecipeError: There is no such selector.
        SelectionError: Nothing can be selected.
    """
    selector = selector_for(settings.selector)
    order = id_order(samples.sample_ids)
    usable = usable_rows(scores, samples)
    candidates = without_hardest(settings.drop_hardest, usable, scores.importance, order)
    budget = num_to_select(settings, num_usable=int(usable.sum()), candidates=candidates)
    quotas = group_quotas(settings.group_quota, budget, samples, usable, candidates)
    selection = selector.select(
        SelectionTask(
            budget=budget,
            candidates=candidates,
            quotas=quotas,
            order=order,
            scores=scores,
            samples=samples,
            graph=graph,
            settings=settings,
            seed=seed,
            version=version,
        )
    )
    represented = represent(graph, selection.rows, candidates)
    details: Json = {
        "num_usable": int(usable.sum()),
        "num_candidates": int(candidates.sum()),
        "budget": budget,
        "importance": float(np.mean(scores.importance[selection.rows], dtype=np.float64)),
        "coverage": represented.coverage,
        "num_uncovered": represented.num_uncovered,
    }
    if quotas is not None:
        details["quotas"] = dict(zip(samples.group_names, quotas.tolist(), strict=True))
    return dataclasses.replace(
        selection,
        weights=represented.weights if settings.weights == "coverage" else selection.weights,
        details=details | selection.details,
    )
