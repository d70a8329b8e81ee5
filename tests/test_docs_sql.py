"""docs/sql.md tells of the tables, columns and ready-made queries that there are.

python -m tests.test_docs_sql      # writes them anew; `make docs` does that
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from gracekit.cli import main
from gracekit.store import NAMED_QUERIES
from gracekit.version.columns import TABLES, VIEWS
from tests.stores import make_draft, make_store

PAGE = Path(__file__).parent.parent / "docs" / "sql.md"


def tables() -> str:
    lines = []
    for table in (TABLES | VIEWS).values():
        lines += ["", f"**{table.name}**: {table.about}.", "", "| column | |", "|---|---|"]
        lines += [f"| `{column.name}` | {column.about} |" for column in table.columns]
    return "\n".join(lines) + "\n"


def queries() -> str:
    lines = ["| name | parameters | |", "|---|---|---|"]
    for query in NAMED_QUERIES.values():
        parameters = ", ".join(f"`{name}`" for name in query.parameters)
        lines.append(f"| `{query.name}` | {parameters} | {query.about} |")
    return "\n".join(lines) + "\n"


def generated(text: str) -> str:
    """The page with what stands between its marks made anew."""
    for name, content in (("tables", tables()), ("queries", queries())):
        pattern = f"(?<=<!-- {name} -->\n).*(?=<!-- /{name} -->)"
        text, count = re.subn(pattern, lambda _, new=content: new, text, flags=re.DOTALL)  # type: ignore[misc]
        assert count == 1, f"docs/sql.md has no place for {name}"
    return text


def test_the_page_is_up_to_date() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text == generated(text), "run `make docs`"


def commands() -> list[tuple[str, str]]:
    """The commands on the page, and the first line of each answer that it shows."""
    block = re.compile(
        r"^    \$ (gracekit sql (?:.*\n {19}.*)*.*)\n(?:    (\S.*)\n)?", re.MULTILINE
    )
    return block.findall(PAGE.read_text(encoding="utf-8"))


def programs() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.fixture
def beside_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory with what the page speaks of."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)  # tables are whole where no width is known
    made = make_store(tmp_path / "gracekit-store")
    for refresh_id in ("one", "two", "three"):
        made.commit(make_draft(made, refresh_id))
    Path("labels.csv").write_text("sample_id,label\nid-003,good\n")


@pytest.mark.usefixtures("beside_a_store")
def test_the_commands_on_the_page_answer_as_it_shows() -> None:
    found = commands()
    assert len(found) == PAGE.read_text(encoding="utf-8").count("$ gracekit sql") >= 7
    for command, header in found:
        text = command.replace("1992e3f163c5389cbe69257d7e50bd44", "id-003").replace("\\\n", " ")
        run = CliRunner().invoke(main, [*shlex.split(text)[1:], "--store", "gracekit-store"])
        assert run.exit_code == 0, f"{command}\n{run.output}"
        lines = run.stdout.splitlines()
        assert len(lines) > 2, f"{command} has no answer"
        if header:
            assert lines[0].split() == header.split(), command


@pytest.mark.usefixtures("beside_a_store")
@pytest.mark.parametrize("program", programs(), ids=lambda text: text.split()[1])
def test_the_programs_on_the_page_run(program: str) -> None:
    pytest.importorskip(program.split()[1])
    exec(compile(program, str(PAGE), "exec"), {})


if __name__ == "__main__":
    PAGE.write_text(generated(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
