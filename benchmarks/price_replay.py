"""Value kept against the budget: a chain of versions, the first from a fraction, replayed.

    python benchmarks/exact_run.py --model smollm2 --max-length 128 --samples 2000 \
        --steps 1,20,50,100 -o runs/drift/smollm2-2000.npz
    python -m benchmarks.price_replay runs/drift/smollm2-2000.npz --seeds 4

The run is taken to train three passes over a coreset of 30 %, in equal parts before, between and
after its checkpoints, and `refresh.max_cost` of that may be spent, in counted tokens of training:
half of it by the first version, the rest in equal parts. Kept is the share of what a draw from
exact scores of all rows gains over a random one, by the exact norms of all rows. `losses`: the
trainer has seen the rows of its passes so far, and logged the loss that they had one checkpoint
earlier.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np

from benchmarks.meter import AVERAGES
from benchmarks.replay import SCORES, Replay, Run
from gracekit.draw.capped import capped_probabilities
from gracekit.recipe import Recipe
from gracekit.refresher.allowance import Allowance
from gracekit.refresher.prices import Prices
from gracekit.refresher.spent import token_counts
from gracekit.refresher.step import step
from gracekit.scores.norms import part_norms
from gracekit.types import Float64, TrainedLosses
from gracekit.version.outcomes import Cost

BUDGETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
PASSES, FRACTION = 3, 0.3


def second_moment(norms: Float64, probabilities: Float64) -> float:
    """Of a draw."""
    return float((norms**2 / probabilities).sum())


def kept(norms: Float64, own: Float64, alpha: float) -> float:
    """Share of the gain that a draw from exact scores has."""
    exact = capped_probabilities(
        alpha * norms.mean() + (1 - alpha) * norms, np.ones(len(norms)), float(own.sum())
    )
    random = second_moment(norms, np.full(len(norms), own.mean()))
    return (random / second_moment(norms, own) - 1) / (random / second_moment(norms, exact) - 1)


def seen_before(run: Run, c: int, seed: int) -> TrainedLosses | None:
    """What the trainer has seen before checkpoint c; nothing before the first."""
    if c == 0:
        return None
    n = len(run.samples)
    order = np.random.default_rng(seed).permutation(n)
    rows = order[: round(PASSES * FRACTION * c / len(run.steps) * n)]
    losses = run.exact["loss"][c - 1][rows].astype(np.float32)
    return TrainedLosses.none(n).noted(rows, losses, np.full(len(rows), run.steps[c - 1]))


def chain(
    run: Run, prices: Prices, average: str, max_cost: float, seed: int, losses: bool
) -> tuple[list[int], list[float], float]:
    """Rows measured and share kept at each checkpoint, and what all cost of the training."""
    recipe = Recipe.from_dict({
        "data": {"path": "none.jsonl"},
        "seed": seed,
        "scoring": {"scores": list(SCORES), "loss": average},
        "refresh": {"max_cost": max_cost},
        "selection": {"fraction": FRACTION},
    })  # fmt: skip
    lengths = token_counts(run.samples)
    training = PASSES * FRACTION * float(lengths.sum())
    last, spent, measured, shares = None, 0.0, [], []
    for c in range(len(run.steps)):
        part = 0.5 if c == 0 else 1 / (len(run.steps) - c)
        made = step(
            last,
            Replay(run, c),
            recipe,
            samples=run.samples,
            step=int(run.steps[c]),
            version=c + 1,
            trained=seen_before(run, c, seed) if losses else None,
            allowance=Allowance(
                tokens=max(max_cost * training - spent, 0) * part,
                prices=prices,
                lengths=lengths,
                account=Cost(cost=0.0, cost_in_all=spent, max_cost=max_cost),
            ),
        )
        last, spent = made.as_last(last), made.cost.cost_in_all
        norms = part_norms(run.exact[SCORES[0]][c], run.samples.num_response_tokens, recipe.scoring)
        assert made.selection.draw is not None
        measured.append(len(made.plan.rows))
        shares.append(kept(norms, made.selection.draw.probabilities, recipe.selection.alpha))
    return measured, shares, spent / training


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="a file that exact_run.py wrote")
    parser.add_argument("--features", default="embedding", help="of the file")
    parser.add_argument("--price", type=float, default=0.63, help="of measuring a token")
    parser.add_argument("--look", type=float, default=0.0, help="price of a look at a token")
    parser.add_argument("--seeds", type=int, default=4)
    options = parser.parse_args()
    run = Run.load(options.run, options.features)
    prices = Prices(measure=options.price, look=options.look)
    print(f"{len(run.samples)} samples, checkpoints at steps {run.steps.tolist()}\n")
    heads = [f"kept at {step}" for step in run.steps]
    print(f"| mean over | losses | budget | spent | measured | {' | '.join(heads)} | mean |")
    print("|---|---|--:|--:|---|" + "--:|" * (len(heads) + 1))
    for average in AVERAGES:
        for losses in (False, True):
            for max_cost in BUDGETS:
                found = [
                    chain(run, prices, average, max_cost, seed, losses)
                    for seed in range(options.seeds)
                ]
                rows = np.mean([each[0] for each in found], axis=0)
                shares = np.mean([each[1] for each in found], axis=0)
                spent = math.fsum(each[2] for each in found) / len(found)
                cells = " | ".join(f"{share:.0%}" for share in shares)
                print(
                    f"| {average} | {'yes' if losses else 'no'} | {max_cost:.0%} | {spent:.1%} | "
                    f"{', '.join(f'{row:.0f}' for row in rows)} | {cells} | {shares.mean():.0%} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
