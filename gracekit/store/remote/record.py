"""`published.json`: where the versions of a store are published, and how the last try went."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from gracekit import files
from gracekit.documents import read_json
from gracekit.errors import (
    GracekitError,
    RefreshStoppedError,
    RemoteError,
    StoreFormatError,
    UsageError,
)
from gracekit.foreign import foreign, whole_number
from gracekit.remote import local_path
from gracekit.store.files.paths import StorePaths
from gracekit.store.files.sealing import sealed_json
from gracekit.store.reader import StoreReader
from gracekit.store.remote.objects import PublishReport
from gracekit.store.remote.publishing import publish_versions


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """How the last try to publish went."""

    url: str
    is_automatic: bool
    """Whether a recipe says so; False: somebody did it by hand."""
    version: int | None
    """The newest version there, as far as is known."""
    published_at: str | None
    """UTC, RFC 3339; when a try succeeded last."""
    error: str | None
    """Why the last try failed; None: it did not."""
    failed_at: str | None
    """When it failed."""


def read_published(paths: StorePaths) -> Published | None:
    """The record; None where nothing was ever published, or where it makes no sense."""
    try:
        with foreign(paths.published, StoreFormatError):
            content = read_json(paths.published)
            version = content["version"]
            texts = {
                key: None if content[key] is None else str(content[key])
                for key in ("published_at", "error", "failed_at")
            }
            return Published(
                url=str(content["url"]),
                is_automatic=bool(content["is_automatic"]),
                version=None if version is None else whole_number(version),
                **texts,
            )
    except StoreFormatError:
        return None


def publish_and_record(
    store: StoreReader,
    url: str,
    *,
    is_automatic: bool,
    between: Callable[[], None] = lambda: None,
) -> PublishReport:
    """`publish_versions`, and note in the store how it went.

    Raises as that does, and `UsageError` for a URL that lies in the store itself.
    """
    before = read_published(store.paths)
    known = before if before is not None and before.url == url else None
    version = None if known is None else known.version
    published_at = None if known is None else known.published_at
    try:
        with foreign(url, RemoteError, doing="publish to"):  # also a disk that cannot be read
            _require_elsewhere(store, url)
            report = publish_versions(store, url, between=between)
    except RefreshStoppedError:
        raise
    except GracekitError as error:
        if isinstance(error, UsageError) and not is_automatic:
            raise  # nowhere to publish to, so it is no place to try again either
        _write(
            store.paths,
            Published(
                url=url,
                is_automatic=is_automatic,
                version=version,
                published_at=published_at,
                error=str(error),
                failed_at=_now(),
            ),
        )
        raise
    _write(
        store.paths,
        Published(
            url=url,
            is_automatic=is_automatic,
            version=report.latest,
            published_at=_now(),
            error=None,
            failed_at=None,
        ),
    )
    return report


def _require_elsewhere(store: StoreReader, url: str) -> None:
    place = local_path(url)
    if place is not None and place.resolve().is_relative_to(store.paths.root):
        raise UsageError(
            f"cannot publish to {url}: it lies in the store {store.paths.root} itself; name a "
            "place outside of it"
        )


def _write(paths: StorePaths, published: Published) -> None:
    files.write_text_atomic(paths.published, sealed_json(asdict(published)))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
