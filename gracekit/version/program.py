"""Which code this is: what has to be equal for two processes to measure the same bytes."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterable
from functools import cache
from importlib import metadata
from pathlib import Path

import gracekit.version
from gracekit.plugins import load_class

_PACKAGES = ("torch", "transformers", "numpy")


@cache
def program() -> dict[str, str]:
    """Versions of gracekit and of what measures with it, and a hash of gracekit's own source.

    Read once: a process goes on with the code that it has loaded when another version is installed.
    """
    found = {"gracekit": gracekit.version.__version__, "source": _source_digest()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # imported from a folder
            found[package] = "unknown"
    return found


def differences(theirs: object, ours: dict[str, str]) -> list[str]:
    """A phrase for each part that differs between another process's program and ours."""
    known = theirs if isinstance(theirs, dict) else {}
    return [
        f"{name} is {known.get(name)} there and {value} here"
        for name, value in ours.items()
        if known.get(name) != value
    ]


def own_code(names: Iterable[str]) -> dict[str, str]:
    """A hash of the file behind each `package.module:Class`; other names are gracekit's.

    What that file imports is not looked at. Raises `RecipeError` where there is no such class.
    """
    return {name: _class_digest(name) for name in names if ":" in name}


@cache
def _class_digest(name: str) -> str:
    """Read once, as `program` is."""
    found = load_class(name, "the scorer")
    try:
        path = inspect.getsourcefile(found)
    except TypeError:  # it was made without a file
        path = None
    content = b"" if path is None else Path(path).read_bytes()
    return hashlib.sha256(content).hexdigest()[:16]


def _source_digest() -> str:
    """Of all modules of the package, by their names and bytes."""
    root, digest = Path(gracekit.version.__file__).parent.parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]
