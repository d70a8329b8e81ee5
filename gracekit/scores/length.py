"""Taking the effect of length out of a score."""

from __future__ import annotations

import numpy as np

from gracekit.recipe import LengthCorrection
from gracekit.types import Float32, Float64, Int32

ROWS_PER_BIN = 50
"""Least rows of a bin of lengths on average."""
MOST_BINS = 20


def correct_length(scores: Float32, num_targets: Int32, how: LengthCorrection) -> Float32:
    """Make scores of samples of different length comparable; NaN stays NaN.

    The norm of a *mean* of token gradients falls with their number as far as these point in
    different directions and average out, so that uncorrected it favours short answers.

    Args:
        scores: [n]
        num_targets: [n] tokens that carry loss.
        how: `sqrt` multiplies by the root of `num_targets`, what independent token gradients
            would need; `bins` replaces a score by its rank in (0, 1) among samples of about the
            same length; `none` returns the scores.
    """
    if how == "none":
        return scores.copy()
    if how == "sqrt":
        return (scores * np.sqrt(num_targets)).astype(np.float32)
    known = ~np.isnan(scores)
    corrected = np.full(len(scores), np.nan, np.float32)
    if known.any():
        corrected[known] = ranks_within(scores[known], _length_bins(num_targets[known]))
    return corrected


def ranks_within(values: Float32, labels: Int32) -> Float64:
    """Rank of each value among those of its label, (rank - 1/2) / count in (0, 1); ties averaged.

    Half a rank off both ends: labels of any size have the mean 1/2, and a lone value gets it.
    """
    ranks = np.empty(len(values), np.float64)
    order = np.argsort(labels, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1):
        if len(members):
            _, place, counts = np.unique(values[members], return_inverse=True, return_counts=True)
            ranks[members] = ((np.cumsum(counts) - counts / 2) / len(members))[place]
    return ranks


def _length_bins(num_targets: Int32) -> Int32:
    """Bin of each sample: about equally many in each, equal lengths together."""
    num_bins = min(MOST_BINS, max(1, len(num_targets) // ROWS_PER_BIN))
    edges = np.quantile(num_targets, np.arange(1, num_bins) / num_bins, method="lower")
    return np.searchsorted(edges, num_targets, side="left").astype(np.int32)
