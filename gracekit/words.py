"""Numbers as people read them: counts, sizes, durations, lists of versions."""

from __future__ import annotations

from collections.abc import Iterable


def count_of(number: int, noun: str, plural: str | None = None) -> str:
    """`1 sample`, `2,000 samples`; the plural is the noun with an s unless given."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def size(num_bytes: int) -> str:
    """A size in the largest binary unit that keeps it above one."""
    amount = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def duration(seconds: float) -> str:
    """Seconds in a unit and with digits that fit their size: 3 ms, 0.25 s, 34 s, 12 min, 3.4 h."""
    if seconds < 0.1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 1:
        return f"{seconds:.2f} s"
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def age(seconds: float) -> str:
    """How long ago something was, in whole units: 12 seconds, 5 minutes, 3 hours, 9 days."""
    for unit, length, most in (("second", 1, 90), ("minute", 60, 90), ("hour", 3600, 36)):
        if seconds < most * length:
            return count_of(round(seconds / length), unit)
    return count_of(round(seconds / 86400), "day")


def version_ranges(versions: Iterable[int]) -> str:
    """Ascending version numbers in words: `versions 1 to 7, 9`."""
    runs: list[list[int]] = []
    for version in versions:
        if runs and version == runs[-1][1] + 1:
            runs[-1][1] = version
        else:
            runs.append([version, version])
    parts = [str(first) if first == last else f"{first} to {last}" for first, last in runs]
    if not parts:
        return "no version"
    is_one = len(runs) == 1 and runs[0][0] == runs[0][1]
    return f"version{'' if is_one else 's'} {', '.join(parts)}"
