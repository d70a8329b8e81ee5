"""Runs a notebook's cells in one namespace, as a kernel does: `python -m tests.notebook FILE`.

Prints what each cell shows: its last expression as HTML where it has some, else as text.
"""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import Any


def cells_of(path: Path) -> list[str]:
    """The source of each code cell."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def run(path: Path) -> None:
    space: dict[str, Any] = {"__name__": "__main__"}
    for number, source in enumerate(cells_of(path), start=1):
        print(f"--- cell {number}")
        tree, name = ast.parse(source), f"cell {number}"
        last = tree.body[-1]
        is_silent = source.rstrip().endswith(";") or not isinstance(last, ast.Expr)
        shown = None
        if not is_silent and isinstance(last, ast.Expr):
            tree.body.pop()
            shown = compile(ast.Expression(last.value), name, "eval")
        exec(compile(tree, name, "exec"), space)
        if shown is not None:
            value = eval(shown, space)
            as_html = getattr(value, "_repr_html_", None)
            print(as_html() if as_html is not None else repr(value))


if __name__ == "__main__":
    run(Path(sys.argv[1]))
