"""The last part of the quickstart: does its coreset train better than random rows? A small try.

`gracekit compare` trains the tiny model on from the quickstart's first checkpoint: on random rows,
drawn anew in every epoch, and on what the recipe selects, under a few seeds. The held-out rows are
a random part of those that the first epoch did not draw, so the model has not seen them. All of it
is kept in a directory of its own; the next `make run` trains none of it again. By hand:

    cd runs/quickstart-comparison && gracekit compare "$PWD/recipe.yaml" -o results --seeds 10
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml

NUM_HELD_OUT, NUM_ROWS = 150, 1500
"""Rows that judge, and rows that are trained on: few, since all of them are tokenised."""
SETTINGS: dict[str, Any] = {
    "arms": ["random", "recipe"],
    "seeds": 3,
    "epochs": 2,
    "batch_size": 8,
    "learning_rate": 1e-3,
    "evaluations": 2,
}
NUM_DRAWN = 160
WARNING = (
    "So small a comparison tells little: {steps} steps of a model of a million parameters, "
    "{seeds} seeds, {held_out} held-out rows. docs/evidence.md has larger ones, with what was not "
    "found; docs/how-to/does-it-pay.md does it on your data."
)


def prepare(run_dir: Path, recipe: Path, checkpoint: Path, place: Path) -> Path:
    """Write data, start and recipe of the comparison, where they are not there yet.

    Args:
        run_dir: Of the quickstart; `drawn.jsonl` says what the first epoch drew.
        recipe: The quickstart's.
        checkpoint: Where the runs start: the one after the first epoch.
        place: Directory of the comparison; what an earlier one with other settings left is removed.

    Returns:
        The recipe to compare by.
    """
    content = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    data = (recipe.parent / content["data"]["path"]).resolve()
    content["data"] |= {"path": "train.jsonl"}
    content["store"] = "store"
    content["scoring"] |= {"num_threads": 1, "device": "cpu"}  # as the trainer
    content["selection"].pop("fraction", None)
    content["selection"]["count"] = NUM_DRAWN
    held_out = {**content["data"], "path": "held-out.jsonl"}
    content["compare"] = {**SETTINGS, "start": "start", "evaluation": held_out}
    text = yaml.safe_dump(content, sort_keys=False)
    found = place / "recipe.yaml"
    if found.is_file() and found.read_text(encoding="utf-8") == text:
        return found
    if place.exists() and not found.is_file():
        sys.exit(f"{place} was not made by an earlier run: it has no recipe.yaml; move it away")
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(checkpoint, place / "start", ignore=shutil.ignore_patterns("*.pt", "*.bin"))
    lines = data.read_text(encoding="utf-8").splitlines(keepends=True)
    with (run_dir / "drawn.jsonl").open(encoding="utf-8") as file:
        seen = set(json.loads(file.readline())["positions"])
    unseen = [number for number in range(len(lines)) if number not in seen]
    order = np.random.default_rng(0).permutation(unseen)
    parts = {"held-out": order[:NUM_HELD_OUT], "train": order[NUM_HELD_OUT:][:NUM_ROWS]}
    contents = {lines[number] for number in parts["held-out"]}
    for name, numbers in parts.items():
        kept = [lines[n] for n in numbers if name != "train" or lines[n] not in contents]
        (place / f"{name}.jsonl").write_text("".join(kept), encoding="utf-8")
    found.write_text(text, encoding="utf-8")  # last: what a kill leaves is not taken for whole
    return found


def compare(recipe: Path) -> None:
    """Train what is missing and say what came of it; leaves with the command's code when it fails.

    Args:
        recipe: As `prepare` wrote it.
    """
    command = ["compare", str(recipe), "-o", str(recipe.parent / "results")]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # a step is too short to share
    done = subprocess.run([sys.executable, "-m", "gracekit", *command], env=one_thread, check=False)
    if done.returncode:
        sys.exit(f"the comparison failed with exit code {done.returncode}; remove {recipe.parent} "
                 "to begin it anew")  # fmt: skip
    steps = SETTINGS["epochs"] * NUM_DRAWN // SETTINGS["batch_size"]
    numbers = {"steps": steps, "seeds": SETTINGS["seeds"], "held_out": NUM_HELD_OUT}
    print(WARNING.format(**numbers), flush=True)
