"""Neighbour lists of many samples: found from nothing, and improved after all of them moved.

    python benchmarks/neighbors.py 100000 --hnswlib        # beside hnswlib

CPU seconds of one thread, and recall against exact neighbours of 500 rows. Made-up features 256
wide: `synthetic`, clusters of 40 samples (see `refresh_cost.py`), and `sheet`, a curved sheet of 20
dimensions with noise. All move by a common linear map and a little each.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from gracekit.graph import build_index, refresh_index, unit_features
from gracekit.graph.directions import exact_neighbors
from gracekit.recipe import GraphSection
from gracekit.types import Float32, Int32

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.refresh_cost import WIDTH, Synthetic

K = 10


class Sheet:
    """Samples on a curved sheet."""

    def __init__(self, n: int) -> None:
        self._rng = np.random.default_rng(0)
        on_sheet = self._rng.standard_normal((n, 20), np.float32)
        bent = np.tanh(1.5 * on_sheet @ self._map(20))
        self.features = bent @ self._map(WIDTH) + np.float32(0.1) * self._rng.standard_normal(
            (n, WIDTH), np.float32
        )

    def train(self) -> None:
        """Move on to the next checkpoint."""
        own = self._rng.standard_normal(self.features.shape, np.float32)
        turned = self.features @ (np.float32(0.4) * self._map(WIDTH))
        self.features = self.features + turned + np.float32(0.2 * self.features.std()) * own

    def _map(self, width: int) -> Float32:
        drawn = self._rng.standard_normal((width, WIDTH), np.float32)
        drawn /= np.float32(np.sqrt(width))
        return drawn


def recall(unit: Float32, neighbors: Int32) -> float:
    """Share of the true neighbours in the lists [n, k] of 500 rows."""
    sample = np.random.default_rng(1).choice(len(unit), 500, replace=False)
    truth, _ = exact_neighbors(unit, sample, np.arange(len(unit)), K)
    pairs = zip(truth, neighbors[sample], strict=True)
    return float(np.mean([np.isin(a, b).mean() for a, b in pairs]))


def by_hnswlib(unit: Float32) -> Int32:
    """Lists by the defaults of backend `hnsw`."""
    import hnswlib

    index = hnswlib.Index(space="ip", dim=WIDTH)
    index.init_index(max_elements=len(unit), M=16, ef_construction=60, random_seed=0)
    index.add_items(unit, num_threads=1)
    index.set_ef(48)
    blocks = [unit[start : start + 4096] for start in range(0, len(unit), 4096)]
    lists = [index.knn_query(block, k=K + 1, num_threads=1)[0] for block in blocks]
    neighbors: Int32 = np.concatenate(lists)[:, 1:].astype(np.int32)  # each is its own nearest
    return neighbors


def compare(run: Synthetic | Sheet, settings: GraphSection, *, hnswlib: bool) -> None:
    """Print one line for each way."""
    kind, everyone = type(run).__name__.lower(), np.ones(len(run.features), bool)
    old = build_index(unit_features(run.features, everyone), settings, valid=everyone, seed=0)
    run.train()
    unit = unit_features(run.features, everyone)
    ways: dict[str, Callable[[], Int32]] = {
        "old ones, as they are": lambda: old.graph.neighbors,
        "old ones, improved": lambda: (
            refresh_index(old, unit, settings, valid=everyone)[0].graph.neighbors
        ),
        "found from nothing": lambda: (
            build_index(unit, settings, valid=everyone, seed=0).graph.neighbors
        ),
    }
    if hnswlib:
        ways["hnswlib"] = lambda: by_hnswlib(unit)
    for name, find in ways.items():
        started = time.process_time()
        lists = find()
        seconds = time.process_time() - started
        print(f"| {len(unit):,} | {kind} | {name} | {seconds:.1f} | {recall(unit, lists):.3f} |",
              flush=True)  # fmt: skip


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("rows", type=int)
    parser.add_argument("--hnswlib", action="store_true")
    parser.add_argument("--spare", type=int, default=GraphSection().num_spare)
    options = parser.parse_args()
    settings = GraphSection(backend="descent", num_neighbors=K, num_spare=options.spare)
    print("| rows | features | lists | CPU s | recall |\n|--:|---|---|--:|--:|")
    compare(Synthetic(options.rows, "map"), settings, hnswlib=options.hnswlib)
    compare(Sheet(options.rows), settings, hnswlib=options.hnswlib)


if __name__ == "__main__":
    main()
