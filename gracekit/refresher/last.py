"""`LastRefresh`: the newest refresh as the next one starts from it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gracekit.graph import Index, grow_index, symmetric
from gracekit.recipe import GraphSection
from gracekit.refresher.loss_trend import LEAST_TRAINED, loss_beside_others
from gracekit.scores.rows import filled, places_without, scores_for
from gracekit.scores.working_values import to_working
from gracekit.types import (
    Bool,
    Float32,
    Measurement,
    Origin,
    Places,
    SampleTable,
    ScoreTable,
    SparseGraph,
    TrainedLosses,
)
from gracekit.version.outcomes import Aim

if TYPE_CHECKING:
    from gracekit.samples import Growth

MOST_GROUP_COVARIATES = 30
"""Largest groups that get a covariate of their own in the regression."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LastRefresh:
    """What is known of all n rows before a refresh."""

    version: int
    num_since_full: int
    """Refreshes since everything was measured."""
    next_budget: int = 0
    """Rows that the refresh before advised to start with; 0: no advice."""
    samples: SampleTable
    scores: ScoreTable
    values: dict[str, Float32]
    """score name -> [n] working values (see `scores.working_values`)."""
    changes: dict[str, Float32]
    """score name -> [n] change of the working values in the last refresh; 0 where none is known."""
    features: NDArray[np.float16]
    """[n, d] as a store keeps them."""
    valid: Bool
    """[n] rows that have features."""
    index: Index
    """Neighbour lists over the features. A step repairs them in place: afterwards they are part of
    its result."""
    graph: SparseGraph
    places: Places | None = None
    """[n] what was to be trained on; None where no target was followed."""
    aim: Aim | None = None
    """What was found of the target then."""
    trained: TrainedLosses | None = None
    """[n] what the trainer has seen of the samples' losses; None where it logged none."""

    @property
    def num_never(self) -> int:
        """Rows that were never measured."""
        return int((self.scores.origin == Origin.NEVER).sum())

    def working(self, measurement: Measurement) -> dict[str, Float32]:
        """The measured scores [m] as working values."""
        return to_working(measurement.scores, self.samples.num_response_tokens[measurement.rows])

    def covariates(self, step: int) -> Float32:
        """[n, c] what is known of every row besides its scores: length, age, change, group, and the
        loss that the trainer saw of it, where it logged enough of them.
        """
        samples = self.samples
        present = samples.groups[samples.present]
        counts = np.bincount(present, minlength=len(samples.group_names))
        largest = np.argsort(-counts, kind="stable")[:MOST_GROUP_COVARIATES]
        columns = [
            np.log1p(samples.num_response_tokens),
            np.log1p(samples.num_prompt_tokens),
            np.maximum(step - self.scores.measured_step, 0),
            *self.changes.values(),
            *((samples.groups == group) for group in largest if 0 < counts[group] < len(present)),
        ]
        columns.extend(self.seen().T)
        return np.stack([np.asarray(c, np.float32) for c in columns], axis=1)

    def seen(self) -> Float32:
        """[n, 2] of these, what the trainer saw: the loss beside those of other rows, 0 where none
        was seen, and whether one was; [n, 0] where it logged too few.
        """
        if self.trained is None or self.trained.known.sum() < LEAST_TRAINED:
            return np.zeros((len(self.samples), 0), np.float32)
        known = self.trained.known.astype(np.float32)
        return np.stack([loss_beside_others(self.trained), known], axis=1)

    def grown(self, growth: Growth, settings: GraphSection) -> LastRefresh:
        """What is known of the samples after the data has changed.

        New and changed samples, and those that came back, are never measured: without scores,
        features and neighbours. Removed ones are out of everything.
        """
        samples, n = growth.samples, len(growth.samples)
        forgotten = growth.forgotten
        if not forgotten.any():
            return dataclasses.replace(self, samples=samples)
        gone = np.flatnonzero(forgotten[: len(self.samples)])
        index = grow_index(self.index, n, gone, settings)
        return dataclasses.replace(
            self,
            samples=samples,
            scores=scores_for(self.scores, samples, forgotten),
            values={name: filled(v, np.nan, forgotten) for name, v in self.values.items()},
            changes={name: filled(c, 0, forgotten) for name, c in self.changes.items()},
            places=None if self.places is None else places_without(self.places, forgotten),
            trained=None if self.trained is None else self.trained.without(forgotten),
            features=filled(self.features, 0, forgotten),
            valid=filled(self.valid, False, forgotten),
            index=index,
            graph=symmetric(index.graph),
        )
