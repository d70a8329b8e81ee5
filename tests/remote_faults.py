"""Faults of an object store: the k-th call fails, fails after it was done, or ends the process."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from gracekit.remote import operations
from tests.faults import Fault, Layer, faulted, kill, kill_after, told_as_done

__all__ = [
    "BUCKET", "CALLS", "CUT", "DENIED", "SLOW", "THROTTLED", "Fault", "cut_short", "fails_after",
    "fails_with", "generic_error", "in_place_of", "kill", "kill_after", "told_as_done",
]  # fmt: skip
CALLS = (
    "list_objects", "head_object", "get_object", "get_part", "put_object", "delete_object",
)  # fmt: skip
BUCKET: Layer = (operations, CALLS)


def in_place_of(
    is_meant: Callable[[int, str], bool], fault: Fault
) -> AbstractContextManager[list[str]]:
    """Let `fault` answer the calls that are meant, by number from 1 and name; yields the names."""
    return faulted([BUCKET], is_meant, fault)


def fails_with(text: str) -> Fault:
    """The call is not done, and this is what obstore says."""

    def fault(name: str, call: Callable[[], Any]) -> Any:
        raise generic_error(text)

    return fault


def fails_after(text: str) -> Fault:
    """The call is done, and its answer is lost."""

    def fault(name: str, call: Callable[[], Any]) -> Any:
        call()
        raise generic_error(text)

    return fault


def cut_short(name: str, call: Callable[[], Any]) -> Any:
    """Half of what was asked for comes."""
    content = call()
    return content[: len(content) // 2] if isinstance(content, bytes) else content


def generic_error(text: str) -> Exception:
    """As obstore raises it."""
    from obstore.exceptions import GenericError

    return GenericError(text)


THROTTLED = (
    "Generic S3 error: Error performing PUT http://127.0.0.1/b/k in 9.1s, after 6 retries - Server "
    "returned non-2xx status code: 503 Service Unavailable: <Error><Code>SlowDown</Code></Error>"
)
DENIED = (
    "Generic S3 error: Error performing PUT http://127.0.0.1/b/k in 9ms - Server returned non-2xx "
    "status code: 403 Forbidden: <Error><Code>AccessDenied</Code></Error>"
)
SLOW = "Generic S3 error: Error performing GET http://127.0.0.1/b/k - error: operation timed out"
CUT = "Generic S3 error: Error getting list response body: request or response body error"
