"""What a model writes for the held-out rows of a benchmark, beside their answers, to look at.

    python pipelines/bench/written.py maths-exact --gsm8k DIR --rows 40

Without `--model` it is the start of the benchmark: exact match before any training.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from gracekit.comparing.bed import Bed
from gracekit.comparing.metrics import answers, metric_of

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
from pipelines.bench import data, run


def main() -> None:
    """Print texts, then the share of exact matches."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", choices=sorted(data.BENCHMARKS))
    parser.add_argument("--model", type=Path, help="a directory (default: the start)")
    parser.add_argument("--rows", type=int, default=40)
    parser.add_argument("--gsm8k", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=run.RUNS)
    options = parser.parse_args()
    recipe = run.recipe_of(options.name, gsm8k=options.gsm8k, root=options.output)
    metric = metric_of("exact-match")
    with tempfile.TemporaryDirectory() as cache:
        bed = Bed.make(recipe, Path(cache))
        place = options.model or bed.start
        model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
        began = time.process_time()
        found = answers(model, bed.judges, bed.tokenizer, bed.judges.whole[: options.rows])
        passed = time.process_time() - began
    values = [metric(written, answer) for written, answer in found]
    for value, (written, answer) in zip(values, found, strict=True):
        print(f"--- {value:.0f}\n{written}\n=== {answer}")
    print(f"\nexact match {sum(values):.0f} of {len(values)}; {passed:.0f} CPU s")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
