"""What is looked at in a model: losses of rows, hidden states."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import transformers

from gracekit.samples import TokenTable
from gracekit.types import Float32, Float64, Rows

logger = logging.getLogger("gracekit.comparing")

BATCH_TOKENS = 4096
"""Padded tokens of a batch that is only looked at."""


def row_losses(model: Any, tokens: TokenTable, rows: Rows, pad: int) -> Float64:
    """[m] mean loss over the target tokens of each row, in nats; NaN without one."""
    losses = np.full(len(rows), np.nan)
    with looking(model):
        for places, ids, mask, targets in _batches(model, tokens, rows, pad):
            logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
            sums, counts = sums_of_rows(logits, targets[:, 1:])
            losses[places] = (sums / counts).cpu().numpy()
    return losses


def sums_of_rows(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[b] sum of the losses of each row's target tokens, and how many they are.

    Args:
        logits: [b, T, V] each for the token after it.
        targets: [b, T] token ids, -100 where there is no loss.
    """
    is_target = targets != -100
    found = torch.nn.functional.cross_entropy(
        logits[is_target], targets[is_target], reduction="none"
    )
    row = is_target.nonzero()[:, 0]
    sums = torch.zeros(len(targets), dtype=found.dtype, device=found.device)
    return sums.index_add(0, row, found), is_target.sum(dim=1)


def row_states(model: Any, tokens: TokenTable, rows: Rows, pad: int) -> Float32:
    """[m, d] last hidden states, mean over a row's tokens weighted by their position from 1 on."""
    means = []
    with looking(model):
        for places, ids, mask, _ in _batches(model, tokens, rows, pad):
            found = model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
            states = found.hidden_states[-1].float()
            weights = mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)
            mean = (states * weights[..., None]).sum(dim=1) / weights.sum(dim=1)[:, None]
            means.append((places, mean.cpu().numpy()))
    order = np.concatenate([places for places, _ in means])
    stacked = np.concatenate([mean for _, mean in means])
    return np.asarray(stacked[np.argsort(order)], np.float32)


@contextmanager
def looking(model: Any) -> Iterator[None]:
    """Evaluation mode, without gradients. Nothing here draws random numbers."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the messages and bars of transformers, and what a trainer says of its epochs.

    What a refresh says of itself is told with `--verbose` alone: runs have lines of their own.
    """
    logs = transformers.utils.logging
    rooms = [logging.getLogger(f"gracekit.{room}") for room in ("training", "training.epochs")]
    if not logger.isEnabledFor(logging.DEBUG):
        rooms.append(logging.getLogger("gracekit.refresher"))
    levels = [room.level for room in rooms]
    verbosity, has_bars = logs.get_verbosity(), logs.is_progress_bar_enabled()
    logs.set_verbosity_error()
    logs.disable_progress_bar()
    for room in rooms:
        room.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logs.set_verbosity(verbosity)
        for room, level in zip(rooms, levels, strict=True):
            room.setLevel(level)
        if has_bars:
            logs.enable_progress_bar()


def _batches(
    model: Any, tokens: TokenTable, rows: Rows, pad: int
) -> Iterator[tuple[Rows, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Rows of like length together: places in `rows`, ids, attention mask, targets."""
    device = next(model.parameters()).device
    order = np.argsort(tokens.lengths[rows], kind="stable")
    start = 0
    while start < len(order):
        stop = start + 1
        while (
            stop < len(order)
            and (stop + 1 - start) * tokens.lengths[rows[order[stop]]] <= BATCH_TOKENS
        ):
            stop += 1
        places = order[start:stop]
        yield (places, *padded(tokens, rows[places], pad, device))
        start = stop


def padded(
    tokens: TokenTable, rows: Rows, pad: int, device: torch.device | str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """[b, T] ids, attention mask and targets (-100: no loss) of rows, padded on the right."""
    taken = tokens.take(rows)
    width = max(len(ids) for ids, _ in taken)
    ids = torch.full((len(taken), width), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    targets = torch.full_like(ids, -100)
    for place, (row, has_loss) in enumerate(taken):
        values = torch.from_numpy(row.astype(np.int64))
        ids[place, : len(row)] = values
        mask[place, : len(row)] = 1
        targets[place, : len(row)][torch.from_numpy(has_loss)] = values[torch.from_numpy(has_loss)]
    return ids.to(device), mask.to(device), targets.to(device)
