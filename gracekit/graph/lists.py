"""What every index holds: directions, and each row's nearest others in lists that are saved."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from gracekit.graph.directions import grown, knn_graph
from gracekit.graph.seal import UNIT_FILE, purpose, seal, write_array, write_arrays
from gracekit.recipe import GraphSection
from gracekit.rounding import rounded, unrounded
from gracekit.types import Directions, Float32, Int32, KnnGraph, Rows


class NeighborLists(ABC):
    """Lists [n, width] over directions [n, d], nearest first; the graph shows the first k of each.

    Attributes:
        unit: the directions as they are indexed, [n, d] of type `dtype`; 0 where a row has none.
        graph: the first `settings.num_neighbors` of each list.
    """

    backend: ClassVar[str]
    """Its name in the recipe."""
    dtype: ClassVar[type[np.float32 | np.int16]] = np.float32
    """Of the directions: int16 where they are kept as `rounding.rounded` makes them."""
    keeps_directions: ClassVar[bool] = True
    """Whether `unit` is just what it is given."""
    file_name: ClassVar[str]
    """Name of the file of the saved lists."""
    unit: Directions
    graph: KnnGraph
    _neighbors: Int32
    _cosines: Float32

    def __init__(self, unit: Directions, *, settings: GraphSection, seed: int) -> None:
        """Keep the directions; a backend finds the lists."""
        self.settings, self.seed, self.unit = settings, seed, unit

    @classmethod
    def as_kept(cls, unit: Directions) -> Directions:
        """Directions in the index's own type; themselves where they are in it already."""
        return rounded(unit) if cls.dtype is np.int16 else unrounded(unit)

    @abstractmethod
    def update(self, features: Directions, moved: Rows) -> bool:
        """Take the new unit features [n, d] of the moved rows and bring the lists up to date.

        Returns whether the lists were found from nothing.
        """

    def grow(self, num_rows: int) -> None:
        """Make room for more rows; they have no direction yet."""
        self.unit = grown(self.unit, num_rows, 0)
        self._neighbors = grown(self._neighbors, num_rows, -1)
        self._cosines = grown(self._cosines, num_rows, -np.inf)
        self._publish()

    def save(self, directory: Path) -> list[Path]:
        """Write the index into an existing directory; returns the files written.

        The directions have a file of their own, which is mapped into memory when it is read.
        """
        write_array(directory / UNIT_FILE, self.unit)
        write_arrays(
            directory / self.file_name,
            neighbors=self._neighbors,
            cosines=self._cosines,
            **self._more_arrays(),
        )
        files = [directory / UNIT_FILE, directory / self.file_name, *self._save_more(directory)]
        made_for = purpose(self.unit.shape, self.settings)
        return seal(directory, files, made_for, seed=self.seed, is_rounded=self.dtype is np.int16)

    @classmethod
    def load(cls, directory: Path, *, settings: GraphSection, seed: int) -> Self:
        """The index that `save` wrote; what is changed of its directions stays in memory."""
        index = cls.__new__(cls)
        index.settings, index.seed = settings, seed
        with np.load(directory / cls.file_name) as arrays:
            if "unit" in arrays:  # as earlier releases wrote it
                unit = arrays["unit"]
            else:
                unit = np.asarray(np.load(directory / UNIT_FILE, mmap_mode="c"))
            index.unit = cls.as_kept(unit)
            index._neighbors, index._cosines = arrays["neighbors"], arrays["cosines"]
            index._load_more(directory, arrays)
        index._publish()
        return index

    @classmethod
    def load_graph(cls, directory: Path, *, settings: GraphSection) -> KnnGraph:
        """The graph alone of the index that `save` wrote."""
        k = settings.num_neighbors
        with np.load(directory / cls.file_name) as arrays:
            return knn_graph(arrays["neighbors"][:, :k], arrays["cosines"][:, :k])

    def _forget_lists(self, width: int) -> None:
        """Make all lists empty."""
        self._neighbors = np.full((len(self.unit), width), -1, np.int32)
        self._cosines = np.full((len(self.unit), width), -np.inf, np.float32)

    def _publish(self) -> None:
        """Show the lists as they are now."""
        k = self.settings.num_neighbors
        self.graph = knn_graph(self._neighbors[:, :k], self._cosines[:, :k])

    def _more_arrays(self) -> dict[str, Any]:
        """What a backend saves beside its lists."""
        return {}

    def _save_more(self, directory: Path) -> list[Path]:
        """Write files of the backend's own; returns them."""
        return []

    def _load_more(self, directory: Path, arrays: Any) -> None:
        """Read what `_more_arrays` and `_save_more` wrote; the lists are there already."""
        return
