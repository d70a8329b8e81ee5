"""The verb that writes training data: `export`."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

from gracekit.api.stores import StoreLike, VersionLike, open_store, path, resolve, text
from gracekit.errors import ExportError, UsageError
from gracekit.exports import (
    Exported,
    Weighting,
    enter_dataset,
    exported_at,
    link_latest,
    place_of,
    point_to_latest,
    rows_of,
)
from gracekit.exports import export as write_export
from gracekit.remote import address_of
from gracekit.store import Store
from gracekit.types import SampleMap


def export(
    store: StoreLike,
    out: str | Path | None = None,
    *,
    version: VersionLike = "latest",
    format: str = "jsonl",
    weights: Weighting = "column",
    data: str | Path | Sequence[str | Path] | None = None,
    with_scores: bool = False,
    versions_in: str | Path | None = None,
    force: bool = False,
) -> Exported:
    """Write the coreset of a version as training data for any framework.

    Args:
        store: Path of the store, or an open `Store`.
        out: The directory to make, or its URL in an object store (`s3://bucket/subset`); it may
            exist if it is empty. At a URL an export is complete once its `manifest.json` is there.
        version: A version's number, or `"latest"`.
        format: jsonl, parquet, hf-dataset, ids, indices-npy; llamafactory, axolotl, trl, ms-swift,
            torchtune; webdataset, mds; atlas, domain-weights.
        weights: `column` adds a weight column; `repeat` writes whole copies by weight, as many rows
            in all; `none` writes each row once.
        data: Where the data is now, when it moved; a list where it is several files.
        with_scores: Join to each row its scores, importance, origin and probability.
        versions_in: In place of `out`: a directory in which each version has a directory of its
            own, such as `v000012`, and the link `latest` names the newest; it is swapped at once.
            A version that is there already is left as it is (`was_there` in the details). At a
            URL the object `LATEST` has the name of the newest.
        force: Replace an earlier export at `out`; nothing else is ever replaced.

    Raises:
        UsageError: Neither `out` nor `versions_in` is given, or both are.
        RecipeError: There is no such format, or none that scores can be joined to.
        VersionNotFoundError: There is no such version, or gc removed it.
        ExportError: `out` exists or cannot be written, or the data has changed.
        DataError: The data cannot be read.
        RemoteError: A URL cannot be reached or written; the same call again goes on.

    Example:
        >>> gracekit.export("gracekit-store", "subset", format="parquet").num_rows
        3600
    """
    if (out is None) == (versions_in is None):
        raise UsageError(
            "export: expected either out, the directory to write, or versions_in, the directory of "
            f"all versions; found {'neither' if out is None else 'both'}"
        )
    opened = open_store(store)
    number = resolve(opened, version)
    rows = rows_of(
        opened,
        number,
        data_path=_places(data),
        with_scores=with_scores,
        open_map=lambda: _sample_map(opened, number),
    )
    name = text(format, "format")
    if versions_in is None:
        assert out is not None
        return write_export(rows, name, _place(out, "out"), weights=weights, overwrite=force)
    folder = _place(versions_in, "versions_in")
    place = place_of(folder, number)
    written = None if force else exported_at(place, rows.header)
    if written is None:
        written = write_export(rows, name, place, weights=weights, overwrite=force)
    elif (written.format, written.weights, _has_scores(written, with_scores)) != (
        name, weights, with_scores,
    ):  # fmt: skip
        _name_latest(folder)
        raise ExportError(
            f"version {number} is in {written.path} already, as "
            f"{_in_words(written.format, written.weights, _has_scores(written, with_scores))}; "
            f"asked for was {_in_words(name, weights, with_scores)}. Use another directory for "
            "each format, or replace it with --force"
        )
    elif address_of(place) is None:
        enter_dataset(place.expanduser().absolute())  # a kill may have come before that
    written.details["latest"] = _name_latest(folder)
    return written


def _has_scores(written: Exported, asked: bool) -> bool:
    """As it was asked for where an earlier release did not say."""
    return asked if written.with_scores is None else written.with_scores


def _in_words(format_name: str, weights: Weighting, with_scores: bool) -> str:
    return f"{format_name} with weights {weights}" + (" and with scores" if with_scores else "")


def _place(place: str | Path, name: str) -> Path:
    """A path of this machine, or one that was made of a URL."""
    address = address_of(place)
    return path(place, name) if address is None else Path(address)


def _name_latest(folder: Path) -> str:
    """Let the newest export of a folder have its name; returns where that is."""
    address = address_of(folder)
    if address is not None:
        return point_to_latest(address)
    return str(link_latest(folder.expanduser().absolute()))


def _sample_map(store: Store, version: int) -> SampleMap:
    """Loaded only where an atlas is asked for: with the graph come numba and scipy."""
    found: SampleMap = importlib.import_module("gracekit.views.sample_map").sample_map(
        store, version
    )
    return found


def _places(data: str | Path | Sequence[str | Path] | None) -> str | tuple[str, ...] | None:
    if data is None or isinstance(data, str | Path):
        return None if data is None else str(data)
    return tuple(map(str, data))
