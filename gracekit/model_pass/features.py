"""The features that a recipe can name: one vector a sample, from the same pass as the scores."""

from __future__ import annotations

import torch

from gracekit.errors import RecipeError
from gracekit.model_pass.projection import projection
from gracekit.model_pass.sketch import SketchReader
from gracekit.protocols import Batch, FeatureReader, PassContext, Reads
from gracekit.recipe import ScoringSection

DEFAULTS = ScoringSection()


class Means(FeatureReader):
    """Mean vectors of the hidden width, projected where that is more than the recipe's width."""

    def __init__(self, settings: ScoringSection, key: str) -> None:
        self._narrow, self._way = settings.feature_width, settings.feature_projection
        self._seed, self._key = settings.sketch_seed, key
        self._matrix: torch.Tensor | None = None

    def width(self, hidden_width: int) -> int:
        """The hidden width, or what it is projected to."""
        return self._narrow if self._narrow and self._narrows(hidden_width) else hidden_width

    def _narrows(self, hidden_width: int) -> bool:
        # By signs earlier releases projected narrower models as well, to the larger width.
        return self._narrow is not None and (self._narrow < hidden_width or self._way == "signs")

    def _projected(self, means: torch.Tensor) -> torch.Tensor:
        """[B, d] of [B, D]"""
        wide = means.shape[1]
        if self._narrow is None or not self._narrows(wide):
            return means
        if self._matrix is None:
            matrix = projection(self._way, wide, self._narrow, self._seed, self._key)
            self._matrix = means.new_tensor(matrix)
        return means @ self._matrix


class EmbeddingMean(Means):
    """Mean input embedding over all that the model reads of a sample, prompt and response.

    A bag of words in the model's own vectors. It takes no pass of the model, so that the features
    of all samples cost next to nothing, and it hardly changes in a training.
    """

    reads: Reads = "tokens"

    def __init__(self, settings: ScoringSection = DEFAULTS) -> None:
        super().__init__(settings, "embedding")

    def bind(self, context: PassContext) -> None:
        """Take the embeddings."""
        if context.embedding is None:
            raise RecipeError(
                "scoring.features is embedding-mean, and the model has no input embeddings that "
                "could be found; use hidden-mean"
            )
        self._embedding = context.embedding

    def finish(self, batch: Batch) -> torch.Tensor:
        """[B, d]"""
        is_token = batch.attention_mask.bool()
        vectors = self._embedding(batch.input_ids).float()
        sums = (vectors * is_token[..., None]).sum(1)
        return self._projected(sums / is_token.sum(1, keepdim=True))


class HiddenMean(Means):
    """Mean of a hidden state over the positions that predict the target tokens.

    These positions (each one before a target) are where the hidden state has become a prediction,
    and the pass reads them anyway; the state of the last target itself predicts nothing.

    The state is the last one, after the final norm, or what `scoring.hidden_block` puts out. With
    `scoring.feature_width` below the hidden width it is projected (see `projection`).
    """

    def __init__(self, settings: ScoringSection = DEFAULTS) -> None:
        super().__init__(settings, "hidden")
        self._block = settings.hidden_block
        self.reads = "states" if self._block is None else "blocks"

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
        """Begin at nothing; the width comes with the states."""
        self._sums: torch.Tensor | None = None

    def on_block(self, batch: Batch, hidden: torch.Tensor) -> None:
        """Add up the states of each sample."""
        self._add_states(batch, hidden)

    def on_states(self, batch: Batch, hidden: torch.Tensor) -> None:
        """Add up the last hidden states, unless a block's output was asked for."""
        if self._block is None:
            self._add_states(batch, hidden)

    def finish(self, batch: Batch) -> torch.Tensor:
        """[B, d]"""
        assert self._sums is not None
        return self._projected(self._sums / batch.num_targets[:, None])

    def _add_states(self, batch: Batch, hidden: torch.Tensor) -> None:
        self._sums = batch.zeros(hidden.shape[1])
        self._sums.index_add_(0, batch.target_sample, hidden.float())


class GradientSketch(SketchReader, FeatureReader):
    """The Kronecker sketch of the gradient (see `sketch`), `scoring.sketch_side`² wide.

    Neighbours have similar gradients rather than similar texts.
    """

    reads: Reads = "all"

    def __init__(self, settings: ScoringSection = DEFAULTS) -> None:
        self._width = settings.sketch_side**2

    def width(self, hidden_width: int) -> int:
        """k²"""
        return self._width


FEATURES: dict[str, type[EmbeddingMean] | type[HiddenMean] | type[GradientSketch]] = {
    "embedding-mean": EmbeddingMean,
    "gradient-sketch": GradientSketch,
    "hidden-mean": HiddenMean,
}
