"""A benchmark from nothing to its verdict: data, a pre-trained start, all runs.

    python pipelines/bench/run.py mix                          # small form: minutes on two cores
    python pipelines/bench/run.py found --model qwen3
    python pipelines/bench/run.py found --reference smollm2 --arms once,clean,trusted
    python pipelines/bench/run.py maths --gsm8k DIR
    python pipelines/bench/run.py maths-exact --gsm8k DIR      # SmolLM2-135M, half an hour
    python pipelines/bench/run.py mix --form full              # SmolLM2-135M, hours; or a GPU

Results are under `runs/bench/NAME/MODEL-FORM/`: a file a run, and `comparison.html`. Stopped, it
goes on where it was. The full form trains SmolLM2-135M with larger draws, more seeds, all held-out
rows, and `full` as an arm.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch

import gracekit

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
from pipelines.bench import data, models

HERE = Path(__file__).resolve().parent
RUNS = HERE.parent.parent / "runs/bench"
FULL: dict[str, Any] = {
    "compare.seeds": 5,
    "compare.learning_rate": 2e-5,
    "compare.evaluations": 12,
    "compare.epochs": 6,
    "scoring.batch_tokens": 1024,
}
"""Changes of the full form, for SmolLM2-135M."""
FULL_OF: dict[str, dict[str, Any]] = {
    "maths": {"compare.metric": "exact-match", "selection.count": 1500},
    "mix": {"selection.count": 720},
    "found": {"selection.count": 720},
    "share": {"compare.epochs": 24},
    "share-target": {"compare.epochs": 24},
    **{f"target-{name}": {"selection.count": 120, "compare.epochs": 10} for name in data.TARGETS},
}
STARTS = {"maths-exact": "smollm2"}
"""Models of small forms that are not GPT-2: a million parameters write no answers."""
MORE_ARMS = {
    "found": ["loss-top", "infobatch", "balanced-measured"],
    "mix": ["infobatch", "coverage", "d2", "balanced-measured"],
    "share-target": ["rds", "aimed-likeness", "aimed-influence"],
    "share": ["coverage", "balanced-no-graph", "balanced-no-time"],
    **{f"target-{name}": ["target-coverage", "influence", "recipe"] for name in data.TARGETS},
}
"""Arms of the full form besides those of the recipe and `full`."""
OF_REFERENCE: dict[str, dict[str, Any]] = {
    "trusted": {"selection.trust": "weigh"},
    "trusted-cut": {"selection.trust": "cut"},
    "excess": {"selection.excess": 1.0},
    "groups-learned": {"selection.group_quota": "learned"},
}
"""Arms that go by a reference model: what each changes of the recipe."""
OF_PASS = {"scoring.batch_tokens": 1024, "scoring.dtype": "bfloat16"}
"""How a reference model measures, which may be a large one."""


def main() -> None:
    """Run one benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", choices=sorted(data.BENCHMARKS))
    parser.add_argument(
        "--model",
        choices=models.FAMILIES,
        help="(small: gpt2, maths-exact: smollm2; full: smollm2)",
    )
    parser.add_argument("--form", choices=("small", "full"), default="small")
    parser.add_argument("--arms", help="comma-separated (default: those of the recipe)")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument(
        "--reference",
        choices=models.FAMILIES,
        help=f"measure the data with it once, for the arms {', '.join(OF_REFERENCE)}",
    )
    parser.add_argument("--gsm8k", type=Path, help="directory of GSM8K's files, for maths")
    parser.add_argument("--mix-code", action="store_true", help="go on with runs of other code")
    parser.add_argument("-o", "--output", type=Path, default=RUNS)
    options = parser.parse_args()
    began, began_cpu = time.monotonic(), time.process_time()
    found = run(
        options.name,
        options.model,
        options.form,
        arms=options.arms and options.arms.split(","),
        seeds=options.seeds,
        changes=options.set,
        reference=options.reference,
        gsm8k=options.gsm8k,
        root=options.output,
        mix_code=options.mix_code,
    )
    print(table(found))
    print("\n".join(found.verdict))
    print(f"{time.monotonic() - began:.0f} s, {time.process_time() - began_cpu:.0f} CPU s")


def run(
    name: str,
    model: str | None = None,
    form: str = "small",
    *,
    arms: list[str] | None = None,
    seeds: int | None = None,
    changes: list[str] | None = None,
    reference: str | None = None,
    gsm8k: Path | None = None,
    root: Path = RUNS,
    mix_code: bool = False,
) -> Any:
    """The comparison of one benchmark; what it needs is made where it is not there."""
    recipe = recipe_of(name, model, form, gsm8k=gsm8k, root=root)
    if reference is not None:
        recipe = with_reference(recipe, models.make(reference, root / "models" / reference), root)
    return gracekit.compare(
        recipe,
        arms=arms,
        seeds=seeds,
        set=changes or [],
        output=root / name / f"{model or start_of(name, form)}-{form}",
        mix_code=mix_code,
    )


def start_of(name: str, form: str) -> str:
    """The family of models that a benchmark starts from where none is named."""
    return "smollm2" if form == "full" else STARTS.get(name, "gpt2")


def recipe_of(
    name: str,
    model: str | None = None,
    form: str = "small",
    *,
    gsm8k: Path | None = None,
    root: Path = RUNS,
) -> gracekit.Recipe:
    """The recipe of one benchmark; data and start are made where they are not there."""
    folder = root / name
    if not (folder / "train.jsonl").is_file():
        print(f"{name}: {data.make(name, folder, gsm8k=gsm8k)}", flush=True)
    model = model or start_of(name, form)
    start = models.make(model, root / "models" / model)
    recipe = gracekit.Recipe.load(HERE / f"{name}.yaml")
    settings: dict[str, Any] = {
        "compare.start": str(start),
        "store": str(folder / "store"),
        "data.path": str(folder / "train.jsonl"),
        "compare.evaluation.path": str(folder / "held-out.jsonl"),
    }
    if recipe.target is not None:
        settings["target.path"] = str(folder / "target.jsonl")
    if form == "full":
        settings |= FULL | FULL_OF.get(name, {})
        settings["compare.arms"] = [*recipe.compare.arms, *MORE_ARMS.get(name, []), "full"]
        settings["compare.evaluation.split"] = "train"
    return recipe.override(settings)


def with_reference(recipe: gracekit.Recipe, model: Path, root: Path) -> gracekit.Recipe:
    """The recipe with the arms that go by the losses of one model, which are measured once."""
    output = root / f"{model.name}-{Path(recipe.data.places[0]).parent.name}.parquet"
    started = time.process_time()
    measured = gracekit.reference(recipe, model, output=output, set=OF_PASS)
    print(
        f"{output.name}: {measured.num_measured} contents measured in "
        f"{time.process_time() - started:.0f} CPU s; {measured.num_distrusted} of "
        f"{measured.num_samples} samples are distrusted",
        flush=True,
    )
    return recipe.override({
        "selection.reference": str(output),
        "compare.arms": [*recipe.compare.arms, *OF_REFERENCE],
        "compare.changes": recipe.compare.changes | OF_REFERENCE,
    })  # fmt: skip


def table(found: Any) -> str:
    """The comparison in Markdown, as docs/evidence.md has it."""
    lines = [
        f"| arm | held-out loss | less `{found.control}` | 95 % interval | steps to its loss | of "
        "the distance to the oracle | compute, of the control's | selection / training | rows | "
        "most uses | metric | marked |",
        "|---|--:|--:|---|--:|--:|--:|--:|--:|--:|--:|---|",
    ]
    whole = next((arm.compute[-1] for arm in found.arms if arm.arm == found.control), math.nan)
    for arm in found.arms:
        apart = arm.against_control
        cells = [
            f"`{arm.arm}`",
            f"{arm.loss:.4f} ± {arm.spread:.4f}",
            "" if apart is None else f"{apart.mean:+.4f}",
            "" if apart is None else f"{apart.low:+.4f}, {apart.high:+.4f}",
            number(arm.steps_to_control, ".0%"),
            number(arm.closed, ".2f"),
            number(arm.compute[-1] / whole, ".0%"),
            number(arm.selection_share, ".1%"),
            f"{arm.num_distinct:.0f}",
            str(arm.most_uses),
            number(arm.metric, ".3f"),
            ", ".join(f"{name} {share:.0%}" for name, share in arm.marked.items()),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def number(value: float, shape: str) -> str:
    """A number, or a dash where there is none."""
    return "–" if value != value else format(value, shape)


if __name__ == "__main__":
    import logging

    torch.set_num_threads(1)
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    logging.getLogger("gracekit.comparing").setLevel(logging.INFO)
    try:
        main()
    except gracekit.GracekitError as error:
        sys.exit(str(error))
