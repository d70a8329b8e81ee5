"""What is drawn from one version: draws, each gone over in a random order, once or again and again.

A version whose selector draws with known probabilities is drawn from anew; its own coreset, or the
whole dataset, is one draw that is gone over without end. Which stretch an epoch takes, and what was
trained on before, is the business of `course`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gracekit.rounding import whole_copies
from gracekit.training.chances import Chances
from gracekit.types import DrawState, Float32, Float64, Int64, Rows


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreRows:
    """Which row of the store each row of the trainer's dataset is."""

    rows: Int64
    """[dataset rows]; -1: the store does not have it."""
    num_rows: int
    """Of the sample table."""
    content_versions: Int64
    """[num_rows] version since which the row has its present content."""
    data: str
    """Hash of which sample lies where in the data."""
    sources: frozenset[str]
    """The same of all data that the store has followed."""
    version: int
    """Whose sample table it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """One draw from a version."""

    version: int
    number: int
    """Of the version's draws, from 0."""
    positions: Rows
    """[b] positions in the trainer's dataset."""
    probabilities: Float64 | None
    """[dataset rows] how likely each was to be drawn; None: what is drawn is always the same."""
    weights: Float32
    """[dataset rows] weight of each where it is drawn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """All future draws from one version; the same for the same version, seed, samples and uses."""

    version: int
    """Version drawn from; 0 is the whole dataset."""
    step: int
    """Training step of the version's checkpoint; -1 for the whole dataset."""
    positions: Rows
    """[b] positions of its coreset in the trainer's dataset."""
    weights: Float32
    """[dataset rows] of its coreset; 1 for the other rows."""
    repeats: bool = False
    """Whether samples are repeated by their weights; each use then has the weight 1."""
    seed: int
    is_rollback: bool = False
    """Whether the version was made to go back to an old one."""
    chances: Chances | None = None
    """None: the only draw is the coreset."""
    once_an_epoch: bool = False
    """Whether a new draw is made at each epoch, and gone over again where that is longer; False:
    whenever a draw was gone over once. Without effect where there are no chances."""
    store_rows: StoreRows | None = None
    """None: not known."""

    def draw(self, number: int, state: DrawState) -> Drawing:
        """A draw given what was trained on before it; `number` counts the version's from 0."""
        if self.chances is None:
            return Drawing(
                version=self.version,
                number=number,
                positions=self.positions,
                probabilities=None,
                weights=self.weights,
            )
        rng = np.random.default_rng([self.seed, self.version, number])
        positions, probabilities, weights = self.chances.draw(state, rng)
        return Drawing(
            version=self.version,
            number=number,
            positions=positions,
            probabilities=probabilities,
            weights=weights,
        )

    @property
    def is_drawn_each_pass(self) -> bool:
        """Whether a draw is over when it was gone over once."""
        return self.chances is not None and not self.once_an_epoch

    @property
    def is_drawn_each_epoch(self) -> bool:
        """Whether a draw is over when its epoch is."""
        return self.chances is not None and self.once_an_epoch

    def order(self, drawing: Drawing, number: int) -> Int64:
        """Positions int64 [b] in the order of a pass over a draw of this stream.

        Args:
            drawing: The draw.
            number: Of the pass over it, from 0.
        """
        key = [self.seed, self.version, number]
        if self.chances is not None:  # the draw itself took the chance of its number
            key = [self.seed, self.version, drawing.number, 1 + number]
        random = np.random.default_rng(key)
        if not self.repeats:
            return random.permutation(drawing.positions)
        weights = drawing.weights[drawing.positions].astype(np.float64)
        copies = whole_copies(weights * (len(weights) / weights.sum()), random)
        return random.permutation(drawing.positions.repeat(copies))

    def weights_of(self, drawing: Drawing) -> Float32:
        """[dataset rows] weight of a use of each row in a draw of this stream."""
        return np.ones_like(drawing.weights) if self.repeats else drawing.weights
