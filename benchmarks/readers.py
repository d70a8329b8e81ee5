"""Readers while versions are made: no error, no answer of two versions, and what a commit costs.

    python benchmarks/readers.py                     # 20,000 rows, 50 commits among 4 readers

Reader processes connect, ask and check in a loop; one more holds one connection open all the time.
The main process commits. Each answer is one query over all tables and views, and has to be exactly
what the files of one version hold, read by PyArrow. Commits among readers take turns with commits
while all readers are stopped (SIGSTOP), so that both meet the same machine and a store of the same
size.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from gracekit.recipe import DataSection
from gracekit.store import CachePayload, Store, StorePaths, VersionDraft
from gracekit.texts import Texts
from gracekit.types import (
    Measurement,
    Origin,
    Reason,
    RefreshPlan,
    SampleTable,
    ScoreTable,
    Selection,
)
from gracekit.version.header import CheckpointInfo, DataDescription

SCALE = 2**24
"""Importances are multiples of 1/SCALE here, so that their sum is exact in any order."""

QUESTION = f"""
WITH latest AS (SELECT latest_version AS version FROM store),
history AS (FROM score_history WHERE version = (FROM latest)),
chosen AS (FROM coresets WHERE version = (FROM latest))
SELECT (FROM latest),
       (SELECT max(version) FROM versions), (SELECT count(*) FROM versions),
       (SELECT count(DISTINCT version) FROM measurements),
       (SELECT min(measured_version) FROM scores), (SELECT max(measured_version) FROM scores),
       (SELECT sum((importance * {SCALE})::BIGINT)::BIGINT FROM scores),
       (SELECT sum((importance * {SCALE})::BIGINT)::BIGINT FROM history),
       (SELECT count(*) FROM chosen), (SELECT sum(row * rank)::BIGINT FROM chosen),
       (SELECT count(*) FROM measurements WHERE version = (FROM latest)),
       (SELECT count(DISTINCT version) FROM score_history),
       (SELECT count(DISTINCT version) FROM coresets)
"""
KEPT_COUNTS = 2
"""Columns at the end that tell how many versions are kept."""

SYNTHETIC = DataDescription(settings=DataSection(path="synthetic"))


@cache
def in_files(root: Path, version: int) -> tuple[int, ...]:
    """The answer that the files of a version give."""
    paths = StorePaths(root)
    scores = pq.ParquetFile(str(paths.scores(version))).read()
    coreset = pq.ParquetFile(str(paths.manifest(version))).read()
    measured = pq.ParquetFile(str(paths.measured(version))).metadata.num_rows
    importance = scores["importance"].to_numpy().astype(np.float64)
    total = int(np.rint(importance * SCALE).astype(np.int64).sum())
    made = scores["measured_version"].to_numpy()
    ranks = coreset["rank"].to_numpy().astype(np.int64)
    return (
        version, version, version, version, int(made.min()), int(made.max()), total, total,
        len(coreset), int((coreset["row"].to_numpy() * ranks).sum()), measured, version, version,
    )  # fmt: skip


@dataclass
class Seen:
    """What a reader met."""

    num_answers: int = 0
    versions: set[int] = field(default_factory=set)
    errors: list[str] = field(default_factory=list)
    torn: list[str] = field(default_factory=list)

    def take(self, found: tuple[int, ...], root: Path, *, all_kept: bool) -> None:
        """One answer, held against the files."""
        self.num_answers += 1
        self.versions.add(found[0])
        end = len(found) if all_kept else len(found) - KEPT_COUNTS
        if not all_kept and not StorePaths(root).manifest(found[0]).exists():
            return
        try:
            expected = in_files(root, found[0])
        except FileNotFoundError:
            if all_kept:
                raise
            return  # removed while it was read: nothing to hold the answer against
        if found[:end] != expected[:end]:
            self.torn.append(f"{found}, the files say {expected}")


def read(
    root: Path, last: int, pause_s: float, holds: bool, all_kept: bool, pipe: Connection
) -> None:
    """Ask until version `last` is seen (told, when one connection is held); tell what was met."""
    from gracekit.store import connect, run_sql

    seen = Seen()
    with ExitStack() as stack:
        held = stack.enter_context(connect(root)) if holds else None
        pipe.send("ready")
        while last not in seen.versions and not (pipe.poll() and pipe.recv() == "end"):
            try:
                if held is not None:
                    (found,) = held.execute(QUESTION).fetchall()
                else:
                    (found,) = run_sql(root, QUESTION)[1]
                seen.take(found, root, all_kept=all_kept)
            except Exception as error:  # whatever it is, it should not have happened
                seen.errors.append(f"{type(error).__name__}: {error}")
                if len(seen.errors) > 20:
                    break
            time.sleep(pause_s)
    pipe.send(seen)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What readers met, and the seconds of each commit: CPU of all threads, wall without what the
    main thread waited for a core, wall.
    """

    readers: list[Seen]
    holder: Seen
    among_readers: list[tuple[float, ...]]
    alone: list[tuple[float, ...]]


def run(
    root: Path, *, num_rows: int, num_commits: int, num_readers: int, pause_s: float,
    with_alone: bool = True, keep: int | None = None,
) -> Outcome:  # fmt: skip
    """Commit `num_commits` versions among readers, and as many without (not if not asked for).

    With `keep` each commit removes older versions, and no connection is held.
    """
    store = Store.create(
        root,
        samples=make_samples(num_rows),
        dataset=SYNTHETIC,
    )
    store.commit(make_draft(store))
    last = 1 + num_commits * (1 + with_alone)
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for k in range(num_readers + 1):
        here, there = context.Pipe()
        holds = k == num_readers and keep is None
        arguments = (root, last, pause_s, holds, keep is None, there)
        process = context.Process(target=read, args=arguments, daemon=True)
        process.start()
        pipes.append(here)
        processes.append(process)
    for pipe in pipes:
        assert pipe.recv() == "ready"
    times: dict[bool, list[tuple[float, ...]]] = {True: [], False: []}
    for _ in range(num_commits):
        for among in (False, True) if with_alone else (True,):
            for process in processes:
                os.kill(process.pid or 0, signal.SIGCONT if among else signal.SIGSTOP)
            draft = make_draft(store)
            before = _clocks()
            store.commit(draft, keep=keep)
            cpu, wall, waited = (b - a for a, b in zip(before, _clocks(), strict=True))
            times[among].append((cpu, wall - waited, wall))
    if keep is None:
        pipes[-1].send("end")
    seen = [pipe.recv() for pipe in pipes]
    for process in processes:
        process.join()
    return Outcome(
        readers=seen[:-1], holder=seen[-1], among_readers=times[True], alone=times[False]
    )


def _clocks() -> tuple[float, float, float]:
    """CPU, wall, and what this thread waited for a core, in seconds (Linux)."""
    waited_ns = int(Path("/proc/thread-self/schedstat").read_text().split()[1])
    return time.process_time(), time.perf_counter(), waited_ns / 1e9


def make_samples(n: int) -> SampleTable:
    """Samples without content."""
    ids = Texts.of(f"{i:08d}" for i in range(n))
    return SampleTable(
        sample_ids=ids,
        groups=(np.arange(n) % 8).astype(np.int32),
        group_names=tuple("abcdefgh"),
        num_prompt_tokens=np.full(n, 100, np.int32),
        num_response_tokens=np.full(n, 100, np.int32),
        content_hashes=ids,
        source_rows=np.arange(n),
        previews=Texts.of(f"what is {i}? → it is the number {i}" for i in range(n)),
        num_source_rows=n,
        fingerprint="synthetic",
    )


def make_draft(store: Store) -> VersionDraft:
    """A refresh that measured a tenth, selected a fifth, and caches features 256 wide."""
    n, version = store.info.num_samples, store.next_version()
    rng = np.random.default_rng(version)
    importance = (rng.integers(0, SCALE, n) / SCALE).astype(np.float32)
    rows = np.sort(rng.choice(n, n // 10, replace=False))
    origin = np.full(n, Origin.PROPAGATED, np.uint8)
    origin[rows] = Origin.MEASURED
    scores = {name: rng.random(n, dtype=np.float32) for name in ("gradient-norm", "loss")}
    size = n // 5
    return VersionDraft(
        operation="init" if version == 1 else "refresh",
        refresh_id=f"refresh-{version}",
        recipe_digest="recipe",
        measure_id=f"measure-{version}",
        plan=RefreshPlan(rows=rows, reasons=np.full(len(rows), Reason.PRIORITY, np.uint8)),
        measurement=Measurement(
            rows=rows,
            scores={name: values[rows] for name, values in scores.items()},
            features=np.zeros((len(rows), 256), np.float16),
        ),
        scores=ScoreTable(
            scores=scores,
            importance=importance,
            origin=origin,
            measured_step=np.full(n, 100 * version),
            measured_version=np.full(n, version),
            confidence=rng.random(n, dtype=np.float32),
        ),
        selection=Selection(
            rows=rng.permutation(n)[:size],
            gains=np.ones(size, np.float32),
            weights=np.ones(size, np.float32),
            objective=1.0,
            details={},
        ),
        cache=CachePayload(
            features=rng.random((n, 256), np.float32).astype(np.float16),
            valid=np.ones(n, bool),
            save_index=lambda directory: None,
        ),
        checkpoint=CheckpointInfo(step=100 * version),
    )


def main() -> None:
    """Run and print what was met and the ratio."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--commits", type=int, default=50)
    parser.add_argument("--readers", type=int, default=4)
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between two questions")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = run(
            Path(folder) / "store", num_rows=options.rows, num_commits=options.commits,
            num_readers=options.readers, pause_s=options.pause,
        )  # fmt: skip
    everyone = [*found.readers, found.holder]
    print(
        f"{options.commits} commits of {options.rows:,} rows among {options.readers} readers "
        f"(pause {options.pause:g} s) and one held connection, as many without; "
        f"{os.cpu_count()} cores\n"
        f"answers {sum(s.num_answers for s in everyone):,} "
        f"(of {len(set().union(*(s.versions for s in found.readers)))} versions), "
        f"by the held connection {found.holder.num_answers:,} of version "
        f"{sorted(found.holder.versions)}\n"
        f"errors {sum(len(s.errors) for s in everyone)}, "
        f"torn {sum(len(s.torn) for s in everyone)}"
    )
    for problem in [p for s in everyone for p in (*s.errors, *s.torn)][:5]:
        print(f"  {problem}")
    print("| seconds a commit, median | CPU | wall without waits for a core | wall |\n"
          "|---|--:|--:|--:|")  # fmt: skip
    alone, among = (np.median(np.array(t), axis=0) for t in (found.alone, found.among_readers))
    for name, values in (("alone", alone), ("among readers", among), ("ratio", among / alone)):
        print(f"| {name} | {' | '.join(f'{value:.3f}' for value in values)} |")


if __name__ == "__main__":
    main()
