"""docs/sql.md tells of the tables, columns and ready-made queries that there are.

python -m tests.test_docs_sql      # writes them anew; `make docs` does that
"""

from __future__ import annotations

import re
from pathlib import Path

from gracekit.store import NAMED_QUERIES
from gracekit.version.columns import TABLES, VIEWS

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


if __name__ == "__main__":
    PAGE.write_text(generated(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
