"""Wheel and sdist: what is in them, and the wheel in an environment that has nothing else.

In an environment of its own, which has the tools that build: `make test-package`. It needs the
package index, and a few minutes for torch.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
import tarfile
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MOST_WHEEL_BYTES, MOST_SDIST_BYTES = 2_000_000, 5_000_000

pytestmark = [
    pytest.mark.package,
    pytest.mark.skipif(importlib.util.find_spec("build") is None, reason="not installed"),
]


def run(*command: str | Path, folder: Path) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both files; the wheel is built from what the sdist holds."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "-o", folder, ROOT, folder=folder)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (found,) = built.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with the wheel, and what it asks for, alone."""
    place = tmp_path_factory.mktemp("fresh") / "venv"
    venv.create(place, with_pip=True)
    pip: list[str | Path] = [
        place / "bin/python",
        "-m",
        "pip",
        "install",
        "-q",
        "--disable-pip-version-check",
    ]
    pip += ["-c", ROOT / "constraints.txt"]
    torch = shlex.split(os.environ.get("GRACEKIT_TORCH", "torch"))
    run(*pip, *torch, folder=place)
    run(*pip, wheel, folder=place)
    return place / "bin"


def files_of(root: Path, kind: str = "*") -> set[str]:
    found = (path.relative_to(ROOT).as_posix() for path in root.rglob(kind) if path.is_file())
    return {name for name in found if "__pycache__" not in name}


def test_the_wheel_has_the_package_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    info = {name for name in names if name.startswith("gracekit-")}
    assert names - info == files_of(ROOT / "gracekit", "*.py") | {"gracekit/py.typed"}
    assert {name.partition("/")[2] for name in info} == {
        "METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE",
    }  # fmt: skip
    assert wheel.stat().st_size < MOST_WHEEL_BYTES


def test_what_the_wheel_says_of_itself(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as content:
        (name,) = (name for name in content.namelist() if name.endswith("/METADATA"))
        facts = Parser().parsestr(content.read(name).decode())
        (licence,) = (name for name in content.namelist() if name.endswith("/LICENSE"))
        assert content.read(licence) == (ROOT / "LICENSE").read_bytes()
    assert facts["License-Expression"] == "Apache-2.0"
    assert facts["Requires-Python"] == ">=3.11"
    extras = set(facts.get_all("Provides-Extra") or ())
    assert {"hnsw", "lora", "metrics", "ray", "tensorboard", "trackio", "wandb"} <= extras
    needed = [n for n in facts.get_all("Requires-Dist") or () if "extra ==" not in n]
    assert not [n for n in needed if re.match("pytest|ruff|mypy|wandb|ray", n)]


def test_the_sdist_has_what_a_clone_has(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as content:
        names = {name.partition("/")[2] for name in content.getnames()}
    kept = run("git", "ls-files", folder=ROOT).splitlines()
    left_out = {name for name in kept if (ROOT / name).exists()} - names
    assert {name.partition("/")[0] for name in left_out} <= {".ci"}
    made = {name for name in names if name} - set(kept) - {"PKG-INFO"}
    # New files that are not committed yet are those of the package alone, while one works on it.
    assert not [n for n in made if n.startswith(("runs", ".venv", "dist", "build"))]
    assert {"data/LICENSES.md", "LICENSE"} <= names
    assert sdist.stat().st_size < MOST_SDIST_BYTES


def test_the_programs_of_a_fresh_environment(installed: Path, tmp_path: Path) -> None:
    by_name = run(installed / "gracekit", "--help", folder=tmp_path)
    assert by_name == run(installed / "python", "-m", "gracekit", "--help", folder=tmp_path)
    assert "watch" in by_name
    for command in re.findall(r"^  ([a-z]+)  ", by_name, re.MULTILINE):
        run(installed / "gracekit", command, "--help", folder=tmp_path)
    version = run(installed / "gracekit", "--version", folder=tmp_path)
    assert version.split()[-1] in run(
        installed / "python", "-c", "import gracekit; print(gracekit.__version__)", folder=tmp_path
    )


def test_every_public_name_loads_without_extras(installed: Path, tmp_path: Path) -> None:
    code = "import gracekit; [getattr(gracekit, name) for name in gracekit.__all__]"
    run(installed / "python", "-W", "ignore", "-c", code, folder=tmp_path)


def test_a_first_recipe_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    rows = [f'{{"prompt": "What is {n}?", "response": "A number, {n}."}}\n' for n in range(20)]
    (tmp_path / "train.jsonl").write_text("".join(rows))
    run(installed / "gracekit", "init", "train.jsonl", folder=tmp_path)
    assert "path: train.jsonl" in (tmp_path / "gracekit.yaml").read_text()
