"""TAB: the lines of docs/start.md in real shells, and what is completed by click's own protocol."""

from __future__ import annotations

import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.shell_completion import ShellComplete

from gracekit.cli import COMMANDS, main
from gracekit.cli.completion import TRACKERS
from gracekit.recipe import Recipe
from gracekit.store import NAMED_QUERIES
from gracekit.trackers import names
from tests.stores import make_draft, make_store

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A `gracekit` on PATH, a home without settings, and a recipe and a store to ask."""
    program = tmp_path / "bin" / "gracekit"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m gracekit "$@"\n')
    program.chmod(0o755)
    store = make_store(tmp_path / "store")
    for number in (1, 2):
        store.commit(make_draft(store, f"refresh-{number}"))
    recipe = {"data": {"path": "train.jsonl"}, "store": "store"}
    (tmp_path / "gracekit.yaml").write_text(yaml.safe_dump(recipe))
    return {
        **{key: value for key, value in os.environ.items() if not key.startswith("GRACEKIT_")},
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "HOME": str(tmp_path),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "TERM": "dumb",
    }


def line_for(shell: str) -> str:
    """What docs/start.md says to put into the shell's settings."""
    text = (REPOSITORY / "docs" / "start.md").read_text(encoding="utf-8")
    (line,) = re.findall(rf"^    (.*_GRACEKIT_COMPLETE={shell}_source.*)$", text, re.MULTILINE)
    return str(line)


def run(command: list[str], environment: dict[str, str], folder: Path, **more: str) -> list[str]:
    done = subprocess.run(
        command, env=environment | more, cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.splitlines()


def completed(*words: str) -> list[str]:
    """What is offered for a line whose last word is not finished, in the present directory."""
    *before, last = words
    offered = ShellComplete(main, {}, "gracekit", "_GRACEKIT_COMPLETE")
    return [item.value for item in offered.get_completions(before, last)]


# --- in real shells ---


def test_by_clicks_variables(environment: dict[str, str], tmp_path: Path) -> None:
    line = {"COMP_WORDS": "gracekit\nre", "COMP_CWORD": "1", "_GRACEKIT_COMPLETE": "bash_complete"}
    found = run(["gracekit"], environment, tmp_path, **line)
    assert found == ["plain,reference", "plain,refresh", "plain,report"]


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_bash(environment: dict[str, str], tmp_path: Path) -> None:
    script = (
        f"{line_for('bash')}\ncomplete -p gracekit\nCOMP_WORDS=(gracekit re) COMP_CWORD=1\n"
        '_gracekit_completion gracekit\nprintf "%s\\n" "${COMPREPLY[@]}"'
    )
    registered, *found = run(["bash", "--norc", "-c", script], environment, tmp_path)
    assert registered.endswith("-F _gracekit_completion gracekit")
    assert found == ["reference", "refresh", "report"]


@pytest.mark.skipif(shutil.which("fish") is None, reason="no fish here")
def test_fish(environment: dict[str, str], tmp_path: Path) -> None:
    script = f"{line_for('fish')}; complete -C 'gracekit re'"
    found = run(["fish", "--no-config", "-c", script], environment, tmp_path)
    assert sorted(line.split("\t")[0] for line in found) == ["reference", "refresh", "report"]


@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh here")
def test_zsh(environment: dict[str, str], tmp_path: Path) -> None:
    """Typed into a terminal: zsh completes nowhere else."""
    settings = f"PS1='ready> '\nautoload -U compinit\ncompinit -u -D\n{line_for('zsh')}\n"
    (tmp_path / ".zshrc").write_text(settings)
    controller, terminal = pty.openpty()
    shell = subprocess.Popen(
        ["zsh", "-i", "+o", "globalrcs"], stdin=terminal, stdout=terminal, stderr=terminal,
        env=environment, cwd=tmp_path, start_new_session=True,
    )  # fmt: skip
    os.close(terminal)

    def read_until(text: str) -> str:
        shown = ""
        while text not in shown:
            shown += os.read(controller, 1 << 12).decode(errors="replace")
        return shown

    try:
        read_until("ready> ")
        os.write(controller, b"gracekit sql distr\t")
        read_until("gracekit sql distrusted")
    finally:
        shell.kill()
        shell.wait()
        os.close(controller)


# --- what is completed ---


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["ref"], ["reference", "refresh"]),
        (["sql", "mover"], ["movers"]),
        (["sql", "--named", "mover"], ["movers"]),
        (["sql", "movers", "--param", "c"], ["count="]),
        (["sql", "no-such-query", "--param", ""], []),
        (["select", "--set", "selection.frac"], ["selection.fraction="]),
        (["watch", "runs", "--set", "watch."], ["watch.trackers=", "watch.project=",
                                                "watch.run_name="]),
        (["watch", "runs", "--tracker", "t"], ["tensorboard", "trackio"]),
        (["watch", "runs", "--on-backlog", ""], ["latest", "all"]),
        (["explain", "x", "--version", ""], ["latest", "2", "1"]),
        (["pin", "1"], ["1"]),
        (["rollback", "l"], ["latest"]),
        (["explain", "x", "--store", "nowhere", "--version", ""], ["latest"]),
        (["explain", "x", "--recipe", "nowhere.yaml", "--version", ""], ["latest"]),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("environment")
def test_words_are_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], expected: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert completed(*words) == expected


@pytest.mark.usefixtures("environment")
def test_versions_are_those_of_the_store_on_the_line(tmp_path: Path) -> None:
    store, recipe = str(tmp_path / "store"), str(tmp_path / "gracekit.yaml")
    assert completed("explain", "x", "--version", "") == ["latest"]  # no recipe here
    assert completed("explain", "x", "--store", store, "--version", "") == ["latest", "2", "1"]
    assert completed("explain", "x", "--recipe", recipe, "--version", "") == ["latest", "2", "1"]
    assert completed("pin", "--store", store, "") == ["latest", "2", "1"]


def test_every_command_query_and_key_is_offered() -> None:
    assert set(completed("")) == {c.name for c in COMMANDS}
    assert set(completed("sql", "")) == set(NAMED_QUERIES)
    found = completed("refresh", "--set", "")
    assert {key.partition(".")[0].rstrip("=") for key in found} == set(Recipe.model_fields)
    assert all(key.endswith("=") for key in found)
    assert len(found) == len(set(found)) > 100
    recipe = Recipe.from_dict({"data": {"path": "x.jsonl"}})
    for key in found:  # each is a key that a recipe has
        node = recipe.model_dump() if "target." not in key else None
        for part in key.rstrip("=").split("."):
            node = None if node is None else node[part]


def test_the_trackers_are_those_there_are() -> None:
    assert tuple(names.TRACKERS) == TRACKERS
