"""Exports: a version as training data, for any framework.

`rows_of` reads a version from a store, `export` writes it in one of the `FORMATS`.
"""

from gracekit.exports.dataset_info import enter as enter_dataset
from gracekit.exports.exported_rows import ExportedRows, Weighting, rows_of
from gracekit.exports.exporting import FORMATS, Exported, export, exported_at
from gracekit.exports.remote_place import point_to_latest
from gracekit.exports.versions_folder import link_latest, place_of

__all__ = [
    "FORMATS",
    "Exported",
    "ExportedRows",
    "Weighting",
    "enter_dataset",
    "export",
    "exported_at",
    "link_latest",
    "place_of",
    "point_to_latest",
    "rows_of",
]
