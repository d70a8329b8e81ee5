"""Tables and sentences of the command line at any width of the terminal."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from gracekit.cli import main
from gracekit.cli.output import Output, TableColumn
from gracekit.recipe import DataSection
from gracekit.store import Store
from gracekit.text_table import display_width
from gracekit.types import Origin
from gracekit.version.header import DataDescription
from gracekit.version.outcomes import Cost
from tests.stores import N, make_draft, make_reselect, make_samples, make_store, strings

COMMANDS = {
    "versions": 3,
    "diff 1 2": None,
    "status": None,
    "sql movers": 20,
    "sql --schema": None,
    "sql --list": None,
    "sql hardest": 20,
    "sql churn": 3,
}
"""Command -> rows of its table, where it prints just one."""
PREVIEW = "語語 wide \x1b[31m and a text that goes on and on, far beyond what any terminal holds "


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with long ids, wide characters, and terminal sequences in its texts."""
    samples = dataclasses.replace(
        make_samples(),
        sample_ids=strings([f"an-id-{i:03d}-{'x' * (2 * i)}" for i in range(N)]),
        previews=strings([f"{PREVIEW} {i}" * 2 for i in range(N)]),
    )
    made = Store.create(
        tmp_path_factory.mktemp("tables") / "store",
        samples=samples,
        dataset=DataDescription(settings=DataSection(path="train.jsonl", format="messages")),
    )
    made.commit(make_draft(made, "one"))
    made.commit(make_draft(made, "two"))
    made.commit(make_reselect(made, "three"))
    return made.paths.root


def run(root: Path, command: str, *options: str, width: int | None) -> Result:
    name, *rest = command.split()
    environment = {"COLUMNS": None if width is None else str(width)}
    result = CliRunner().invoke(
        main, [name, "--store", str(root), *rest, *options], env=environment
    )
    assert result.exit_code == 0, result.output
    return result


@pytest.mark.parametrize("width", [20, 40, 80, 120, 300])
@pytest.mark.parametrize("command", COMMANDS)
def test_no_line_is_wider_than_the_terminal(root: Path, command: str, width: int) -> None:
    result = run(root, command, width=width)
    for line in (*result.stdout.splitlines(), *result.stderr.splitlines()):
        assert display_width(line) <= width, line
        assert "\x1b" not in line


@pytest.mark.parametrize("width", [20, 40, 80, 120])
def test_a_row_is_one_line_and_what_is_left_out_is_told(root: Path, width: int) -> None:
    for command, num_rows in COMMANDS.items():
        if num_rows is None:
            continue
        result = run(root, command, width=width)
        assert len(result.stdout.splitlines()) == 2 + num_rows, "none is folded"
        titles = result.stdout.splitlines()[0]
        whole = run(root, command, width=None).stdout.splitlines()[0].split("  ")
        absent = [title.strip() for title in whole if title.strip() not in titles]
        if absent:
            told = "".join(result.stderr.split())
            assert "--all-columns" in told and "--json" in told
            assert all(title.replace(" ", "") in told for title in absent)


def test_all_columns_shows_what_a_pipe_gets(root: Path) -> None:
    for command in ("versions", "diff 1 2", "sql movers"):
        piped = run(root, command, width=None)
        asked = run(root, command, "--all-columns", width=30)
        tables = [text.stdout.splitlines()[-3:] for text in (piped, asked)]
        assert tables[0] == tables[1]
        assert piped.stderr == asked.stderr == ""


def test_ids_stay_whole_before_other_columns_do(root: Path) -> None:
    shown = run(root, "sql movers --param count=50", width=80).stdout
    short = [f"an-id-{i:03d}-{'x' * (2 * i)}" for i in range(12)]
    found = [sample_id for sample_id in short if f"{sample_id} " in shown]
    assert found, shown
    assert "…" in shown, "longer ones than 40 characters are cut"


@pytest.mark.parametrize(("max_cost", "key"), [(math.nan, "min_fraction"), (0.1, "max_cost")])
def test_the_next_step_names_no_limit_that_the_recipe_has_not(
    tmp_path: Path, max_cost: float, key: str
) -> None:
    """Where nothing was measured, `refresh.max_cost: null` is not what allowed none."""
    store = make_store(tmp_path / "store")
    draft = make_draft(store, "one")
    assert draft.scores is not None and draft.measurement is not None
    never = np.full(N, Origin.NEVER, draft.scores.origin.dtype)
    none = np.zeros(0, np.int64)
    nobody = dataclasses.replace(
        draft.measurement, rows=none, features=np.zeros((0, 4), np.float16),
        scores={name: np.zeros(0, np.float32) for name in draft.measurement.scores},
    )  # fmt: skip
    cost = Cost(cost=0.0, cost_in_all=0.0, max_cost=max_cost)
    scores = dataclasses.replace(draft.scores, origin=never)
    store.commit(
        dataclasses.replace(draft, scores=scores, measurement=nobody, plan=None, cost=cost)
    )
    (told,) = [line for line in run(store.paths.root, "status", width=None).stdout.splitlines()
               if line.startswith("Next: ")]  # fmt: skip
    assert told.startswith(f"Next: raise refresh.{key} in the recipe")


def test_status_is_sentences_with_one_next_step(root: Path) -> None:
    lines = run(root, "status", width=None).stdout.splitlines()
    assert lines[0].startswith("The store at ") and f"follows {N} samples" in lines[0]
    assert lines[1].startswith("The latest version is 3, made ")
    assert any(line.startswith("How far to trust the scores: scores carried") for line in lines)
    assert lines[-1].startswith("Next: ") and sum("Next:" in line for line in lines) == 1
    assert all(line.endswith((".", ".`")) for line in lines)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.text(max_size=60), st.floats(), st.integers()), max_size=5),
    st.integers(1, 100),
)
def test_any_record_fits_any_width(rows: list[tuple[str, float, int]], width: int) -> None:
    columns = [
        TableColumn(key="text", title="text"),
        TableColumn(key="float", title="some float", is_number=True, priority=1),
        TableColumn(key="int", title="whole", is_number=True, priority=2),
    ]

    @click.command()
    def print_table() -> None:
        records = [dict(zip(("text", "float", "int"), row, strict=True)) for row in rows]
        Output().table(columns, records)

    result = CliRunner().invoke(print_table, env={"COLUMNS": str(width)})
    assert result.exit_code == 0
    lines = result.stdout.split("\n")[:-1]
    assert len(lines) == 2 + len(rows)
    assert all(display_width(line) <= width for line in lines)
