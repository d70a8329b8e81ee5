"""Where data may lie: files, directories, patterns of file names, object stores, the hub."""

from __future__ import annotations

import os
from pathlib import Path

from gracekit.remote import is_url

PATTERN_SIGNS = "*?["


def has_pattern(place: str) -> bool:
    """Whether it is a pattern such as `data/*.jsonl`, and no file of that very name."""
    is_pattern = any(sign in place for sign in PATTERN_SIGNS) and not is_url(place)
    return is_pattern and not Path(place).expanduser().exists()


def files_named(pattern: str) -> list[Path]:
    """What a pattern names, `**` for any folders, in the order of the names; nothing hidden."""
    path = Path(pattern).expanduser()
    is_fixed = [not any(sign in part for sign in PATTERN_SIGNS) for part in path.parts]
    if all(is_fixed):
        return [path] if path.exists() else []
    num_fixed = is_fixed.index(False)
    folder, rest = Path(*path.parts[:num_fixed]), path.parts[num_fixed:]
    found = sorted(folder.glob(str(Path(*rest))))
    return [p for p in found if not any(n.startswith(".") for n in p.relative_to(folder).parts)]


def from_folder(folder: Path, place: str) -> str:
    """A relative place as it is called from elsewhere; an address, or a name on the hub, stays."""
    if is_url(place):
        return place
    inside = folder / place
    if Path(place).is_absolute() or (not inside.exists() and _looks_like_hub_name(place)):
        return place
    return os.path.normpath(inside)


def _looks_like_hub_name(path: str) -> bool:
    is_file = Path(path).suffix in {".json", ".jsonl", ".parquet", ".csv", ".tsv"}
    is_pattern = any(sign in path for sign in PATTERN_SIGNS)
    return path.count("/") <= 1 and not (is_file or is_pattern) and not path.startswith(".")
