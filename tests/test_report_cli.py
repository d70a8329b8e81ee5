"""`gracekit report` on the command line, and a page that Chromium shows."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import gracekit
from gracekit.cli import main
from gracekit.store import Store
from tests.report_stores import draft_of, report_store, samples_of
from tests.stores import make_store
from tests.test_report_curves import all_results, write
from tests.test_report_page import DESCRIPTION, HOSTILE


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report_store(tmp_path_factory.mktemp("cli") / "store").paths.root


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["report", *map(str, arguments)])


def test_it_writes_the_page_and_says_the_answer(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run(root)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "report.html").is_file()
    lines = [line for line in done.output.splitlines() if not line.startswith("  ")]
    assert lines[0].startswith("What the coreset of version 3 is worth: ")
    assert lines[1].startswith("What it cost: ") and lines[2].startswith("What to do: ")
    assert lines[3:] == ["The report is in report.html"]


def test_json_alone_writes_no_file(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run(root, "--json")
    assert done.exit_code == 0
    content = json.loads(done.output)
    assert content["page"] is None and not list(tmp_path.iterdir())
    assert content["versions"] == [1, 2, 3]
    both = json.loads(run("--store", root, "--json", "-o", "page.html").output)
    assert Path(both["page"]).name == "page.html" and (tmp_path / "page.html").is_file()


def test_the_store_of_a_recipe(tmp_path: Path) -> None:
    make_store(tmp_path / "store")
    (tmp_path / "train.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    recipe = tmp_path / "gracekit.yaml"
    recipe.write_text("data: {path: train.jsonl}\nstore: store\n")
    done = run("--recipe", recipe, "-o", tmp_path / "report.html")
    assert done.exit_code == 0 and "there is no version" in done.output


@pytest.mark.parametrize(
    ("arguments", "expected", "code"),
    [
        (["absent"], "no store at", 1),
        (["STORE", "--store", "other"], "name one store", 2),
        (["STORE", "--comparison", "absent"], "--comparison: cannot read", 2),
        (["STORE", "-o", "thesis.html"], "no report of gracekit", 1),
        (["STORE", "-o", "STORE/report.html"], "lies in the store", 1),
        ([], "which store?", 2),
    ],
)
def test_mistakes_end_in_one_message(
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    expected: str,
    code: int,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "thesis.html").write_text("years of work")
    done = run(*(argument.replace("STORE", str(root)) for argument in arguments))
    assert done.exit_code == code, done.output
    assert expected in done.output
    assert "Traceback" not in done.output and len(done.output.strip().splitlines()) <= 4
    assert (tmp_path / "thesis.html").read_text() == "years of work"


def test_it_loads_no_torch(root: Path, tmp_path: Path) -> None:
    code = (
        f"import sys, gracekit; gracekit.report({str(root)!r}, {str(tmp_path / 'r.html')!r}); "
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers"} & set(done.stdout.split())


def test_what_docs_report_md_shows_can_be_typed(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (Path(__file__).parent.parent / "docs" / "report.md").read_text(encoding="utf-8")
    shutil.copytree(root, tmp_path / "gracekit-store")
    write(tmp_path / "gracekit-store-compare", all_results())
    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"^    gracekit (report [^#\n]*?) *(?:#.*)?$", text, flags=re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        done = CliRunner().invoke(main, command.split())
        assert done.exit_code == 0, done.output
    assert (tmp_path / "report.html").is_file() and (tmp_path / "today.html").is_file()
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert blocks
    for block in blocks:
        exec(block, {"gracekit": gracekit})
    for picture in re.findall(r"!\[[^]]+\]\(([^)]+)\)", text):
        size = (Path(__file__).parent.parent / "docs" / picture).stat().st_size
        assert 1000 < size < 150_000, picture


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [360, 390, 1280])
def test_chromium_runs_the_script_and_nothing_is_wider_than_the_screen(
    tmp_path: Path, width: int
) -> None:
    """A copy of the page tells its own width; the policy lets its script run."""
    page = tmp_path / "report.html"
    names = ("x" * 300, "漢字" * 90, "ا" * 200, "short")
    samples = dataclasses.replace(
        samples_of(240, lambda row: HOSTILE[row % len(HOSTILE)]), group_names=names
    )
    store = Store.create(tmp_path / "store", samples=samples, dataset=DESCRIPTION)
    for _ in range(4):
        store.commit(draft_of(store, is_aimed=True))
    assert run(store.paths.root, "-o", page).exit_code == 0
    shown = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu",
         f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900", "--dump-dom",
         page.as_uri()],
        capture_output=True, text=True, timeout=300, check=True,
    ).stdout  # fmt: skip
    assert 'id="tip"' in shown and ">Zoom in</button>" in shown, "the script ran"
    # In a frame, since a window has a least width of its own.
    measuring = re.sub(r"<meta http-equiv[^>]*>", "", page.read_text(encoding="utf-8")).replace(
        "</body>",
        "<script>document.querySelectorAll('details').forEach(d => d.open = true);"
        "let cut = 0; document.querySelectorAll('svg.chart text').forEach(t => {"
        "const b = t.getBBox(), v = t.ownerSVGElement.viewBox.baseVal;"
        "if (b.x < 0 || b.y < 0 || b.x + b.width > v.width || b.y + b.height > v.height) cut++});"
        "parent.postMessage('wide ' + document.documentElement.scrollWidth + ' of ' + "
        "innerWidth + ' of ' + document.documentElement.clientWidth + ', cut ' + cut, '*')"
        "</script></body>",
    )
    (tmp_path / "measuring.html").write_text(measuring, encoding="utf-8")
    (tmp_path / "frame.html").write_text(
        f'<iframe src="measuring.html" style="width:{width}px;height:800px;border:0"></iframe>'
        "<script>onmessage = e => {document.title = e.data}</script>"
    )
    shown = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu",
         f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1600,900", "--dump-dom",
         "--virtual-time-budget=20000", (tmp_path / "frame.html").as_uri()],
        capture_output=True, text=True, timeout=300, check=True,
    ).stdout  # fmt: skip
    found = re.search(r"<title>wide (\d+) of (\d+) of (\d+), cut (\d+)</title>", shown)
    assert found is not None and int(found[2]) == width
    assert int(found[1]) <= int(found[3])
    assert found[4] == "0", "labels of charts that are cut off"
