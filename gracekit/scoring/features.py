"""The features that a recipe can name: one vector a sample, from the same pass as the scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gracekit.protocols import Batch, FeatureReader, Targets
from gracekit.types import Float32

if TYPE_CHECKING:
    import torch


class HiddenMean(FeatureReader):
    """Mean of the last hidden state over the positions that predict the target tokens.

    These positions (each one before a target) are where the hidden state has become a prediction,
    and the pass reads them anyway; the state of the last target itself predicts nothing.
    """

    def width(self, hidden_width: int) -> int:
        """The hidden width."""
        return hidden_width

    def start(self, batch: Batch) -> None:
        """Begin at nothing; the width comes with the first targets."""
        self._sums: torch.Tensor | None = None

    def on_targets(self, batch: Batch, targets: Targets) -> None:
        """Add up the hidden states of each sample."""
        if self._sums is None:
            self._sums = batch.zeros(targets.hidden.shape[1])
        self._sums.index_add_(0, targets.sample, targets.hidden.float())

    def finish(self, batch: Batch) -> torch.Tensor:
        """[B, D]"""
        assert self._sums is not None
        return self._sums / batch.num_targets[:, None]


FEATURES: dict[str, type[FeatureReader]] = {"hidden-mean": HiddenMean}


def to_float16(features: Float32) -> NDArray[np.float16]:
    """Round [m, d] to float16: large values are cut to its range, rows not finite are all NaN."""
    largest = np.finfo(np.float16).max
    rounded = np.clip(features, -largest, largest).astype(np.float16)
    rounded[~np.isfinite(features).all(axis=1)] = np.nan
    return rounded
