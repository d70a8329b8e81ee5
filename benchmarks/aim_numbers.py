"""How many rows have to be measured for a target: AUC of smoothed influence by number and by pool.

    python benchmarks/aim_signals.py --model smollm2 --rows 2000 --max-length 128 -o runs/signals
    python benchmarks/aim_numbers.py runs/signals/smollm2-2000-base.npz --pools 500,1000,1450 \
        -o docs/aim-numbers.svg
    ... aim_signals.py --data runs/pool.jsonl --rows 11485 --measure 2300 --features embedding-mean

From the rows of `aim_signals.py`, pools of several sizes are drawn at random with their sources in
their shares, each with its own graph; in each, several numbers of rows count as measured. Where it
has sketched a random part of the rows alone (`--measure`), a pool begins with these.

The signal is that of `gracekit.aim`: sketches less what the measured rows have in common, averaged
over the graph, compared with the mean of 40 other rows of the target's source. AUC is that of the
pool's rows of this source against all others; means over sources and draws.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

from gracekit.aim.smoothing import reach, smoothed_cosines
from gracekit.comparing.curves import Curve, draw
from gracekit.types import Float32, Int32, Rows

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.aim_signals import FEATURES, NUM_TARGET, auc, graph_over

LEAST_ROWS = 20
"""Rows of the source in a pool without which an AUC says little."""


def found_in(
    features: Float32, sketches: Float32, groups: Int32, source: int, goal: Float32, rows: Rows
) -> float:
    """AUC in one pool of n rows.

    Args:
        features: [n, d] that the graph is over.
        sketches: [n, k²]
        groups: [n]
        source: The target's.
        goal: [k²] mean sketch of the target.
        rows: [m] that count as measured.
    """
    walk, common = graph_over(features), sketches[rows].mean(axis=0)
    rounds, _ = reach(walk, rows, np.ones(len(groups), np.bool_))
    aim = goal - common
    aim /= np.linalg.norm(aim)
    signal = smoothed_cosines(walk, rows, sketches[rows] - common, aim[None], rounds=rounds)
    return auc(signal[:, 0], groups == source)


def main() -> None:
    """Print a table for each graph, and draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("measured", type=Path, help="a file that aim_signals.py has made")
    parser.add_argument("--pools", default="500,1000,1450")
    parser.add_argument("--numbers", default="25,50,100,200,400,800,1450")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("-o", "--output", type=Path, help="an SVG file")
    options = parser.parse_args()
    file = np.load(options.measured, allow_pickle=False)
    sketches = file["sketches"].astype(np.float32)
    is_sketched = np.isfinite(sketches).all(axis=1) & sketches.any(axis=1)
    groups, names = file["groups"], file["names"].tolist()
    may_be_target = file.get("spare", is_sketched)
    may_be_in_pool = ~file["spare"] if "spare" in file else np.ones(len(groups), bool)
    pools = [int(size) for size in options.pools.split(",")]
    numbers = [int(number) for number in options.numbers.split(",")]
    curves = []
    for name in [name for name in FEATURES if name in file]:
        features = file[name].astype(np.float32)
        values: dict[tuple[int, int], list[float]] = defaultdict(list)
        for seed in range(options.seeds):
            random = np.random.default_rng(seed)
            for source in range(len(names)):
                of_source = np.flatnonzero(may_be_target & (groups == source))
                if len(of_source) < NUM_TARGET or (groups == source).sum() < 3 * NUM_TARGET:
                    continue
                targets = random.choice(of_source, NUM_TARGET, replace=False)
                others = np.setdiff1d(np.flatnonzero(may_be_in_pool), targets)
                others = random.permutation(others)
                sketched = others[is_sketched[others]]
                goal = sketches[targets].mean(axis=0)
                for size in pools:
                    # Measured rows are a random part of all, so a pool that begins with them is
                    # drawn as one of any rows is.
                    first = sketched[: min(size, max(numbers))]
                    pool = np.r_[first, others[~np.isin(others, first)]][:size]
                    if (groups[pool] == source).sum() < LEAST_ROWS:
                        continue
                    for number in numbers:
                        if number <= len(first):
                            values[size, number].append(
                                found_in(
                                    features[pool], sketches[pool], groups[pool],
                                    source, goal, np.arange(number),
                                )
                            )  # fmt: skip
        print(f"\n| {name}: measured | {' | '.join(f'of {size:,}' for size in pools)} |")
        print("|--:|" + "--:|" * len(pools))
        for number in numbers:
            found = [values.get((size, number)) for size in pools]
            cells = [f"{np.mean(c):.2f} ± {np.std(c):.2f}" if c else "" for c in found]
            print(f"| {number} | {' | '.join(cells)} |")
        for size in pools:
            x = [number for number in numbers if (size, number) in values]
            y = [float(np.mean(values[size, number])) for number in x]
            curves.append(Curve(name=f"{name}, {size:,}", x=np.log10(x).tolist(), y=y))
    if options.output is not None:
        title = "Rows of the target's source found, by how many rows are measured"
        options.output.write_text(
            draw(curves, title=title, x_name="measured rows, log10", y_name="AUC"),
            encoding="utf-8",
        )


if __name__ == "__main__":
    main()
