"""The features that a recipe can name: one vector a sample, from the same pass as the scores."""

from __future__ import annotations

import math

import torch

from gracekit.errors import RecipeError
from gracekit.model_pass.sketch import SketchReader, random_signs
from gracekit.protocols import Batch, FeatureReader, Targets
from gracekit.recipe import ScoringSection

DEFAULTS = ScoringSection()


class HiddenMean(FeatureReader):
    """Mean of a hidden state over the positions that predict the target tokens.

    These positions (each one before a target) are where the hidden state has become a prediction,
    and the pass reads them anyway; the state of the last target itself predicts nothing.

    The state is the last one, after the final norm, or what `scoring.hidden_block` puts out. With
    `scoring.feature_width` it is projected to that width by random signs.
    """

    def __init__(self, settings: ScoringSection = DEFAULTS) -> None:
        self._block = settings.hidden_block
        self._narrow, self._seed = settings.feature_width, settings.sketch_seed
        self._signs: torch.Tensor | None = None

    def width(self, hidden_width: int) -> int:
        """The hidden width, or what it is projected to."""
        return self._narrow or hidden_width

    def wants_block(self, block: int, num_blocks: int) -> bool:
        """The one that the recipe names, from the end if below 0."""
        if self._block is None:
            return False
        if not -num_blocks <= self._block < num_blocks:
            raise RecipeError(
                f"scoring.hidden_block is {self._block}, and the model has blocks 0 to "
                f"{num_blocks - 1} (or -{num_blocks} to -1 from the end)"
            )
        return block == self._block % num_blocks

    def start(self, batch: Batch) -> None:
        """Begin at nothing; the width comes with the first states."""
        self._sums: torch.Tensor | None = None

    def on_block(self, batch: Batch, hidden: torch.Tensor) -> None:
        """Add up the states of each sample."""
        self._add_states(batch, batch.target_sample, hidden)

    def on_targets(self, batch: Batch, targets: Targets) -> None:
        """Add up the last hidden states, unless a block's output was asked for."""
        if self._block is None:
            self._add_states(batch, targets.sample, targets.hidden)

    def finish(self, batch: Batch) -> torch.Tensor:
        """[B, d]"""
        assert self._sums is not None
        means = self._sums / batch.num_targets[:, None]
        if self._narrow is None:
            return means
        if self._signs is None:
            signs = random_signs((means.shape[1], self._narrow), self._seed, "hidden")
            self._signs = means.new_tensor(signs) / math.sqrt(self._narrow)
        return means @ self._signs

    def _add_states(self, batch: Batch, sample: torch.Tensor, hidden: torch.Tensor) -> None:
        if self._sums is None:
            self._sums = batch.zeros(hidden.shape[1])
        self._sums.index_add_(0, sample, hidden.float())


class GradientSketch(SketchReader, FeatureReader):
    """The Kronecker sketch of the gradient (see `sketch`), `scoring.sketch_side`² wide.

    Neighbours have similar gradients rather than similar texts.
    """

    def __init__(self, settings: ScoringSection = DEFAULTS) -> None:
        self._width = settings.sketch_side**2

    def width(self, hidden_width: int) -> int:
        """k²"""
        return self._width


FEATURES: dict[str, type[HiddenMean] | type[GradientSketch]] = {
    "gradient-sketch": GradientSketch,
    "hidden-mean": HiddenMean,
}
