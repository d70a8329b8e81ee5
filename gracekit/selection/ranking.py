"""Picking by a value of each row alone: the best, or random ones."""

from __future__ import annotations

import numpy as np

from gracekit.protocols import SelectionTask
from gracekit.types import Float32, Float64, Rows


def best_rows(values: Float32 | Float64, task: SelectionTask) -> Rows:
    """[b] the candidates of largest value within the quotas, largest first; ties by id."""
    by_id = np.empty_like(task.order)
    by_id[task.order] = np.arange(len(by_id))
    rows = by_id[task.candidates[by_id]]
    ranking = rows[np.argsort(-values[rows], kind="stable")]
    if task.quotas is None:
        return ranking[: task.budget]
    groups = task.samples.groups[ranking]
    by_group = np.argsort(groups, kind="stable")
    counts = np.bincount(groups, minlength=len(task.quotas))
    place_in_group = np.empty(len(ranking), np.int64)
    place_in_group[by_group] = np.arange(len(ranking)) - np.repeat(
        np.cumsum(counts) - counts, counts
    )
    return ranking[place_in_group < task.quotas[groups]]


def random_rows(task: SelectionTask, *entropy: int) -> Rows:
    """[b] candidates drawn uniformly within the quotas; of one id always the same number."""
    return best_rows(np.random.default_rng(entropy).random(len(task.order))[task.order], task)
