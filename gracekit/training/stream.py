"""The order in which the samples of one version are drawn: an endless, repeatable stream.

A stream is passes over the coreset, one after another, each in its own random order. Which
stretch of which stream an epoch takes is the sampler's business.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gracekit.rounding import whole_copies
from gracekit.types import Float64, Int64


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """All future draws from one version; the same for the same version, seed and samples."""

    version: int
    """Version drawn from; 0 is the whole dataset."""
    step: int
    """Training step of the version's checkpoint; -1 for the whole dataset."""
    positions: Int64
    """[b] positions in the trainer's dataset."""
    weights: Float64 | None
    """[b] expected draws of each sample a pass, sum b; None: each once a pass."""
    seed: int
    is_rollback: bool = False
    """Whether the version was made to go back to an old one."""

    def take(self, start: int, stop: int) -> Int64:
        """Draws `start` to `stop` (exclusive) of the stream, positions int64 [stop - start]."""
        size = len(self.positions)
        first, last = start // size, -(-stop // size)
        passes = [self._pass(number) for number in range(first, last)]
        if not passes:
            return np.empty(0, np.int64)
        return np.concatenate(passes)[start - first * size : stop - first * size]

    def _pass(self, number: int) -> Int64:
        random = np.random.default_rng([self.seed, self.version, number])
        if self.weights is None:
            return random.permutation(self.positions)
        return random.permutation(self.positions.repeat(whole_copies(self.weights, random)))
