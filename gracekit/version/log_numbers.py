"""What a version is, in numbers for an experiment tracker: the same names wherever they are logged.

The trainer's side logs them with the trainer's own log, the daemon with `gracekit watch --tracker`.
"""

from __future__ import annotations

import math
from typing import Any

from gracekit.types import Json

PREFIX = "coreset/"
"""Begins the names of numbers in a log."""


def log_numbers(content: Json) -> dict[str, float]:
    """Name -> number of a version, those that are known, without the prefix.

    `version`, `step` (of its checkpoint), `rows` (that are selected), `samples` (in the data),
    `value` (how many random rows one of them is worth), `value_kept` (share of the gain of perfect
    norms), `measured_share` (of the samples, 0 to 1), `churn` (share of the coreset before that was
    replaced, 0 to 1), `cost_tokens` (what measuring cost so far, in trained tokens) and
    `cost_share` (the same as a share of the training).

    Args:
        content: The version's header, as its JSON has it in any format.
    """
    meter, cost = content.get("meter") or {}, content.get("cost") or {}
    stats = content.get("stats") or {}
    overlap = stats.get("overlap_with_parent") or {}
    samples, in_all = known(stats.get("num_samples")), known(cost.get("cost_in_all"))
    found = {
        "version": known(content.get("version")),
        "step": known((content.get("checkpoint") or {}).get("step")),
        "rows": known(stats.get("num_selected")),
        "samples": samples,
        "value": known(meter.get("value")),
        "value_kept": known(meter.get("value_kept")),
        "measured_share": _share(known(stats.get("num_measured")), samples),
        "churn": known(overlap.get("churn")),
        "cost_tokens": in_all,
        "cost_share": _share(in_all, known(cost.get("training_tokens"))),
    }
    return {name: value for name, value in found.items() if value is not None}


def known(value: Any) -> float | None:
    """A number that is one, else None."""
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def _share(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole else part / whole
