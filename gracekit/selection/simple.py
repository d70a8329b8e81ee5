"""Baselines that look at one value of each row, and those on the graph that are one call."""

from __future__ import annotations

import math

import numpy as np

from gracekit.errors import SelectionError
from gracekit.greedy import pick_by_messages
from gracekit.protocols import SelectionTask
from gracekit.selection.coverage import select_covering
from gracekit.selection.ranking import best_rows, first_rows, random_rows, random_values
from gracekit.selection.weights import STRATA, represent
from gracekit.types import Float32, Float64, Int64, Rows, Selection

NUM_STRATA = 50
"""Intervals of importance, as many as in CCS's own experiments."""
GAMMA = 0.1
"""D2's γ in its published examples: small is strong suppression of neighbours."""


class Random:
    """A uniform draw, the same for every version of a store: the baseline to beat."""

    def select(self, task: SelectionTask) -> Selection:
        """Rows that become unusable are replaced; the others stay."""
        return plain(random_rows(task, task.seed))


class FreshRandom:
    """A uniform draw, a new one for every version: the stronger baseline of the two."""

    def select(self, task: SelectionTask) -> Selection:
        """Draw anew for every version; the same seed and version give the same rows."""
        return plain(random_rows(task, task.seed, task.version))


class Top:
    """The most important samples; objective: the sum of their importance."""

    def select(self, task: SelectionTask) -> Selection:
        """Most important first; gains are the importance."""
        rows = best_rows(task.scores.importance, task)
        return plain(rows, task.scores.importance[rows])


class Bottom:
    """The least important samples: what `top` leaves, as a control."""

    def select(self, task: SelectionTask) -> Selection:
        """Least important first."""
        return plain(best_rows(-task.scores.importance, task))


class TopScore:
    """The samples with the largest value of one score, as it is measured: `top-loss`."""

    def __init__(self, score: str) -> None:
        self.score = score

    def select(self, task: SelectionTask) -> Selection:
        """Largest first; gains are the scores. Raises `SelectionError` for a missing score."""
        scores = task.scores.scores
        if self.score not in scores:
            raise SelectionError(
                f"selection.selector top-{self.score}: the store has no score {self.score!r}; it "
                f"has {', '.join(scores)}. Add it to scoring.scores and refresh"
            )
        values = scores[self.score]
        rows = best_rows(values, task)
        return plain(rows, np.nan_to_num(values[rows]))


class Stratified:
    """Coverage-centric selection: the same number from each of 50 intervals of importance.

    Zheng et al., "Coverage-centric Coreset Selection for High Pruning Rates" (ICLR 2023); an
    interval with too few gives what it has, and the others share the rest. CCS first leaves out
    the hardest: `selection.drop_hardest`.
    """

    def select(self, task: SelectionTask) -> Selection:
        """Rows in turn from each interval, drawn at random within it."""
        candidates = np.flatnonzero(task.candidates)
        importance = np.nan_to_num(task.scores.importance.astype(np.float64))
        low, high = importance[candidates].min(), importance[candidates].max()
        width = (high - low) / NUM_STRATA or 1.0
        strata = np.clip((importance - low) // width, 0, NUM_STRATA - 1).astype(np.int64)
        drawn = random_values(task, task.seed)
        place = place_within(strata[candidates], drawn[candidates])
        turn = candidates[np.lexsort((drawn[candidates], place))]
        if task.quotas is not None:
            strata = strata * len(task.quotas) + task.samples.groups
        selection = plain(first_rows(turn, task))
        selection.details[STRATA] = strata
        return selection


class MessagePassing:
    """D2 pruning: importance gathered from the neighbours, each pick lowers its own.

    Maharana et al., "D2 Pruning" (ICLR 2024), with distances of unit vectors, e = exp(-d) forward
    and exp(-γd) in reverse. A pick with a negative value sends nothing (there it would raise its
    neighbours).
    """

    def select(self, task: SelectionTask) -> Selection:
        """Rows in the order picked; gains are their values when picked."""
        graph = task.graph
        distance = np.sqrt(np.maximum(2 - 2 * graph.weights, 0))
        importance = np.where(task.candidates, task.scores.importance, 0)
        rows, values = pick_by_messages(
            graph,
            values=importance.astype(np.float64),
            forward=np.exp(-distance),
            reverse=np.exp(-GAMMA * distance),
            order=task.order,
            candidates=task.candidates,
            groups=None if task.quotas is None else task.samples.groups,
            quotas=task.quotas,
            free=task.free,
            costs=task.costs,
            initial=task.initial,
            budget=task.budget,
        )
        return plain(rows, values.astype(np.float32))


class Craig:
    """Facility location alone, each medoid weighing as many samples as it stands for.

    Mirzasoleiman et al., "Coresets for Data-efficient Training of Machine Learning Models" (ICML
    2020), on the similarities of the graph. With `weights: selector` (or `coverage`) its weights.
    """

    def select(self, task: SelectionTask) -> Selection:
        """Best first."""
        selection = select_covering(task, 0.0)
        everything = np.concatenate([task.initial, selection.rows])
        weights = represent(task.graph, everything, task.represented).weights
        return Selection(
            rows=selection.rows,
            gains=selection.gains,
            weights=weights[len(task.initial) :],
            objective=selection.objective,
            details=selection.details,
        )


def place_within(parts: Int64, values: Float64) -> Int64:
    """[m] how many of the same part have a smaller value."""
    ordered = np.lexsort((values, parts))
    counts = np.bincount(parts)
    first = np.cumsum(counts) - counts
    place = np.empty(len(parts), np.int64)
    place[ordered] = np.arange(len(parts)) - first[parts[ordered]]
    return place


def plain(rows: Rows, gains: Float32 | None = None) -> Selection:
    """A selection without an objective, or with the sum of the gains as its objective."""
    if gains is None:
        gains = np.zeros(len(rows), np.float32)
    return Selection(
        rows=rows,
        gains=gains,
        weights=np.ones(len(rows), np.float32),
        objective=math.fsum(gains.tolist()),
    )
