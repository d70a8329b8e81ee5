"""Where an export goes: a directory that is new, empty, or holds an earlier export and no more.

The manifest of an export lists the files that it wrote. Only these are ever removed, and what an
export that was killed had written by then. That one lies beside the place under a temporary name,
which tells whose it is (`gracekit.leftovers`), and while it is written its manifest says so.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from gracekit import files
from gracekit.documents import read_json
from gracekit.errors import ExportError
from gracekit.foreign import reason_of
from gracekit.store import require_outside
from gracekit.types import Json
from gracekit.version.json_text import json_text

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
"""Name of the version's header in an export, and what marks a directory as one."""
WRITTEN = "written"
"""Under `export` in the manifest: the names of all files of the export."""
UNFINISHED = "unfinished"
"""Under `export` in the manifest instead, as long as the export is written."""

_OF_EARLIER_RELEASES = re.compile(
    r"manifest\.json|README\.md|coreset\.(jsonl|parquet)|ids\.txt|indices\.npy|weights\.npy|"
    r"dataset_info\.json|axolotl\.yaml|state\.json|data-\d{5}-of-\d{5}\.arrow"
)
"""What exports without a list can have written."""


def check_place(out: Path, overwrite: bool) -> None:
    """Raise `ExportError` where something would be lost."""
    try:
        require_outside(out)
        if not os.path.lexists(out) or (out.is_dir() and not any(out.iterdir())):
            return
        written = None if out.is_symlink() else written_at(out)
        if written is None:
            raise ExportError(
                f"{out} exists and is not an earlier export (a directory with our {MANIFEST}), so "
                "it is left alone. Name another directory with --out"
            )
        if not overwrite:
            raise ExportError(
                f"{out} holds an earlier export. Name another directory with --out, or replace it "
                "with --force"
            )
        _require_nothing_else(out, written)
    except (OSError, ValueError) as error:  # ValueError: a null byte
        raise ExportError(
            f"cannot write the export {out}: {reason_of(error)}. Name another directory"
        ) from error


def written_at(directory: Path) -> set[str] | None:
    """Names, relative to it, that an export wrote into a directory; None where it holds none."""
    manifest = manifest_at(directory)
    if manifest is None:
        return None
    listed = manifest["export"].get(WRITTEN)
    if isinstance(listed, list):
        return {MANIFEST, *map(str, listed)}
    return {name for name in files_below(directory) if _OF_EARLIER_RELEASES.fullmatch(name)}


def manifest_at(directory: Path) -> Json | None:
    """The manifest of the export that a directory holds; None where it holds none."""
    try:
        manifest = read_json(directory / MANIFEST)
    except (OSError, ValueError):
        return None
    is_ours = isinstance(manifest, dict) and isinstance(manifest.get("export"), dict)
    return manifest if is_ours else None


def files_below(directory: Path) -> list[str]:
    """Names of all entries but directories, relative to it; links are not followed."""
    return sorted(
        (Path(folder) / name).relative_to(directory).as_posix()
        for folder, folders, names in os.walk(directory)
        for name in [*names, *(d for d in folders if (Path(folder) / d).is_symlink())]
    )


def list_written(directory: Path, manifest: Json) -> None:
    """Write the manifest of an export, with the names of all its files."""
    written = sorted({MANIFEST, *files_below(directory)})
    content = {**manifest, "export": {**manifest["export"], WRITTEN: written}}
    beside = files.temporary_path(directory / MANIFEST)
    beside.write_text(json_text(content), encoding="utf-8")
    os.replace(beside, directory / MANIFEST)


def mark_unfinished(directory: Path, manifest: Json) -> None:
    """Write the manifest of an export of which nothing else is written yet."""
    content = {**manifest, "export": {**manifest["export"], UNFINISHED: True}}
    (directory / MANIFEST).write_text(json_text(content), encoding="utf-8")


def remove_left(out: Path, *, whole: bool) -> None:
    """Remove what exports to the same place left that were killed, as far as it is ours.

    Unfinished ones go with all that they hold. What somebody else put into a whole one stays, and
    is told in a warning, as is what cannot be removed.

    Args:
        out: The place.
        whole: Also whole exports, which a kill between two renames leaves: only once another one is
            in their place.
    """
    files.remove_left_files(out)
    for left in files.left_beside(out):
        if left.is_symlink() or not left.is_dir():
            continue
        try:
            _remove_left(left, whole=whole)
        except OSError as error:
            logger.warning("cannot remove %s, which a killed export left: %s", left, error)


def _remove_left(left: Path, *, whole: bool) -> None:
    names, manifest = files_below(left), manifest_at(left)
    if manifest is not None and UNFINISHED in manifest["export"]:
        files.remove(left)
    elif manifest is not None:
        if whole:
            _remove_written(left, written_at(left) or set())
    elif set(names) <= {MANIFEST}:  # killed before the first byte of it, or amid them
        _remove_written(left, {MANIFEST})
    if whole and left.exists():
        logger.warning(
            "%s was left by an export that was killed, and holds files that it did not write "
            "(%s): move them away and remove it",
            left,
            some_of(files_below(left)),
        )


def put_in_place(built: Path, out: Path) -> None:
    """Rename a finished directory to `out`, in place of an earlier export or an empty directory.

    The earlier export is renamed aside, and removed file by file once the new one has its name.
    What somebody else put into it meanwhile is left there, and told. A kill between the two
    renames leaves both beside `out`, whole. Raises OSError; then `out` is what it was before.
    """
    if not os.path.lexists(out):
        files.replace_surely(built, out)
        files.sync_directory(out.parent)
        return
    aside = files.temporary_path(out)
    files.replace_surely(out, aside)
    try:
        files.replace_surely(built, out)
    except BaseException:
        files.replace_surely(aside, out)
        raise
    files.sync_directory(out.parent)
    _remove_written(aside, written_at(aside) or set())
    if aside.exists():
        raise ExportError(
            f"{out} is written, but somebody put files into the earlier export meanwhile "
            f"({some_of(files_below(aside))}), which are left in {aside}"
        )


def _require_nothing_else(out: Path, written: Collection[str]) -> None:
    others = [name for name in files_below(out) if name not in written]
    if others:
        raise ExportError(
            f"{out} holds files that no export of ours wrote ({some_of(others)}), so it is left "
            "alone. Move them away, or name another directory with --out"
        )


def _remove_written(directory: Path, written: Collection[str]) -> None:
    """Remove these files, as far as they are in the directory, the manifest last; then the
    directories that are empty.
    """
    found = (name for name in files_below(directory) if name in written)
    for name in sorted(found, key=lambda name: name == MANIFEST):
        files.remove(directory / name)
    folders = [Path(folder) for folder, _, _ in os.walk(directory, topdown=False)]
    for folder in folders:
        with suppress(OSError):  # not empty
            folder.rmdir()


def some_of(names: list[str]) -> str:
    """The first few of many names."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
