"""The trainer's side: read coresets, draw batches from them, follow new versions while training.

`Coreset` and `CoresetSampler` need NumPy and PyArrow only; `CoresetCallback` and
`CoresetTrainerMixin` load transformers when they are first asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

from gracekit.training.coreset import Coreset
from gracekit.training.sampler import CoresetSampler

if TYPE_CHECKING:
    from gracekit.training.callback import CoresetCallback, CoresetTrainerMixin

__all__ = ["Coreset", "CoresetCallback", "CoresetSampler", "CoresetTrainerMixin"]


def __getattr__(name: str) -> Any:
    if name in ("CoresetCallback", "CoresetTrainerMixin"):
        return getattr(importlib.import_module("gracekit.training.callback"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
