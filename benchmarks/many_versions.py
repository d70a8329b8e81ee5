"""What a store of a thousand versions costs whoever asks it or adds one, beside a store of ten.

    python benchmarks/many_versions.py                       # 100,000 samples, 1,000 versions
    python benchmarks/many_versions.py --keep-at runs/many   # keep the two stores, and take them up

Both stores are filled by the real commit, with all that a refresh keeps: scores of all samples,
what was measured (.5 % a version, as in a long run), the coreset, the draw, settings, audit.
Only the newest version has a cache (features 64 wide and their graph), as in every store. Then each
command runs as a process, and each call in this one, several times, turn by turn in the large and
in the small store; told are the medians of CPU seconds (user and system, children too) and of
seconds on the wall.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent.parent))
import gracekit
from benchmarks.store_size import SYNTHETIC, Run, make_samples
from gracekit.graph import Index, build_index, unit_features
from gracekit.recipe import (
    GraphSection,
    PropagationSection,
    RefreshSection,
    ScoringSection,
    SelectionSection,
)
from gracekit.rounding import to_float16
from gracekit.store import CachePayload, Store, VersionDraft, run_sql
from gracekit.types import Draw, DrawState
from gracekit.version.header import Settings, Timings
from gracekit.version.outcomes import Audit, Cost, Meter

MEASURED, SELECTED = 0.005, 0.1
WIDTH = 64
NUM_SMALL = 10
SETTINGS = Settings(
    scoring=ScoringSection(scores=("gradient-norm", "loss")),
    refresh=RefreshSection(),
    propagation=PropagationSection(),
    graph=GraphSection(),
    selection=SelectionSection(),
)
QUERIES = {
    "versions": "SELECT version, step, num_selected FROM versions ORDER BY version DESC LIMIT 5",
    "scores": "SELECT group_name, avg(importance) FROM scores JOIN samples USING (row) GROUP BY 1",
    "one version": "SELECT count(*) FROM coresets WHERE version = 5",
}
AUDIT = Audit(
    num_probe=100, num_measured=500, rank_correlation=0.8, rank_correlation_stale=0.6,
    rank_correlation_all=0.85, calibration=1.1, mean_abs_error=0.1, mean_abs_error_stale=0.2,
    feature_cosine=0.9, feature_cosine_stale=0.7, target=0.75,
)  # fmt: skip
METER = Meter(
    value=1.2, value_low=1.1, value_high=1.3, best=1.4, best_low=1.3, best_high=1.5,
    value_kept=0.5, num_told_by=500, share_measured=0.1, can_gain=True,
)  # fmt: skip


class LongRun:
    """Makes the drafts of a run: what changes does so at every version."""

    def __init__(self, n: int) -> None:
        self.rng = np.random.default_rng(0)
        self.n = n
        self._run = Run(n, self.rng)
        self._cached: tuple[NDArray[np.float16], Index] | None = None

    def draft(self, version: int, *, has_cache: bool = False) -> VersionDraft:
        """The next refresh; `has_cache`: with features and their graph."""
        n, rng = self.n, self.rng
        draft = self._run.draft(version, MEASURED, SELECTED)
        assert draft.scores is not None
        chances = draft.scores.importance + 0.2
        chances *= SELECTED * n / chances.sum()
        draw = Draw(
            probabilities=chances.astype(np.float64),
            weights=(SELECTED / chances).astype(np.float32),
            places=np.arange(n, dtype=np.int32),
            parts=np.zeros(n, np.int32),
        )
        starts = rng.random(n)
        state = DrawState(
            uses=rng.poisson(SELECTED * version, n).astype(np.int32),
            owed=rng.random(n) - 0.5, start_low=starts / 2, start_high=0.5 + starts / 2,
        )  # fmt: skip
        cost = Cost(
            cost=2e6, cost_in_all=2e6 * version, allowance=5e6, trained_tokens=1e6 * version,
            training_tokens=1e9, cost_seconds=3.0 * version, training_seconds=20.0 * version,
            max_cost=0.1,
        )  # fmt: skip
        return dataclasses.replace(
            draft,
            selection=dataclasses.replace(draft.selection, draw=draw),
            state=state,
            settings=SETTINGS,
            audit=AUDIT if version > 1 else None,
            meter=METER if version > 1 else None,
            cost=cost,
            cache=self._cache() if has_cache else None,
            timings=Timings(model_pass_s=20.0, other_s=2.0, total_s=22.0),
        )

    def _cache(self) -> CachePayload:
        valid = np.ones(self.n, bool)
        if self._cached is None:
            features = np.random.default_rng(1).random((self.n, WIDTH), np.float32)
            index = build_index(unit_features(features, valid), GraphSection(), valid=valid, seed=0)
            self._cached = to_float16(features), index
        features16, index = self._cached
        return CachePayload(features=features16, valid=valid, save_index=index.save)


def fill(store: Store, run: LongRun, num_versions: int) -> None:
    """Commit until there are so many.

    Only every fiftieth is published, which takes most of a commit: the others are as after a kill
    behind the commit point, and what is missing is made up by the next one.
    """
    while (version := store.next_version()) <= num_versions:
        draft = run.draft(version, has_cache=version == num_versions)
        is_whole = version % 50 == 0 or version in (1, num_versions)
        skipped: AbstractContextManager[object] = patch(
            "gracekit.store.commit.publish", lambda *given, **options: []
        )
        with store.lock(), nullcontext() if is_whole else skipped:
            store.commit(draft)
        if version % 50 == 0:
            print(f"  {version} versions", flush=True)


Seconds = tuple[float, float]
"""CPU and wall seconds."""


def spent_by(work: Callable[[], object]) -> Seconds:
    """What a piece of work takes, in this process and in its children."""
    before = _cpu(), time.perf_counter()
    work()
    return _cpu() - before[0], time.perf_counter() - before[1]


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def command(root: Path, *arguments: str) -> Callable[[], object]:
    """A run of the command line; it must succeed."""
    line = [sys.executable, "-m", "gracekit", *arguments, "--store", str(root)]
    folder = Path(__file__).parent.parent
    environment = os.environ | {"PYTHONPATH": str(folder)}
    return lambda: subprocess.run(
        line, check=True, cwd=root.parent, env=environment, stdout=subprocess.DEVNULL
    )


def work_in(root: Path, run: LongRun, turn: int) -> dict[str, Callable[[], object]]:
    """Everything that is measured, by name; what makes versions comes last."""
    recipe = root.parent / "gracekit.yaml"
    fraction = 0.1 + 0.01 * turn
    store = Store.open(root)
    cached = run.draft(store.next_version(), has_cache=True)

    def commit() -> None:
        with store.lock():
            store.commit(cached)

    def commit_afresh() -> None:
        opened = Store.open(root)
        with opened.lock():
            opened.commit(later)

    store.versions()
    later = run.draft(store.next_version() + 1, has_cache=True)
    return {
        "`gracekit status`": command(root, "status"),
        "`gracekit versions`": command(root, "versions"),
        **{f"`gracekit sql`, {name}": command(root, "sql", q) for name, q in QUERIES.items()},
        "`Coreset.load`, as a trainer does": lambda: gracekit.Coreset.load(root),
        "`gracekit.status`": lambda: gracekit.status(root),
        "`gracekit.versions`": lambda: gracekit.versions(root),
        **{f"`run_sql`, {name}": partial(run_sql, root, q) for name, q in QUERIES.items()},
        "`Store.commit` of a refresh, in a daemon that knows the versions": commit,
        "`Store.open` and `Store.commit` of a refresh": commit_afresh,
        "`gracekit.select`": lambda: gracekit.select(root, set={"selection.fraction": fraction}),
        "`gracekit select`": command(
            root, "select", "-r", str(recipe), "--set", f"selection.fraction={fraction + 0.005}"
        ),
        "`gracekit rollback`": command(root, "rollback", str(2 + turn)),
        "`gracekit gc --dry-run`": command(root, "gc", "--keep", "5", "--dry-run"),
    }


def measure(roots: Sequence[Path], run: LongRun, repeats: int) -> dict[str, list[Seconds]]:
    """Name -> medians of the costs in each store."""
    found: dict[str, list[list[Seconds]]] = {}
    for turn in range(repeats):
        tasks = [work_in(root, run, turn) for root in roots]
        for name in tasks[0]:
            for k, of_store in enumerate(tasks):
                found.setdefault(name, [[] for _ in roots])[k].append(spent_by(of_store[name]))
    return {
        name: [
            (statistics.median(c for c, _ in costs), statistics.median(w for _, w in costs))
            for costs in of_stores
        ]
        for name, of_stores in found.items()
    }


def main() -> None:
    """Fill two stores, ask both, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--versions", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--keep-at", type=Path, help="directory of the two stores")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.keep_at or Path(temporary)
        small, large = folder / "small" / "store", folder / "large" / "store"
        run = LongRun(given.samples)
        for root, num_versions in ((small, NUM_SMALL), (large, given.versions)):
            root.parent.mkdir(parents=True, exist_ok=True)
            (root.parent / "gracekit.yaml").write_text(
                "data: {path: synthetic}\nscoring: {scores: [gradient-norm, loss]}\n"
            )
            if root is large and not Store.exists(large):
                shutil.copytree(small, large)
            if Store.exists(root):
                store = Store.open(root)
            else:
                samples = make_samples(given.samples, run.rng)
                store = Store.create(root, samples=samples, dataset=SYNTHETIC)
            print(f"filling {root.parent.name}", flush=True)
            started = time.process_time(), time.perf_counter()
            fill(store, run, num_versions)
            print(f"  {time.process_time() - started[0]:.0f} CPU s, "
                  f"{time.perf_counter() - started[1]:.0f} s")  # fmt: skip
        found = measure([small, large], run, given.repeats)
        counts = [len(Store.open(root).versions()) for root in (small, large)]
    print(f"\n{given.samples:,} samples; {counts[0]} and {counts[1]:,} versions at the end; "
          f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n")  # fmt: skip
    print("| CPU s (s on the wall) | small | large | CPU, times |\n|---|--:|--:|--:|")
    for name, ((cpu, wall), (large_cpu, large_wall)) in found.items():
        print(f"| {name} | {cpu:.2f} ({wall:.2f}) | {large_cpu:.2f} ({large_wall:.2f}) "
              f"| {large_cpu / max(cpu, 1e-3):.1f} |")  # fmt: skip


if __name__ == "__main__":
    main()
