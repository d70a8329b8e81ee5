"""Opening the user's data, whatever it lies in, as a `Source` of rows.

JSON, CSV and Parquet files are read by readers of ours, which change no value and keep no cache.
`save_to_disk` folders and hub names go through `datasets`; what lies in an object store is copied
first. What goes wrong becomes a `DataError` that names the file and, for text files, the line.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar

import xxhash

from gracekit.errors import DataError
from gracekit.recipe import DataSection
from gracekit.recipe.places import files_named, has_pattern
from gracekit.remote import is_url
from gracekit.samples.byte_files import BLOCK_BYTES, ByteFiles, is_compressed
from gracekit.samples.csv_files import CsvRows
from gracekit.samples.json_files import JsonRows
from gracekit.samples.remote_data import remote_stamp, with_copies
from gracekit.samples.row_source import Chain, Part, Source

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
"""File name ending -> the kind of file."""
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


def open_source(data: DataSection) -> Source:
    """The rows that the recipe names, of all its places; `DataError` if there are none."""
    name, data = data.name, with_copies(data)
    places = data.places
    if (
        len(places) == 1
        and not Path(places[0]).expanduser().exists()
        and not has_pattern(places[0])
    ):
        source: Source = _of_datasets(places[0], data.split)  # which knows parts of splits itself
    else:
        source = _sliced(_joined(data), data)
    if len(source) == 0:
        raise DataError(f"{name} holds no rows (split {data.split!r}); expected samples")
    return source


def _joined(data: DataSection) -> Source:
    """The rows of all places; files of one kind that follow one another are opened together."""
    split = _split_name(data.split)
    sources: list[Source] = []
    for is_files, group in groupby(_opened(data, split), key=lambda found: isinstance(found, Path)):
        if not is_files:
            sources += [source for source in group if isinstance(source, Source)]
            continue
        for _, paths in groupby((p for p in group if isinstance(p, Path)), key=kind_of):
            sources.append(_of_files(data.name, list(paths)))
    return sources[0] if len(sources) == 1 else Chain(sources)


def _opened(data: DataSection, split: str) -> Iterator[Path | Source]:
    """Each file, and what is no file as a source."""
    seen: set[Path] = set()
    for place in data.places:
        path = Path(place).expanduser()
        found: list[Path] = []
        if path.is_dir() and not _is_saved(path):
            found = _of_one_kind(place, _files_of_split(path, split))
        elif path.is_file() or has_pattern(place):
            if split != "train":
                what = "one file" if path.is_file() else "files"
                raise DataError(
                    f"{place} is {what} and has no split {data.split!r}; leave data.split out"
                )
            found = [path] if path.is_file() else _of_one_kind(place, _matching(place))
        else:
            yield _of_datasets(place, split)
        for file in found:
            if file.resolve() in seen:
                raise DataError(f"data.path names {file} twice; leave one out")
            seen.add(file.resolve())
            yield file


def _matching(pattern: str) -> list[Path]:
    """The data files that a pattern names, in the order of their names; never none."""
    found = files_named(pattern)
    files = [path for path in found if path.is_file() and kind_of(path)]
    if not files:
        others = f"; it names {', '.join(p.name for p in found[:3])}" if found else ""
        raise DataError(
            f"{pattern} names no data file{others}. Expected one of {', '.join(KINDS)}, perhaps "
            "compressed; data.path is taken from the recipe's own folder"
        )
    return files


def _of_one_kind(place: str, paths: list[Path]) -> list[Path]:
    """The paths; `DataError` where they are of several kinds, so perhaps the same rows twice."""
    if len({kind_of(path) for path in paths}) > 1:
        raise DataError(
            f"{place}: expected files of one kind ({', '.join(KINDS)}), found "
            f"{', '.join(path.name for path in paths[:3])}. Where they hold different rows, name "
            "each in a list: data.path: [a.jsonl, b.parquet]"
        )
    return paths


def data_stamp(data: DataSection) -> object:
    """What changes when the files of the data do: their content, sizes and inodes.

    The files are read, at about a gigabyte a second, because a time alone says nothing: a file may
    be written within its resolution, or be given an old one. Compares equal as long as nothing
    changed; always for a hub dataset. Of an object store the listing tells; raises `DataError`
    where it cannot be had.
    """
    stamp: list[object] = [remote_stamp(place) for place in data.places if is_url(place)]
    for file in _all_files(data):
        try:
            status = file.stat()
            stamp.append((str(file), status.st_ino, status.st_size, _content_digest(file)))
        except OSError:
            continue
    return stamp


def _all_files(data: DataSection) -> Iterator[Path]:
    for place in data.places:
        if is_url(place):
            continue
        path = Path(place).expanduser()
        if path.is_dir():
            yield from sorted(p for p in path.rglob("*") if p.is_file())
        elif has_pattern(place):
            yield from files_named(place)
        else:
            yield path


def _content_digest(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def kind_of(path: Path) -> str | None:
    """The kind of a file by its name, compressed or not; None for other files."""
    stem = path.with_suffix("") if is_compressed(path) else path
    return KINDS.get(stem.suffix.lower())


def _of_files(name: str, paths: list[Path]) -> Source:
    """Files of one kind."""
    kind = kind_of(paths[0])
    if kind is None:
        raise DataError(
            f"{name}: expected files of one kind ({', '.join(KINDS)}), found {paths[0].name}"
        )
    if kind == "parquet":
        from gracekit.samples.arrow_files import ParquetRows

        return ParquetRows(paths)
    files = ByteFiles(paths)
    return JsonRows(files) if kind == "json" else CsvRows(files)


def _sliced(source: Source, data: DataSection) -> Source:
    """The rows of a split such as `train[:10%]`."""
    if "[" not in data.split:
        return source
    import datasets

    name = _split_name(data.split)
    try:
        instruction = datasets.ReadInstruction.from_spec(data.split)
        (part,) = instruction.to_absolute({name: len(source)})
    except (ValueError, AssertionError) as error:
        raise DataError(
            f"data.split {data.split!r} is no part of {len(source)} rows: {error}. An example is "
            "train[:10%]"
        ) from error
    return Part(source, part.from_ or 0, len(source) if part.to is None else part.to)


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


def _of_datasets(name: str, split: str) -> Source:
    """A folder of `save_to_disk`, or a dataset of the hub."""
    path = Path(name).expanduser()
    is_place = kind_of(path) or path.is_absolute() or name.count("/") > 1
    if not path.is_dir() and (is_place or name.startswith((".", "~"))):
        if path.exists():
            raise DataError(
                f"{path} is a pipe or a device, expected a file or a directory: data is read more "
                "than once, so write it to a file first"
            )
        raise DataError(
            f"there is no file or directory {path}; data.path is taken from the recipe's own folder"
        )
    import datasets

    from gracekit.samples.arrow_files import DatasetRows

    with _quiet(datasets):
        if path.is_dir():
            return DatasetRows(_saved(datasets, path, split), name)
        try:
            return DatasetRows(datasets.load_dataset(name, split=split), name)
        except Exception as error:  # datasets raises whatever its readers do
            raise DataError(
                f"there is no file or directory {name!r} here, and as a hub dataset it cannot be "
                f"read (split {split!r}): {_root_cause(error)}. Correct data.path, or "
                "download it once with save_to_disk and name that folder"
            ) from error


def _saved(library: ModuleType, path: Path, split: str) -> datasets.Dataset:
    try:
        found = library.load_from_disk(str(path))
    except Exception as error:
        raise DataError(
            f"cannot read {path} as a folder of save_to_disk: {_root_cause(error)}. Save it again"
        ) from error
    name = _split_name(split)
    if isinstance(found, library.DatasetDict):
        picked: datasets.Dataset = _pick(found, name, path)
        return picked
    if name not in ("train", str(found.split)):
        raise DataError(f"{path} has no split {split!r}; leave data.split out")
    dataset: datasets.Dataset = found
    return dataset


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


def _is_saved(path: Path) -> bool:
    """Whether a directory is one of `save_to_disk`."""
    return (path / "state.json").exists() or (path / "dataset_dict.json").exists()


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).rstrip(".")


@contextmanager
def _quiet(datasets: ModuleType) -> Iterator[None]:
    """No progress bars where stderr is no terminal, no log lines for what becomes an error here."""
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
