"""One export, start to finish: a directory, or a folder of an object store, with what it holds."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from gracekit import files
from gracekit.errors import ExportError, RecipeError, StoreWriteError
from gracekit.exports.atlas import Atlas
from gracekit.exports.axolotl import Axolotl
from gracekit.exports.chat_trainers import MsSwift, TorchTune, Trl
from gracekit.exports.dataset_info import entered
from gracekit.exports.domain_weights import DomainWeights
from gracekit.exports.exported_rows import ExportedRows, Weighting
from gracekit.exports.lists import Ids, Indices
from gracekit.exports.llamafactory import LlamaFactory
from gracekit.exports.placing import (
    check_place,
    list_written,
    manifest_at,
    mark_unfinished,
    put_in_place,
    remove_left,
    written_at,
)
from gracekit.exports.records import HfDataset, Jsonl, Parquet
from gracekit.exports.remote_place import RemotePlace, remote_manifest
from gracekit.exports.shards import Mds, WebDataset
from gracekit.leftovers import scratch_folder
from gracekit.protocols import ExportFormat
from gracekit.remote import address_of, address_or_path
from gracekit.types import Json
from gracekit.version.header import Header
from gracekit.version.json_text import json_text, plain_json

FORMATS: dict[str, type[ExportFormat]] = {
    "jsonl": Jsonl,
    "parquet": Parquet,
    "hf-dataset": HfDataset,
    "ids": Ids,
    "indices-npy": Indices,
    "llamafactory": LlamaFactory,
    "axolotl": Axolotl,
    "trl": Trl,
    "ms-swift": MsSwift,
    "torchtune": TorchTune,
    "webdataset": WebDataset,
    "mds": Mds,
    "atlas": Atlas,
    "domain-weights": DomainWeights,
}
"""Name on the command line -> class."""
WITHOUT_ROWS = frozenset({"ids", "indices-npy", "atlas", "domain-weights"})
"""Formats that do not hold the selected rows, so that nothing can be joined to these."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What an export wrote."""

    format: str
    path: str
    """The directory, absolute, or its URL."""
    version: int
    num_rows: int
    weights: Weighting
    with_scores: bool | None
    """Whether scores are joined to the rows; None: an earlier release wrote it and did not say."""
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
            "with_scores": self.with_scores,
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
        out: The directory to make, or its URL in an object store; it may exist if it is empty. At a
            URL the export is complete once its `manifest.json` is there, which is copied last.
        weights: `column` adds a column (`weights.npy` for lists); most trainers ignore it.
            `repeat` writes whole copies by weight, as many rows in all, which every trainer
            honours; rows of small weight may be left out. `none` writes each row once.
        overwrite: Replace an earlier export at `out`. Files that no export wrote are never removed:
            with one of them there it is refused.

    Raises:
        RecipeError: There is no such format, or it does not write weights in that way.
        ExportError: `out` exists, lies in a store or cannot be written, or the data has changed.
            Then `out` is what it was before.
        RemoteError: The URL cannot be reached or written; the same call again goes on.
        DataError: The data cannot be read.
    """
    if weights not in get_args(Weighting):
        known = ", ".join(get_args(Weighting))
        raise RecipeError(f"there is no way {weights!r} to write weights; known: {known}")
    if format_name not in FORMATS:
        raise RecipeError(f"there is no export format {format_name!r}; known: {', '.join(FORMATS)}")
    if content.scores and format_name in WITHOUT_ROWS:
        more = "; it has the scores of all samples anyway" if format_name == "atlas" else ""
        raise RecipeError(
            f"the format {format_name} does not hold the rows that scores could be joined to"
            f"{more}. Leave --with-scores out, or export as jsonl"
        )
    if format_name == "atlas" and weights != "column":
        raise RecipeError(
            f"the format atlas has a row for each sample of the data, selected or not, with its "
            f"weight in a column, so weights cannot be {weights!r}. Leave --weights out, or export "
            "as parquet"
        )
    address, remote = address_of(out), None
    if address is None:
        out = Path(out).expanduser().absolute()
        check_place(out, overwrite)
    else:
        out, remote = Path(address), RemotePlace.open(address, overwrite)
    written = content.weighted(weights)
    report = Exported(
        format=format_name,
        path=address_or_path(out),
        version=content.header.version,
        num_rows=len(written.rows),
        weights=weights,
        with_scores=bool(content.scores),
        details={},
    )

    def write(directory: Path) -> None:
        manifest = {**content.header.to_json(), "export": plain_json(report.to_json())}
        mark_unfinished(directory, manifest)
        report.details.update(FORMATS[format_name]().write(written, directory, out))
        list_written(directory, manifest)

    try:
        if remote is not None:
            with (
                files.clear_write_errors(out),
                scratch_folder("export") as built_in,
            ):
                write(built_in)
                remote.put(built_in)
            return report
        remove_left(out, whole=False)
        is_llamafactory = FORMATS[format_name] is LlamaFactory
        with files.temporary_directory(out, write) as built, entered(out, is_asked=is_llamafactory):
            put_in_place(built, out)
        remove_left(out, whole=True)
    except StoreWriteError as error:
        advice = "Free some space or check the owner of the directory, and export again"
        if remote is not None:
            advice = (
                "It is written on this machine first: free some space in the directory for "
                "temporary files, or set TMPDIR to another one, and export again"
            )
        raise ExportError(
            f"cannot write the export {report.path}: {error.__cause__}. {advice}"
        ) from error
    return report


def exported_at(place: Path, header: Header) -> Exported | None:
    """The export of this very version that is at a place already; None where none is.

    Its details have `was_there`, since what else it was told then is not known.

    Raises:
        ExportError: A file of the export is no longer in its directory.
        RemoteError: The place is a URL that cannot be reached.
    """
    address = address_of(place)
    if address is not None:
        manifest = remote_manifest(address)
    else:
        place = place.expanduser().absolute()
        manifest = None if place.is_symlink() else manifest_at(place)
    if manifest is None:
        return None
    told = manifest.pop("export")
    is_this = manifest == json.loads(json_text(header.to_json()))
    if not is_this or not {"format", "version", "num_rows", "weights"} <= told.keys():
        return None
    if address is None:
        lost = sorted(name for name in written_at(place) or () if not (place / name).exists())
        if lost:
            raise ExportError(
                f"{place} holds an export of version {told['version']} that lacks {lost[0]}: "
                "replace it with --force"
            )
    return Exported(
        format=told["format"],
        path=address_or_path(place),
        version=told["version"],
        num_rows=told["num_rows"],
        weights=told["weights"],
        with_scores=told.get("with_scores"),
        details={"was_there": True},
    )
