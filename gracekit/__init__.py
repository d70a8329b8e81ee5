"""gracekit follows a fine-tuning run from outside and keeps a fresh coreset for its trainer.

    import gracekit
    result = gracekit.refresh("gracekit.yaml", "runs/sft/checkpoint-300")
    coreset = gracekit.Coreset.load("gracekit-store")          # .rows .weights .sample_ids
    train = coreset.select(dataset)
    gracekit.connect("gracekit-store").sql("SELECT * FROM versions")

The names below are imported when they are first used: `import gracekit` loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gracekit.version import __version__

if TYPE_CHECKING:
    from gracekit.errors import GracekitError
    from gracekit.recipe import Recipe
    from gracekit.refresher import RefreshResult, refresh, reselect, rollback
    from gracekit.store import connect
    from gracekit.training import Coreset

__all__ = ["Coreset", "GracekitError", "Recipe", "RefreshResult", "__version__", "connect",
           "refresh", "reselect", "rollback"]  # fmt: skip

_HOMES = {
    "Coreset": "gracekit.training",
    "GracekitError": "gracekit.errors",
    "Recipe": "gracekit.recipe",
    "RefreshResult": "gracekit.refresher",
    "connect": "gracekit.store",
    "refresh": "gracekit.refresher",
    "reselect": "gracekit.refresher",
    "rollback": "gracekit.refresher",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
