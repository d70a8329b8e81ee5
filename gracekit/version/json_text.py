"""Strict JSON: what headers, sidecars and `store.json` hold."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from gracekit.types import Json


def json_text(content: Json) -> str:
    """Strict JSON as the store writes it."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def plain_json(value: Any) -> Any:
    """The same in values that strict JSON has.

    NumPy scalars become numbers, NaN and infinities null; keys, paths and other objects become
    text that UTF-8 can hold.
    """
    if isinstance(value, Mapping):
        result: Json = {_text(key): plain_json(item) for key, item in value.items()}
        return result
    if isinstance(value, (list, tuple)):
        return [plain_json(item) for item in value]
    if isinstance(value, (np.generic, np.ndarray)):
        return plain_json(value.tolist())
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return _text(value)


def _text(value: object) -> str:
    return clean_text(str(value))


def clean_text(text: str) -> str:
    """The same in characters that UTF-8 can hold: a lone surrogate becomes U+FFFD."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
