"""Read one version of a coreset: `Coreset.load`. Needs NumPy and PyArrow only.

Of the whole store only manifests are read, so a copy of `manifests/` is enough where the trainer
runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from gracekit.errors import (
    DataError,
    StoreFormatError,
    StoreNotFoundError,
    UsageError,
    VersionNotFoundError,
)
from gracekit.remote import is_url
from gracekit.store import (
    NewerFormatError,
    StorePaths,
    bring,
    damaged,
    list_versions,
    local_store,
    read_manifest,
    require_manifest,
    trainer_view,
    version_number,
    versions_in_words,
)
from gracekit.tabular import Tabular, read_only
from gracekit.types import Float32, Int64, Json, Rows, Strings
from gracekit.version.trainer_view import TrainerView

if TYPE_CHECKING:
    from gracekit.store import Store


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Coreset(Tabular):
    """One version: which samples to train on and how many each stands for.

    Its arrays are read-only; `to_arrow`, `to_pandas` and `to_polars` give its rows as a table with
    the columns row, source_row, sample_id and weight.
    """

    version: int
    rows: Rows
    """int64 [b] rows of the sample store, ascending."""
    source_rows: Int64
    """int64 [b] positions in the data file as it was when this version was made."""
    weights: Float32
    """float32 [b] how many samples each stands for, mean 1."""
    sample_ids: Strings
    """str [b]"""
    view: TrainerView
    """What the version says about itself."""
    num_rows_of_others: frozenset[int] = frozenset()
    """Rows of the data file when it had other samples, or had them elsewhere, at other versions."""

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return (
            f"Coreset(version {self.version}, step {self.step}: {len(self):,} samples of "
            f"{self.num_source_rows:,} rows of the data)"
        )

    def _columns(self) -> dict[str, Any]:
        return {
            "row": self.rows,
            "source_row": self.source_rows,
            "sample_id": self.sample_ids,
            "weight": self.weights,
        }

    @property
    def step(self) -> int:
        """Training step of the checkpoint that this version was measured at."""
        return self.view.step

    @property
    def metadata(self) -> Json:
        """The manifest's header as its JSON has it: checkpoint, settings, audit and so on."""
        return self.view.content

    @property
    def tokens_per_row(self) -> float | None:
        """Target tokens of a row of the pool on average, as what to train on has it.

        The mean over tokens divides by it; None for a version without a draw.
        """
        return self.view.tokens_per_row

    @property
    def num_source_rows(self) -> int:
        """Rows of the data file that this version was made from, skipped ones included."""
        return self.view.num_source_rows

    @classmethod
    def load(
        cls, store: str | Path | Store, version: int | Literal["latest"] = "latest"
    ) -> Coreset:
        """Read a version of the store.

        Args:
            store: directory of the store, an open `gracekit.Store`, or the URL that a store is
                published at, such as `s3://bucket/run`.
            version: its number, or `"latest"`: the highest version that can be read.

        Raises:
            StoreNotFoundError: there is no store.
            VersionNotFoundError: the store has no such version, or none yet, or gc removed it.
            UsageError: the version is neither a whole number nor `"latest"`.
            StoreFormatError: the manifest is damaged or of a newer gracekit.
            RemoteError: the URL cannot be read.
        """
        if isinstance(store, (str, Path)):
            paths = StorePaths(local_store(store))
        elif isinstance(getattr(store, "paths", None), StorePaths):
            paths = store.paths
        else:
            raise UsageError(f"a store is its directory or an open gracekit.Store, found {store!r}")
        available = list_versions(paths.root)
        try:
            wanted = version_number(version)
            bring(paths.root, wanted, again=is_url(store))
        except UsageError as error:
            existing = versions_in_words(available)
            raise UsageError(f"{error}; the store {paths.root} has {existing}") from None
        available = list_versions(paths.root)
        if wanted is not None:
            require_manifest(paths, wanted)
            return _read(paths, wanted)
        damage: StoreFormatError | None = None
        for number in reversed(available):
            try:
                return _read(paths, number)
            except NewerFormatError:
                raise
            except StoreFormatError as error:
                damage = damage or error
        if damage is not None:
            raise damage
        if not paths.root.is_dir():
            raise StoreNotFoundError(
                f"there is no store at {paths.root}; `gracekit watch` makes one at the first "
                "checkpoint, or correct the path"
            )
        raise VersionNotFoundError(
            f"the store {paths.root} has no version yet; `gracekit watch` publishes the first one "
            "at the first complete checkpoint"
        )

    def locate(self, dataset: int | Sequence[Any]) -> Int64:
        """Where each sample lies in the trainer's dataset.

        Args:
            dataset: the sample id of each row of the trainer's dataset, in order; or only its
                number of rows, when it holds all rows of the data file in their order.

        Returns:
            int64 [b] positions; -1 for a sample that the trainer's dataset does not have.

        Raises:
            DataError: the number of rows is another one than the data file's when this version was
                made, or also that of other data that the store has followed; an id occurs twice;
                or less than half of the coreset is there: it is another dataset.
        """
        if isinstance(dataset, int):
            if dataset != self.num_source_rows:
                raise DataError(
                    f"the trainer's dataset has {dataset} rows and the data of coreset version "
                    f"{self.version} has {self.num_source_rows}, so rows cannot be matched by "
                    "position: rows were dropped, added or packed on the way. Give the sample id "
                    "of each row in place of their number (CoresetCallback: sample_ids=[...]; "
                    "Coreset.select: id_column='...')"
                )
            if dataset in self.num_rows_of_others:
                raise DataError(
                    f"the data of coreset version {self.version} has {dataset} rows, and so has "
                    "other data that this store has followed, so it cannot be told which of them "
                    "the trainer's dataset is. Give the sample id of each row in "
                    "place of their number (CoresetCallback: sample_ids=[...]; Coreset.select: "
                    "id_column='...')"
                )
            return self.source_rows
        where = {str(sample_id): position for position, sample_id in enumerate(dataset)}
        if len(where) != len(dataset):
            raise DataError(
                f"the sample ids of the trainer's dataset are not unique: {len(dataset)} rows, "
                f"{len(where)} different ids"
            )
        found = np.array([where.get(sample_id, -1) for sample_id in self.sample_ids], np.int64)
        num_found = int((found >= 0).sum())
        if 2 * num_found < len(self):
            raise DataError(
                f"of the {len(self)} samples of coreset version {self.version} only {num_found} "
                f"are in the trainer's dataset of {len(dataset)} rows; its ids look like "
                f"{list(where)[:2]}, the coreset's like {list(self.sample_ids[:2])}. Give the ids "
                'that gracekit uses (`gracekit sql "SELECT source_row, sample_id FROM samples"`)'
            )
        return found

    def positions(self, dataset: int | Sequence[Any]) -> Int64:
        """As `locate`, but every sample must be there (DataError otherwise)."""
        found = self.locate(dataset)
        absent = self.sample_ids[found < 0]
        if len(absent):
            raise DataError(
                f"{len(absent)} of the {len(self)} samples of coreset version {self.version} are "
                f"not in the trainer's dataset, among them {absent[0]!r}; "
                "`Coreset.locate` marks them with -1"
            )
        return found

    def select(self, dataset: Any, id_column: str | None = None) -> Any:
        """The coreset's rows of a dataset, in row order.

        Args:
            dataset: a `datasets.Dataset`, or any sequence.
            id_column: its column with the sample ids; without it, rows are matched by position
                and the dataset must be the whole data file.

        Returns:
            `dataset.select(positions)`, or a list where the dataset has no `select`.

        Raises:
            DataError: as `positions`, or there is no such column.
        """
        key: int | Sequence[Any] = len(dataset)
        if id_column is not None:
            try:
                key = list(dataset[id_column])
            except (KeyError, TypeError, ValueError):
                raise DataError(
                    f"the dataset has no column {id_column!r}; "
                    f"found {list(getattr(dataset, 'column_names', None) or [])}"
                ) from None
        positions = self.positions(key).tolist()
        if hasattr(dataset, "select"):
            return dataset.select(positions)
        return [dataset[position] for position in positions]


def _read(paths: StorePaths, version: int) -> Coreset:
    path = paths.manifest(version)
    view, table = trainer_view(path), read_manifest(path)
    try:
        # to_pylist: PyArrow's to_numpy would import pandas, where that is installed
        columns = {
            name: table.column(name).to_pylist()
            for name in ("row", "source_row", "sample_id", "weight")
        }
        coreset = Coreset(
            version=version,
            rows=np.array(columns["row"], np.int64),
            source_rows=np.array(columns["source_row"], np.int64),
            weights=np.array(columns["weight"], np.float32),
            sample_ids=np.array(columns["sample_id"], object),
            view=view,
            num_rows_of_others=_num_rows_of_others(paths, version, view),
        )
        return read_only(coreset)
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(path, error) from None


def _num_rows_of_others(paths: StorePaths, version: int, view: TrainerView) -> frozenset[int]:
    """From the newest manifest that can be read: it knows all data that the store has followed."""
    newest = view
    for number in reversed(list_versions(paths.root)):
        try:
            newest = trainer_view(paths.manifest(number)) if number != version else view
        except StoreFormatError:
            continue
        break
    others = newest.sources.items()
    return frozenset(num_rows for name, num_rows in others if name != view.positions)
