"""The verb that copies versions to an object store: `publish`."""

from __future__ import annotations

from gracekit.api.stores import StoreLike, open_store
from gracekit.errors import UsageError
from gracekit.remote import address_of
from gracekit.store import PublishReport, publish_and_record, read_published


def publish(store: StoreLike, url: str | None = None) -> PublishReport:
    """Copy the versions of a store to an object store, from where trainers read them.

    What is there already stays; versions that gc removed here are removed there. It may be stopped
    and repeated at any time. With `publish: {url: ...}` in the recipe each new version is published
    by itself; then this catches up after a failure.

    Args:
        store: Path of the store, or an open `Store`.
        url: A folder of an object store, such as `s3://bucket/run`; None: where it was published
            last.

    Returns:
        Which versions are new there, and how much was copied.

    Raises:
        UsageError: The URL is none, or none is known.
        RemoteConflictError: Another store is published there, or a version that is kept here was
            removed there; then the other versions are published.
        RemoteError: It cannot be reached or written; the versions there are whole.
        StoreError: The store cannot be read, or a version of it is damaged; then the versions that
            do not need the damaged file are published.

    Example:
        >>> gracekit.publish("gracekit-store", "s3://bucket/run").published
        (1, 2, 3)
    """
    opened = open_store(store)
    published = read_published(opened.paths)
    if url is None and published is None:
        raise UsageError(
            f"{opened.paths.root} was never published; name a URL such as s3://bucket/run"
        )
    if url is None:
        assert published is not None, "refused above"
        address, is_automatic = published.url, published.is_automatic
    else:
        found = address_of(url)
        if found is None:
            raise UsageError(
                f"versions are published at a URL such as s3://bucket/run, found {url!r}"
            )
        address = found
        is_same = published is not None and published.url == found
        is_automatic = published is not None and is_same and published.is_automatic
    return publish_and_record(opened, address, is_automatic=is_automatic)
