"""The house: no import goes in a circle, the store has one door, and few imports hide in functions.

Imports are read from the source: those inside functions and under TYPE_CHECKING count as well.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MOST_IN_FUNCTIONS = 30


@dataclass(frozen=True)
class Import:
    """One import statement."""

    module: str
    line: int
    targets: tuple[str, ...]
    """Modules of the package that it names; a name that is no module counts for its package."""
    in_function: bool


def module_name(path: Path, root: Path = ROOT) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources(folder: str) -> dict[str, str]:
    """Module name -> source."""
    found = sorted((ROOT / folder).rglob("*.py"))
    return {module_name(path): path.read_text(encoding="utf-8") for path in found}


def imports_of(module: str, source: str, known: Iterable[str]) -> Iterator[Import]:
    """All import statements of a module, wherever they stand."""
    modules = set(known)

    def visit(node: ast.AST, in_function: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                yield from visit(child, True)
                continue
            if isinstance(child, ast.Import):
                targets = tuple(alias.name for alias in child.names)
                yield Import(module, child.lineno, targets, in_function)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0 and child.module, f"{module}: relative import"
                names = [f"{child.module}.{alias.name}" for alias in child.names]
                targets = tuple(n if n in modules else child.module for n in names)
                yield Import(module, child.lineno, targets, in_function)
            yield from visit(child, in_function)

    yield from visit(ast.parse(source), False)


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """The strongly connected components of more than one node, and nodes that lead to themselves.

    Tarjan's algorithm.
    """
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def connect(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in sorted(graph.get(node, ())):
            if target not in index:
                connect(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            at = stack.index(node)
            component = sorted(stack[at:])
            del stack[at:]
            if len(component) > 1 or node in graph.get(node, ()):
                found.append(component)

    for node in sorted(graph):
        if node not in index:
            connect(node)
    return sorted(found)


@pytest.fixture(scope="module")
def package() -> list[Import]:
    """Every import in the package `gracekit`."""
    modules = sources("gracekit")
    return [i for name, source in modules.items() for i in imports_of(name, source, modules)]


def graph_of(found: Iterable[Import]) -> dict[str, set[str]]:
    graph: dict[str, set[str]] = {}
    for statement in found:
        inside = {t for t in statement.targets if t.partition(".")[0] == "gracekit"}
        graph.setdefault(statement.module, set()).update(inside - {statement.module})
    return graph


def test_no_import_goes_in_a_circle(package: list[Import]) -> None:
    assert circles(graph_of(package)) == []


def test_few_imports_stand_inside_functions(package: list[Import]) -> None:
    places = sorted(f"{i.module}:{i.line}" for i in package if i.in_function)
    assert len(places) <= MOST_IN_FUNCTIONS, f"{len(places)}:\n" + "\n".join(places)


def test_the_store_has_one_door(package: list[Import]) -> None:
    rooms = [i for i in package if not f"{i.module}.".startswith("gracekit.store.")]
    for folder in ("benchmarks", "pipelines"):
        modules = sources(folder) | sources("gracekit")
        rooms += [
            i for m, source in sources(folder).items() for i in imports_of(m, source, modules)
        ]
    inside = [
        f"{i.module}:{i.line} {target}"
        for i in rooms
        for target in i.targets
        if target.startswith("gracekit.store.")
    ]
    assert inside == []
    used = {target for i in rooms for target in i.targets}
    assert "gracekit.store" in used


def test_within_the_store_nobody_goes_through_the_door(package: list[Import]) -> None:
    inner = [i for i in package if i.module.startswith("gracekit.store.")]
    assert [i for i in inner if "gracekit.store" in i.targets] == []


HEAVY = ("torch", "transformers", "datasets", "pandas", "scipy", "numba")


@pytest.mark.parametrize(
    ("names", "absent"),
    [
        ("Lease, list_versions, read_manifest, trainer_view", (*HEAVY, "duckdb", "pydantic")),
        ("Lease, lock_store, lock_daemon, read_heartbeat", (*HEAVY, "duckdb", "pydantic")),
        ("Store, StoreReader, VersionDraft", (*HEAVY, "duckdb")),
        ("connect, ask, run_sql, verify, NAMED_QUERIES", HEAVY),
    ],
)
def test_the_door_loads_what_is_asked_for(names: str, absent: tuple[str, ...]) -> None:
    code = f"import sys; from gracekit.store import {names}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(set(absent) & set(done.stdout.split())) == []


# --- the tests of the test ---

SOURCES = {
    "gracekit": "",
    "gracekit.a": "def f():\n    from gracekit.b import x",
    "gracekit.b": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from gracekit import c",
    "gracekit.c": "class K:\n    import gracekit.a",
    "gracekit.d": "from gracekit import version, a",
}


def test_imports_are_found_wherever_they_stand() -> None:
    found = [i for m, source in SOURCES.items() for i in imports_of(m, source, SOURCES)]
    assert graph_of(found) == {
        "gracekit.a": {"gracekit.b"},
        "gracekit.b": {"gracekit.c"},
        "gracekit.c": {"gracekit.a"},
        "gracekit.d": {"gracekit", "gracekit.a"},
    }
    assert [i.module for i in found if i.in_function] == ["gracekit.a"]
    assert circles(graph_of(found)) == [["gracekit.a", "gracekit.b", "gracekit.c"]]


@pytest.mark.parametrize(
    ("edges", "expected"),
    [
        (["ab", "bc", "ac"], []),
        (["ab", "ba", "bc", "cd", "dc"], [["a", "b"], ["c", "d"]]),
        (["ab", "bc", "cd", "db", "de"], [["b", "c", "d"]]),
        (["aa"], [["a"]]),
    ],
)
def test_circles(edges: list[str], expected: list[list[str]]) -> None:
    graph: dict[str, set[str]] = {}
    for edge in edges:
        start, end = edge[0], edge[1]
        graph.setdefault(start, set()).add(end)
    assert circles(graph) == expected
