"""The audit: how well the probe was predicted before its own measurements were used."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from gracekit.types import Float32, Float64
from gracekit.version.outcomes import Audit


def audit(
    *,
    predicted: Float32,
    measured: Float32,
    stale: Float32,
    predicted_features: Float32,
    measured_features: NDArray[np.float16] | Float32,
    stale_features: NDArray[np.float16] | Float32,
    centre: Float32,
    variance: float,
    calibration: float,
    num_measured: int,
    num_rows: int,
    target: float,
    rounds: int = 1,
) -> Audit:
    """Compare what was predicted of the probe with what was measured.

    The rank correlation of two ranks x and y over all rows is 1 - mean (x - y)² / (2 variance). Of
    the measured rows the square is 0, of the others the probe tells it.

    Probe rows that are not finite in one of two compared arrays are left out of that comparison;
    a comparison of nothing gives 0.

    Args:
        predicted: [p] importance of the probe rows by scores that were propagated from the other
            measured rows.
        measured: [p] their importance by their measured scores.
        stale: [p] their importance by the scores last known.
        predicted_features: [q, d] features of probe rows propagated from other measured rows.
        measured_features: [q, d]
        stale_features: [q, d] last known features.
        centre: [d] subtracted from all features before they are compared: the mean of the
            measured ones.
        variance: of the importance of all rows; of ranks in (0, 1) without ties 1/12.
        calibration: errors of held-out rows relative to what their confidence promises.
        num_measured: rows measured so far, the probe included.
        num_rows: rows of the store.
        target: the recipe's target rank correlation.
        rounds: rounds of measuring so far.
    """
    with np.errstate(invalid="ignore"):  # differences of infinities are left out
        on_others = rank_correlation(predicted, measured)
        square_error = _finite_mean((_as_float64(predicted) - _as_float64(measured)) ** 2)
        is_compared = bool(np.isfinite(_as_float64(predicted) - _as_float64(measured)).any())
        share = num_measured / num_rows
        over_all = 1 - (1 - share) * square_error / (2 * variance) if variance > 0 else share
        return Audit(
            num_probe=len(measured),
            num_measured=num_measured,
            rank_correlation=on_others,
            rank_correlation_all=max(over_all, -1.0) if is_compared else share,
            calibration=calibration,
            rank_correlation_stale=rank_correlation(stale, measured),
            mean_abs_error=_finite_mean(np.abs(_as_float64(predicted) - _as_float64(measured))),
            mean_abs_error_stale=_finite_mean(np.abs(_as_float64(stale) - _as_float64(measured))),
            mean_error=_finite_mean(_as_float64(predicted) - _as_float64(measured)),
            feature_cosine=_mean_cosine(predicted_features, measured_features, centre),
            feature_cosine_stale=_mean_cosine(stale_features, measured_features, centre),
            target=target,
            rounds=rounds,
        )


def rank_correlation(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """Spearman's rank correlation over the pairs that are finite, ties by mean rank.

    0 where it is not defined: fewer than two pairs, or one side constant.
    """
    both = np.isfinite(a) & np.isfinite(b)
    ranks_a, ranks_b = rankdata(a[both]), rankdata(b[both])
    if len(ranks_a) < 2:
        return 0.0
    ranks_a -= ranks_a.mean()
    ranks_b -= ranks_b.mean()
    size = np.sqrt((ranks_a @ ranks_a) * (ranks_b @ ranks_b))
    return float(np.clip(ranks_a @ ranks_b / size, -1, 1)) if size > 0 else 0.0


def _mean_cosine(a: NDArray[np.floating], b: NDArray[np.floating], centre: Float32) -> float:
    centred_a, centred_b = _as_float64(a) - centre, _as_float64(b) - centre
    dot = np.einsum("ij,ij->i", centred_a, centred_b)
    size = np.linalg.norm(centred_a, axis=1) * np.linalg.norm(centred_b, axis=1)
    # A row that lies on the centre has no direction to agree with; NaN stays NaN.
    return _finite_mean(np.divide(dot, size, out=np.where(size == 0, 0.0, np.nan), where=size > 0))


def _finite_mean(values: Float64) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else 0.0


def _as_float64(values: NDArray[np.floating]) -> Float64:
    return values.astype(np.float64)
