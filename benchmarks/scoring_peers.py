"""gracekit's pass beside Bergson's `build` and dattri-llm's capture, batch by batch in one run.

    make bench-peers

Same model (SmolLM2-135M, float32), samples, loss mask, batches and threads (one). Each library runs
in a process and an environment of its own, the way its users run it (`benchmarks/peers/`). All of a
group set up, then take turns at each batch, so that all meet the same machine; printed are medians
over batches, the first one dropped, of CPU seconds and of their ratios within a batch. Samples are
real ones that fill `--length` tokens, so that nobody pads. Norms are compared with autograd, one
sample at a time, summed in float64; for projected gradients the error is that of the projection.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import datasets
import numpy as np
import torch

from gracekit.model_pass.batches import TokenBatch
from gracekit.recipe import DataSection
from gracekit.samples import load_samples, tokenize

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.scoring import CPU, DATA, exact_norms
from pipelines.train_quickstart import smollm2

HERE = Path(__file__).resolve().parent
FOLDER = HERE.parent / "runs/peers"
GROUPS = {
    "Norms and sketches": {
        "gracekit: norms from the sketch, 32 x 32": (
            "gracekit_pass",
            ("sketch-norm", "gradient-sketch"),
        ),
        "gracekit: exact norms, 32 x 32 sketch": (
            "gracekit_pass",
            ("gradient-norm", "gradient-sketch"),
        ),
        "Bergson build, 32 x 32 a module": ("bergson_build", ("32",)),
        "dattri-llm LoGra, 32 x 32 a module": ("dattri_capture", ("32",)),
    },
    "Norms": {
        "gracekit: exact norms, hidden states": (
            "gracekit_pass",
            ("gradient-norm", "hidden-mean"),
        ),
        "dattri-llm: exact norms from factors": ("dattri_capture", ("norms",)),
    },
}
ENVIRONMENTS = {"bergson_build": "bergson", "dattri_capture": "dattri"}


class Process:
    """A method in a process of its own, which waits for its turns."""

    def __init__(self, script: str, arguments: list[str]) -> None:
        name = ENVIRONMENTS.get(script)
        python = str(FOLDER / name / "bin/python") if name else sys.executable
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        with (FOLDER / f"{script}.log").open("w", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                [python, str(HERE / "peers" / f"{script}.py"), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
            )
        self._script = script

    def hear(self) -> dict[str, Any]:
        """What it says next: that it is set up, what a batch took, or what came of all."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):  # libraries print while they are imported
                heard: dict[str, Any] = json.loads(line)
                return heard
        sys.exit(f"{self._script} ended early; see {FOLDER / self._script}.log")

    def turn(self) -> float:
        """Let it do a batch; CPU seconds."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self.hear()["cpu_s"])


def prepare(num_samples: int, length: int) -> tuple[Any, TokenBatch]:
    """The samples as files; the model, and some samples for exact norms."""
    model, tokenizer = smollm2()
    data = DataSection(path=str(DATA), max_length=length)
    tokens = tokenize(load_samples(data), tokenizer, data, FOLDER / "tokens")
    full = np.flatnonzero((tokens.lengths == length) & (tokens.num_targets > 8))
    rows = np.random.default_rng(0).permutation(full)[:num_samples]
    samples = tokens.take(rows)
    ids = np.stack([ids for ids, _ in samples])
    mask = np.stack([mask for _, mask in samples])
    np.savez(FOLDER / "samples.npz", ids=ids, mask=mask)
    shutil.rmtree(FOLDER / "dataset", ignore_errors=True)
    datasets.Dataset.from_dict(
        {
            "input_ids": ids.tolist(),
            "labels": np.where(mask, ids, -100).tolist(),
            "length": [length] * len(ids),
        }
    ).save_to_disk(str(FOLDER / "dataset"))
    model.save_pretrained(FOLDER / "model")
    tokenizer.save_pretrained(FOLDER / "model")
    print(
        f"{len(ids)} samples of {length} tokens, {mask.sum() / len(ids):.0f} targets each; "
        f"torch {torch.__version__}\n"
    )
    return model.eval(), TokenBatch.pack(samples[:4], CPU)


def arguments_of(script: str, options: tuple[str, ...], name: str, batch: int, length: int) -> Any:
    """The command line of a script in `peers/`, with an empty place for its results."""
    out = FOLDER / "out" / "".join(c if c.isalnum() else "-" for c in name)
    shutil.rmtree(out, ignore_errors=True)
    samples = FOLDER / ("dataset" if script == "bergson_build" else "samples.npz")
    arguments = [FOLDER / "model", samples, out, *options, batch]
    return [*map(str, arguments + ([length] if script == "bergson_build" else []))]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batches", type=int, default=9, help="the first is not counted")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    options = parser.parse_args()
    torch.set_num_threads(1)
    FOLDER.mkdir(parents=True, exist_ok=True)
    num_samples = options.batches * options.batch_size
    model, some = prepare(num_samples, options.length)
    exact = np.array(exact_norms(model, some, lambda n: "layers." in n and "norm" not in n))
    del model
    for title, group in GROUPS.items():
        processes = {}
        for name, (script, extra) in group.items():
            arguments = arguments_of(script, extra, name, options.batch_size, options.length)
            processes[name] = Process(script, arguments)
        set_up = {name: float(process.hear()["cpu_s"]) for name, process in processes.items()}
        seconds: dict[str, list[float]] = {name: [] for name in processes}
        rng = np.random.default_rng(0)
        for _ in range(options.batches):
            for name in rng.permutation(list(processes)):
                seconds[name].append(processes[name].turn())
        ours, *_ = seconds.values()
        print(f"| {title} | CPU s a sample | ours / theirs | CPU s to set up | error of norms | "
              "bytes a sample | peak GiB |")  # fmt: skip
        print("|---|--:|--:|--:|--:|--:|--:|")
        for name, process in processes.items():
            result = process.hear()
            per_sample = np.median(seconds[name][1:]) / options.batch_size
            ratio = np.median(np.array(ours[1:]) / np.array(seconds[name][1:]))
            norms = np.array(result["norms"])[: len(exact)]
            error = f"{np.abs(norms / exact - 1).max():.1e}" if len(norms) else "-"
            print(
                f"| {name} | {per_sample:.3f} | {ratio:.2f} | {set_up[name]:.1f} | {error} | "
                f"{result['disk_bytes'] / num_samples:,.0f} | {result['peak_bytes'] / 2**30:.1f} |",
                flush=True,
            )
        print()


if __name__ == "__main__":
    main()
