"""The quickstart: a real trainer and `gracekit watch` side by side, each in its own process.

    python pipelines/quickstart.py                                   # tiny Llama, a few minutes
    python pipelines/quickstart.py --recipe pipelines/target.yaml    # aimed at one source
    python pipelines/quickstart.py --recipe pipelines/smollm2.yaml   # real SmolLM2-135M weights

The trainer (`train_quickstart.py`) is an ordinary Hugging Face training script with one callback
of gracekit's. The watcher follows its checkpoint folder and publishes a coreset version for each
checkpoint; the trainer takes each version at its next epoch. At the end: what happened, an export,
two questions to the score history, a report to look at, and with the first of these recipes a small
comparison with random rows. Everything lies under runs/, which may be deleted.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

from gracekit import Coreset, Recipe, sql

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from pipelines import small_comparison
from pipelines.speaking import LAST_WORDS_S, at_work, relay

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
LONGEST_WAIT_S = 3600
RELAYS: list[threading.Thread] = []
"""What shows the lines of the processes that were started."""

QUESTIONS = {
    "Which groups does the newest coreset favour?": """
        SELECT s.group_name, count(*) AS samples, count(c.row) AS selected,
               round(100.0 * count(c.row) / count(*), 1) AS selected_percent
        FROM samples s
        LEFT JOIN coresets c ON c.row = s.row AND c.version = (SELECT max(version) FROM versions)
        GROUP BY ALL ORDER BY samples DESC LIMIT 8""",
    "How did the losses move from version to version?": """
        SELECT version, round(avg(loss), 3) AS mean_loss, round(median(loss), 3) AS median_loss,
               count(*) FILTER (origin = 'measured') AS measured,
               count(*) FILTER (origin = 'propagated') AS propagated
        FROM score_history GROUP BY version ORDER BY version""",
}
OF_TARGET = """
    SELECT version, round(target_loss, 3) AS target_loss,
           round(100 * share_influence) AS influence_percent,
           round(100 * share_likeness) AS likeness_percent,
           round(100 * share_group) AS group_percent, round(num_alike) AS samples_alike,
           round(uses_of_alike, 1) AS their_uses, round(steps_left) AS steps_left
    FROM versions ORDER BY version"""


def stopped(number: int, frame: object) -> None:
    """SIGTERM ends what was started here as well, as Ctrl-C does."""
    sys.exit(128 + number)


def main() -> int:
    """Run both processes to their end and show what came of it."""
    signal.signal(signal.SIGTERM, stopped)
    options = parse_options()
    recipe_path: Path = options.recipe
    recipe = Recipe.load(recipe_path)
    run_dir = Path(recipe.store).parent
    clear(run_dir, Path(recipe.store))
    started = time.monotonic()
    show(f"Training data {recipe.data.path}; everything this run writes is in {tidy(run_dir)}.")
    watcher = start(
        "gracekit",
        ["-m", "gracekit", "watch", str(run_dir / "checkpoints"), "--recipe", str(recipe_path),
         "--max-checkpoints", str(options.epochs - 1)],
    )  # fmt: skip
    trainer = start(
        "trainer ",
        [str(HERE / "train_quickstart.py"), "--data", recipe.data.places[0],
         "--model", options.model, "--output", str(run_dir), "--store", recipe.store,
         "--epochs", str(options.epochs),
         *options.trainer_options],
    )  # fmt: skip
    try:
        with at_work("the trainer and gracekit load their libraries, or are at work"):
            wait_for_both(watcher, trainer)
    except BaseException:
        for process in (watcher, trainer):
            process.send_signal(signal.SIGTERM)
        raise
    show(f"Both are done after {time.monotonic() - started:.0f} s. The versions:")
    gracekit("versions", "--recipe", str(recipe_path))
    check_drawn_samples(run_dir / "drawn.jsonl", Path(recipe.store), options.epochs)
    show("The newest coreset as training data for any framework:")
    gracekit("export", "--recipe", str(recipe_path), "-o", str(run_dir / "coreset"))
    for question, query in QUESTIONS.items():
        show(question)
        gracekit("sql", query, "--recipe", str(recipe_path))
    show(what_it_brought(Path(recipe.store)))
    if recipe.follows_target:
        show("How the loss on the target moved, and what was followed:")
        gracekit("sql", OF_TARGET, "--recipe", str(recipe_path))
    report = run_dir / "report.html"
    show("All of it to look at, with pictures of the data:")
    gracekit("report", "--recipe", str(recipe_path), "-o", str(report))
    if options.comparison:
        show_comparison(run_dir, recipe_path)
    show(
        "Where to look next:\n"
        f"  {tidy(report)}   in a browser: {report.resolve().as_uri()}\n"
        f"  gracekit status --recipe {tidy(recipe_path)}\n"
        f"  gracekit sql --list --recipe {tidy(recipe_path)}\n"
        f"  gracekit diff 1 {options.epochs - 1} --recipe {tidy(recipe_path)}\n"
        f"  {tidy(run_dir / 'coreset')}   {tidy(Path(recipe.store) / 'manifests')}\n"
        "  README.md: with your own data and trainer in ten lines"
    )
    return 0


def parse_options() -> argparse.Namespace:
    """The command line; what a recipe implies for the trainer is filled in."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", type=Path, default=HERE / "quickstart.yaml")
    parser.add_argument("--epochs", type=int, default=4, help="epochs of the trainer, at least 2")
    parser.add_argument(
        "--comparison",
        action=argparse.BooleanOptionalAction,
        help="end with a small comparison with random rows (default: with quickstart.yaml)",
    )
    options, trainer_options = parser.parse_known_args()
    options.trainer_options = trainer_options
    if (count := Recipe.load(options.recipe).selection.count) is not None:
        options.trainer_options = ["--samples-per-epoch", str(count), *trainer_options]
    if options.comparison is None:
        options.comparison = options.recipe.resolve() == HERE / "quickstart.yaml"
    options.model = "smollm2" if options.recipe.stem == "smollm2" else "llama-tiny"
    if options.epochs < 2:
        parser.error("--epochs must be at least 2: a version is trained on in the next epoch")
    return options


def start(name: str, arguments: list[str]) -> subprocess.Popen[str]:
    """A Python process whose output and messages appear here, each line behind its name."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # Passive: the process that waits for the other must not spin on its cores.
        env={
            **os.environ,
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONUNBUFFERED": "1",
            "OMP_WAIT_POLICY": "passive",
        },
    )
    assert process.stdout is not None
    RELAYS.append(relay(process.stdout, name))
    return process


def wait_for_both(watcher: subprocess.Popen[str], trainer: subprocess.Popen[str]) -> None:
    """Wait until both ended well; if one fails, end the other and leave with its code."""
    deadline = time.monotonic() + LONGEST_WAIT_S
    running = {"gracekit watch": watcher, "the trainer": trainer}
    while running and time.monotonic() < deadline:
        time.sleep(0.2)
        for name, process in list(running.items()):
            code = process.poll()
            if code is None:
                continue
            del running[name]
            if code != 0:
                for other in running.values():
                    other.terminate()
                hear_out()
                sys.exit(f"{name} ended with exit code {code}; its messages are above")
    if running:
        sys.exit(f"{' and '.join(running)} did not end within {LONGEST_WAIT_S} s")
    hear_out()


def hear_out() -> None:
    """Wait for the last lines of the processes, which would be lost with this one."""
    for thread in RELAYS:
        thread.join(LAST_WORDS_S)


def gracekit(*arguments: str) -> None:
    """Run a command as a user would type it, and fail when it fails."""
    with at_work(f"gracekit {arguments[0]} is at work"):
        subprocess.run([sys.executable, "-m", "gracekit", *arguments], check=True)


def check_drawn_samples(drawn: Path, store: Path, num_epochs: int) -> None:
    """Compare the sample ids that the trainer drew in each epoch with the versions.

    The first epoch has no coreset yet; epoch 2 must have trained on version 1, and so on. A trainer
    draws anew from a version's probabilities; no sample may come twice in an epoch, nor before its
    turn: over all versions it was drawn as often as its probabilities add up to, to less than two.
    """
    epochs = [json.loads(line) for line in drawn.read_text(encoding="utf-8").splitlines()]
    versions = [epoch["version"] for epoch in epochs]
    if versions != [None, *range(1, num_epochs)]:
        sys.exit(f"expected the epochs to train on no coreset and then on versions 1 to "
                 f"{num_epochs - 1}; found {versions}")  # fmt: skip
    show(f"Epoch 1 drew {len(set(epochs[0]['positions'])):,} distinct samples of the whole data.")
    drawn_before: set[str] = set()
    balance: Counter[str] = Counter()
    for epoch in epochs[1:]:
        ids, probabilities = epoch["sample_ids"], inclusion_probabilities(store, epoch["version"])
        outside = {name for name in ids if not probabilities.get(name)}
        if outside or not ids:
            sys.exit(
                f"epoch {epoch['epoch']} drew {len(ids)} samples, {len(outside)} of them not to "
                f"be drawn from version {epoch['version']}"
            )
        share = len(ids) / sum(probabilities.values())
        balance.update({name: share * p for name, p in probabilities.items()})
        balance.subtract(ids)
        show(
            f"Epoch {epoch['epoch']} drew {len(set(ids)):,} distinct samples by the probabilities "
            f"of version {epoch['version']}, {len(set(ids) - drawn_before):,} of them for the "
            "first time."
        )
        drawn_before |= set(ids)
    name, most = max(balance.items(), key=lambda item: abs(item[1]))
    if abs(most) >= 2:
        sys.exit(f"{name!r} was not drawn as often as its probabilities say: {most:+.2f} are owed")


def what_it_brought(store: Path) -> str:
    """What the newest coreset is worth, and what all selection cost, in one line."""
    query = """SELECT value, best, cost_in_all / training_tokens, cost_seconds / training_seconds
               FROM versions ORDER BY version DESC LIMIT 1"""
    value, best, share, of_time = (
        column.to_pylist()[0] for column in sql(store, query).to_arrow().columns
    )
    found = "What came of it: "
    if value is None:
        found += "too few samples were measured to tell what the newest coreset is worth"
    else:
        found += (
            "1,000 samples of the newest coreset give the mean gradient to be trained by "
            f"as well as about {1000 * value:,.0f} random ones (at best: {1000 * best:,.0f})"
        )
    if share is not None:
        found += f"; measuring for all versions cost {share:.0%} of the training's compute"
        found += "" if of_time is None else f", all selection {of_time:.0%} of its time"
    return f"{found}."


def show_comparison(run_dir: Path, recipe: Path) -> None:
    """Train the tiny model on random rows and on what is selected, once, and say which is better.

    It starts from the checkpoint after the first epoch, which knew no coreset.
    """
    found = (run_dir / "checkpoints").glob("checkpoint-*")
    first = min(found, key=lambda path: int(path.name.rpartition("-")[2]))
    place = run_dir.with_name(f"{run_dir.name}-comparison")
    show(
        "Is the selection better than random rows that are drawn anew in every epoch? A small try, "
        f"kept in {tidy(place)}:"
    )
    began = cpu_seconds()
    small_comparison.compare(small_comparison.prepare(run_dir, recipe, first, place))
    print(f"That took {cpu_seconds() - began:.0f} CPU seconds; all before it {began:.0f}.")


def cpu_seconds() -> float:
    """Of the processes that were started here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def inclusion_probabilities(store: Path, version: int) -> dict[str, float]:
    """How likely each sample was; 1 for those of the coreset where a selector draws none."""
    query = f"SELECT sample_id, inclusion_probability FROM draws WHERE version = {version}"
    table = sql(store, query).to_arrow()
    found = dict(zip(*(column.to_pylist() for column in table.columns), strict=True))
    if any(value is not None for value in found.values()):
        return found
    return dict.fromkeys(Coreset.load(store, version=version).sample_ids.tolist(), 1.0)


def clear(run_dir: Path, store: Path) -> None:
    """Remove what an earlier run of this script left in `run_dir`, and nothing else."""
    made = {"checkpoints", "final", "coreset", "drawn.jsonl", "report.html", store.name}
    run_dir.mkdir(parents=True, exist_ok=True)
    strange = sorted(path.name for path in run_dir.iterdir() if path.name not in made)
    if strange:
        sys.exit(f"{run_dir} holds {strange[0]!r}, which no earlier run made; give the recipe a "
                 "store in a directory of its own, such as runs/mine/store")  # fmt: skip
    for name in made:
        path = run_dir / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def show(text: str) -> None:
    """A line of the quickstart itself, apart from those of the two processes."""
    print(f"\n{text}" if not text.startswith("Epoch") else text, flush=True)


def tidy(path: Path) -> str:
    """A path as short as it can be typed from the project's folder."""
    path = Path(os.path.normpath(path.absolute()))
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\nstopped; `make run` begins anew", file=sys.stderr)
        sys.exit(130)
