"""docs/sql.md tells of the tables, columns and ready-made queries that there are."""

from __future__ import annotations

import re
from pathlib import Path

from gracekit.store.sql.queries import NAMED_QUERIES
from gracekit.version.columns import TABLES, VIEWS

PAGE = Path(__file__).parent.parent / "docs" / "sql.md"


def tables() -> str:
    lines = []
    for name, described in (TABLES | VIEWS).items():
        lines += ["", f"**{name}**: {described.about}.", "", "| column | |", "|---|---|"]
        lines += [f"| `{column}` | {about} |" for column, about in described.columns.items()]
    return "\n".join(lines) + "\n"


def queries() -> str:
    lines = ["| name | parameters | |", "|---|---|---|"]
    for query in NAMED_QUERIES.values():
        parameters = ", ".join(f"`{name}`" for name in query.parameters)
        lines.append(f"| `{query.name}` | {parameters} | {query.about} |")
    return "\n".join(lines) + "\n"


def test_the_page_is_up_to_date() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name, expected in (("tables", tables()), ("queries", queries())):
        pattern = f"(?<=<!-- {name} -->\n).*(?=<!-- /{name} -->)"
        found = re.search(pattern, text, flags=re.DOTALL)
        assert found is not None
        assert found[0] == expected, f"docs/sql.md: put this between the marks:\n{expected}"
