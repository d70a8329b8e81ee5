"""Opening the user's data, whatever it lies in, as a `datasets.Dataset`.

Files, directories of files, `save_to_disk` folders and hub names all go through `datasets`, which
keeps its usual cache. Whatever it raises becomes a `DataError` that names the file and, for JSON,
the line.
"""

from __future__ import annotations

import csv
import difflib
import glob
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from gracekit.errors import DataError
from gracekit.recipe import DataSection
from gracekit.samples.json_files import COMPRESSIONS, open_text, repaired, require_shallow

if TYPE_CHECKING:
    import datasets

KINDS = {
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
}
"""File name ending -> the reader of `datasets`."""
SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
"""Words of a file name that say which split it belongs to."""


def open_dataset(data: DataSection) -> datasets.Dataset:
    """The dataset that the recipe names, in plain Python values; `DataError` if there is none."""
    path = Path(data.path).expanduser()
    with _quiet():
        if path.is_dir() and ((path / "state.json").exists() or _is_saved_dict(path)):
            dataset = _open_saved(path, data.split)
        elif path.is_dir():
            dataset = _open_files(data, _files_of_split(path, data.split))
        elif path.is_file():
            if _split_name(data.split) != "train":
                raise DataError(
                    f"{path} is one file and has no split {data.split!r}; leave data.split out"
                )
            dataset = _open_files(data, [path])
        else:
            dataset = _open_hub(data, path)
    if len(dataset) == 0:
        raise DataError(f"{data.path} holds no rows (split {data.split!r}); expected samples")
    return dataset.with_format(None)


def data_stamp(data: DataSection) -> object:
    """What changes when the files of the data do: cheap, and nothing is read.

    Compares equal as long as nothing changed; always for a hub dataset.
    """
    path = Path(data.path).expanduser()
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    stamp = []
    for file in files:
        try:
            status = file.stat()
        except OSError:
            continue
        stamp.append((str(file), status.st_ino, status.st_size, status.st_mtime_ns))
    return stamp


def missing_column(data: DataSection, name: str, columns: Collection[str]) -> DataError:
    """The error for a column that the recipe names and the dataset lacks."""
    near = difflib.get_close_matches(name, columns, n=1)
    hint = f"did you mean {near[0]!r}?" if near else "correct the recipe"
    return DataError(
        f"{data.path} has no column {name!r}; found the columns {', '.join(columns)}; {hint}"
    )


def kind_of(path: Path) -> str | None:
    """The reader for a file by its name, compressed or not; None for other files."""
    stem = path.with_suffix("") if path.suffix.lower() in COMPRESSIONS else path
    return KINDS.get(stem.suffix.lower())


def _open_files(data: DataSection, paths: list[Path]) -> datasets.Dataset:
    import datasets

    kinds = {kind_of(path) for path in paths}
    kind = kinds.pop()
    if kind is None or kinds:
        found = ", ".join(path.name for path in paths[:3])
        raise DataError(
            f"{data.path}: expected files of one kind ({', '.join(KINDS)}), found {found}"
        )
    for path in paths:
        if path.stat().st_size == 0:
            raise DataError(f"{path} is empty; expected one sample per line or row")
        if kind == "json":
            require_shallow(path)
    split = _split_name(data.split)
    try:
        options = _csv_options(paths) if kind == "csv" else {}
        try:
            return datasets.load_dataset(
                kind,
                data_files={split: [glob.escape(str(p)) for p in paths]},
                split=data.split,
                **options,
            )
        except Exception:
            folder = Path(datasets.config.HF_DATASETS_CACHE) / "gracekit-repaired"
            if kind != "json" or not (copies := repaired(paths, folder)):
                raise
            return datasets.load_dataset(
                kind, data_files={split: [glob.escape(str(p)) for p in copies]}, split=data.split
            )
    except DataError:
        raise
    except Exception as error:  # datasets raises whatever its readers do
        where = paths[0] if len(paths) == 1 else data.path
        raise DataError(
            f"cannot read {where} as {kind}: {_root_cause(error)}. Check the file"
        ) from error


def _csv_options(paths: list[Path]) -> dict[str, Any]:
    """Every column as text, so that an id such as 007 and the answer NA stay what they are."""
    import datasets

    delimiter = "\t" if ".tsv" in paths[0].suffixes else ","
    with open_text(paths[0]) as file:
        header = next(csv.reader(file, delimiter=delimiter), [])
    options: dict[str, Any] = {"delimiter": delimiter, "keep_default_na": False}
    if all(header) and len(set(header)) == len(header):
        options["features"] = datasets.Features({n: datasets.Value("string") for n in header})
    return options


def _files_of_split(directory: Path, wanted: str) -> list[Path]:
    """The data files below a directory whose names say the wanted split; none says `train`."""
    splits: dict[str, list[Path]] = {}
    for path in sorted(directory.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(directory).parts)
        if path.is_file() and kind_of(path) and not hidden:
            words = re.split(r"[^a-z]+", str(path.relative_to(directory)).lower())
            split = next((SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS), "train")
            splits.setdefault(split, []).append(path)
    if not splits:
        raise DataError(
            f"there is no data file in {directory}; expected one of {', '.join(KINDS)}, "
            "or a folder written by save_to_disk"
        )
    return _pick(splits, _split_name(wanted), directory)


def _open_saved(path: Path, split: str) -> datasets.Dataset:
    import datasets

    try:
        found = datasets.load_from_disk(str(path))
    except Exception as error:
        raise DataError(
            f"cannot read {path} as a folder of save_to_disk: {_root_cause(error)}. Save it again"
        ) from error
    if isinstance(found, datasets.DatasetDict):
        return _pick(found, split, path)
    if split not in ("train", str(found.split)):
        raise DataError(f"{path} has no split {split!r}; leave data.split out")
    return found


def _open_hub(data: DataSection, path: Path) -> datasets.Dataset:
    import datasets

    name = data.path
    if kind_of(path) or path.is_absolute() or name.count("/") > 1 or name.startswith((".", "~")):
        raise DataError(
            f"there is no file or directory {path}; data.path is taken from the recipe's own folder"
        )
    try:
        return datasets.load_dataset(name, split=data.split)
    except Exception as error:
        raise DataError(
            f"there is no file or directory {name!r} here, and as a hub dataset it cannot be read "
            f"(split {data.split!r}): {_root_cause(error)}. Correct data.path, or download it once "
            "with save_to_disk and name that folder"
        ) from error


Split = TypeVar("Split")


def _pick(splits: Mapping[str, Split], wanted: str, where: Path) -> Split:
    if wanted not in splits:
        raise DataError(
            f"{where} has no split {wanted!r}; found {', '.join(splits)}. Set data.split"
        )
    return splits[wanted]


def _split_name(split: str) -> str:
    """`train` of `train[:10%]`."""
    return split.partition("[")[0]


def _is_saved_dict(path: Path) -> bool:
    return (path / "dataset_dict.json").exists()


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).rstrip(".")


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars where stderr is no terminal, no log lines for what becomes an error here."""
    import datasets

    verbosity = datasets.logging.get_verbosity()
    hide = not sys.stderr.isatty() and not datasets.are_progress_bars_disabled()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    if hide:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(verbosity)
        if hide:
            datasets.enable_progress_bars()
