"""Influence on a target set: how far a step on a sample would lower the target's loss.

To first order that is the inner product of the sample's gradient with the target's. As in LESS
(Xia et al. 2024, arXiv 2402.04333) gradients are compared by random sketches, the mean is taken
over the target samples of a subtask (the groups of the target set), and the subtask that gains most
counts. LESS adds up checkpoints and uses the Adam direction of an adapter; this is the plain
gradient at one checkpoint.
"""

from __future__ import annotations

import numpy as np
import torch

from gracekit.model_pass.sketch import SketchReader
from gracekit.protocols import Batch, PassContext, Scorer
from gracekit.types import Float32


class InfluenceDot(SketchReader, Scorer):
    """Inner product of the sketches of the sample's and the subtask's mean gradient, any sign."""

    shrinks_with_length = True
    needs_target = True

    def bind(self, context: PassContext) -> None:
        """The mean of each subtask's sketches."""
        super().bind(context)
        means = [self._of_targets(s).mean(0) for s in context.target_sketches.values()]
        self._means = np.stack(means)

    def finish(self, batch: Batch) -> torch.Tensor:
        """[B], the largest over subtasks."""
        sketches = self._of_samples(self._sketch.finish(batch))
        means = sketches.new_tensor(self._means)
        return (sketches @ means.mT).amax(1)

    def _of_targets(self, sketches: Float32) -> Float32:
        return sketches

    def _of_samples(self, sketches: torch.Tensor) -> torch.Tensor:
        return sketches


class Influence(InfluenceDot):
    """Mean cosine of the sample's gradient sketch with those of a subtask, in [-1, 1]."""

    shrinks_with_length = False

    def _of_targets(self, sketches: Float32) -> Float32:
        norms = np.linalg.norm(sketches, axis=1, keepdims=True).clip(SMALLEST_NORM)
        unit: Float32 = (sketches / norms).astype(np.float32)
        return unit

    def _of_samples(self, sketches: torch.Tensor) -> torch.Tensor:
        norms: torch.Tensor = sketches.norm(dim=1, keepdim=True)
        return sketches / norms.clamp_min(SMALLEST_NORM)


SMALLEST_NORM = 1e-30
"""A gradient of 0 has no direction; its cosine is 0."""
