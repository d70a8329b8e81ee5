"""The loss of a batch in which each row counts by its weight.

A draw with unequal probabilities teaches what its pool would teach only where each row's weight is
a factor of its loss. With the average over tokens, the default of Hugging Face and TRL,

    loss = Σ_i w_i Σ_tokens ce / (rows of the step · target tokens per row of the pool)

and with the average over samples `Σ_i w_i (mean of ce over the tokens of i) / rows of the step`.
The denominators do not depend on which rows were drawn, so the expected gradient over draws is
exactly the pool's (Horvitz and Thompson 1952). Divided by the tokens of the batch instead, as
trainers do, it would be so for large batches only: it is a ratio of two random numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from gracekit.training.loss_units import Average

IGNORED = -100
"""Label of a token without loss."""
_CHUNK = 1 << 24
"""Logits that are in float32 at a time."""


def weighted_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    weights: torch.Tensor | Sequence[float],
    *,
    average: Average = "tokens",
    denominator: float | torch.Tensor | None = None,
    lengths: Sequence[int] | None = None,
    shift: bool = True,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Sum over the rows of weight times the row's part in the average, by the denominator.

    A row's part is the sum (`tokens`) or the mean (`samples`) of the cross-entropy of its target
    tokens; a row without any has none. Computed in float32 (float64 for float64 logits), a part of
    the vocabulary-sized values at a time, so that it needs no more memory than a model's own loss.

    Args:
        logits: [rows, tokens, vocabulary].
        labels: int64 [rows, tokens]; -100 where there is no loss.
        weights: [rows], of `Drawn.weight`; with `lengths`, one for each length.
        average: what the loss is an average over.
        denominator: over all micro-batches and ranks of the step: with `samples` its rows; with
            `tokens` its rows times `Coreset.tokens_per_row`. None: of this batch alone, its rows
            or Σ weight · target tokens. (Where ranks average their gradients, as in DDP, multiply
            the loss by the number of ranks.)
        lengths: tokens of each row, where a padding-free collator has joined them into one: logits
            and labels have one row then.
        shift: whether the logits at a token are about the label of the next one.
        label_smoothing: as of `torch.nn.functional.cross_entropy`.

    Returns:
        A number, differentiable once with respect to the logits.
    """
    loss, _ = weighted_loss_and_means(
        logits,
        labels,
        weights,
        average=average,
        denominator=denominator,
        lengths=lengths,
        shift=shift,
        label_smoothing=label_smoothing,
    )
    return loss


def weighted_loss_and_means(
    logits: torch.Tensor,
    labels: torch.Tensor,
    weights: torch.Tensor | Sequence[float],
    *,
    average: Average,
    denominator: float | torch.Tensor | None,
    lengths: Sequence[int] | None,
    shift: bool,
    label_smoothing: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`weighted_loss`, and the mean loss of each row as `mean_losses` has it."""
    targets = shifted(labels) if shift else labels
    owners = row_of_tokens(targets, lengths)
    precision = torch.promote_types(logits.dtype, torch.float32)
    factors = torch.as_tensor(weights, dtype=precision, device=logits.device)
    counts = tokens_of_rows(targets, lengths).to(logits.device)
    if average == "samples":
        per_token = factors / counts.clamp(min=1)
        total: float | torch.Tensor = float(len(factors))
    else:
        per_token = factors
        total = (factors * counts).sum().clamp(min=torch.finfo(precision).tiny)
    losses, plain = _losses_and_plain(logits, targets.to(logits.device), label_smoothing)
    weighted = losses * per_token[owners.to(logits.device)]
    loss = weighted.sum() / (total if denominator is None else denominator)
    return loss, mean_losses(plain, targets, lengths)


def mean_losses(
    losses: torch.Tensor, targets: torch.Tensor, lengths: Sequence[int] | None
) -> torch.Tensor:
    """[rows] mean over each row's target tokens, without a gradient; NaN of a row without any.

    Args:
        losses: [rows, tokens] of each token, not smoothed and not weighted.
        targets: int64 [rows, tokens] what each token is about; -100 where there is no loss.
        lengths: as of `weighted_loss`.
    """
    with torch.no_grad():
        counts = tokens_of_rows(targets, lengths).to(losses.device)
        owners = row_of_tokens(targets, lengths).to(losses.device)
        counted = losses.masked_fill(targets.eq(IGNORED).to(losses.device), 0)
        sums = losses.new_zeros(len(counts)).index_add_(0, owners.flatten(), counted.flatten())
        return sums / counts


def shifted(labels: torch.Tensor) -> torch.Tensor:
    """[rows, tokens] the label that each token's logits are about: the next token's."""
    return torch.nn.functional.pad(labels[..., 1:], (0, 1), value=IGNORED)


def row_of_tokens(targets: torch.Tensor, lengths: Sequence[int] | None) -> torch.Tensor:
    """[rows, tokens] which row each token belongs to; 0 for what a collator added behind them."""
    if lengths is None:
        rows = torch.arange(len(targets), device=targets.device)
        return rows[:, None].expand(targets.shape)
    owners = torch.repeat_interleave(
        torch.arange(len(lengths), device=targets.device),
        torch.tensor(lengths, device=targets.device),
    )
    return torch.nn.functional.pad(owners, (0, targets.shape[-1] - len(owners)))[None]


def tokens_of_rows(targets: torch.Tensor, lengths: Sequence[int] | None) -> torch.Tensor:
    """[rows] target tokens of each row."""
    num_rows = len(targets) if lengths is None else len(lengths)
    owners = row_of_tokens(targets, lengths)
    counts = torch.zeros(num_rows, dtype=torch.int64, device=targets.device)
    return counts.index_add_(0, owners.flatten(), targets.ne(IGNORED).flatten().long())


def token_losses(
    logits: torch.Tensor, targets: torch.Tensor, label_smoothing: float = 0.0
) -> torch.Tensor:
    """[rows, tokens] cross-entropy of each token in float32 (or 64); 0 where it is ignored."""
    return _losses_and_plain(logits, targets, label_smoothing)[0]


def _losses_and_plain(
    logits: torch.Tensor, targets: torch.Tensor, label_smoothing: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """`token_losses`, and the same without smoothing and without a gradient."""
    smoothed: torch.Tensor
    plain: torch.Tensor
    smoothed, plain = _TokenLosses.apply(  # type: ignore[no-untyped-call]
        logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), label_smoothing
    )
    return smoothed.reshape(targets.shape), plain.reshape(targets.shape)


class _TokenLosses(torch.autograd.Function):
    """Cross-entropy by token that keeps the logits as they are and one number for each token.

    The second result is the same without smoothing, and has no gradient.

    With z the logits of a token, y its label, V the vocabulary and s the label smoothing:

        loss = logsumexp(z) - (1 - s) z_y - s mean(z)
        dloss/dz = softmax(z) - (1 - s) onehot(y) - s / V
    """

    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, targets: torch.Tensor, smoothing: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        precision = torch.promote_types(logits.dtype, torch.float32)
        norms = torch.empty(len(logits), dtype=precision, device=logits.device)
        losses, plain = torch.empty_like(norms), torch.empty_like(norms)
        for chunk in _chunks(logits):
            values = logits[chunk].to(precision)
            norms[chunk] = values.logsumexp(-1)
            labels = targets[chunk].clamp(min=0)[:, None]
            picked = values.gather(-1, labels)[:, 0]
            plain[chunk] = norms[chunk] - picked
            if smoothing:
                picked = picked * (1 - smoothing) + values.mean(-1) * smoothing
            losses[chunk] = norms[chunk] - picked
        ctx.save_for_backward(logits, targets, norms)
        ctx.smoothing = smoothing
        ctx.mark_non_differentiable(plain)
        ignored = targets.eq(IGNORED)
        return losses.masked_fill_(ignored, 0), plain.masked_fill_(ignored, 0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, upstream: torch.Tensor, of_plain: torch.Tensor
    ) -> tuple[torch.Tensor, None, None]:
        logits, targets, norms = ctx.saved_tensors
        upstream = upstream.masked_fill(targets.eq(IGNORED), 0)
        gradient = torch.empty_like(logits)
        for chunk in _chunks(logits):
            values = (logits[chunk].to(norms.dtype) - norms[chunk, None]).exp_()
            labels = targets[chunk].clamp(min=0)[:, None]
            kept = torch.full_like(values[:, :1], ctx.smoothing - 1)
            values.scatter_add_(-1, labels, kept)
            if ctx.smoothing:
                values -= ctx.smoothing / logits.shape[-1]
            gradient[chunk] = (values * upstream[chunk, None]).to(logits.dtype)
        return gradient, None, None


def _chunks(logits: torch.Tensor) -> list[slice]:
    """Stretches of tokens whose logits are few enough to be copied in float32."""
    size = max(1, _CHUNK // logits.shape[-1])
    return [slice(start, start + size) for start in range(0, len(logits), size)]
