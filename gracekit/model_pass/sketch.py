"""A sketch of each sample's gradient: a Kronecker projection, from activations alone.

A layer's gradient `W = Σ_t g_t a_tᵀ` becomes `P W Qᵀ = Σ_t (P g_t)(Q a_t)ᵀ`, k x k numbers, and the
layers' are added up. `P` is drawn for each layer, so that the sum keeps inner products of whole
gradients in the mean; `Q` is drawn for each input width, so that layers which read one tensor share
its projection. Entries are ±1/√k (Johnson-Lindenstrauss). The signs are raw bits of a counter-based
generator keyed by seed and layer, so they are the same on every machine and in every version.

Experts of one stack share `P`, each with random signs of its own on its outputs, `P diag(d_e)`:
that keeps inner products in the mean too, and a stack is projected at once, row by row.

It costs k/in + k/out of a layer's own matrix product. B samples, P positions.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch
from numpy.typing import NDArray

from gracekit.model_pass.products import product
from gracekit.protocols import Batch, Layer, PassContext, Reader, RoutedRows, Sketch
from gracekit.types import Float32


class KroneckerSketch(Sketch):
    """Sketches of the gradient over the linear layers of the decoder body, or of its adapter.

    Args:
        side: k; a sketch has k² numbers.
        seed: Of the projections; sketches compare under one seed only.
    """

    def __init__(self, side: int, seed: int) -> None:
        self.width = side * side
        self._side, self._seed = side, seed
        self._signs: dict[tuple[str, torch.dtype, torch.device], torch.Tensor] = {}

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
            self._add_products(of_outputs, self._inputs_of(inputs))

    def on_routed(self, batch: Batch, layer: Layer, rows: RoutedRows) -> None:
        """Add the sketch of the experts' weights, over the rows that reached them."""
        if self._is_news(layer, "weight"):
            gradients = rows.gradients
            if layer.weight.ndim > 2:
                gradients = gradients * self._signs_of_experts(layer, gradients)[rows.expert]
            of_outputs = rows.by_sample(self._project(gradients, f"out {layer.name}"))
            of_inputs = rows.by_sample(self._project(rows.inputs, f"in {rows.inputs.shape[1]}"))
            self._add_products(of_outputs, of_inputs)

    def on_bias(self, batch: Batch, layer: Layer, gradient: torch.Tensor) -> None:
        """Add the bias' sketch: a weight of one more input that is always 1."""
        if self._is_news(layer, "bias"):
            if gradient.ndim > 2:
                gradient = (gradient * self._signs_of_experts(layer, gradient)).sum(1)
            of_outputs = self._project(gradient, f"out {layer.name}")
            of_one = self._project(gradient.new_ones(1), "in bias")
            self._sums += (of_outputs[:, :, None] * of_one).to(self._sums.device)

    def finish(self, batch: Batch) -> torch.Tensor:
        """float32 [B, k²]"""
        self._inputs = None
        return self._sums.flatten(1) / self._side

    def _add_products(self, of_outputs: torch.Tensor, of_inputs: torch.Tensor) -> None:
        """Projections [B, P, k] of a layer, which may be on another device than the batch."""
        device = self._sums.device
        self._sums.baddbmm_(of_outputs.mT.to(device), of_inputs.to(device))

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

    def _signs_of_experts(self, layer: Layer, like: torch.Tensor) -> torch.Tensor:
        """±1 [E, out]"""
        return self._signs_for((len(layer.weight), like.shape[-1]), f"experts {layer.name}", like)

    def _project(self, vectors: torch.Tensor, key: str) -> torch.Tensor:
        """[..., d] -> float32 [..., k], not yet divided by √k."""
        signs = self._signs_for((vectors.shape[-1], self._side), key, vectors)
        return product(vectors, signs.mT).float()

    def _signs_for(self, shape: tuple[int, int], key: str, like: torch.Tensor) -> torch.Tensor:
        """Drawn when first asked for."""
        # Biases, and some routers, are in float32 where weights are not.
        kind = key, like.dtype, like.device
        if kind not in self._signs:
            signs = random_signs(shape, self._seed, key)
            self._signs[kind] = torch.from_numpy(signs).to(like.device, like.dtype)
        return self._signs[kind]


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

    def on_routed(self, batch: Batch, layer: Layer, rows: RoutedRows) -> None:
        """Pass on."""
        self._sketch.on_routed(batch, layer, rows)

    def on_bias(self, batch: Batch, layer: Layer, gradient: torch.Tensor) -> None:
        """Pass on."""
        self._sketch.on_bias(batch, layer, gradient)

    def finish(self, batch: Batch) -> torch.Tensor:
        """float32 [B, k²]"""
        return self._sketch.finish(batch)


def unit_sketches(sketches: Float32) -> NDArray[np.float16]:
    """[m, k²] of length 1 as float16; 0 where a sketch is 0, NaN where one is not finite."""
    norms = np.linalg.norm(sketches.astype(np.float64), axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        unit = sketches / np.where(norms > 0, norms, 1)
    return unit.astype(np.float16)


def random_signs(shape: tuple[int, ...], seed: int, key: str) -> Float32:
    """±1, the same for a seed and key wherever it is run."""
    digest = hashlib.sha256(f"{seed} {key}".encode()).digest()
    words = np.random.Philox(key=np.frombuffer(digest[:16], "<u8"))
    num = math.prod(shape)
    raw = np.asarray(words.random_raw(-(-num // 64)), "<u8")
    bits = np.unpackbits(raw.view(np.uint8), count=num, bitorder="little")
    return (2.0 * bits.reshape(shape) - 1.0).astype(np.float32)
