"""Regular expressions of an adapter's config, tried before PEFT does.

PEFT matches them with the names of all modules, and some take for ever: a group that repeats, with
a repetition in it. Nothing ends a match within a process, so such a one is tried in another.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from gracekit.checkpoints.weights import ADAPTER_CONFIG
from gracekit.errors import CheckpointMismatchError

DEADLINE_S = 60.0
"""Wall-clock seconds; a match that ends takes milliseconds."""
_REPEATED_GROUP = re.compile(r"\)[*+{]")
_TRY = (
    "import json, re, sys\n"
    "way, pattern, names = json.load(sys.stdin)\n"
    "for name in names: getattr(re, way)(pattern, name)\n"
)


def require_patterns(directory: Path, config: dict[str, Any], names: Iterable[str]) -> None:
    """Raise `CheckpointMismatchError` for patterns that are none, or whose match does not end.

    Args:
        directory: The adapter.
        config: Its adapter_config.json.
        names: Of the modules of its base model.
    """
    names = list(names)
    for key, own, way, pattern in _patterns(config):
        where = f"{key} {own[:80]!r} in the {ADAPTER_CONFIG} of {directory}"
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise CheckpointMismatchError(f"{where} is no regular expression: {error}") from None
        if _REPEATED_GROUP.search(own) and not _ends(way, pattern, names):
            raise CheckpointMismatchError(
                f"{where} takes more than {DEADLINE_S:g} s to match the names of its base model's "
                "modules: it repeats a group with a repetition in it; name the modules in a list"
            )


def _patterns(config: dict[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """Key, what it says, the function of `re` that PEFT uses, and the pattern that it makes."""
    for key in ("target_modules", "exclude_modules"):
        if isinstance(config.get(key), str):
            yield key, config[key], "fullmatch", config[key]
    for key in ("rank_pattern", "alpha_pattern"):
        found = config.get(key)
        for own in found if isinstance(found, dict) else ():
            yield key, own, "match", rf"(.*\.)?({own})$"
    found = config.get("layers_pattern")
    for own in found if isinstance(found, list) else [found]:
        if isinstance(own, str):
            yield "layers_pattern", own, "match", rf".*\.{own}\.(\d+)\."


def _ends(way: str, pattern: str, names: list[str]) -> bool:
    try:
        subprocess.run(
            [sys.executable, "-I", "-S", "-c", _TRY],
            input=json.dumps([way, pattern, names]), text=True, timeout=DEADLINE_S, check=False,
            capture_output=True,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return False
    return True
