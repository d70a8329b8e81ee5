"""What `gracekit plan` says that all selection of a run will cost, and what it did cost.

    python benchmarks/plan_against_spent.py

Trains the quickstart's Llama as `price_run.py` does, on other data, for other numbers of epochs
and with other budgets. A plan is asked for twice: of the model before its first step, where the
recipe says how many steps of how many samples there will be, and at the first checkpoint before
anything is measured, where the trainer says it. Both are set beside what the account of the last
version says, in counted tokens.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

import gracekit

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.price_run import Selecting, begin, parse, train

RUNS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "the default budget": (["--epochs", "8"], {}),
    "little data, short": (
        ["--rows", "1500", "--samples", "300", "--epochs", "5", "--max-cost", "0.2"],
        {},
    ),
    "more is allowed than is needed": (
        ["--rows", "2000", "--samples", "400", "--epochs", "5", "--max-cost", "1.0"],
        {"refresh.min_fraction": 0.05, "refresh.max_fraction": 0.1},
    ),
}


class Planning(Selecting):
    """Also asks for a plan before the first step."""

    before = float("nan")

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save the model as it is, as a checkpoint that no trainer has written, and plan of it."""
        super().on_train_begin()
        start = self.output / "start"
        kwargs["model"].save_pretrained(start)
        kwargs["processing_class"].save_pretrained(start)
        known = {
            "training.steps": state.max_steps,
            "training.samples_a_step": args.train_batch_size,
            "training.checkpoint_every": state.max_steps // args.num_train_epochs,
        }
        run = gracekit.plan(self.recipe, start, set=known).plan.run
        self.before = run.selection / run.training


def planned_and_spent(name: str, output: Path) -> Planning:
    """Train one of the runs to its end."""
    arguments, changes = RUNS[name]
    options = parse([*arguments, "-o", str(output)])
    shutil.rmtree(output, ignore_errors=True)
    rows, recipe = begin(options)
    planning = Planning(recipe.override(changes), output, truth_at=set())
    train(options, rows, planning)
    return planning


def main() -> None:
    """Train, and print a line for each run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=sorted(RUNS), help="one of the runs")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/plan-against-spent"))
    options = parser.parse_args()
    print("| run | may cost | planned before the first step | at the first checkpoint | spent | "
          "both / spent |\n|---|--:|--:|--:|--:|--:|", flush=True)  # fmt: skip
    for name in [options.only] if options.only else RUNS:
        found = planned_and_spent(name, options.output)
        spent = found.lines[-1]["counted"]
        print(
            f"| {name} | {found.recipe.refresh.max_cost:.0%} | {found.before:.1%} | "
            f"{found.planned:.1%} | {spent:.1%} | {found.before / spent:.2f}, "
            f"{found.planned / spent:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
