"""The last part of the quickstart: does its coreset train better than random rows? A small try.

`gracekit compare` trains the tiny model on from the quickstart's first checkpoint: on random rows,
drawn anew in every epoch, and on what the recipe selects, under a few seeds. The held-out rows are
a random part of those that the first epoch did not draw, so the model has not seen them. All of it
is kept in a directory of its own; the next `make run` trains none of it again. By hand:

    cd runs/quickstart-comparison && gracekit compare "$PWD/recipe.yaml" -o results --seeds 10
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from pipelines.speaking import LAST_WORDS_S, at_work, relay

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
ORIGIN = "made-of.txt"
"""In the directory: a hash of the recipe, the data, the rows drawn before and the start."""
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
    with (run_dir / "drawn.jsonl").open(encoding="utf-8") as file:
        seen = set(json.loads(file.readline())["positions"])
    found, origin = place / "recipe.yaml", place / ORIGIN
    made_of = digest(text.encode(), str(sorted(seen)).encode(), data, *weights(checkpoint))
    if found.is_file() and origin.is_file() and origin.read_text(encoding="utf-8") == made_of:
        return found
    if place.exists() and not origin.is_file() and any(place.iterdir()):
        sys.exit(f"{place} was not made by an earlier run: it has no {ORIGIN}; move it away")
    if place.exists():  # the mark goes last, so that what a kill leaves is ours still
        for path in place.iterdir():
            if path != origin:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    place.mkdir(parents=True, exist_ok=True)
    origin.write_text("being made", encoding="utf-8")
    shutil.copytree(checkpoint, place / "start", ignore=shutil.ignore_patterns("*.pt", "*.bin"))
    lines = data.read_text(encoding="utf-8").splitlines(keepends=True)
    unseen = [number for number in range(len(lines)) if number not in seen]
    order = np.random.default_rng(0).permutation(unseen)
    parts = {"held-out": order[:NUM_HELD_OUT], "train": order[NUM_HELD_OUT:][:NUM_ROWS]}
    contents = {lines[number] for number in parts["held-out"]}
    for name, numbers in parts.items():
        kept = [lines[n] for n in numbers if name != "train" or lines[n] not in contents]
        (place / f"{name}.jsonl").write_text("".join(kept), encoding="utf-8")
    found.write_text(text, encoding="utf-8")
    origin.write_text(made_of, encoding="utf-8")  # last: what a kill leaves is not taken for whole
    return found


def digest(*parts: bytes | Path) -> str:
    """Hash of texts and of the contents of files."""
    total = hashlib.sha256()
    for part in parts:
        content = part if isinstance(part, bytes) else part.read_bytes()
        total.update(hashlib.sha256(content).digest())
    return total.hexdigest()


def weights(checkpoint: Path) -> list[Path]:
    """The files of a checkpoint's weights."""
    return sorted(checkpoint.glob("*.safetensors"))


def compare(recipe: Path) -> None:
    """Train what is missing and say what came of it; leaves with the command's code when it fails.

    Args:
        recipe: As `prepare` wrote it.
    """
    command = ["compare", str(recipe), "-o", str(recipe.parent / "results")]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # a step is too short to share
    with subprocess.Popen(
        [sys.executable, "-m", "gracekit", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=one_thread,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        messages = relay(process.stderr, "compare ")
        try:
            with at_work("gracekit compare is at work"):
                found = process.stdout.read()
                code = process.wait()
        finally:
            process.terminate()  # where this one is stopped
            messages.join(LAST_WORDS_S)
    print(found, end="")  # after the last message
    if code:
        sys.exit(f"the comparison failed with exit code {code}; remove {recipe.parent} to begin it "
                 "anew")  # fmt: skip
    steps = SETTINGS["epochs"] * NUM_DRAWN // SETTINGS["batch_size"]
    numbers = {"steps": steps, "seeds": SETTINGS["seeds"], "held_out": NUM_HELD_OUT}
    print(WARNING.format(**numbers), flush=True)
