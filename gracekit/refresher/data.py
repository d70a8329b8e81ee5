"""The user's data as it changes while a store follows a run: read again, and judged."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from gracekit.errors import DataError, StoreDataMismatchError
from gracekit.recipe import DataSection
from gracekit.samples import Growth, RawSamples, data_stamp, load_samples

logger = logging.getLogger(__name__)


class CurrentData:
    """The user's samples, read again when their files have changed.

    Data that cannot be used (it is being written, or broken: `DataError`) or that is refused
    (`StoreDataMismatchError`) leaves the last good one in use; it is tried again the next time.
    """

    def __init__(self, settings: DataSection, *, strict: bool) -> None:
        """Read it; raises `DataError`."""
        self._settings = settings
        self._strict = strict
        self._stamp, self.samples = self._read()
        self.problem: str | None = None
        """Why the data as it is now is not used; None where it is."""

    def renew(self, check: Callable[[RawSamples], None]) -> RawSamples:
        """The samples as they are now; `check` may refuse them by one of the two errors."""
        self.problem = None
        try:
            if data_stamp(self._settings) == self._stamp:
                return self.samples
            stamp, samples = self._read()
            check(samples)
        except (DataError, StoreDataMismatchError) as error:
            self.problem = str(error)
            logger.warning(
                "the data as it is now cannot be used, so this refresh goes on with what it was "
                "before; the next one tries again: %s",
                error,
            )
        else:
            self._stamp, self.samples = stamp, samples
        return self.samples

    def _read(self) -> tuple[object, RawSamples]:
        stamp = data_stamp(self._settings)
        samples = load_samples(self._settings, strict=self._strict)
        if data_stamp(self._settings) != stamp:
            raise DataError(
                f"{self._settings.name} changed while it was read; wait until it is written. "
                "Replacing the file by a rename avoids this"
            )
        if samples.skipped:
            logger.warning(
                "%d of %d rows cannot be used, the first is row %d: %s (--strict lists them)",
                len(samples.skipped),
                samples.num_source_rows,
                samples.skipped[0].source_row,
                samples.skipped[0].reason,
            )
        return stamp, samples


def require_same_data(growth: Growth, *, max_lost: float, source: str, store: Path) -> None:
    """Raise `StoreDataMismatchError` where too many samples would be lost: it is other data."""
    before = growth.samples.present.copy()
    before[growth.added], before[growth.returned], before[growth.removed] = False, False, True
    num_before = int(before.sum())
    num_changed = int(before[growth.changed].sum())
    num_lost = len(growth.removed) + num_changed
    if num_lost <= max_lost * num_before:
        return
    raise StoreDataMismatchError(
        f"the store {store} was made from other data than {source}: of {num_before:,} samples "
        f"{len(growth.removed):,} are missing there and {num_changed:,} have other content, which "
        f"is more than refresh.max_lost ({max_lost:g}) lets go. Correct data.path or "
        "data.id_column, restore the data, or name a new store; where the samples are meant to "
        "go, say so once with --set refresh.max_lost=1"
    )
