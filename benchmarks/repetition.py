"""What showing the same rows again costs: rounds of a fifth of a pool, by several draws.

    python benchmarks/repetition.py -o runs/repetition            # goes on where it was stopped
    python benchmarks/repetition.py -o runs/repetition --table    # only what is there

SmolLM2-135M with all but its last two blocks frozen: what the frozen blocks put out is computed
once. The last two are trained with AdamW on the answers of a pool of 320 rows (four sources), in 24
rounds of a fifth of the pool, each trained on once, loss averaged over tokens. What differs is
which fifth: a fixed one, a new one each round, every row once before any comes twice, and what
gracekit selects with its own scores of this run (`gracekit.refresher.step` on a tenth of the rows
every three rounds, after one measurement of all; between two refreshes `balanced` is drawn anew
from the version's probabilities, as a trainer does it). Told is the held-out loss, mean over the
sources, less that of random re-drawn of the same seed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from transformers import LlamaForCausalLM

from gracekit.draw.along import draw_along
from gracekit.draw.over_time import next_shares, settled
from gracekit.recipe import DataSection, Recipe
from gracekit.refresher.last import LastRefresh
from gracekit.refresher.step import Refreshed, step
from gracekit.samples import load_samples, tokenize
from gracekit.texts import Texts
from gracekit.types import Draw, DrawState, Float64, Measurement, Rows, SampleTable

sys.path.insert(0, str(Path(__file__).parent.parent))
from pipelines.train_quickstart import smollm2

DATA = Path(__file__).parent.parent / "data/train.jsonl"
TRAINED_BLOCKS = 2
NUM_POOL, NUM_CANDIDATES, NUM_HELD_OUT = 320, 440, 160
ROUNDS, SHARE, BATCH, RATE, WARM_UP = 24, 0.2, 16, 3e-4, 10
REFRESH_EVERY, MEASURED_SHARE, EVALUATE_EVERY = 3, 0.1, 4


@dataclass(frozen=True)
class Row:
    """One row as the trained blocks see it."""

    hidden: torch.Tensor
    """[T, D] what the frozen blocks put out."""
    targets: torch.Tensor
    """[m] token ids of the answer."""
    positions: torch.Tensor
    """[m] positions whose next token they are."""


@dataclass(frozen=True)
class Bed:
    """The rows, and the trained blocks as they are at the start."""

    rows: list[Row]
    groups: Any
    num_prompt_tokens: Any
    model: LlamaForCausalLM

    @classmethod
    def make(cls, seed: int, max_length: int) -> Bed:
        """Run the frozen blocks over pool and held-out rows."""
        whole, tokenizer = smollm2()
        whole.eval()
        data = DataSection(path=str(DATA), group_column="source", max_length=max_length)
        raw = load_samples(data)
        tokens = tokenize(raw, tokenizer, data, Path("runs/tokens-repetition"))
        fits = np.flatnonzero((tokens.lengths < max_length) & (tokens.num_targets > 0))
        chosen = np.random.default_rng(seed).permutation(fits)[: NUM_CANDIDATES + NUM_HELD_OUT]
        blocks = whole.model.layers
        frozen = len(blocks) - TRAINED_BLOCKS
        rows = []
        with torch.no_grad():
            for taken, mask in tokens.take(chosen):
                ids = torch.from_numpy(taken.astype(np.int64))
                hidden = whole.model(input_ids=ids[None], output_hidden_states=True)
                positions = torch.from_numpy(np.flatnonzero(mask)) - 1
                rows.append(
                    Row(hidden.hidden_states[frozen][0].clone(), ids[positions + 1], positions)
                )
        config = whole.config.__class__.from_dict(whole.config.to_dict())
        config.num_hidden_layers = TRAINED_BLOCKS
        config.layer_types = None
        model = LlamaForCausalLM(config)
        model.model.embed_tokens = whole.model.embed_tokens
        model.lm_head = whole.lm_head
        model.model.norm = whole.model.norm
        for place, block in enumerate(blocks[frozen:]):
            model.model.layers[place].load_state_dict(block.state_dict())
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        return cls(rows, raw.groups[chosen], tokens.num_prompt_tokens[chosen], model)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """A copy of the trained blocks as they are now."""
        return {name: value.clone() for name, value in self.model.model.layers.state_dict().items()}

    def pool(self, seed: int) -> tuple[Rows, SampleTable]:
        """The pool of a seed: which rows, and as a sample table."""
        chosen = np.random.default_rng([7, seed]).permutation(NUM_CANDIDATES)[:NUM_POOL]
        names = Texts.of(f"{i:06d}" for i in chosen)
        samples = SampleTable(
            sample_ids=names,
            groups=self.groups[chosen].astype(np.int32),
            group_names=tuple(map(str, range(int(self.groups.max()) + 1))),
            num_prompt_tokens=self.num_prompt_tokens[chosen],
            num_response_tokens=np.array([len(self.rows[i].targets) for i in chosen], np.int32),
            content_hashes=names,
            source_rows=np.arange(NUM_POOL),
            previews=names,
            num_source_rows=NUM_POOL,
            fingerprint=f"repetition-{seed}",
        )
        return chosen, samples

    def forward(self, rows: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of a batch of rows: loss of each target [M], its row's place [M], final states [M, D]."""
        batch = [self.rows[row] for row in rows]
        longest = max(len(row.hidden) for row in batch)
        hidden = torch.stack([F.pad(r.hidden, (0, 0, 0, longest - len(r.hidden))) for r in batch])
        mask = torch.stack([(torch.arange(longest) < len(r.hidden)).long() for r in batch])
        last = self.model.model(inputs_embeds=hidden, attention_mask=mask)[0]
        place = torch.cat([torch.full((len(r.targets),), i) for i, r in enumerate(batch)])
        states = last[place, torch.cat([r.positions for r in batch])]
        targets = torch.cat([r.targets for r in batch])
        losses = F.cross_entropy(self.model.lm_head(states), targets, reduction="none")
        return losses, place, states

    def held_out_loss(self) -> float:
        """Mean over the sources of the mean over the tokens of the held-out rows."""
        rows = np.arange(NUM_CANDIDATES, NUM_CANDIDATES + NUM_HELD_OUT)
        total = np.zeros(int(self.groups.max()) + 1)
        count = np.zeros_like(total)
        with torch.no_grad():
            for start in range(0, len(rows), BATCH):
                part = rows[start : start + BATCH]
                losses, place, _ = self.forward(part)
                of_group = self.groups[part][place.numpy()]
                np.add.at(total, of_group, losses.double().numpy())
                np.add.at(count, of_group, 1)
        there = count > 0
        return float((total[there] / count[there]).mean())


@dataclass(frozen=True)
class Measure:
    """Exact scores of rows of the pool under the trained blocks as they are."""

    bed: Bed
    chosen: Rows

    def __call__(self, rows: Rows) -> Measurement:
        """Norm of the gradient of the mean loss, that loss, and mean final state of each row."""
        parameters = list(self.bed.model.model.layers.parameters())
        norms, means, features = [], [], []
        for row in rows:
            losses, _, states = self.bed.forward([self.chosen[row]])
            gradients = torch.autograd.grad(losses.mean(), parameters)
            square = sum(float((each.double() ** 2).sum()) for each in gradients)
            norms.append(square**0.5)
            means.append(float(losses.mean()))
            features.append(states.detach().mean(dim=0).numpy())
        return Measurement(
            rows=rows,
            scores={
                "gradient-norm": np.array(norms, np.float32),
                "loss": np.array(means, np.float32),
            },
            features=np.stack(features).astype(np.float32),
        )

    def look(self, rows: Rows) -> NDArray[np.float16]:
        """The features alone, which the first version asks for only where it has a budget."""
        return np.asarray(self(rows).features, np.float16)

    def finish(self) -> None:
        """There is no target set."""


Draws = Callable[[int], tuple[Rows, Float64 | None]]
"""Round -> rows of the pool to train on, and their weights; None: all alike."""
NUM_DRAWN = round(SHARE * NUM_POOL)


def fixed(bed: Bed, chosen: Rows, samples: SampleTable, seed: int) -> Draws:
    """The same rows in every round."""
    rows = np.random.default_rng([1, seed]).permutation(NUM_POOL)[:NUM_DRAWN]
    return lambda turn: (rows, None)


def redrawn(bed: Bed, chosen: Rows, samples: SampleTable, seed: int) -> Draws:
    """A random draw each round."""
    return lambda turn: (
        np.random.default_rng([2, seed, turn]).permutation(NUM_POOL)[:NUM_DRAWN],
        None,
    )


def once(bed: Bed, chosen: Rows, samples: SampleTable, seed: int) -> Draws:
    """Every row once before any twice."""
    passes = -(-ROUNDS * NUM_DRAWN // NUM_POOL)
    rng = np.random.default_rng([3, seed])
    order = np.concatenate([rng.permutation(NUM_POOL) for _ in range(passes)])
    return lambda turn: (order[turn * NUM_DRAWN : (turn + 1) * NUM_DRAWN], None)


class Selected:
    """What gracekit selects, refreshed every few rounds with its own scores of this run."""

    def __init__(
        self, selection: dict[str, Any], *, is_weighted: bool, is_redrawn: bool = True
    ) -> None:
        self.settings, self.is_weighted, self.is_redrawn = selection, is_weighted, is_redrawn

    def __call__(self, bed: Bed, chosen: Rows, samples: SampleTable, seed: int) -> Draws:
        """The draws of a run."""
        recipe = Recipe.from_dict({
            "data": {"path": str(DATA)},
            "seed": seed,
            "selection": {"fraction": SHARE, **self.settings},
            "refresh": {
                "min_fraction": MEASURED_SHARE, "max_fraction": MEASURED_SHARE, "min_probe": 20,
            },
            "propagation": {"min_measured": 40},
        })  # fmt: skip
        measure = Measure(bed, chosen)
        last: LastRefresh | None = None
        refreshed: Refreshed | None = None
        state = DrawState.none(NUM_POOL)

        def drawn(turn: int) -> tuple[Rows, Float64 | None]:
            nonlocal last, refreshed, state
            is_new = turn % REFRESH_EVERY == 0
            if is_new:
                refreshed = step(
                    last, measure, recipe, samples=samples, step=turn,
                    version=1 if last is None else last.version + 1,
                    parent=None if refreshed is None else refreshed.selection.rows,
                    state=state,
                )  # fmt: skip
                last = refreshed.as_last(last)
            assert refreshed is not None
            rows, weights = refreshed.selection.rows, refreshed.selection.weights
            draw = refreshed.selection.draw
            if draw is not None and self.is_redrawn:
                if not is_new:
                    rows = self._anew(draw, state, np.random.default_rng([4, seed, turn]))
                weights = draw.weights[rows]
                uses = np.zeros(NUM_POOL, np.int32)
                uses[rows] = 1
                state = settled(state, draw.probabilities, uses)
            return rows, weights.astype(np.float64) if self.is_weighted else None

        return drawn

    def _anew(self, draw: Draw, state: DrawState, rng: np.random.Generator) -> Rows:
        shares = next_shares(state, draw.probabilities, draw.parts)
        return draw_along(shares, draw.places, draw.parts, rng)


ARMS: dict[str, Callable[[Bed, Rows, SampleTable, int], Draws]] = {
    "random re-drawn": redrawn,
    "every row once before any twice": once,
    "balanced": Selected({"selector": "balanced"}, is_weighted=True),
    "coverage": Selected({"selector": "coverage"}, is_weighted=False),
    "a fixed random fifth": fixed,
    "balanced, without weights": Selected(
        {"selector": "balanced", "weights": "uniform"}, is_weighted=False
    ),
}


def train(bed: Bed, start: dict[str, torch.Tensor], arm: str, seed: int) -> dict[str, Any]:
    """One run: the held-out loss after every few rounds, and how many rows were seen."""
    bed.model.model.layers.load_state_dict(start)
    parameters = list(bed.model.model.layers.parameters())
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0)
    chosen, samples = bed.pool(seed)
    tokens_per_row = float(samples.num_response_tokens.mean())
    draws, rng = ARMS[arm](bed, chosen, samples, seed), np.random.default_rng([5, seed])
    num_steps, taken = ROUNDS * -(-NUM_DRAWN // BATCH), 0
    losses, uses = {0: bed.held_out_loss()}, np.zeros(NUM_POOL, np.int64)
    for turn in range(ROUNDS):
        rows, weights = draws(turn)
        np.add.at(uses, rows, 1)
        order = rng.permutation(len(rows))
        for first in range(0, len(order), BATCH):
            part = order[first : first + BATCH]
            taken += 1
            optimizer.param_groups[0]["lr"] = (
                RATE * min(1.0, taken / WARM_UP) * (1 - 0.9 * taken / num_steps)
            )
            found, place, _ = bed.forward(chosen[rows[part]])
            if weights is None:
                loss = found.mean()
            else:
                weight = torch.from_numpy(weights[part]).float()[place]
                loss = (weight * found).sum() / (len(part) * tokens_per_row)
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if (turn + 1) % EVALUATE_EVERY == 0:
            losses[turn + 1] = bed.held_out_loss()
    return {
        "arm": arm, "seed": seed, "losses": losses, "seen": int((uses > 0).sum()),
        "most_uses": int(uses.max()),
    }  # fmt: skip


def table(results: list[dict[str, Any]]) -> None:
    """Print each arm's loss less that of random re-drawn of the same seed."""
    seeds = sorted({each["seed"] for each in results})
    found = {(each["arm"], each["seed"]): each for each in results}
    turns = [str(turn) for turn in range(EVALUATE_EVERY, ROUNDS + 1, EVALUATE_EVERY)]
    print(f"| arm | seeds | {' | '.join(f'after {t}' for t in turns)} | seen | most uses |")
    print("|---|--:|" + "--:|" * (len(turns) + 2))
    for arm in ARMS:
        there = [s for s in seeds if (arm, s) in found and ("random re-drawn", s) in found]
        if not there:
            continue
        cells = []
        for turn in turns:
            own = [found[arm, s]["losses"][turn] for s in there]
            base = [found["random re-drawn", s]["losses"][turn] for s in there]
            if arm == "random re-drawn":
                cells.append(f"{np.mean(own):.3f}")
                continue
            apart = np.subtract(own, base)
            spread = f" ± {apart.std(ddof=1) / len(apart) ** 0.5:.3f}" if len(apart) > 1 else ""
            cells.append(f"{apart.mean():+.3f}{spread}")
        seen = np.mean([found[arm, s]["seen"] for s in there])
        most = max(found[arm, s]["most_uses"] for s in there)
        print(f"| {arm} | {len(there)} | {' | '.join(cells)} | {seen:.0f} | {most} |")


def main() -> None:
    """Train what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/repetition"))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--arms", help="comma-separated (default: all)")
    parser.add_argument("--max-length", type=int, default=128, help="longer rows are left out")
    parser.add_argument("--table", action="store_true", help="train nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.output.mkdir(parents=True, exist_ok=True)
    arms = list(ARMS) if options.arms is None else options.arms.split(",")
    missing = [
        (arm, seed, options.output / f"{arm.replace(' ', '-').replace(',', '')}-{seed}.json")
        for seed in map(int, options.seeds.split(","))
        for arm in arms
    ]
    missing = [each for each in missing if not each[2].exists()]
    if missing and not options.table:
        bed = Bed.make(0, options.max_length)
        start = bed.state_dict()
        for arm, seed, path in missing:
            result = train(bed, start, arm, seed)
            path.write_text(json.dumps(result))
            print(f"{arm}, seed {seed}: {result['losses']}", flush=True)
    results = [json.loads(path.read_text()) for path in sorted(options.output.glob("*.json"))]
    table(results)


if __name__ == "__main__":
    main()
