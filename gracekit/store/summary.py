"""One version in one row: what tables and reports show of a manifest's header."""

from __future__ import annotations

import math

from gracekit.types import Json
from gracekit.version.header import Header

AUDIT_COLUMNS = (
    "num_probe", "rank_correlation", "rank_correlation_stale", "rank_correlation_all",
    "mean_abs_error", "mean_abs_error_stale", "feature_cosine", "feature_cosine_stale",
    "calibration",
)  # fmt: skip
"""What the table of versions tells of the audit; NULL in versions without one."""
DATA_COLUMNS = ("num_added", "num_removed", "num_changed")
"""What it tells of the data; NULL in versions of stores of format version 1."""


def version_row(header: Header) -> Json:
    """Flat facts of a version; None where it has none (a reselect measures nothing).

    Keys are columns of the table `versions`, see `store.schema`.
    """
    stats, audit, timings = header.stats, header.audit, header.timings
    overlap = stats.overlap_with_parent
    num_measured, num_samples = stats.num_measured, stats.num_samples
    fraction = None if num_measured is None or not num_samples else num_measured / num_samples
    return {
        "version": header.version,
        "parent_version": header.parent_version,
        "created_at": header.created_at,
        "operation": header.operation,
        "step": header.checkpoint.step,
        "scores_version": header.scores_version,
        "rollback_of": header.rollback_of,
        "num_measured": num_measured,
        "measured_fraction": fraction,
        **{name: audit and _finite(getattr(audit, name)) for name in AUDIT_COLUMNS},
        "num_samples": num_samples,
        **{name: getattr(stats, name) for name in DATA_COLUMNS},
        "num_selected": stats.num_selected,
        "churn": overlap and overlap.churn,
        "jaccard": overlap and overlap.jaccard,
        "model_pass_s": timings.model_pass_s,
        "other_s": timings.other_s,
        "total_s": timings.total_s,
        "refresh_id": header.refresh_id,
        "recipe_digest": header.recipe_digest,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
