"""What a refresh costs outside of the model pass: CPU seconds and memory, stage by stage.

    python benchmarks/refresh_cost.py 100000 --drift map     # one size; see also --help

A store of n synthetic samples with features 256 wide gets a first version, and then a second one
that measures 5 %. Two kinds of drift: `few` changes the directions of 3 % of the rows, so that the
index is repaired in place; `map` turns all of them by a common linear map and a little each, as
real training does, so that hnswlib's index is built anew, and lists by descent are improved. Memory
is the process's peak resident size during a stage, with everything that was there before it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gracekit.progress import Progress
from gracekit.recipe import DataSection, Recipe
from gracekit.refresher.drafting import draft_version
from gracekit.refresher.loading import last_coreset, load_last
from gracekit.refresher.measured_rows import MeasuredRows
from gracekit.refresher.step import step
from gracekit.rounding import to_float16
from gracekit.scratch import scratch_in
from gracekit.store import Store
from gracekit.texts import Texts
from gracekit.types import Float32, Measurement, Rows, SampleTable
from gracekit.version.header import CheckpointInfo, DataDescription

WIDTH = 256

SYNTHETIC = DataDescription(settings=DataSection(path="synthetic"))


class Synthetic:
    """An executor whose samples lie in clusters that move."""

    def __init__(self, n: int, drift: str) -> None:
        rng = np.random.default_rng(0)
        self.cluster = rng.integers(0, max(n // 40, 1), n)
        centres = rng.standard_normal((max(n // 40, 1), WIDTH), np.float32)
        self.features = centres[self.cluster]
        for start in range(0, n, 65_536):
            block = self.features[start : start + 65_536]
            block += rng.standard_normal(block.shape, np.float32)
        self.score = np.exp(rng.normal(size=len(centres))[self.cluster] + rng.normal(size=n) / 2)
        self._drift, self._rng, self._n = drift, rng, n

    def train(self) -> None:
        """Move on to the next checkpoint."""
        rng, n = self._rng, self._n
        moved = np.arange(n)
        if self._drift == "few":
            moved = np.sort(rng.choice(n, round(0.03 * n), replace=False))
        turn = 0.4 * rng.standard_normal((WIDTH, WIDTH), np.float32) / np.sqrt(WIDTH)
        for start in range(0, len(moved), 65_536):
            rows = moved[start : start + 65_536]
            own = rng.standard_normal((len(rows), WIDTH), np.float32)
            self.features[rows] += self.features[rows] @ turn + np.float32(0.2) * own
        by_cluster = 0.3 * rng.normal(size=int(self.cluster.max()) + 1)[self.cluster]
        self.score *= np.exp(by_cluster + 0.2 * rng.normal(size=n))

    def measure(self, rows: Rows, progress: Progress | None = None) -> Iterator[Measurement]:
        """In shards of 512 rows, as the model pass gives them."""
        for start in range(0, len(rows), 512):
            part = rows[start : start + 512]
            score: Float32 = self.score[part].astype(np.float32)
            yield Measurement(
                rows=part,
                scores={"gradient-norm": score, "loss": np.sqrt(score)},
                features=to_float16(self.features[part]),
            )

    def look(self, rows: Rows, progress: Progress | None = None) -> Iterator[Measurement]:
        """The features alone."""
        for part in self.measure(rows, progress):
            yield Measurement(rows=part.rows, scores={}, features=part.features)

    def target(self) -> None:
        """None."""

    def optimizer(self) -> None:
        """None."""

    def close(self) -> None:
        """Nothing to let go of."""


class Meter:
    """CPU seconds and peak memory of each stage."""

    def __init__(self) -> None:
        self.stages: dict[str, tuple[float, float]] = {}
        self._stage: str | None = None
        self._started = 0.0

    def enter(self, stage: str | None) -> None:
        """End the stage before, if there is one, and begin another."""
        if self._stage is not None:
            status = Path("/proc/self/status").read_text()
            peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
            seconds = time.process_time() - self._started
            self.stages[self._stage] = seconds, int(peak.split()[1]) / 2**20
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        self._stage, self._started = stage, time.process_time()


def refresh(store: Store, recipe: Recipe, executor: Synthetic, at: int, meter: Meter) -> None:
    """`Refresher.refresh` without a checkpoint: load, step, commit."""
    meter.enter("load the last version")
    last = load_last(store, recipe)
    shards, present = store.shards(f"step-{at}"), store.samples().present
    looks = store.shards(f"looks-{at}")
    with MeasuredRows(executor, shards, looks, present) as measure, scratch_in(store.paths.root):
        refreshed = step(
            last,
            measure,
            recipe,
            samples=store.samples(),
            step=at,
            version=store.next_version(),
            parent=last_coreset(store),
            store=store.paths.root,
            enter=meter.enter,
        )
    print(
        f"step {at}: {len(refreshed.plan.rows)} measured, graph {refreshed.outcome.graph}",
        flush=True,
    )
    meter.enter("commit and publish")
    draft = draft_version(
        refreshed,
        recipe,
        refresh_id=f"step-{at}",
        measure_id=f"step-{at}",
        checkpoint=CheckpointInfo(step=at),
        is_first=last is None,
    )
    store.commit(draft)
    meter.enter(None)


def make_samples(n: int) -> SampleTable:
    """Samples without content."""
    rng = np.random.default_rng(0)
    ids = Texts.of(f"{i:08d}" for i in range(n))
    return SampleTable(
        sample_ids=ids,
        groups=rng.integers(0, 8, n).astype(np.int32),
        group_names=tuple("abcdefgh"),
        num_prompt_tokens=np.full(n, 100, np.int32),
        num_response_tokens=rng.integers(1, 300, n).astype(np.int32),
        content_hashes=ids,
        source_rows=np.arange(n),
        previews=ids,
        num_source_rows=n,
        fingerprint="synthetic",
    )


def main() -> None:
    """Refresh twice and print the second one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("rows", type=int)
    parser.add_argument("--fraction", type=float, default=0.05)
    parser.add_argument("--drift", choices=["few", "map"], default="map")
    options = parser.parse_args()
    executor = Synthetic(options.rows, options.drift)
    with tempfile.TemporaryDirectory() as folder:
        recipe = Recipe.model_validate({
            "data": {"path": "-"},
            "store": f"{folder}/store",
            "refresh": {"min_fraction": options.fraction, "max_fraction": options.fraction},
            "selection": {"selector": "coverage", "fraction": 0.05},
        })  # fmt: skip
        store = Store.create(
            Path(recipe.store),
            samples=make_samples(options.rows),
            dataset=SYNTHETIC,
        )
        refresh(store, recipe, executor, 1, Meter())
        executor.train()
        meter = Meter()
        refresh(store, recipe, executor, 2, meter)
        print(f"\n| {options.rows:,} rows, {options.drift} | CPU s | peak GiB |\n|---|--:|--:|")
        for name, (seconds, peak) in meter.stages.items():
            print(f"| {name} | {seconds:.1f} | {peak:.2f} |")
        total = sum(seconds for seconds, _ in meter.stages.values())
        print(f"| all | {total:.1f} | {max(peak for _, peak in meter.stages.values()):.2f} |")
        size = sum(f.stat().st_size for f in store.paths.root.rglob("*") if f.is_file())
        print(f"store after two versions: {size / 2**20:.0f} MiB")


if __name__ == "__main__":
    main()
