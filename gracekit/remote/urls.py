"""Which addresses are those of object stores."""

from __future__ import annotations

import os
import re
from pathlib import Path

SCHEMES = ("s3", "s3a", "gs", "az", "azure", "adl", "abfs", "abfss", "file", "memory")
"""Those that are opened; `file` and `memory` are for tests and for folders that others mount."""

_URL = re.compile(rf"({'|'.join(SCHEMES)})://(.*)", re.DOTALL)
_URL_AS_PATH = re.compile(rf"({'|'.join(SCHEMES)}):/(?!/)(.+)", re.DOTALL)


def cache_folder() -> Path:
    """What is downloaded for no store in particular: `GRACEKIT_CACHE`, else `gracekit` in the
    user's folder of caches.
    """
    own = os.environ.get("GRACEKIT_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gracekit"


def is_url(place: object) -> bool:
    """Whether a text, or a `Path` that was made of one, is the address of a remote folder."""
    return address_of(place) is not None


def address_of(place: object) -> str | None:
    """The URL that a text or a path is, without a slash at its end; None for a path of this disk.

    A `Path` made of a URL has lost one of its two slashes: it is given back. A relative text such
    as `s3:/bucket` stays a path.
    """
    if isinstance(place, Path):
        found = _URL_AS_PATH.fullmatch(os.fspath(place))
        if found is None:
            return None
        scheme, rest = found[1], found[2]
        return f"{scheme}://{'/' if scheme == 'file' else ''}{rest}"
    if not isinstance(place, str):
        return None
    found = _URL.fullmatch(place.strip())
    return None if found is None else f"{found[1]}://{found[2].rstrip('/')}"
