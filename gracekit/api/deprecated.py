"""Public names of earlier releases."""

from __future__ import annotations

import warnings

from gracekit.api.selecting import select
from gracekit.api.stores import RecipeLike
from gracekit.refresher import RefreshResult


def reselect(recipe: RecipeLike) -> RefreshResult:
    """Deprecated: the name of `gracekit.select` in earlier releases."""
    warnings.warn("gracekit.reselect is now gracekit.select", DeprecationWarning, stacklevel=2)
    return select(recipe)
