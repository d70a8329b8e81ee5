"""What selection cost, in words."""

from __future__ import annotations

import math

from gracekit.version.outcomes import Cost
from gracekit.words import duration


def cost_in_words(cost: Cost | None) -> list[str]:
    """What an account says, for people, a sentence an entry; empty where there is none."""
    if cost is None:
        return []
    this = f"measuring for this version cost as much as training {cost.cost:,.0f} tokens"
    if cost.num_looked:
        this += f", with the features alone of {cost.num_looked:,} more samples"
    if math.isnan(cost.share):
        return [this, "how much of the training that is cannot be told: its pace is not known"]
    limit = f" (at most {100 * cost.max_cost:.3g}% is allowed)" if cost.max_cost >= 0 else ""
    found = [this, f"all versions so far cost {cost.share:.1%} of the training's compute{limit}"]
    seconds = seconds_in_words(cost)
    return [*found, seconds] if seconds else found


def seconds_in_words(cost: Cost) -> str | None:
    """The same in seconds of this machine; None where they are not known."""
    if not (cost.cost_seconds > 0 and cost.training_seconds > 0):
        return None
    return (
        f"in time, {duration(cost.cost_seconds)} of the {duration(cost.training_seconds)} that the "
        f"training takes on this machine ({cost.cost_seconds / cost.training_seconds:.1%})"
    )
