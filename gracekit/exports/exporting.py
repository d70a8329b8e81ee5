"""One export, start to finish: a directory that is complete or absent."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from gracekit import files
from gracekit.errors import ExportError, RecipeError, StoreWriteError
from gracekit.exports.exported_rows import ExportedRows, Weighting
from gracekit.exports.lists import Ids, Indices
from gracekit.exports.records import HfDataset, Jsonl, Parquet
from gracekit.exports.trainers import Axolotl, LlamaFactory
from gracekit.protocols import ExportFormat
from gracekit.types import Json

FORMATS: dict[str, type[ExportFormat]] = {
    "jsonl": Jsonl,
    "parquet": Parquet,
    "hf-dataset": HfDataset,
    "ids": Ids,
    "indices-npy": Indices,
    "llamafactory": LlamaFactory,
    "axolotl": Axolotl,
}
"""Name on the command line -> class."""

MANIFEST = "manifest.json"
"""Name of the version's header in an export, and what marks a directory as one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What an export wrote."""

    format: str
    path: str
    """The directory, absolute."""
    version: int
    num_rows: int
    weights: Weighting
    details: Json
    """What the format adds, such as `files`: their names."""

    def to_json(self) -> Json:
        """As a JSON object."""
        return {
            "format": self.format,
            "path": self.path,
            "version": self.version,
            "num_rows": self.num_rows,
            "weights": self.weights,
            **self.details,
        }


def export(
    content: ExportedRows,
    format_name: str,
    out: Path | str,
    *,
    weights: Weighting = "column",
    overwrite: bool = False,
) -> Exported:
    """Write a coreset as training data.

    Args:
        content: The rows of a version (`rows_of`).
        format_name: One of `FORMATS`.
        out: The directory to make; it may exist if it is empty.
        weights: `column` adds a column (`weights.npy` for lists); most trainers ignore it.
            `repeat` writes whole copies by weight, as many rows in all, which every trainer
            honours; rows of small weight may be left out. `none` writes each row once.
        overwrite: Replace an earlier export at `out`; nothing else is ever replaced.

    Raises:
        RecipeError: There is no such format.
        ExportError: `out` exists or cannot be written, or the data has changed. Then `out` is what
            it was before.
        DataError: The data cannot be read.
    """
    if weights not in get_args(Weighting):
        known = ", ".join(get_args(Weighting))
        raise RecipeError(f"there is no way {weights!r} to write weights; known: {known}")
    if format_name not in FORMATS:
        raise RecipeError(f"there is no export format {format_name!r}; known: {', '.join(FORMATS)}")
    out = Path(out).expanduser().absolute()
    _check_place(out, overwrite)
    written = content.weighted(weights)
    report = Exported(
        format=format_name,
        path=str(out),
        version=content.header.version,
        num_rows=len(written.rows),
        weights=weights,
        details={},
    )

    def write(directory: Path) -> None:
        manifest = {**content.header.to_json(), "export": report.to_json()}
        (directory / MANIFEST).write_text(
            json.dumps(manifest, indent=2, ensure_ascii=False), encoding="utf-8"
        )
        report.details.update(FORMATS[format_name]().write(written, directory, out))

    try:
        files.write_directory_atomic(out, write)
    except StoreWriteError as error:
        raise ExportError(
            f"cannot write the export {out}: {error.__cause__}. Free some space or check the owner "
            "of the directory, and export again"
        ) from error
    return report


def _check_place(out: Path, overwrite: bool) -> None:
    """Raise `ExportError` where something would be lost."""
    if not out.exists() and not out.is_symlink():
        return
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.is_symlink() or not _is_export(out):
        raise ExportError(
            f"{out} exists and is not an earlier export (a directory with our {MANIFEST}), so it "
            "is left alone. Name another directory with --out"
        )
    if not overwrite:
        raise ExportError(
            f"{out} holds an earlier export. Name another directory with --out, or replace it "
            "with --force"
        )


def _is_export(directory: Path) -> bool:
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and "export" in manifest
