"""Scores from the forward pass alone: means over a sample's target tokens.

`p` is the model's distribution at a target position, `y` the token that came.
"""

from __future__ import annotations

from abc import abstractmethod

import torch

from gracekit.protocols import Batch, Scorer, Targets


class TokenMean(Scorer):
    """Mean of a value per target token; derive from it and give `of_tokens`."""

    shrinks_with_length = False

    @abstractmethod
    def of_tokens(self, targets: Targets) -> torch.Tensor:
        """float32 [m]"""
        ...

    def start(self, batch: Batch) -> None:
        """Begin at zero."""
        self._sums = batch.zeros()

    def on_targets(self, batch: Batch, targets: Targets) -> None:
        """Add up the values of each sample."""
        self._sums.index_add_(0, targets.sample, self.of_tokens(targets))

    def finish(self, batch: Batch) -> torch.Tensor:
        """[B]"""
        return self._sums / batch.num_targets


class MeanLoss(TokenMean):
    """Mean cross-entropy, `-log p_y`, in nats; at least 0."""

    def of_tokens(self, targets: Targets) -> torch.Tensor:
        """The pass has them."""
        return targets.token_loss


class Loss(MeanLoss):
    """Mean cross-entropy, `-log p_y`, in nats; at least 0. Changes by factors."""

    scale = "log"


class Perplexity(Loss):
    """`exp(loss)`; at least 1, and infinite, so not valid, for a loss above 88."""

    def finish(self, batch: Batch) -> torch.Tensor:
        """[B]"""
        return super().finish(batch).exp()


class ErrorNorm(TokenMean):
    """EL2N: mean of `|p - onehot(y)|`, the length of the error vector, in [0, √2].

    Paul et al. 2021 (arXiv 2107.07075), there for one label a sample, here the mean over tokens.
    """

    scale = "log"

    def of_tokens(self, targets: Targets) -> torch.Tensor:
        """`√(|p|² - 2 p_y + 1)`; `|p|²` less `p_y²` is above 0, whatever is rounded."""
        p = targets.probabilities
        of_token = (-targets.token_loss).exp()
        others = (p.square().sum(1) - of_token.square()).clamp_min(0)
        return (others + (1 - of_token).square()).sqrt()


class Entropy(TokenMean):
    """Mean entropy of `p` in nats, from 0 to the log of the vocabulary's size."""

    scale = "log"

    def of_tokens(self, targets: Targets) -> torch.Tensor:
        """`-Σ p log p`, of numbers that a cross-entropy is rounded like."""
        own = targets.logits.gather(1, targets.ids[:, None])[:, 0]
        log_normaliser = own + targets.token_loss
        return log_normaliser - (targets.probabilities * targets.logits).sum(1)


class Margin(TokenMean):
    """Mean of `p_y` less the largest other probability, in [-1, 1]; low where it is hard."""

    def of_tokens(self, targets: Targets) -> torch.Tensor:
        """The largest two decide."""
        largest, which = targets.probabilities.topk(2, dim=1)
        of_token = (-targets.token_loss).exp()
        return of_token - largest[:, 0].where(which[:, 0] != targets.ids, largest[:, 1])


class InstructionDifficulty(Loss):
    """IFD: loss of the response after its prompt over its loss alone; above 0.

    Above 1 the prompt does not help. Li et al. 2024 (arXiv 2308.12032). The response alone follows
    the sample's very first token, which stands for the beginning of a text, so that both losses
    are of the same tokens. It takes a second forward pass; where nothing but that token comes
    before the response, it is 1.
    """

    alone = Loss

    def combine(self, own: torch.Tensor, alone: torch.Tensor) -> torch.Tensor:
        """[B]; two losses of 0 are equal."""
        return own.clamp_min(SMALLEST_LOSS) / alone.clamp_min(SMALLEST_LOSS)


SMALLEST_LOSS = 1e-6
"""A response that is certain has a loss of 0; a ratio needs more."""


class DeltaLoss(MeanLoss):
    """The loss now less the loss of the row's measurement before; 0 at the first.

    Below 0 it was learned, above 0 forgotten. Needs `loss` among the scores.
    """

    against = "previous"


class DeltaLossFirst(MeanLoss):
    """The loss now less the loss of the row's first measurement."""

    against = "first"
