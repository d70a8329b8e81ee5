"""What an audit says, in words."""

from __future__ import annotations

import math

from gracekit.version.header import Header


def audit_in_words(header: Header) -> str:
    """What the audit says about the samples that were not measured, for people.

    Args:
        header: Of the version that made the scores: a reselect has no audit of its own.
    """
    audit = header.audit
    if audit is None:
        if header.stats.num_measured == header.stats.num_samples:
            return "not needed: everything was measured"
        return "none: too few rows were measured at random to check the others"
    if not audit.num_probe:
        return (
            "nothing was checked: no sample was measured at random "
            "(see refresh.probe_fraction and refresh.min_probe)"
        )
    found, stale = audit.rank_correlation, audit.rank_correlation_stale
    if math.isnan(found):
        return "nothing comparable: the checked rows all score the same"
    text = (
        f"scores carried to unmeasured samples have rank correlation {found:.2f} with the truth, "
        f"checked on {audit.num_probe:,} random samples"
    )
    if not math.isnan(stale):
        text += f" ({stale:.2f} had they been left as they were)"
    if _was_left_stale(header):
        text += "; nothing beat leaving them, so that is what was done"
    over_all = audit.rank_correlation_all
    if not math.isnan(over_all):  # headers of the first release do not have it
        text += f"; {over_all:.2f} over all samples"
    if math.isnan(audit.target):
        return text
    return text + (
        f"; the target of {audit.target:.2f} is met"
        if audit.target_met
        else f"; below the target of {audit.target:.2f}: raise refresh.max_fraction to measure more"
    )


def misses_target(header: Header) -> bool:
    """Whether something was checked, and found less than one of the recipe's targets."""
    audit, meter = header.audit, header.meter
    if meter is not None and meter.target_met is False:
        return True
    return audit is not None and audit.num_probe > 0 and not audit.target_met


def _was_left_stale(header: Header) -> bool:
    """Whether the importance of the samples that were not measured was kept as it was."""
    scoring, refresh = header.settings.scoring, header.refresh
    gates = refresh.propagation.scores if refresh is not None else None
    if gates is None or scoring is None or scoring.importance not in gates.scores:
        return False
    return gates.scores[scoring.importance].used == "stale"
