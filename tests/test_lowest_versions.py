"""The lower bounds in pyproject.toml are those that `make test-lowest` installs and tests with."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent

EXCEPTED = {
    "torch": "wheels of old releases bring gigabytes of CUDA libraries; tested at $(TORCH) only",
    "trackio": "asks for a newer huggingface_hub; `make test-trackers` has its lowest version",
    "wandb": "its lowest version is the one that `make test-trackers` has",
    "import-linter": "checks the source, and is run at the version in constraints.txt alone",
    "mypy": "checks the source, and is run at the version in constraints.txt alone",
    "ruff": "checks the source, and is run at the version in constraints.txt alone",
}
"""Requirements that the environment lacks or has newer, and why."""


def requirements() -> dict[str, list[Requirement]]:
    """Extra -> what pyproject.toml asks for; without an extra under the empty name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lists = {"": project["dependencies"], **project["optional-dependencies"]}
    return {extra: [Requirement(text) for text in texts] for extra, texts in lists.items()}


def claimed() -> dict[str, Version]:
    """Name -> lower bound, of everything in pyproject.toml that has one."""
    bounds: dict[str, Version] = {}
    for requirement in (one for several in requirements().values() for one in several):
        name = canonicalize_name(requirement.name)
        for specifier in requirement.specifier:
            assert specifier.operator == ">=", f"{requirement}: the test knows lower bounds alone"
            bound = Version(specifier.version)
            assert bounds.setdefault(name, bound) == bound, f"{name} has two lower bounds"
    return bounds


def pinned(name: str) -> dict[str, Version]:
    """Name -> version, of the lines of a file of constraints."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    found = (line.split("#")[0].strip().partition("==") for line in lines)
    return {canonicalize_name(name): Version(version) for name, _, version in found if name}


def test_each_lower_bound_is_the_version_of_the_environment() -> None:
    bounds, lowest = claimed(), pinned("constraints-lowest.txt")
    assert set(EXCEPTED) <= set(bounds), "an exception that pyproject.toml no longer claims"
    assert {n: str(lowest.get(n)) for n, v in bounds.items() if v != lowest.get(n)} == {
        name: str(lowest.get(name)) for name in EXCEPTED
    }
    assert not set(EXCEPTED) & set(lowest)


def test_the_environment_has_all_of_them() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    rule = re.search(r"^runs/lowest/ok:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert rule is not None
    steps = [s for s in rule[1].replace("\\\n", " ").splitlines() if "pip install" in s]
    assert len(steps) == 2 and all(" -c constraints-lowest.txt " in step for step in steps)
    _, _, wanted = steps[1].partition(" -c constraints-lowest.txt ")
    here, *named = wanted.split()[1:]  # after -e
    extras = ["", *here.strip("'.[]").split(",")]
    by_extra = [canonicalize_name(one.name) for extra in extras for one in requirements()[extra]]
    installed = {*by_extra, *map(canonicalize_name, named)}
    assert claimed().keys() - installed == EXCEPTED.keys() - {"torch"}


def test_the_lowest_are_not_above_the_newest() -> None:
    newest = pinned("constraints.txt")
    below = {n: (v, newest[n]) for n, v in claimed().items() if n in newest and v > newest[n]}
    assert not below
