"""What versions cost outside of the model pass at growing sizes: CPU seconds, memory and disk.

    python benchmarks/scale.py 100000 1000000

For each size, in a process of its own: a store of synthetic samples with features 256 wide in
clusters of 40 gets a first version that measures all of them, and a second one that measures 5 %
after a common linear map and a little of each row's own moved all features, which is the dear case
(`refresh_cost.Synthetic`). Features that the "model" gives are read from a file, so that the
process holds only what a refresh holds. Cost ~ rows ** exponent from size to size. With `--planted`
the first graph is made by knowledge of the clusters, and only the second one is searched for.

Memory is the peak in each stage: `own` of what the process has for itself, looked at 50 times a
second; `with files` also of mapped files, which the system takes back when it needs room.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from gracekit.graph.descent import DescentIndex
from gracekit.graph.directions import TrueNeighbors, exact_neighbors
from gracekit.progress import Progress
from gracekit.recipe import Recipe
from gracekit.rounding import to_float16
from gracekit.store import Store
from gracekit.types import Float32, Measurement, Rows

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.refresh_cost import SYNTHETIC, WIDTH, Meter, Synthetic, make_samples, refresh

_BLOCK = 65_536
_STAGES = ("load the last version", "measure", "propagate", "graph", "select", "commit and publish")
_DISK = {"features": "features.npy", "index": "index/*", "scores": "scores.parquet",
         "measured": "measured.parquet", "samples": "samples*", "coreset": "v*.parquet",
         "database": "scores.duckdb"}  # fmt: skip


class OnDisk(Synthetic):
    """The same samples, their features in a file."""

    def __init__(self, n: int, path: Path) -> None:
        rng = np.random.default_rng(0)
        self._path, self._n, self._rng = path, n, rng
        num_clusters = max(n // 40, 1)
        self.cluster = rng.integers(0, num_clusters, n)
        centres = rng.standard_normal((num_clusters, WIDTH), np.float32)
        features = self._map("w+")
        for start in range(0, n, _BLOCK):
            block = centres[self.cluster[start : start + _BLOCK]]
            block += rng.standard_normal(block.shape, np.float32)
            features[start : start + _BLOCK] = block
        self.score = np.exp(rng.normal(size=num_clusters)[self.cluster] + rng.normal(size=n) / 2)

    def _map(self, mode: Any) -> Any:
        return np.memmap(self._path, np.float16, mode, shape=(self._n, WIDTH))

    def train(self) -> None:
        """All features move."""
        rng, features = self._rng, self._map("r+")
        turn = 0.4 * rng.standard_normal((WIDTH, WIDTH), np.float32) / np.sqrt(WIDTH)
        for start in range(0, self._n, _BLOCK):
            block = features[start : start + _BLOCK].astype(np.float32)
            own = rng.standard_normal(block.shape, np.float32)
            features[start : start + _BLOCK] = block + block @ turn + np.float32(0.2) * own
        by_cluster = 0.3 * rng.normal(size=int(self.cluster.max()) + 1)[self.cluster]
        self.score *= np.exp(by_cluster + 0.2 * rng.normal(size=self._n))

    def measure(self, rows: Rows, progress: Progress | None = None) -> Iterator[Measurement]:
        """In shards of 512 rows, as the model pass gives them."""
        for start in range(0, len(rows), 512):
            part = rows[start : start + 512]
            score: Float32 = self.score[part].astype(np.float32)
            yield Measurement(
                rows=part,
                scores={"gradient-norm": score, "loss": np.sqrt(score)},
                features=to_float16(np.asarray(self._map("r")[part])),
            )


class TwoPeaks(Meter):
    """Besides, the peak of what the process has for itself."""

    def __init__(self) -> None:
        super().__init__()
        self.own: dict[str, float] = {}
        self._is_over = threading.Event()
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        while not self._is_over.wait(0.02):
            stage, status = self._stage, Path("/proc/self/status").read_text()
            line = next(line for line in status.splitlines() if line.startswith("RssAnon"))
            if stage is not None:
                self.own[stage] = max(self.own.get(stage, 0), int(line.split()[1]) / 2**20)

    def enter(self, stage: str | None) -> None:
        """End the stage before, and begin another."""
        super().enter(stage)
        if stage is None:
            self._is_over.set()

    def found(self) -> dict[str, tuple[float, float, float]]:
        """Stage -> CPU seconds, GiB of its own, GiB with files."""
        return {s: (sec, self.own.get(s, 0), peak) for s, (sec, peak) in self.stages.items()}


@contextmanager
def planted_lists(cluster: Rows) -> Iterator[None]:
    """The first graph by knowledge of the clusters: the nearest of each row's own cluster."""

    def search(index: DescentIndex, rows: Rows, truth: TrueNeighbors | None = None) -> None:
        order = np.argsort(cluster, kind="stable")
        for members in np.split(order, np.cumsum(np.bincount(cluster))[:-1]):
            lists = exact_neighbors(
                index.unit[members], np.arange(len(members)), np.arange(len(members)),
                index._neighbors.shape[1],
            )  # fmt: skip
            known = lists[0] >= 0
            index._neighbors[members] = np.where(known, members[lists[0]], -1)
            index._cosines[members] = lists[1]

    original = DescentIndex._search
    DescentIndex._search = search  # type: ignore[assignment,method-assign]
    try:
        yield
    finally:
        DescentIndex._search = original  # type: ignore[method-assign]


def one_size(n: int, fraction: float, *, planted: bool) -> dict[str, Any]:
    """Two versions of a store of n rows."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = Recipe.model_validate({
            "data": {"path": "-"},
            "store": f"{folder}/store",
            "refresh": {"min_fraction": fraction, "max_fraction": fraction},
        })  # fmt: skip
        store = Store.create(Path(recipe.store), samples=make_samples(n), dataset=SYNTHETIC)
        executor = OnDisk(n, Path(folder) / "features")
        found: dict[str, Any] = {"rows": n}
        for version in (1, 2):
            if version == 2:
                executor.train()
            meter = TwoPeaks()
            with planted_lists(executor.cluster) if planted and version == 1 else nullcontext():
                refresh(store, recipe, executor, version, meter)
            found[str(version)] = meter.found()
            print(f"{n:,} rows, version {version}: {found[str(version)]}", file=sys.stderr)
        paths = store.paths.root
        found["disk"] = {
            kind: sum(f.stat().st_size for f in paths.rglob(pattern) if f.is_file())
            for kind, pattern in _DISK.items()
        }
        outcome = store.header(2).refresh
        assert outcome is not None and outcome.graph is not None
        found["recall"] = outcome.graph.recall
    return found


def exponent(before: float, after: float, growth: float) -> str:
    """Of cost ~ rows ** exponent; nothing for what is too small to tell."""
    if min(before, after) < 0.05:
        return ""
    return f"{math.log(after / before) / math.log(growth):.2f}"


def tables(sizes: list[dict[str, Any]]) -> None:
    """Print CPU seconds, memory and disk of all sizes."""
    pairs = list(itertools.pairwise(sizes))
    heads = " | ".join(f"{s['rows']:,} rows: CPU s | own GiB | with files" for s in sizes)
    growth = " | ".join("exponent" for _ in pairs)
    for version, name in (("1", "first version, all measured"), ("2", "second, 5 % measured")):
        columns = 3 * len(sizes) + len(pairs)
        print(f"\n| {name} | {heads} | {growth} |\n|---|" + "--:|" * columns)
        for size in sizes:
            parts = list(size[version].values())
            size[version]["all"] = (
                sum(p[0] for p in parts),
                *(max(p[i] for p in parts) for i in (1, 2)),
            )
        for stage in (*_STAGES, "all"):
            of_each = [size[version].get(stage, (0.0, 0.0, 0.0)) for size in sizes]
            cells = [f"{sec:.1f} | {own:.2f} | {peak:.2f}" for sec, own, peak in of_each]
            cells += [
                exponent(a[version].get(stage, [0])[0], b[version].get(stage, [0])[0],
                         b["rows"] / a["rows"])
                for a, b in pairs
            ]  # fmt: skip
            print(f"| {stage} | {' | '.join(cells)} |")
    print("\nrecall of the second graph: " + ", ".join(f"{s['recall']:.3f}" for s in sizes))
    print("\n| on disk, bytes a row | " + " | ".join(f"{s['rows']:,}" for s in sizes) + " |")
    print("|---|" + "--:|" * len(sizes))
    for kind in _DISK:
        cells = [f"{s['disk'][kind] / s['rows']:.1f}" for s in sizes]
        print(f"| {kind} | {' | '.join(cells)} |")


def main() -> None:
    """Run each size in a process of its own, and print tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("rows", type=int, nargs="+")
    parser.add_argument("--fraction", type=float, default=0.05)
    parser.add_argument(
        "--planted", action="store_true", help="the first graph by the clusters, not searched for"
    )
    parser.add_argument("--one", action="store_true", help="one size, as JSON (internal)")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one_size(options.rows[0], options.fraction, planted=options.planted)))
        return
    sizes = []
    for n in options.rows:
        command = [sys.executable, __file__, str(n), "--one", "--fraction", str(options.fraction)]
        command += ["--planted"] if options.planted else []
        started = time.perf_counter()
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        sizes.append(json.loads(done.stdout.splitlines()[-1]))
        print(f"{n:,} rows took {time.perf_counter() - started:.0f} s", file=sys.stderr)
    tables(sizes)


if __name__ == "__main__":
    main()
