"""The gate: a refinement is used only when held-out rows show that it helps."""

from __future__ import annotations

import numpy as np

from gracekit.types import Float32, Float64, Int64

_STANDARD_ERRORS = 2.0
"""How sure a gate wants to be by default before it leaves a simpler estimate for a better one."""


def folds(num_rows: int, num_folds: int, rng: np.random.Generator) -> Int64:
    """[num_rows] the fold in which each row is held out: random, of equal sizes up to one."""
    return rng.permutation(np.arange(num_rows) % num_folds)


def simplest_good(
    losses: dict[str, Float64], *, at_least: float = 0.0, standard_errors: float = _STANDARD_ERRORS
) -> str:
    """The first estimate that the best one does not beat for certain.

    Args:
        losses: name -> [m] loss on every held-out row, the same rows for all; simplest first.
        at_least: a smaller gain in the mean loss is not worth leaving a simpler estimate for.
        standard_errors: how sure a gain has to be.
    """
    best = losses[min(losses, key=lambda name: float(losses[name].mean()))]
    for name, loss in losses.items():
        excess = loss - best
        noise = standard_errors * excess.std() / np.sqrt(len(excess))
        if excess.mean() <= max(noise, at_least):
            return name
    raise AssertionError("the best estimate is as good as itself")


def mean_square(errors: Float64) -> float:
    """Mean of the squares."""
    return float(np.mean(errors**2))


def share_that_helps(predicted: Float64 | Float32, truth: Float64 | Float32) -> float:
    """β in [0, 1] that minimises the squared error of β · predicted."""
    power = float(np.vdot(predicted, predicted))
    return float(np.clip(np.vdot(predicted, truth) / power, 0, 1)) if power > 0 else 0.0
