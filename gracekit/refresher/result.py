"""What a refresh or a selection published."""

from __future__ import annotations

from dataclasses import dataclass

from gracekit.version.header import Header


@dataclass(frozen=True, slots=True, kw_only=True)
class RefreshResult:
    """What a refresh or a selection published."""

    version: int
    is_new: bool
    """False when the very same had been published before: nothing was added."""
    header: Header
