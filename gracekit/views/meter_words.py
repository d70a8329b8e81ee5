"""What a coreset is worth, in words."""

from __future__ import annotations

import math

from gracekit.version.header import Header
from gracekit.version.outcomes import Meter


def worth_in_words(header: Header) -> list[str]:
    """What the meter of a version says, for people, a sentence an entry; empty without a meter."""
    meter = header.meter
    if meter is None:
        return []
    is_limited = header.cost is not None and not math.isnan(header.cost.max_cost)
    found = [_value(meter, is_limited)]
    if not math.isnan(meter.gradient_error):
        found.append(
            "by the gradient sketches its mean gradient is off by "
            f"{meter.gradient_error:.0%}, that of a random draw of as many by "
            f"{meter.gradient_error_random:.0%}"
        )
    repeated = _repetition(header)
    return [*found, repeated] if repeated else found


def _value(meter: Meter, is_limited: bool) -> str:
    """`is_limited`: whether the recipe has a `refresh.max_cost`."""
    if meter.can_gain is None:
        if math.isnan(meter.share_measured):
            return (
                "not known: the importance score does not tell how large gradients are, or all "
                "that is selected is always in"
            )
        or_cost = ", or refresh.max_cost where that allows no more" if is_limited else ""
        return (
            f"not known: {meter.num_told_by} samples that were measured at random are too few to "
            f"tell (raise refresh.min_fraction{or_cost})"
        )
    best = f"perfect norms would make 1,000 samples worth {_of_1000(meter.best)} random ones"
    best += f" ({_between(meter.best_low, meter.best_high)})"
    if math.isnan(meter.value):
        told = f"not known of this selector; {best}"
    else:
        told = (
            f"1,000 of these are worth {_of_1000(meter.value)} random ones "
            f"({_between(meter.value_low, meter.value_high)})"
        )
    if meter.no_gain:
        return f"{told}; {meter.no_gain}"
    if math.isnan(meter.value):
        return told
    return (
        f"{told}; perfect norms would make it {_of_1000(meter.best)}: "
        f"{max(0.0, meter.value_kept):.0%} of the gain is kept"
    )


def _repetition(header: Header) -> str | None:
    distinct, of_random = header.selection.num_distinct, header.selection.num_distinct_random
    if distinct is None or of_random is None:
        return None
    return (
        f"{distinct:,.0f} distinct samples have been drawn so far, where random draws would have "
        f"had {of_random:,.0f}"
    )


def _of_1000(value: float) -> str:
    return f"{1000 * value:,.0f}"


def _between(low: float, high: float) -> str:
    return f"{_of_1000(low)} to {_of_1000(high)}"
