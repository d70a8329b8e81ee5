"""The gradient of the output head, in closed form: no backward pass."""

from __future__ import annotations

import torch

from gracekit.protocols import Batch, Scorer, Targets


class HeadGradientNorm(Scorer):
    """Norm of the gradient of the mean token loss by the output head's weight.

    With the hidden states `h_t` and the errors `e_t = p_t - onehot(y_t)` of n target positions the
    gradient is `Σ_t e_t h_tᵀ / n`, and its squared norm `Σ_ts (e_t·e_s)(h_t·h_s) / n²`. With tied
    embeddings it leaves out what reaches the same weight through the inputs. A soft cap or scale
    that a model puts on its logits counts as part of the loss, not of the head.
    """

    shrinks_with_length = True
    scale = "log"

    def start(self, batch: Batch) -> None:
        """Begin at zero."""
        self._squares = batch.zeros()

    def on_targets(self, batch: Batch, targets: Targets) -> None:
        """Samples come whole, so that each one's positions are a slice of these."""
        hidden = targets.hidden.float()
        error_of_token = (-targets.token_loss).expm1()
        counts = batch.num_targets.tolist()
        start = 0
        for sample in range(int(targets.sample[0]), int(targets.sample[-1]) + 1):
            of_sample = slice(start, start + counts[sample])
            start = of_sample.stop
            errors = targets.probabilities[of_sample].clone()
            errors.scatter_(1, targets.ids[of_sample, None], error_of_token[of_sample, None])
            states = hidden[of_sample]
            self._squares[sample] = ((errors @ errors.mT) * (states @ states.mT)).sum()

    def finish(self, batch: Batch) -> torch.Tensor:
        """[B], at least 0."""
        return self._squares.clamp_min(0).sqrt() / batch.num_targets
