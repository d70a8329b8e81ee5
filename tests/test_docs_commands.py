"""docs/commands.md shows the commands as they print at 80 columns.

    python -m tests.test_docs_commands      # writes the page anew; `make docs` does that

What the page shows comes from a small real store. Numbers differ from machine to machine in their
last digits, so the test compares what does not: commands, columns, the beginnings of sentences.
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios
from pathlib import Path

import pytest
import yaml

import gracekit
from gracekit.text_table import display_width
from tests.tiny import recipe_content, write_checkpoint

REPOSITORY = Path(__file__).parent.parent
PAGE = REPOSITORY / "docs" / "commands.md"
WIDTH = 80
NUM_ROWS = 400

HEAD = """\
# The commands as they print

In a terminal of 80 columns: the least important columns of a table are left out first, and a line
below it says which; long texts end in `…`. `--all-columns` shows tables whole, `--json` everything.
In a pipe or a file a table is whole, one line a row, unless the variable `COLUMNS` is set.

The store is that of a test: 400 rows of the shipped data (`data/README.md`), a Llama of two small
layers, three checkpoints, and a selection afterwards. This page is written by `make docs`.
"""
COMMANDS = {
    "versions": "What was made, when, and how good the audit found it.",
    "status": "What there is, how far to trust it, and what to do next.",
    "diff 2 3": "How two versions differ.",
    "explain {sample}": "Why a sample is in the coreset, or why it is not.",
    "similar {sample} --count 4": "The samples that the model takes for most alike.",
    "select --compare coverage,random,top": "What several selectors would choose.",
    "sql --list": "Ready-made questions.",
    "sql movers --param count=5": "One of them.",
}


def make_world(folder: Path) -> str:
    """A store with four versions in `folder`; returns the id of a sample of its newest coreset."""
    rows = (REPOSITORY / "data" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    with (folder / "train.jsonl").open("w", encoding="utf-8") as file:
        for i, text in enumerate(rows[:NUM_ROWS]):
            row = json.loads(text)
            file.write(json.dumps({"id": f"{row['source']}-{i}", **row}) + "\n")
    recipe = recipe_content(
        data={"id_column": "id", "max_length": 128}, selection={"fraction": 0.3}
    )
    (folder / "gracekit.yaml").write_text(yaml.safe_dump(recipe))
    for step in (100, 200, 300):
        gracekit.refresh(folder / "gracekit.yaml", write_checkpoint(folder / "run", step))
    gracekit.select(folder / "gracekit.yaml", set={"selection.count": 60})
    gracekit.pin(folder / "store", 2, note="published")
    newest = gracekit.Store.open(folder / "store").coreset(4).sort_by("rank")
    return str(newest["sample_id"][0])


def on_a_terminal(folder: Path, command: str) -> str:
    """What a command prints on a terminal of 80 columns, stdout and stderr as they come."""
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 50, WIDTH, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        [sys.executable, "-m", "gracekit", *command.split()],
        cwd=folder, stdin=child, stdout=child, stderr=child,
        env={**environment, "PYTHONPATH": str(REPOSITORY), "TERM": "xterm",
             "PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip
    os.close(child)
    parts = []
    try:
        while part := os.read(parent, 65536):
            parts.append(part)
    except OSError:
        pass  # the end of a terminal on Linux
    os.close(parent)
    assert process.wait() == 0, b"".join(parts)
    return b"".join(parts).decode().replace("\r\n", "\n")


def page(folder: Path, sample: str) -> str:
    parts = [HEAD]
    for command, about in COMMANDS.items():
        typed = command.format(sample=sample)
        shown = on_a_terminal(folder, typed).rstrip().replace(f"{folder}/", "")
        parts.append(f"{about}\n\n```\n$ gracekit {typed}\n{shown}\n```\n")
    return "\n".join(parts)


def blocks(text: str) -> list[list[str]]:
    return [block.splitlines() for block in re.findall(r"```\n(.*?)\n```", text, flags=re.DOTALL)]


def skeleton(block: list[str]) -> list[str]:
    """What does not depend on the last digits of a number."""
    kept: list[str] = []
    in_table = False
    for line, following in zip(block, [*block[1:], ""], strict=True):
        if set(following) == {"─"}:
            kept.append("table: " + " ".join(line.split()))
            in_table = True
        elif not line:
            in_table = False
        elif not in_table and not line.startswith("  "):
            kept.append(" ".join(re.sub(r"[\d.,]+", "N", line).split()[:3]))
    return kept


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("docs")
    return folder, make_world(folder)


def test_the_page_shows_the_commands_as_they_print(world: tuple[Path, str]) -> None:
    text = page(*world)
    for block in blocks(text):
        for line in block:
            assert display_width(line) <= WIDTH, line
    written = blocks(PAGE.read_text(encoding="utf-8"))
    for found, expected in zip(blocks(text), written, strict=True):
        hint = "`make docs` writes docs/commands.md anew"
        assert skeleton(found) == skeleton(expected), hint


def test_a_pipe_gets_tables_whole_and_plain(world: tuple[Path, str]) -> None:
    folder, sample = world
    environment = {k: v for k, v in os.environ.items() if k != "COLUMNS"}
    for command in (*COMMANDS, "sql --schema"):
        run = subprocess.run(
            [sys.executable, "-m", "gracekit", *command.format(sample=sample).split()],
            cwd=folder, env={**environment, "PYTHONPATH": str(REPOSITORY)},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert run.stderr == "" and "\x1b" not in run.stdout
        if command == "versions":
            assert len(run.stdout.splitlines()) == 6
            for title in ("parent", "stale corr", "over all", "churn %", "model pass", "other"):
                assert title in run.stdout


def main() -> None:
    """Write the page."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder).resolve()
        PAGE.write_text(page(path, make_world(path)), encoding="utf-8")


if __name__ == "__main__":
    main()
