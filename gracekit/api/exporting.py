"""The verb that writes training data: `export`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gracekit.api.stores import StoreLike, VersionLike, open_store, path, resolve, text
from gracekit.exports import Exported, Weighting, rows_of
from gracekit.exports import export as write_export


def export(
    store: StoreLike,
    out: str | Path,
    *,
    version: VersionLike = "latest",
    format: str = "jsonl",
    weights: Weighting = "column",
    data: str | Path | Sequence[str | Path] | None = None,
    force: bool = False,
) -> Exported:
    """Write the coreset of a version as training data for any framework.

    Args:
        store: Path of the store, or an open `Store`.
        out: The directory to make; it may exist if it is empty.
        version: A version's number, or `"latest"`.
        format: jsonl, parquet, hf-dataset, ids, indices-npy, llamafactory or axolotl.
        weights: `column` adds a weight column; `repeat` writes whole copies by weight, as many rows
            in all; `none` writes each row once.
        data: Where the data is now, when it moved; a list where it is several files.
        force: Replace an earlier export at `out`; nothing else is ever replaced.

    Raises:
        RecipeError: There is no such format.
        VersionNotFoundError: There is no such version, or gc removed it.
        ExportError: `out` exists or cannot be written, or the data has changed.
        DataError: The data cannot be read.

    Example:
        >>> gracekit.export("gracekit-store", "subset", format="parquet").num_rows
        3600
    """
    opened = open_store(store)
    rows = rows_of(opened, resolve(opened, version), data_path=_places(data))
    return write_export(
        rows, text(format, "format"), path(out, "out"), weights=weights, overwrite=force
    )


def _places(data: str | Path | Sequence[str | Path] | None) -> str | tuple[str, ...] | None:
    if data is None or isinstance(data, str | Path):
        return None if data is None else str(data)
    return tuple(map(str, data))
