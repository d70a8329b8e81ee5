"""The verbs that look at a store: `status`, `versions`, `diff`, `verify`."""

from __future__ import annotations

import time
from typing import Literal, overload

from gracekit.api.stores import StoreLike, VersionLike, open_store, resolve, root_of, whole_number
from gracekit.errors import UsageError
from gracekit.remote import address_of
from gracekit.store import Store, read_heartbeat, verify_published
from gracekit.views.diff import NUM_MOVERS, Diff
from gracekit.views.diff import diff as compute_diff
from gracekit.views.status import Health, Status, health
from gracekit.views.status import status as compute_status
from gracekit.views.verify import Verification
from gracekit.views.versions import Versions
from gracekit.views.versions import versions as list_versions


@overload
def status(store: StoreLike, *, check: Literal[True], max_age: float = 120.0) -> Health: ...
@overload
def status(
    store: StoreLike, *, check: Literal[False] = False, now: float | None = None
) -> Status: ...
def status(
    store: StoreLike, *, check: bool = False, max_age: float = 120.0, now: float | None = None
) -> Status | Health:
    """What a store holds, how fresh it is, how far to trust it, and what the daemon does.

    Args:
        store: Path of the store, or an open `Store`.
        check: Only say whether the daemon is well; the store need not exist yet.
        max_age: With `check`: seconds without a sign of the daemon that are too long.
        now: Seconds since the epoch; default: the clock.

    Raises:
        StoreError: There is neither a store nor a daemon that will make one, or it is damaged.

    Example:
        >>> found = gracekit.status("gracekit-store")
        >>> print(found)                     # in sentences
        >>> found.latest.num_selected, found.problems
        (3600, ())
        >>> gracekit.status("gracekit-store", check=True).is_healthy
        True
    """
    now = time.time() if now is None else now
    root = root_of(store)
    heartbeat = read_heartbeat(root, now=now)
    if check:
        return health(heartbeat, max_age_s=max_age)
    # A daemon that waits for the first checkpoint makes no store before it.
    is_awaited = not Store.exists(root) and heartbeat["state"] not in ("absent", "unreadable")
    return compute_status(root, None if is_awaited else open_store(store), heartbeat, now=now)


def versions(store: StoreLike) -> Versions:
    """The versions of a store, ascending, also those that gc removed.

    Args:
        store: Path of the store, or an open `Store`.

    Raises:
        StoreError: There is no store, or it is damaged.

    Example:
        >>> found = gracekit.versions("gracekit-store")
        >>> found[-1].header.operation
        'refresh'
        >>> found.to_pandas()[["version", "step", "rank_correlation"]]
    """
    return list_versions(open_store(store))


def diff(
    store: StoreLike, first: VersionLike, second: VersionLike, *, num_movers: int = NUM_MOVERS
) -> Diff:
    """How the coresets and the scores of two versions differ.

    Args:
        store: Path of the store, or an open `Store`.
        first: A version, or `"latest"`.
        second: The version to compare it with, or `"latest"`.
        num_movers: How many of the samples whose importance changed most are listed.

    Raises:
        VersionNotFoundError: One of them does not exist, or gc removed it.
        StoreFormatError: One of them is damaged.

    Example:
        >>> found = gracekit.diff("gracekit-store", 3, "latest")
        >>> found.num_added, found.num_removed
        (120, 118)
        >>> found.movers.to_pandas()
    """
    opened = open_store(store)
    num_movers = whole_number(num_movers, "num_movers", least=0)
    return compute_diff(
        opened, resolve(opened, first), resolve(opened, second), num_movers=num_movers
    )


def verify(store: StoreLike, *, deep: bool = False) -> Verification:
    """Check every checksum, schema and reference of a store; reads every file.

    Args:
        store: Path of the store, or an open `Store`; or the URL of its published copy, of which
            every object is downloaded to a folder for temporary files.
        deep: Of a store: also make again what follows from other files (counts of headers, columns
            and weights of coresets, the published database), and compare.

    Returns:
        The versions there are, and the problems, worst first; without problems it is `ok`.

    Raises:
        StoreError: There is no store, or it cannot be opened.
        RemoteError: The URL cannot be reached.
        UsageError: `deep` of a copy: what it would compare is not published.

    Example:
        >>> gracekit.verify("gracekit-store").ok
        True
    """
    address = None if isinstance(store, Store) else address_of(store)
    if address is not None:
        if deep:
            raise UsageError(
                f"verify: deep is for a store on this machine, found {address}: every object there "
                "is compared with its checksum without it"
            )
        there, found = verify_published(address)
        return Verification(versions=tuple(there), problems=tuple(found))
    opened = open_store(store)
    problems = opened.verify(deep=deep)
    return Verification(versions=tuple(opened.versions()), problems=tuple(problems))
