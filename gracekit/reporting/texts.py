"""Texts of others made safe for a page: cut, without characters that steer it, and escaped."""

from __future__ import annotations

import json
import os
import re
from html import escape
from pathlib import Path
from typing import Any

from gracekit.version.json_text import clean_text, plain_json

LONGEST_TEXT = 400
"""Characters of a sample's text that are shown."""
LONGEST_NAME = 80
"""The same of an id and of a group's name."""

_STEERING = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff]"
)
"""Control characters, and those that are not seen or turn the direction of what follows. The
joiners U+200C and U+200D stay: scripts and emoji are written with them."""


def plain(value: object, longest: int = LONGEST_TEXT) -> str:
    """A text on one line, of at most so many characters; a longer one ends in an ellipsis."""
    text = clean_text(str(value)[: 4 * longest])
    text = " ".join(_STEERING.sub(" ", text).split())
    return text if len(text) <= longest else text[: longest - 1].rstrip() + "…"


def shown(value: object, longest: int = LONGEST_TEXT) -> str:
    """The same for HTML, apart from the direction of the text around it."""
    return f'<bdi dir="auto">{escape(plain(value, longest))}</bdi>'


def name(value: object) -> str:
    """An id or a group's name for HTML."""
    return shown("(no name)" if value is None or value == "" else value, LONGEST_NAME)


def sentence(text: str) -> str:
    """A sentence of ours for HTML; what stands between backticks is code."""
    parts = escape(clean_text(text)).split("`")
    return "".join(f"<code>{p}</code>" if k % 2 else p for k, p in enumerate(parts))


def without_folders(text: str, *places: str) -> str:
    """A text that names files by the names alone which they have beside one of the places."""
    folders = {f"{Path(place).parent}{os.sep}" for place in places if place} - {f".{os.sep}"}
    for folder in sorted(folders, key=len, reverse=True):
        text = text.replace(folder, "")
    return text


def script_json(value: Any) -> str:
    """JSON that nothing can end early inside of a `<script>` element."""
    text = json.dumps(plain_json(value), ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
