"""Which addresses are those of object stores."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote

from gracekit.errors import UsageError

SCHEMES = ("s3", "s3a", "gs", "az", "azure", "adl", "abfs", "abfss", "file", "memory")
"""Those that are opened; `file` and `memory` are for tests and for folders that others mount."""

_URL = re.compile(rf"({'|'.join(SCHEMES)})://(.*)", re.DOTALL)
_URL_AS_PATH = re.compile(rf"({'|'.join(SCHEMES)}):/(?!/)(.+)", re.DOTALL)
_OTHER_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://.*", re.DOTALL)
_OTHER_URL_AS_PATH = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/(?!/).+", re.DOTALL)


def cache_folder() -> Path:
    """What is downloaded for no store in particular: `GRACEKIT_CACHE`, else `gracekit` in the
    user's folder of caches.

    Raises `UsageError` where the user has no such folder.
    """
    own = os.environ.get("GRACEKIT_CACHE")
    if own:
        return Path(own)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gracekit"
    except RuntimeError:  # neither HOME nor an entry of the user
        raise UsageError(
            "there is no home directory for what is downloaded: set GRACEKIT_CACHE to a folder"
        ) from None


def is_url(place: object) -> bool:
    """Whether a text, or a `Path` that was made of one, is meant as the address of a remote folder;
    `address_of` refuses some of these.
    """
    return _address_of(place) is not None


def address_of(place: object) -> str | None:
    """The URL that a text or a path is, without a slash at its end; None for a path of this disk.

    A `Path` made of a URL has lost one of its two slashes: it is given back. A relative text such
    as `s3:/bucket` stays a path.

    Raises `UsageError` for a URL with credentials, which it does not repeat, for one with `?` or
    `#`, which would be cut off there, and for one of `file://` that does not begin at the root,
    which cannot be told of a `Path`.
    """
    url = _address_of(place)
    if url is not None:
        _require_plain(url)
    return url


def require_path(place: str | os.PathLike[str], name: str) -> None:
    """Raise `UsageError` for a URL of a kind that is not opened, which would be made a folder here.

    Args:
        place: What is no URL by `address_of`. A path such as `hf:/x` was a URL where there is no
            folder `hf:`.
        name: What it is, for the message.
    """
    is_path = isinstance(place, os.PathLike)
    found = (_OTHER_URL_AS_PATH if is_path else _OTHER_URL).fullmatch(os.fspath(place))
    if found is not None and not Path(f"{found[1]}:").exists():
        raise UsageError(
            f"{name} is a path of this machine or a URL of {', '.join(SCHEMES)}; found one of "
            f"{found[1]}://, which is not opened"
        )


def address_or_path(place: Path) -> str:
    """A path as text; the URL where it was made of one."""
    return address_of(place) or str(place)


def local_path(url: str) -> Path | None:
    """The directory that a URL of `file://` is; None of every other URL."""
    scheme, _, rest = url.partition("://")
    return Path(unquote(rest)) if scheme == "file" else None


def _require_plain(url: str) -> None:
    scheme, _, rest = url.partition("://")
    host = rest.partition("/")[0]
    if scheme == "file" and host:
        raise UsageError(
            f"a URL of file:// has the whole path, with three slashes (file:///data/subset), found "
            f"{url}; for a folder relative to this one write its path, without file://"
        )
    # abfss://container@account.dfs.core.windows.net is an address; a secret may have a slash.
    is_bucket = scheme in ("s3", "s3a", "gs")
    if (is_bucket and ("@" in host or ":" in host)) or (":" in host and "@" in rest):
        raise UsageError(
            f"a URL of {scheme}:// has credentials in it, or a port: remove them from it, and set "
            "credentials in the environment (for S3 AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and "
            "AWS_ENDPOINT_URL)"
        )
    sign = re.search(r"[?#]", rest)
    if sign is not None:
        plain = f"{scheme}://{rest[: sign.start()]}"
        raise UsageError(
            f"the URL of a folder has no {sign[0]!r}, found one after {plain}; in the name of a "
            f"folder write {'%3F' if sign[0] == '?' else '%23'}"
        )


def _address_of(place: object) -> str | None:
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
