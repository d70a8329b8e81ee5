"""Factors of the target t from what a reference model says of the samples, and from their loss.

Like all signals these are weights and no cuts unless the user asks for one: taking the *best* rows
by loss or excess loss was worse than random rows in every training that we tried.
"""

from __future__ import annotations

import numpy as np

from gracekit.types import Bool, Float32, Int32

TRUSTED_FROM = 0.5
"""Evidence from which a response is trusted whole (docs/selection.md)."""
LEAST_TRUST = 0.1
"""What a place is lowered to for a response of which its prompt tells nothing."""
CUT_TRUST = 1e-4
"""The place of a distrusted response that is cut: drawn where nothing else is left."""
_WIDTH = 1.0
"""Evidence over which trust falls from whole to `LEAST_TRUST`."""
ALIKE = 0.001
"""Nats a target token: what batches of another shape change in a loss is less, and says nothing."""
LEAST_OF_GROUP = 10
"""Rows of a group whose excess loss is known, from which its share follows it."""
MOST_OF_SHARE = 2.0
"""How far the places of a group's rows rise, and fall, by excess loss."""
LAST_PART = 0.125
"""Share of the run at its end in which what is learned counts in full again."""


def trust(evidence: Float32) -> Float32:
    """[n] the place of a response by the evidence that it belongs to its prompt.

    A response of another prompt is no likelier after its own. (Li et al. 2024, arXiv 2308.12032,
    take the ratio of two losses for difficulty; here it is their difference, for trust.)

    Args:
        evidence: [n] as `ReferenceLosses.evidence`; NaN: not known, the place is 1.
    """
    rising = np.clip((evidence - (TRUSTED_FROM - _WIDTH)) / _WIDTH, 0, 1)
    found = LEAST_TRUST + (1 - LEAST_TRUST) * rising
    return np.where(np.isfinite(evidence), found, 1).astype(np.float32)


def distrusted(evidence: Float32) -> Bool:
    """[n] responses that are not trusted whole."""
    return np.isfinite(evidence) & (evidence < TRUSTED_FROM)


def excess(loss: Float32, reference: Float32, groups: Int32, strength: float) -> Float32:
    """[n] about 2^-strength to 2^strength by the rank of the excess loss within the group.

    The excess is the loss now less that under the reference model: high where there is most left
    to learn of what can be learned (Mindermann et al. 2022, arXiv 2206.07137). It is counted in
    steps of `ALIKE`, so that the rounding of two passes makes no ranks where the reference is the
    very model. Where either is not known the factor is 1.

    Args:
        loss: [n] as it is now, measured or estimated.
        reference: [n] under the reference model.
        groups: [n] at least 0.
        strength: At least 0; 0: none.
    """
    found = np.ones(len(loss), np.float32)
    above = np.round((loss.astype(np.float64) - reference) / ALIKE)
    rows = np.flatnonzero(np.isfinite(above))
    order = rows[np.lexsort((above[rows], groups[rows]))]
    _, starts, sizes = np.unique(groups[order], return_index=True, return_counts=True)
    # Equal values have the mean of their ranks, so that their order in the data does not matter.
    for start, size in zip(starts.tolist(), sizes.tolist(), strict=True):
        part = order[start : start + size]
        _, of_value, counts = np.unique(above[part], return_inverse=True, return_counts=True)
        middle = np.cumsum(counts) - counts / 2
        found[part] = 2 ** (strength * (2 * middle[of_value] / size - 1))
    return found


def group_shares(loss: Float32, reference: Float32, counted: Bool, groups: Int32) -> Float32:
    """[n] e to the mean excess loss of a row's group, less that of all rows; from 1/2 to 2.

    The excess is as for `excess`, in nats a target token; domains get their shares by it in DoReMi
    (Xie et al. 2023, arXiv 2305.10429), there summed up over the run. Groups of which fewer than
    `LEAST_OF_GROUP` rows are known have 1.

    Args:
        loss: [n] as it is now, measured or estimated.
        reference: [n] under the reference model.
        counted: [n] rows that may be trained on.
        groups: [n] at least 0.
    """
    above = loss.astype(np.float64) - reference
    rows = np.flatnonzero(counted & np.isfinite(above))
    if not len(rows):
        return np.ones(len(loss), np.float32)
    counts = np.bincount(groups[rows], minlength=int(groups.max()) + 1)
    sums = np.bincount(groups[rows], above[rows], minlength=len(counts))
    means = np.divide(sums, counts, out=np.zeros(len(counts)), where=counts > 0)
    factors = np.exp((means - sums.sum() / len(rows)).clip(-1, 1))
    factors = factors.clip(1 / MOST_OF_SHARE, MOST_OF_SHARE)
    factors[counts < LEAST_OF_GROUP] = 1
    of_rows: Float32 = factors[groups].astype(np.float32)
    return of_rows


def learned(loss: Float32, counted: Bool, factor: float, share_of_run: float) -> Float32:
    """[n] `factor` for samples whose loss is below the mean, 1 for the others.

    Qin et al. 2024 (InfoBatch, arXiv 2303.04947) leave such samples out at random; here they are
    wanted less. In the last part of the run, and where nobody knows how long it is, all have 1.

    Args:
        loss: [n] as it is now, measured or estimated; NaN: not known.
        counted: [n] rows that may be trained on; the mean is theirs.
        factor: In (0, 1].
        share_of_run: Of the training that is done; NaN: not known.
    """
    found = np.ones(len(loss), np.float32)
    known = counted & np.isfinite(loss)
    if factor == 1 or not known.any() or not share_of_run < 1 - LAST_PART:
        return found
    found[known & (loss < loss[known].mean(dtype=np.float64))] = factor
    return found
