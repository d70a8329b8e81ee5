"""A version as callers name it (its number, or the latest), and what to say where there is none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

from gracekit.errors import UsageError, VersionNotFoundError

VersionArgument = int | Literal["latest"] | None
"""What functions that take a version accept; None is the latest too."""


def version_number(version: Any) -> int | None:
    """The number of a version as a caller names it; None for the latest one.

    Args:
        version: A whole number (NumPy's included), `"latest"` or None.

    Raises:
        UsageError: It is anything else: text with digits, a bool, a float.
    """
    if version is None or (isinstance(version, str) and version == "latest"):
        return None
    is_bool = isinstance(version, bool)
    if isinstance(version, Integral) and not is_bool:
        return int(version)
    hint = ""
    if isinstance(version, str) and version.strip().isdecimal():
        hint = f"; write {int(version)} without quotes"
    raise UsageError(f"a version is a whole number or 'latest', found {version!r}{hint}")


def no_such_version(
    version: int, root: Path | str, kept: Iterable[int], removed: Mapping[int, str]
) -> VersionNotFoundError:
    """The error for a number that is no version, or no longer one; it says which there are.

    Args:
        version: The number that was asked for.
        root: The store, or the URL that it is published at.
        kept: Versions that can be asked for.
        removed: Versions that gc removed -> when (UTC, RFC 3339; empty where that is lost).
    """
    existing = versions_in_words(kept, removed)
    if version not in removed:
        return VersionNotFoundError(
            f"there is no version {version}: the store {root} has {existing}"
        )
    when = f" on {removed[version]}" if removed[version] else ""
    return VersionNotFoundError(
        f"version {version} was removed by gc{when}: the store {root} has {existing}. "
        "`gracekit pin` keeps versions from gc"
    )


def versions_in_words(kept: Iterable[int], removed: Iterable[int] = ()) -> str:
    """Which versions there are: `versions 2, 4 to 6; 1 and 3 were removed by gc`."""
    runs, gone = _runs(sorted(kept)), _runs(sorted(removed))
    if not runs:
        text = "none yet" if not gone else "none"
    else:
        is_one = len(runs) == 1 and runs[0][0] == runs[0][1]
        text = f"{'version' if is_one else 'versions'} {_in_words(runs, last=', ')}"
    if gone:
        is_one = len(gone) == 1 and gone[0][0] == gone[0][1]
        text += f"; {_in_words(gone, last=' and ')} {'was' if is_one else 'were'} removed by gc"
    return text


def _runs(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """First and last of each run of three or more consecutive numbers, which are ascending; other
    numbers by themselves.
    """
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    found: list[tuple[int, int]] = []
    for first, last in runs:
        found += [(first, first), (last, last)] if last == first + 1 else [(first, last)]
    return found


def _in_words(runs: list[tuple[int, int]], *, last: str) -> str:
    parts = [str(first) if first == end else f"{first} to {end}" for first, end in runs]
    return last.join(filter(None, (", ".join(parts[:-1]), parts[-1])))
