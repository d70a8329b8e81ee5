"""What versions weigh on the disk, what a commit costs, and what gc gives back.

    python benchmarks/store_size.py                          # 1,000,000 samples, 6 versions

A store of synthetic samples, filled through the real commit. The first version measures everything,
each later one 5 % of the samples; the other scores are carried over and change in every bit that
float32 has, which is the worst case for compression. 30 % are selected, as by default. The cache
(features, graph) is left out: it is there once, not once a version. Seconds are CPU of this
process, and wall clock.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from gracekit.recipe import DataSection
from gracekit.store import Store, VersionDraft
from gracekit.texts import Texts
from gracekit.types import (
    Float32,
    Measurement,
    Origin,
    Reason,
    RefreshPlan,
    SampleTable,
    ScoreTable,
    Selection,
    Strings,
)
from gracekit.version.header import CheckpointInfo, DataDescription

GROUPS = ("chat", "code", "maths", "news", "tables")
MIB = 2**20

SYNTHETIC = DataDescription(settings=DataSection(path="synthetic"))


def make_samples(n: int, rng: np.random.Generator) -> SampleTable:
    """Hashes for ids, previews of words, lengths as of instruction data."""
    words = np.array(["the", "model", "data", "loss", "of", "a", "step", "sample", "code", "is"])
    previews = Texts.of(" ".join(row) for row in words[rng.integers(0, len(words), (n, 14))])
    return SampleTable(
        sample_ids=Texts.of(hashes(n, rng)),
        groups=rng.integers(0, len(GROUPS), n).astype(np.int32),
        group_names=GROUPS,
        num_prompt_tokens=rng.lognormal(4, 1, n).astype(np.int32),
        num_response_tokens=1 + rng.lognormal(5, 1, n).astype(np.int32),
        content_hashes=Texts.of(hashes(n, rng)),
        source_rows=np.arange(n),
        previews=previews,
        num_source_rows=n,
        fingerprint="synthetic",
    )


def hashes(n: int, rng: np.random.Generator) -> Strings:
    """Strings of 32 hexadecimal digits."""
    text = rng.bytes(16 * n).hex()
    return np.array([text[start : start + 32] for start in range(0, len(text), 32)], object)


def ranks(values: Float32) -> Float32:
    """Importance as gracekit has it: ranks, 0 to 1."""
    found = np.empty(len(values), np.float32)
    found[np.argsort(values)] = np.linspace(0, 1, len(values), dtype=np.float32)
    return found


class Run:
    """The scores of a training run, version after version."""

    def __init__(self, n: int, rng: np.random.Generator) -> None:
        self.rng = rng
        self.scores = {
            "gradient-norm": rng.lognormal(0, 1, n).astype(np.float32),
            "loss": rng.lognormal(0, 0.5, n).astype(np.float32),
        }
        self.measured_step = np.zeros(n, np.int64)
        self.measured_version = np.zeros(n, np.int64)

    def draft(self, version: int, fraction: float, selected: float) -> VersionDraft:
        """The next version: some rows measured, all others carried over."""
        rng, n = self.rng, len(self.measured_step)
        for values in self.scores.values():
            values *= rng.lognormal(0, 0.05, n).astype(np.float32)
        count = n if version == 1 else round(fraction * n)
        rows = np.sort(rng.choice(n, count, replace=False))
        self.measured_step[rows], self.measured_version[rows] = 100 * version, version
        origin = np.full(n, Origin.PROPAGATED, np.uint8)
        origin[rows] = Origin.MEASURED
        confidence = rng.random(n, dtype=np.float32)
        confidence[rows] = 1
        table = ScoreTable(
            scores={name: values.copy() for name, values in self.scores.items()},
            importance=ranks(self.scores["gradient-norm"]),
            origin=origin,
            measured_step=self.measured_step.copy(),
            measured_version=self.measured_version.copy(),
            confidence=confidence,
        )
        size = round(selected * n)
        gains = np.sort(rng.random(size, dtype=np.float32))[::-1].copy()
        weights = rng.lognormal(0, 0.5, size).astype(np.float32)
        reason = Reason.FIRST if version == 1 else Reason.PROBE
        return VersionDraft(
            operation="init" if version == 1 else "refresh",
            refresh_id=f"refresh-{version}",
            recipe_digest="synthetic",
            scores=table,
            plan=RefreshPlan(rows=rows, reasons=np.full(count, reason, np.uint8)),
            measurement=Measurement(
                rows=rows,
                scores={name: values[rows] for name, values in self.scores.items()},
                features=np.zeros((count, 1), np.float16),
            ),
            selection=Selection(
                rows=rng.permutation(n)[:size],
                gains=gains,
                weights=weights / weights.mean(dtype=np.float64).astype(np.float32),
                objective=1.0,
            ),
            checkpoint=CheckpointInfo(step=100 * version),
        )


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a directory."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def main() -> None:
    """Fill a store, print what it weighs, then collect."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--versions", type=int, default=6)
    parser.add_argument("--measured", type=float, default=0.05, help="share of each later version")
    parser.add_argument("--selected", type=float, default=0.3)
    parser.add_argument("--keep", type=int, default=2, help="versions that gc keeps")
    given = parser.parse_args()
    n, rng = given.samples, np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as directory:
        store = Store.create(
            Path(directory) / "store",
            samples=make_samples(n, rng),
            dataset=SYNTHETIC,
        )
        run = Run(n, rng)
        spent: list[tuple[float, float]] = []
        for version in range(1, given.versions + 1):
            draft = run.draft(version, given.measured, given.selected)
            before = time.process_time(), time.perf_counter()
            store.commit(draft)
            after = time.process_time(), time.perf_counter()
            spent.append((after[0] - before[0], after[1] - before[1]))
        paths, last = store.paths, given.versions
        parts = {
            "scores.parquet: all samples": paths.scores(last),
            f"measured.parquet: {given.measured:.0%} of them": paths.measured(last),
            f"manifest: the coreset, {given.selected:.0%} of them": paths.manifest(last),
            "sidecar: the header": paths.sidecar(last),
        }
        print(f"{n:,} samples, {given.versions} versions\n")
        print("| a refresh adds | MiB | bytes a sample |\n|---|---|---|")
        for name, path in parts.items():
            print(f"| {name} | {size_of(path) / MIB:.2f} | {size_of(path) / n:.2f} |")
        added = sum(map(size_of, parts.values()))
        print(f"| together | {added / MIB:.2f} | {added / n:.2f} |\n")
        print("| once | MiB |\n|---|---|")
        print(f"| samples.parquet | {size_of(paths.samples) / MIB:.1f} |")
        print(f"| scores.duckdb | {size_of(paths.database) / MIB:.1f} |\n")
        cpu, wall = (statistics.median(column) for column in zip(*spent[1:], strict=True))
        print(f"A commit: {cpu:.1f} CPU s, {wall:.1f} s.")
        total = size_of(paths.root)
        started = time.process_time(), time.perf_counter()
        report = store.gc(given.keep)
        cpu, wall = time.process_time() - started[0], time.perf_counter() - started[1]
        left = size_of(paths.root)
        print(f"The store of {last} versions: {total / MIB:.1f} MiB. `gc --keep {given.keep}`: "
              f"{cpu:.1f} CPU s, {wall:.1f} s, gives back {report.freed_bytes / MIB:.1f} MiB, "
              f"leaves {left / MIB:.1f} MiB.")  # fmt: skip
        kept = size_of(paths.removal(last - given.keep)) + size_of(
            paths.measured(last - given.keep)
        )
        print(f"Of each of the {len(report.removed)} removed versions {kept / MIB:.2f} MiB stay.")


if __name__ == "__main__":
    main()
