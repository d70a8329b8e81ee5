"""Faults of an object store: the k-th call fails, fails after it was done, or ends the process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from gracekit.remote import operations
from tests.faults import Killed

CALLS = (
    "list_objects", "head_object", "get_object", "get_part", "put_object", "delete_object",
)  # fmt: skip
Fault = Callable[[str, Callable[[], Any]], Any]
"""Given the name of a call and the call itself; returns what the caller gets."""


@contextmanager
def in_place_of(is_meant: Callable[[int, str], bool], fault: Fault) -> Iterator[list[str]]:
    """Let `fault` answer the calls that are meant, by number from 1 and name; yields the names."""
    seen: list[str] = []
    originals = {name: getattr(operations, name) for name in CALLS}

    def wrap(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            seen.append(name)
            if is_meant(len(seen), name):
                return fault(name, lambda: original(*arguments))
            return original(*arguments)

        return call

    for name, original in originals.items():
        setattr(operations, name, wrap(name, original))
    try:
        yield seen
    finally:
        for name, original in originals.items():
            setattr(operations, name, original)


def kill(name: str, call: Callable[[], Any]) -> Any:
    """The process ends before the call; to be meant for all later ones too."""
    raise Killed


def kill_after(name: str, call: Callable[[], Any]) -> Any:
    """The process ends when the call was done and its answer is not there yet."""
    call()
    raise Killed


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


def told_as_done(name: str, call: Callable[[], Any]) -> Any:
    """The call is not done, and nothing says so: for puts, which answer nothing."""


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
