"""The examples of `pipelines/deploy`: gracekit has their commands, and their versions are ours.

What their own linters say of them, `make lint-deploy` tells.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import click
import pytest
import yaml

from gracekit.cli import main
from gracekit.recipe import Recipe
from gracekit.types import Json
from gracekit.version import __version__

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "pipelines/deploy"
OBJECTS: list[Json] = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))


def containers() -> list[Json]:
    """Those of the pods that Kubernetes starts."""
    pods = [o["spec"]["template"]["spec"] for o in OBJECTS if "template" in o["spec"]]
    return [container for pod in pods for container in pod["containers"]]


def entry_point() -> list[str]:
    text = (DEPLOY / "Containerfile").read_text()
    found = re.search(r"^ENTRYPOINT (\[.*\])$", text, re.M)
    assert found is not None
    words: list[str] = json.loads(found[1])
    return words


def commands() -> list[list[str]]:
    """All command lines of gracekit in the examples."""
    found = []
    for container in containers():
        found.append(container.get("command", entry_point()) + container.get("args", []))
        probes = (container.get("startupProbe"), container.get("livenessProbe"))
        found += [probe["exec"]["command"] for probe in probes if probe]
    for path in sorted(DEPLOY.iterdir()):
        for line in path.read_text().splitlines():
            called = re.search(r"(?:^#   .*|^exec .*|^ExecStart=\S*/)\b(gracekit .*)$", line)
            if called and "podman" not in line:
                found.append([word for word in shlex.split(called[1]) if word != "$store"])
    return found


def parsed(words: list[str]) -> dict[str, object]:
    """The parameters that gracekit reads from a command line; nothing is run."""
    place = next((i for i, word in enumerate(words) if word in main.commands), None)
    if place is None:
        raise click.UsageError(f"no command of gracekit: {words}")
    with main.commands[words[place]].make_context(words[place], words[place + 1 :]) as context:
        return context.params


def test_the_examples_have_commands_of_all_kinds() -> None:
    names = {next(word for word in words[1:] if word in main.commands) for words in commands()}
    assert names >= {"watch", "work", "status"}
    assert len(commands()) >= 8


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_commands_of_the_examples_are_accepted(words: list[str]) -> None:
    if words[:2] == ["gracekit", "work"] and words[2].startswith("--"):
        words = ["gracekit", "work", "STORE", *words[2:]]
    settings = parsed(words).get("changes", ())
    assert isinstance(settings, tuple) and (settings or "--set" not in words)
    for setting in settings:
        key, _, value = setting.partition("=")
        Recipe.from_dict({"data": {"path": "train.jsonl"}}).override({key: yaml.safe_load(value)})


def test_a_command_that_gracekit_does_not_have_is_found() -> None:
    for words in (["gracekit", "work", "STORE", "--idle", "3"], ["gracekit", "works", "STORE"]):
        with pytest.raises(click.UsageError):
            parsed(words)


def test_versions_of_the_examples_are_those_of_this_project() -> None:
    text = "".join(path.read_text() for path in DEPLOY.iterdir())
    assert set(re.findall(r"gracekit(?:\[[\w,]+\])?(?:==|:)(\d[\w.]*)", text)) == {__version__}
    pinned = dict(re.findall(r"^([\w-]+)==(\S+)", (ROOT / "constraints.txt").read_text(), re.M))
    pinned["torch"] = re.findall(r"torch==([\d.]+)", (ROOT / "Makefile").read_text())[0]
    for name, version in re.findall(r"\b(torch|transformers)==([\d.]+)", text):
        assert version == pinned[name], name
