"""The trainer's side: read coresets, draw batches from them, follow new versions while training.

`Coreset` and `CoresetSampler` need NumPy and PyArrow only; `CoresetCallback` and
`CoresetTrainerMixin` load transformers when they are first asked for, `weighted_loss` and
`CoresetIterableDataset` torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from gracekit.training.coreset import Coreset
from gracekit.training.drawn import Drawn
from gracekit.training.sampler import CoresetSampler
from gracekit.training.weighted_data import BatchRows, WeighedDataset, WeighingCollator

if TYPE_CHECKING:
    from gracekit.training.callback import CoresetCallback, CoresetTrainerMixin
    from gracekit.training.iterable import CoresetIterableDataset
    from gracekit.training.loss import weighted_loss

__all__ = [
    "BatchRows",
    "Coreset",
    "CoresetCallback",
    "CoresetIterableDataset",
    "CoresetSampler",
    "CoresetTrainerMixin",
    "Drawn",
    "WeighedDataset",
    "WeighingCollator",
    "weighted_loss",
]


def __getattr__(name: str) -> Any:
    if name in ("CoresetCallback", "CoresetTrainerMixin"):
        return getattr(importlib.import_module("gracekit.training.callback"), name)
    if name == "CoresetIterableDataset":
        return importlib.import_module("gracekit.training.iterable").CoresetIterableDataset
    if name == "weighted_loss":
        return importlib.import_module("gracekit.training.loss").weighted_loss
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
