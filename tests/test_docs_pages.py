"""Pages for users: each command and Python block on them runs, and each link leads somewhere."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import gracekit
from tests.tiny import recipe_content, write_checkpoint, write_data

REPOSITORY = Path(__file__).parent.parent
DOCS = REPOSITORY / "docs"
PAGES = ["start.md", *sorted(f"how-to/{path.name}" for path in (DOCS / "how-to").glob("*.md"))]
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages take for granted: data, a target, checkpoints, a recipe and two versions."""
    folder = tmp_path_factory.mktemp("pages")
    write_data(folder / "train.jsonl")
    write_data(folder / "target.jsonl", num_samples=20, seed=5)
    for step in (100, 200):
        write_checkpoint(folder / "runs/sft", step)
    recipe = recipe_content(store="gracekit-store")
    (folder / "gracekit.yaml").write_text(yaml.safe_dump(recipe))
    for step in (100, 200):
        gracekit.refresh(folder / "gracekit.yaml", folder / f"runs/sft/checkpoint-{step}")
    return folder


def blocks(page: str) -> list[tuple[str, str]]:
    return BLOCK.findall((DOCS / page).read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_says_to_type_runs(page: str, world: Path, tmp_path: Path) -> None:
    folder = tmp_path / "here"
    shutil.copytree(world, folder)
    if page == "start.md":  # begins with nothing but data and a run
        shutil.rmtree(folder / "gracekit-store")
        (folder / "gracekit.yaml").unlink()
    assert blocks(page), f"{page} shows nothing to type"
    for language, text in blocks(page):
        if language == "python":
            if file := re.match(r"# (\w+\.py)$", text, re.MULTILINE):
                (folder / file[1]).write_text(text, encoding="utf-8")
            run([sys.executable, "-c", text], folder)
            continue
        for line in text.splitlines():
            name, *arguments = shlex.split(line)
            assert name == "gracekit", line
            run([sys.executable, "-m", "gracekit", *arguments], folder)


def run(command: list[str], folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


def anchors(page: Path) -> set[str]:
    """Names of the headings, as they are made on a page and on a code host."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    plain = (re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", title) for title in titles)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in plain}


@pytest.mark.parametrize(
    "page",
    sorted(str(p.relative_to(REPOSITORY)) for p in [*REPOSITORY.glob("*.md"), *DOCS.rglob("*.md")]),
)
def test_links_lead_somewhere(page: str) -> None:
    place = REPOSITORY / page
    for link in LINK.findall(place.read_text(encoding="utf-8")):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        name, _, anchor = link.partition("#")
        target = (place.parent / name).resolve() if name else place
        assert target.exists(), f"{page}: {link}"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{page}: {link}; there are {sorted(anchors(target))}"


def test_every_page_is_in_the_site() -> None:
    listed = re.findall(r": (\S+\.md)$", (REPOSITORY / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(str(p.relative_to(DOCS)) for p in DOCS.rglob("*.md"))
