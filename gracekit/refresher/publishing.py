"""Publishing after a version was made: where it fails, the version stands and a warning says so."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from gracekit.errors import GracekitError, RefreshStoppedError
from gracekit.progress import Progress
from gracekit.store import Store, publish_and_record, read_published

logger = logging.getLogger(__name__)


def publish_by_recipe(root: Path, url: str | None, progress: Progress | None = None) -> None:
    """Copy what is new to the URL that the recipe names, if it names one; the caller has no lock.

    Raises `RefreshStoppedError` where a stop was asked for; what is missing is copied next time.
    """
    if url is None or not Store.exists(root):
        return
    _publish(root, url, lambda: _require_going_on(progress))


def publish_again(root: Path) -> None:
    """The same where no recipe is at hand, to the URL that one named last."""
    if not Store.exists(root):
        return
    published = read_published(Store.open(root).paths)
    if published is not None and published.is_automatic:
        _publish(root, published.url, lambda: None)


def _publish(root: Path, url: str, between: Callable[[], None]) -> None:
    try:
        report = publish_and_record(Store.open(root), url, is_automatic=True, between=between)
    except RefreshStoppedError:
        raise
    except GracekitError as error:
        logger.warning(
            "not published to %s: %s; the store itself is whole, and the next version, or "
            "`gracekit publish`, tries again", url, error,
        )  # fmt: skip
        return
    if report.num_objects or report.removed:
        logger.info(
            "published to %s up to version %s: %d objects, %s bytes",
            url, report.latest, report.num_objects, f"{report.num_bytes:,}",
        )  # fmt: skip


def _require_going_on(progress: Progress | None) -> None:
    if progress is None:
        return
    if progress.is_stopping:
        raise RefreshStoppedError(
            "stopped while publishing; the store is whole, and what is missing at the URL is "
            "copied at the next start"
        )
    progress.sign()
