"""The norm of a sample's gradient from its sketch: no Gram matrices, and so a cheaper pass."""

from __future__ import annotations

import torch

from gracekit.errors import MeasureError
from gracekit.model_pass.sketch import SketchReader
from gracekit.protocols import Batch, Layer, Scorer


class SketchNorm(SketchReader, Scorer):
    """Norm of the Kronecker sketch of the gradient of the mean token loss over linear layers.

    Of a model that is trained whole it estimates `gradient-norm`, of one with an adapter
    `lora-gradient`. The entries of the projections are independent signs, so that the mean of its
    square over `scoring.sketch_seed` is the square of the exact norm (each entry of `P W Qᵀ` has
    the second moment |W|²; Johnson and Lindenstrauss 1984). With one seed it is off by a factor
    that differs from sample to sample: docs/scores.md has how much at which `scoring.sketch_side`.
    The sketch is the pass's one, so that `gradient-sketch` features and influence come with it.
    """

    shrinks_with_length = True
    scale = "log"

    def __init__(self) -> None:
        self._has_layer = False

    def wants(self, layer: Layer) -> bool:
        """What the sketch wants."""
        is_wanted = super().wants(layer)
        self._has_layer |= is_wanted
        return is_wanted

    def finish(self, batch: Batch) -> torch.Tensor:
        """[B], at least 0."""
        if not self._has_layer:
            raise MeasureError(
                "sketch-norm found no linear layer that is trained in this model (quantized layers "
                "are not read); use `scores: [loss]` and `importance: loss`"
            )
        norms: torch.Tensor = super().finish(batch).norm(dim=1)
        return norms
