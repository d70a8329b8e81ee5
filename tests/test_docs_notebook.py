"""docs/notebook.ipynb runs from top to bottom on a store, and is a notebook without outputs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import gracekit
from gracekit.store import Store
from tests.notebook import cells_of
from tests.tiny import recipe_content, write_checkpoint, write_data

REPOSITORY = Path(__file__).parent.parent
NOTEBOOK = REPOSITORY / "docs" / "notebook.ipynb"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of two versions, where the notebook looks for one."""
    folder = tmp_path_factory.mktemp("notebook")
    write_data(folder / "train.jsonl")
    (folder / "gracekit.yaml").write_text(yaml.safe_dump(recipe_content(store="gracekit-store")))
    for step in (100, 200):
        write_checkpoint(folder / "run", step)
        gracekit.refresh(folder / "gracekit.yaml", folder / f"run/checkpoint-{step}")
    return folder


def test_it_runs_from_top_to_bottom(world: Path) -> None:
    environment = {
        **os.environ, "PYTHONPATH": str(REPOSITORY), "MPLBACKEND": "agg", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    for _ in range(2):  # also once more, over what it has written
        done = subprocess.run(
            [sys.executable, "-m", "tests.notebook", str(NOTEBOOK)],
            cwd=world, env=environment, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
    shown = re.split(r"^--- cell \d+\n", done.stdout, flags=re.MULTILINE)[1:]
    assert len(shown) == len(cells_of(NOTEBOOK))
    store = Store.open(world / "gracekit-store")
    assert "<table" in shown[1] and "step 200" in shown[1]
    assert all(f"<td>{step}</td>" in shown[2] for step in (100, 200))
    for group in store.samples().group_names:
        assert group in shown[3]
    assert f"{len(store.coreset(2))} samples" in shown[5]
    lines = list((world / "coreset").glob("*.jsonl"))
    assert sum(len(file.read_text().splitlines()) for file in lines) == len(store.coreset(2))


def test_it_is_a_notebook_without_outputs() -> None:
    content = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (content["nbformat"], content["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in content["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in content["cells"]:
        assert cell["cell_type"] == "markdown" or (
            cell["outputs"] == [] and cell["execution_count"] is None
        )


def test_its_links_lead_somewhere_and_the_site_leads_to_it() -> None:
    text = NOTEBOOK.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([\w./-]+)\)", text):
        assert (NOTEBOOK.parent / link).exists(), link
    pages = [page.read_text(encoding="utf-8") for page in NOTEBOOK.parent.rglob("*.md")]
    assert any("notebook.ipynb)" in page for page in pages)
