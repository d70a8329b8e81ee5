"""A sketch of each sample's gradient: a Kronecker projection, from activations alone.

A layer's gradient `W = Σ_t g_t a_tᵀ` becomes `P W Qᵀ = Σ_t (P g_t)(Q a_t)ᵀ`, k x k numbers, and the
layers' are added up. `P` is drawn for each layer, so that the sum keeps inner products of whole
gradients in the mean; `Q` is drawn for each input width, so that layers which read one tensor share
its projection. Entries are ±1/√k (Johnson-Lindenstrauss). The signs are raw bits of a counter-based
generator keyed by seed and layer, so they are the same on every machine and in every version.

It costs k/in + k/out of a layer's own matrix product. B samples, P positions.
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING

import numpy as np

from gracekit.protocols import Batch, Layer, PassContext, Reader, Sketch
from gracekit.types import Float32

if TYPE_CHECKING:
    import torch


class KroneckerSketch(Sketch):
    """Sketches of the gradient over the linear layers of the decoder body, or of its adapter.

    Args:
        side: k; a sketch has k² numbers.
        seed: Of the projections; sketches compare under one seed only.
    """

    def __init__(self, side: int, seed: int) -> None:
        self.width = side * side
        self._side, self._seed = side, seed
        self._signs: dict[str, torch.Tensor] = {}

    def wants(self, layer: Layer) -> bool:
        """What the trainer moves: every layer, or those of the adapter."""
        return layer.is_trained

    def start(self, batch: Batch) -> None:
        """Begin at zero; several readers may ask for it."""
        self._sums = batch.zeros(self._side, self._side)
        self._seen: set[tuple[str, str]] = set()
        self._inputs: tuple[torch.Tensor, torch.Tensor] | None = None

    def on_layer(
        self, batch: Batch, layer: Layer, inputs: torch.Tensor, gradients: torch.Tensor
    ) -> None:
        """Add the weight's sketch."""
        if self._is_news(layer, "weight"):
            of_outputs = self._project(gradients, f"out {layer.name}")
            self._sums.baddbmm_(of_outputs.mT, self._inputs_of(inputs))

    def on_bias(self, batch: Batch, layer: Layer, gradient: torch.Tensor) -> None:
        """Add the bias' sketch: a weight of one more input that is always 1."""
        if self._is_news(layer, "bias"):
            of_outputs = self._project(gradient, f"out {layer.name}")
            of_one = self._project(gradient.new_ones(1), "in bias")
            self._sums += of_outputs[:, :, None] * of_one

    def finish(self, batch: Batch) -> torch.Tensor:
        """float32 [B, k²]"""
        self._inputs = None
        return self._sums.flatten(1) / self._side

    def _is_news(self, layer: Layer, what: str) -> bool:
        key = (layer.name, what)
        is_news = key not in self._seen
        self._seen.add(key)
        return is_news

    def _inputs_of(self, inputs: torch.Tensor) -> torch.Tensor:
        """Query, key and value (and gate and up) read one tensor: its projection is kept."""
        if self._inputs is None or self._inputs[0] is not inputs:
            self._inputs = inputs, self._project(inputs, f"in {inputs.shape[-1]}")
        return self._inputs[1]

    def _project(self, vectors: torch.Tensor, key: str) -> torch.Tensor:
        """[..., d] -> float32 [..., k], not yet divided by √k."""
        import torch

        if key not in self._signs:
            signs = random_signs((vectors.shape[-1], self._side), self._seed, key)
            self._signs[key] = torch.from_numpy(signs).to(vectors.device, vectors.dtype)
        return (vectors @ self._signs[key]).float()


class SketchReader(Reader):
    """A reader of the pass's sketch: all it does is to let the sketch see the layers."""

    def bind(self, context: PassContext) -> None:
        """The sketch that all share."""
        self._sketch = context.sketch

    def wants(self, layer: Layer) -> bool:
        """What the sketch wants."""
        return self._sketch.wants(layer)

    def start(self, batch: Batch) -> None:
        """Pass on."""
        self._sketch.start(batch)

    def on_layer(
        self, batch: Batch, layer: Layer, inputs: torch.Tensor, gradients: torch.Tensor
    ) -> None:
        """Pass on."""
        self._sketch.on_layer(batch, layer, inputs, gradients)

    def on_bias(self, batch: Batch, layer: Layer, gradient: torch.Tensor) -> None:
        """Pass on."""
        self._sketch.on_bias(batch, layer, gradient)

    def finish(self, batch: Batch) -> torch.Tensor:
        """float32 [B, k²]"""
        return self._sketch.finish(batch)


def random_signs(shape: tuple[int, ...], seed: int, key: str) -> Float32:
    """±1, the same for a seed and key wherever it is run."""
    digest = hashlib.sha256(f"{seed} {key}".encode()).digest()
    words = np.random.Philox(key=np.frombuffer(digest[:16], "<u8"))
    num = math.prod(shape)
    raw = np.asarray(words.random_raw(-(-num // 64)), "<u8")
    bits = np.unpackbits(raw.view(np.uint8), count=num, bitorder="little")
    return (2.0 * bits.reshape(shape) - 1.0).astype(np.float32)
