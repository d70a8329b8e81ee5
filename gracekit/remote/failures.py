"""What an object store says when something fails, as one of our errors with the way out."""

from __future__ import annotations

import re

from gracekit.errors import (
    RemoteChangedError,
    RemoteDeniedError,
    RemoteError,
    RemoteNotFoundError,
)

_MOST_CHARACTERS = 300
_DENIED = re.compile(
    r"AccessDenied|InvalidAccessKeyId|SignatureDoesNotMatch|ExpiredToken|InvalidToken|"
    r"\b(?:401|403)\b", re.IGNORECASE
)  # fmt: skip
_NO_CREDENTIALS = re.compile(
    r"169\.254\.|metadata\.google|MissingAccount|Account must be specified|credential",
    re.IGNORECASE,
)
_THROTTLED = re.compile(
    r"SlowDown|TooManyRequests|RequestLimitExceeded|ServerBusy|Throttl|\b(?:429|503)\b",
    re.IGNORECASE,
)
_SLOW = re.compile(r"timed out|deadline", re.IGNORECASE)  # each message has `retry_timeout`
_CUT = re.compile(r"response body error|decoding response", re.IGNORECASE)
_UNREACHED = re.compile(r"error sending request|dns error|connect", re.IGNORECASE)
_NO_BUCKET = re.compile(r"NoSuchBucket|ContainerNotFound|bucket does not exist", re.IGNORECASE)

_ODD_NAME = re.compile(r"invalid path|Error parsing Path", re.IGNORECASE)

EXTRA = "pip install 'gracekit[s3]'"


def is_already_there(error: BaseException) -> bool:
    """Whether a write said that there is an object of that name."""
    return type(error).__name__ == "AlreadyExistsError"


def is_cut(error: BaseException) -> bool:
    """Whether the answer ended too early; obstore repeats that for objects, not for listings."""
    return _CUT.search(_without_source(error)) is not None


def clear_error(error: BaseException, doing: str, url: str) -> RemoteError:
    """The error to raise.

    Args:
        error: What obstore raised.
        doing: What was being done with what, such as `read headers/v000001.json`.
        url: Of the folder.
    """
    if isinstance(error, RemoteError):
        return error
    text, kind = _without_source(error), type(error).__name__
    reason = _in_one_line(error)
    what = f"cannot {doing} at {url}: "
    if _ODD_NAME.search(text):
        return RemoteError(
            f"{what}there is an object whose name has an empty part, `.`, `..` or a control "
            "character; rename or remove it, or name a folder that it does not lie in "
            f"({reason})"
        )
    if _NO_BUCKET.search(text):
        return RemoteNotFoundError(
            f"{what}there is no such bucket; make it, or correct the URL ({reason})"
        )
    if isinstance(error, FileNotFoundError):
        return RemoteNotFoundError(f"{what}it is not there ({reason})")
    if kind in ("PreconditionError", "NotModifiedError"):
        return RemoteChangedError(f"{what}it was replaced meanwhile; run again")
    is_denied = kind in ("PermissionDeniedError", "UnauthenticatedError") or isinstance(
        error, PermissionError
    )
    if is_denied or _DENIED.search(reason):
        return RemoteDeniedError(
            f"{what}access is denied; check the credentials (for S3 AWS_ACCESS_KEY_ID, "
            "AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN) and that they may list, read and write "
            f"there ({reason})"
        )
    if _NO_CREDENTIALS.search(reason):
        return RemoteDeniedError(
            f"{what}there are no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY "
            "(s3), GOOGLE_APPLICATION_CREDENTIALS (gs), or AZURE_STORAGE_ACCOUNT_NAME and "
            f"AZURE_STORAGE_ACCOUNT_KEY (az) ({reason})"
        )
    if _THROTTLED.search(text):
        return RemoteError(f"{what}the service throttles; run again later ({reason})")
    if _SLOW.search(text):
        return RemoteError(f"{what}no answer in time; check the network, run again ({reason})")
    if is_cut(error):
        return RemoteError(f"{what}the answer was cut off; check the network, run again ({reason})")
    if _UNREACHED.search(reason):
        return RemoteError(
            f"{what}the service is not reached; check the network, the region and "
            f"AWS_ENDPOINT_URL ({reason})"
        )
    return RemoteError(f"{what}{reason}")


def _without_source(error: BaseException) -> str:
    """The request and the answer, without the structures of the library that follow them."""
    return str(error).partition("\n\nDebug source")[0]


def _in_one_line(error: BaseException) -> str:
    """The same in one line, cut where the answer is long."""
    line = " ".join(_without_source(error).split()) or type(error).__name__
    return line if len(line) <= _MOST_CHARACTERS else f"{line[:_MOST_CHARACTERS]}…"
