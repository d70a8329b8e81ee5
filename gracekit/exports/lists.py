"""Formats without the data: which samples, for a trainer that has it already."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gracekit.errors import ExportError
from gracekit.protocols import ExportContent
from gracekit.types import Json

WEIGHTS = "weights.npy"


class Ids:
    """`ids.txt`, one sample id a line, and `weights.npy`, both in the data's order."""

    def write(self, content: ExportContent, directory: Path, out: Path) -> Json:
        """Ids with a line break cannot be told apart in a list: an `ExportError`."""
        for sample_id in content.sample_ids:
            if len(sample_id.splitlines()) != 1:
                raise ExportError(
                    f"the sample id {sample_id!r} is not one line, so a list of ids would be "
                    "ambiguous; export as jsonl or indices-npy"
                )
        text = "".join(f"{sample_id}\n" for sample_id in content.sample_ids)
        (directory / "ids.txt").write_text(text, encoding="utf-8", newline="\n")
        return {"files": ["ids.txt", *_write_weights(content, directory)]}


class Indices:
    """`indices.npy`, int64, positions in the user's dataset, ascending; `weights.npy` beside it."""

    def write(self, content: ExportContent, directory: Path, out: Path) -> Json:
        """Any language can read or map the files."""
        np.save(directory / "indices.npy", content.source_rows.astype(np.int64))
        return {"files": ["indices.npy", *_write_weights(content, directory)]}


def _write_weights(content: ExportContent, directory: Path) -> list[str]:
    """float32, where they are wanted; returns the file written."""
    if not content.has_weights:
        return []
    np.save(directory / WEIGHTS, content.weights.astype(np.float32))
    return [WEIGHTS]
