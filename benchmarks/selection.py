"""How fast selection is, beside apricot and submodlib, and how it grows.

    make bench                                     # up to a million samples, about three minutes
    python benchmarks/selection.py --largest 5000000
    python benchmarks/selection.py --no-peers --largest 100000

Prints Markdown tables. Seconds are CPU seconds of one process with one thread; compiling is not
counted (numba keeps it on disk). Graphs are random: every sample has ten neighbours within sixty
places of it, and the samples are then shuffled, so that neighbours lie far apart in memory, which
is the slow case.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import re
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from gracekit.draw.over_time import next_shares, settled
from gracekit.draw.pivotal import draw_spread
from gracekit.draw.probabilities import inclusion, with_shares
from gracekit.draw.walk import RankedGraph, places_along
from gracekit.graph import symmetric
from gracekit.greedy import lazy_greedy
from gracekit.protocols import SelectionInputs
from gracekit.recipe import SelectionSection
from gracekit.selection import SELECTORS, select
from gracekit.texts import Texts
from gracekit.types import DrawState, KnnGraph, Origin, Rows, SampleTable, ScoreTable, SparseGraph

PEER_SIZES = (2_000, 5_000, 20_000)
GROWTH = (10_000, 100_000, 1_000_000, 5_000_000)
DRAWS = (100_000, 1_000_000, 10_000_000)
PEER_LIMIT_S = 150
"""A peer that takes longer is given up."""
BY_FEATURES = ("target-coverage", "k-center", "cluster", "gradient-matching")
BUDGETS = {"peers": 0.10, "growth": 0.05, "draw": 0.30}


def make_graph(n: int, seed: int = 0) -> SparseGraph:
    """[n] ten neighbours each, made symmetric; shuffled."""
    rng = np.random.default_rng(seed)
    place = rng.permutation(n)
    offsets = 6 * np.arange(10) + rng.integers(1, 7, (n, 10))  # distinct: no edge twice
    neighbors = place[(np.arange(n)[:, None] + offsets) % n]
    similarities = rng.uniform(0.4, 0.9, (n, 10)).astype(np.float32)
    by_row = np.argsort(place)
    return symmetric(
        KnnGraph(neighbors=neighbors[by_row].astype(np.int32), similarities=similarities[by_row])
    )


def make_tables(n: int, seed: int = 0) -> tuple[SampleTable, ScoreTable]:
    """Samples with ids like a hash, five groups, and random importance."""
    rng = np.random.default_rng(seed)
    ids = Texts.of(f"{number:032x}" for number in rng.integers(0, 2**62, n))
    samples = SampleTable(
        sample_ids=ids, groups=rng.integers(0, 5, n).astype(np.int32), group_names=tuple("abcde"),
        num_prompt_tokens=np.full(n, 20, np.int32),
        num_response_tokens=rng.integers(1, 300, n).astype(np.int32),
        content_hashes=ids, source_rows=np.arange(n), previews=ids, num_source_rows=n,
        fingerprint="benchmark",
    )  # fmt: skip
    scores = ScoreTable(
        scores={}, importance=rng.random(n).astype(np.float32),
        origin=np.full(n, Origin.MEASURED, np.uint8), measured_step=np.zeros(n, np.int64),
        measured_version=np.ones(n, np.int64), confidence=np.ones(n, np.float32),
    )  # fmt: skip
    return samples, scores


def ours(graph: SparseGraph, budget: int) -> Rows:
    """Facility location alone, what the peers do."""
    n = graph.num_nodes
    return lazy_greedy(
        graph, modular=np.zeros(n), need=np.ones(n), budget=budget, order=np.arange(n),
        candidates=np.ones(n, bool),
    ).rows  # fmt: skip


def apricot(graph: SparseGraph, budget: int, optimizer: str) -> Rows:
    """Apricot on the same similarities, with 1 on the diagonal."""
    from apricot import FacilityLocationSelection

    model = FacilityLocationSelection(budget, metric="precomputed", optimizer=optimizer)
    rows: Rows = np.asarray(model.fit(as_matrix(graph)).ranking)
    return rows


def submodlib(graph: SparseGraph, budget: int, optimizer: str) -> Rows:
    """Submodlib on the dense matrix: its sparse mode takes no similarities of one's own as fast."""
    from submodlib import FacilityLocationFunction

    n = graph.num_nodes
    dense = as_matrix(graph).toarray().astype(np.float32)
    function = FacilityLocationFunction(n=n, mode="dense", sijs=dense, separate_rep=False)
    picked = function.maximize(
        budget=budget, optimizer=optimizer, stopIfZeroGain=False, stopIfNegativeGain=False,
        show_progress=False,
    )  # fmt: skip
    return np.array([row for row, _ in picked])


def as_matrix(graph: SparseGraph) -> Any:
    """The similarities as a SciPy matrix."""
    from scipy import sparse

    n = graph.num_nodes
    edges = sparse.csr_matrix(
        (graph.weights.astype(np.float64), graph.indices, graph.indptr), shape=(n, n)
    )
    return (edges + sparse.identity(n, format="csr")).tocsr()


SOLVERS: dict[str, Callable[[SparseGraph, int], Rows]] = {
    "gracekit": ours,
    "apricot lazy": lambda graph, budget: apricot(graph, budget, "lazy"),
    "apricot naive": lambda graph, budget: apricot(graph, budget, "naive"),
    "submodlib lazy": lambda graph, budget: submodlib(graph, budget, "LazyGreedy"),
}


def time_solver(name: str, n: int) -> tuple[float, float, int]:
    """CPU seconds, objective, and distinct rows.

    Without the seconds of a small run: apricot compiles anew at every call.
    """
    warnings.simplefilter("ignore")
    solve = SOLVERS[name]
    solve(make_graph(200), 20)
    graph, small = make_graph(n), make_graph(200)
    started = time.process_time()
    solve(small, 20)
    compile_s = 0.0 if name == "gracekit" else time.process_time() - started
    repeats = 10 if name == "gracekit" else 1
    started = time.process_time()
    for _ in range(repeats):
        rows = solve(graph, int(BUDGETS["peers"] * n))
    seconds = (time.process_time() - started) / repeats - compile_s
    return seconds, float(as_matrix(graph)[rows].max(axis=0).sum()), len(np.unique(rows))


def time_select(n: int) -> dict[str, float]:
    """A whole `select` and its parts, in CPU seconds, and the memory that it took."""
    samples, scores = make_tables(n)
    graph = make_graph(n)
    settings = SelectionSection(fraction=BUDGETS["growth"])
    small, few = make_tables(500)
    few_samples = SelectionInputs(scores=few, samples=small, graph=make_graph(500))
    select(settings, few_samples, seed=0, version=1)
    started = time.process_time()
    ours(graph, int(BUDGETS["growth"] * n))
    greedy_s = time.process_time() - started
    before = reset_peak()
    started = time.process_time()
    inputs = SelectionInputs(scores=scores, samples=samples, graph=graph)
    select(settings, inputs, seed=0, version=1)
    select_s = time.process_time() - started
    size = graph.indptr.nbytes + graph.indices.nbytes + graph.weights.nbytes
    return {
        "greedy_s": greedy_s,
        "select_s": select_s,
        "graph_bytes": size,
        "extra_bytes": memory("VmHWM") - before,
    }


def make_ring(n: int, seed: int = 0) -> SparseGraph:
    """[n] on a ring, each joined to the ten before and after it; shuffled. For any n that fits."""
    rng = np.random.default_rng(seed)
    place = rng.permutation(n).astype(np.int32)
    at = np.empty(n, np.int32)
    at[place] = np.arange(n, dtype=np.int32)
    noise = rng.uniform(0.4, 0.9, n).astype(np.float32)
    indices, weights = np.empty((n, 20), np.int32), np.empty((n, 20), np.float32)
    for column, offset in enumerate([*range(-10, 0), *range(1, 11)]):
        other = (at + np.int32(offset)) % n
        indices[:, column] = place[other]
        weights[:, column] = noise[(at.astype(np.int64) + other) % n]
    return SparseGraph(
        indptr=20 * np.arange(n + 1), indices=indices.ravel(), weights=weights.ravel()
    )


def time_draw(n: int) -> dict[str, float]:
    """A draw of `balanced` that makes up for one before, in CPU seconds, and the memory it took."""
    graph, rng = make_ring(n), np.random.default_rng(1)
    order, sizes = rng.permutation(n), 0.25 + 0.75 * rng.lognormal(size=n)
    budget = int(BUDGETS["draw"] * n)
    groups, used = np.zeros(n, np.int32), (rng.random(n) < BUDGETS["draw"]).astype(np.int32)
    before = reset_peak()
    started = time.process_time()
    chances = inclusion(sizes, budget=budget, order=order)
    state = settled(DrawState.none(n), chances.probabilities, used)
    shares = next_shares(state, chances.probabilities, groups)
    now = with_shares(chances, shares, order=order, groups=groups)
    middle = time.process_time()
    ranked = RankedGraph.of(graph, order)
    rows = draw_spread(ranked, now, seed=0)
    places_along(ranked, groups)
    ended = time.process_time()
    assert len(rows) == budget
    return {
        "probabilities_s": middle - started,
        "draw_s": ended - middle,
        "graph_bytes": graph.indptr.nbytes + graph.indices.nbytes + graph.weights.nbytes,
        "extra_bytes": memory("VmHWM") - before,
    }


def memory(key: str) -> int:
    """Bytes by the kernel's account: `VmRSS` now, `VmHWM` at most."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(rf"{key}:\s+(\d+) kB", status)
    return 1024 * int(found[1]) if found else 0


def reset_peak() -> int:
    """Forget the peak so far; returns what is used now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return memory("VmRSS")


def in_child(function: Callable[..., Any], *arguments: Any, limit_s: float | None = None) -> Any:
    """Run in a fresh process: its own memory, and it can be given up; None when it was."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        try:
            return pool.apply_async(function, arguments).get(limit_s)
        except multiprocessing.TimeoutError:
            return None


def compare_peers() -> None:
    """The same objective by each, on the same graphs."""
    print(f"\nFacility location alone, {BUDGETS['peers']:.0%} of n, CPU s (objective)\n")
    print("| n | " + " | ".join(SOLVERS) + " | fastest peer / gracekit |")
    print("|---|" + "---|" * (len(SOLVERS) + 1))
    for n in PEER_SIZES:
        results = {name: in_child(time_solver, name, n, limit_s=PEER_LIMIT_S) for name in SOLVERS}
        cells = [
            f"not within {PEER_LIMIT_S} s" if r is None else
            f"{r[0]:.4f} ({r[1]:.2f})" + (f", {int(BUDGETS['peers'] * n) - r[2]} repeated"
                                          if r[2] < int(BUDGETS["peers"] * n) else "")
            for r in results.values()
        ]  # fmt: skip
        fastest = min(r[0] for name, r in results.items() if r and name != "gracekit")
        print(f"| {n:,} | " + " | ".join(cells) + f" | {fastest / results['gracekit'][0]:.0f} |")


def show_growth(largest: int) -> None:
    """Whole selections of growing size."""
    print(f"\nSelector coverage, λ 0.5, {BUDGETS['growth']:.0%} of n\n")
    print("| n | greedy alone, CPU s | whole select, CPU s | extra memory / graph |")
    print("|---|---|---|---|")
    for n in (size for size in GROWTH if size <= largest):
        found = in_child(time_select, n)
        print(
            f"| {n:,} | {found['greedy_s']:.3f} | {found['select_s']:.3f} | "
            f"{found['extra_bytes'] / found['graph_bytes']:.2f} |",
            flush=True,
        )


def show_draws(largest: int) -> None:
    """The draw of `balanced` at growing size."""
    print(f"\nThe draw of balanced, {BUDGETS['draw']:.0%} of n, twenty neighbours a row\n")
    print("| n | probabilities, CPU s | draw, CPU s | extra memory / graph |")
    print("|---|---|---|---|")
    for n in (size for size in DRAWS if size <= max(largest, DRAWS[0])):
        found = in_child(time_draw, n)
        print(
            f"| {n:,} | {found['probabilities_s']:.3f} | {found['draw_s']:.3f} | "
            f"{found['extra_bytes'] / found['graph_bytes']:.2f} |",
            flush=True,
        )


def time_baselines(n: int, names: Sequence[str], width: int | None = None) -> None:
    """Each of the selectors; with `width` they are given random features and 200 target samples."""
    samples, scores = make_tables(n)
    graph = make_graph(n)
    rng = np.random.default_rng(0)
    features = targets = None
    if width is not None:
        features = rng.normal(size=(n, width)).astype(np.float16)
        targets = rng.normal(size=(200, width)).astype(np.float16)
    inputs = SelectionInputs(
        scores=scores,
        samples=samples,
        graph=graph,
        features=features,
        target_features=targets,
    )
    on = "the graph" if width is None else f"{width} features"
    print(f"\nSelectors on {on}, {n:,} samples, 5 %, CPU s\n")
    for name in names:
        settings = SelectionSection(selector=name, fraction=BUDGETS["growth"])
        seconds = []
        for _ in range(2):  # the first may compile
            started = time.process_time()
            select(settings, inputs, seed=0, version=1)
            seconds.append(time.process_time() - started)
        print(f"- {name}: {seconds[-1]:.3f}", flush=True)


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--largest", type=int, default=1_000_000, help="largest n of the growth")
    parser.add_argument("--no-peers", action="store_true", help="leave apricot and submodlib out")
    options = parser.parse_args()
    python = platform.python_version()
    print(f"{os.cpu_count()}-core {platform.machine()}, Python {python}, NumPy {np.__version__}")
    if not options.no_peers:
        compare_peers()
    show_growth(options.largest)
    show_draws(options.largest)
    on_graph = [name for name in SELECTORS if name not in BY_FEATURES]
    time_baselines(min(100_000, options.largest), on_graph)
    time_baselines(min(20_000, options.largest), BY_FEATURES, width=256)


if __name__ == "__main__":
    main()
