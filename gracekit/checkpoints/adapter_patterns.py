"""Regular expressions of an adapter's config, tried before PEFT does.

PEFT matches them with the names of all modules, and some take for ever. Nothing ends a match within
a process, so what repeats anything is tried in another one.
"""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from gracekit.checkpoints.weights import ADAPTER_CONFIG
from gracekit.errors import CheckpointMismatchError

logger = logging.getLogger(__name__)

DEADLINE_S = 60.0
"""Wall-clock seconds for all patterns; those whose matches end take milliseconds."""
_REPEATS = re.compile(r"[*+{]")
_TRY = """
import json, re, sys
patterns, names = json.load(sys.stdin)
for way, pattern in patterns:
    for name in names:
        getattr(re, way)(pattern, name)
    print(".", end="", flush=True)
"""


def require_patterns(directory: Path, config: dict[str, Any], names: Iterable[str]) -> None:
    """Raise `CheckpointMismatchError` for patterns that are none, or whose match does not end.

    Args:
        directory: The adapter.
        config: Its adapter_config.json.
        names: Of the modules of its base model.
    """
    where = f"in the {ADAPTER_CONFIG} of {directory}"
    to_try: list[tuple[str, str, str, str]] = []
    for key, own, way, pattern in _patterns(config):
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise CheckpointMismatchError(
                f"{key} {own[:80]!r} {where} is no regular expression: {error}"
            ) from None
        if _REPEATS.search(own):
            to_try.append((key, own, way, pattern))
    if to_try and (stuck := _stuck_at([rest for _, _, *rest in to_try], list(names))) is not None:
        key, own, *_ = to_try[stuck]
        raise CheckpointMismatchError(
            f"{key} {own[:80]!r} {where} takes more than {DEADLINE_S:g} s to match the names of "
            "its base model's modules; name the modules in a list"
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
    found = config.get("modules_to_save")
    for own in found if isinstance(found, list) else ():
        if isinstance(own, str):
            yield "modules_to_save", own, "match", rf"(^|.*\.){own}($|\..*)"
    found = config.get("layers_pattern")
    for own in found if isinstance(found, list) else [found]:
        if isinstance(own, str):
            yield "layers_pattern", own, "match", rf".*\.{own}\.(\d+)\."


def _stuck_at(patterns: list[list[str]], names: list[str]) -> int | None:
    """The number of the pattern that was still being tried at the deadline; None: all have ended.

    Also None where this program cannot start Python, as one that embeds it: PEFT tries them then.
    """
    python = getattr(sys, "_base_executable", None) or sys.executable
    try:
        run = subprocess.run(
            [python, "-I", "-S", "-c", _TRY],
            input=json.dumps([patterns, names]).encode(), timeout=DEADLINE_S, check=False,
            capture_output=True,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        return len(error.stdout or b"")
    except (OSError, TypeError, ValueError) as error:
        logger.debug("cannot start %s to try patterns: %r", python, error)
        return None
    if run.stdout != len(patterns) * b".":
        logger.debug("%s did not try patterns: %r", python, run.stderr[-500:])
    return None
