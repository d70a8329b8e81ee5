"""What an audit says, in words."""

from __future__ import annotations

from gracekit.types import ManifestHeader


def audit_in_words(header: ManifestHeader) -> str:
    """What the audit says about the samples that were not measured, for people.

    Args:
        header: Of the version that made the scores: a reselect has no audit of its own.
    """
    audit = header.audit
    if audit is None:
        measured, total = (header.stats.get(k) for k in ("num_measured", "num_samples"))
        if measured is not None and measured == total:
            return "not needed: everything was measured"
        return "none: too few rows were measured at random to check the others"
    if not audit.get("num_probe"):
        return (
            "nothing was checked: no sample was measured at random "
            "(see refresh.probe_fraction and refresh.min_probe)"
        )
    found, stale = audit.get("rank_correlation"), audit.get("rank_correlation_stale")
    if found is None:
        return "nothing comparable: the checked rows all score the same"
    text = (
        f"scores carried to unmeasured samples have rank correlation {found:.2f} with the truth, "
        f"checked on {audit['num_probe']:,} random samples"
    )
    if stale is not None:
        text += f" ({stale:.2f} had they been left as they were)"
    gate = header.refresh.get("propagation", {}).get("scores", {}).get("scores", {})
    if gate.get(header.scoring.get("importance"), {}).get("used") == "stale":
        text += "; nothing beat leaving them, so that is what was done"
    over_all = audit.get("rank_correlation_all")  # not in versions of gracekit before 0.2
    if over_all is not None:
        text += f"; {over_all:.2f} over all samples"
    target = audit["target"]
    return text + (
        f"; the target of {target:.2f} is met"
        if audit.get("target_met")
        else f"; below the target of {target:.2f}: raise refresh.max_fraction to measure more"
    )


def misses_target(header: ManifestHeader) -> bool:
    """Whether something was checked, and found less than the recipe's target."""
    audit = header.audit
    return bool(audit and audit.get("num_probe")) and not (audit or {}).get("target_met")
