"""Single-bit flips over all files of a store: which of them `verify` finds.

The database is the only file of which a flip may pass: where no value is, as in blocks that it does
not use. Of it every table is compared, cell by cell, with what was there before.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gracekit.errors import GracekitError, StoreError
from gracekit.store import Store, run_sql
from gracekit.store.checks import problems_of
from gracekit.version.columns import TABLES

OF_THE_MOMENT = {".lock", ".lock.json", ".daemon.lock", ".daemon.lock.json", "heartbeat.json"}
"""Says what a process does now; written anew all the time, and kept by nobody."""


def files_of(root: Path) -> dict[str, list[Path]]:
    """Files of a store that hold something, by kind: the directory, or the file's own name."""
    kinds: dict[str, list[Path]] = {}
    for path in sorted(root.rglob("*")):
        if path.is_file() and path.name not in OF_THE_MOMENT and path.stat().st_size:
            parts = path.relative_to(root).parts
            kinds.setdefault(parts[0], []).append(path)
    return kinds


def flip_bit(path: Path, bit: int) -> bytes:
    """Flip one bit of a file in place; returns the content as it was."""
    before = path.read_bytes()
    content = bytearray(before)
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    return before


def tables(root: Path) -> dict[str, Any] | None:
    """Every cell of the published tables; None where they cannot be read."""
    try:
        return {name: run_sql(root, f"FROM {name} ORDER BY ALL") for name in TABLES}
    except GracekitError:
        return None


def is_found(root: Path) -> bool:
    """Whether `verify` says that something is wrong; it is not waited for what else is."""
    return any(True for _ in problems_of(Store.open(root)))


def flip_many(
    root: Path, num: int, seed: int, found: Callable[[Path], bool] = is_found
) -> tuple[Counter[str], list[str]]:
    """Flip `num` bits one after the other, as many in each kind of file.

    Returns how many were found by kind, and the flips that were not, though they change a value.
    """
    rng, kinds = random.Random(seed), files_of(root)
    expected = tables(root)
    counts: Counter[str] = Counter()
    missed: list[str] = []
    for k in range(num):
        kind = list(kinds)[k % len(kinds)]
        path = rng.choice(kinds[kind])
        bit = rng.randrange(8 * path.stat().st_size)
        before = flip_bit(path, bit)
        try:
            is_known = _says(found, root)
            counts[kind] += is_known
            if not is_known and (kind != "scores.duckdb" or tables(root) != expected):
                missed.append(f"bit {bit} of {path.relative_to(root)}")
        finally:
            path.write_bytes(before)
    return counts, missed


def _says(found: Callable[[Path], bool], root: Path) -> bool:
    try:
        return found(root)
    except StoreError:
        return True
