"""Arrow, loaded when it is first used: what only looks at the command line or at data does not."""

from __future__ import annotations

from types import ModuleType


def arrow() -> ModuleType:
    """The package `pyarrow`, with its functions of columns in `pyarrow.compute`."""
    import pyarrow.compute

    package: ModuleType = pyarrow
    return package
