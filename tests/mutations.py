"""Damage of every kind to files that somebody else wrote, from a seeded generator.

A `Damage` is what was done, in words, so that a failure can be repeated from seed and number.
"""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

ODD: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    3.7,
    -0.0,
    float("nan"),
    float("inf"),
    -float("inf"),
    2**31,
    2**53,
    2**63 - 1,
    2**63,
    -(2**63) - 1,
    2**64,
    10**30,
    1e300,
    "",
    "x",
    "\ud800",
    "\x00",
    "a\nb",
    "20",
    "../../x",
    "x" * 5000,
    [],
    {},
    [[]],
    [None],
    ["a", 1],
    [True],
    [-1],
    [2**70],
    {"a": 1},
    {"": {}},
    [0, 1, 2],
    [[0, 4]],
    [1e999],
]
"""Values that stand where another one is expected."""

RAW_NUMBERS = [b"1e999", b"-1e999", b"NaN", b"1" + b"0" * 5000, b"-0", b"00", b"1E+400", b"0x10"]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths to every value inside a JSON document, itself included."""
    found = [path]
    if isinstance(value, dict):
        for key, item in value.items():
            found += places(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value[:20]):
            found += places(item, (*path, index))
    return found


def mutated_json(document: Any, rng: random.Random) -> Any:
    """The document with one value replaced, removed, doubled, nested, or given another name."""
    path = rng.choice(places(document))
    odd = copy.deepcopy(rng.choice(ODD))
    if not path:
        return odd
    changed = copy.deepcopy(document)
    holder = changed
    for key in path[:-1]:
        holder = holder[key]
    key, old = path[-1], holder[path[-1]]
    match rng.randrange(6):
        case 0:
            del holder[key]
        case 1:
            holder[key] = [old]
        case 2 if isinstance(holder, dict):
            holder[str(key) + rng.choice(["", "_", "\ud800", "2"])] = odd
        case 3 if isinstance(old, int | float) and not isinstance(old, bool):
            holder[key] = rng.choice([-old, old * 10, old + 1, old * 1000003, float(old), str(old)])
        case _:
            holder[key] = odd
    return changed


def json_bytes(document: Any) -> bytes:
    """As JSON, halves of surrogate pairs and infinities included."""
    return json.dumps(document).encode()


def mutated_bytes(content: bytes, rng: random.Random) -> bytes:
    """Cut, flipped, doubled, emptied, or with something between."""
    if not content:
        return b"\x00"
    at, end = rng.randrange(len(content)), rng.randrange(len(content) + 1)
    match rng.randrange(8):
        case 0:
            return content[:at]
        case 1:
            return content[:at] + bytes([content[at] ^ (1 << rng.randrange(8))]) + content[at + 1 :]
        case 2:
            return content[: max(at, end)] + content[min(at, end) :]
        case 3:
            return content[:at] + bytes(rng.choice([1, 8, 64])) + content[at + 1 :]
        case 4:
            return content[:at] + rng.choice(RAW_NUMBERS) + content[at + 1 :]
        case 5:
            return content[:at] + b"\xff\xfe\xed\xa0\x80" + content[at:]
        case 6:
            return content[:at] + rng.choice([b"[", b'{"a":']) * 20_000 + content[at:]
        case _:
            return content[:at] + rng.randbytes(rng.choice([1, 4, 30])) + content[at + 1 :]


def mutated_document(content: bytes, rng: random.Random) -> bytes:
    """A JSON document with a value changed, or with its bytes damaged."""
    if rng.random() < 0.75:
        return json_bytes(mutated_json(json.loads(content), rng))
    return mutated_bytes(content, rng)


def mutated_safetensors(content: bytes, rng: random.Random) -> bytes:
    """With another header of the right or of a wrong length, or with damaged bytes."""
    (length,) = struct.unpack("<Q", content[:8])
    header, tensors = content[8 : 8 + length], content[8 + length :]
    kind = rng.random()
    if kind < 0.2:
        return mutated_bytes(content, rng)
    new = mutated_document(header, rng)
    size = len(new)
    if kind < 0.35:
        size = rng.choice([0, 1, size - 1, size + 1, 10**8, 2**31, 2**63 - 1, 2**64 - 1])
    return struct.pack("<Q", size & (2**64 - 1)) + new + tensors


def mutated_lines(content: bytes, rng: random.Random) -> bytes:
    """JSON lines, one of them damaged."""
    lines = content.splitlines(keepends=True)
    at = rng.randrange(len(lines))
    lines[at] = mutated_document(lines[at], rng) + rng.choice([b"\n", b"\n", b"\r\n", b""])
    return b"".join(lines)


def _directory(path: Path) -> None:
    path.mkdir()


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


def _long_loop(path: Path) -> None:
    other = path.with_name(path.name + ".other")
    other.symlink_to(path.name)
    path.symlink_to(other.name)


def _upwards(path: Path) -> None:
    path.symlink_to("..")


def _nowhere(path: Path) -> None:
    path.symlink_to("nowhere")


def _endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


def _nothing(path: Path) -> None:
    """Stays away."""


SPECIAL: tuple[Callable[[Path], None], ...] = (
    _directory,
    _loop,
    _long_loop,
    _upwards,
    _nowhere,
    _endless,
    _pipe,
    _sparse,
    _nothing,
)
"""What may stand where a file is expected."""


def put_special(path: Path, rng: random.Random) -> str:
    """Something that is no file in the place of one; what it is, in words."""
    kind = rng.choice(SPECIAL)
    remove(path)
    kind(path)
    return kind.__name__.strip("_")


def remove(path: Path) -> None:
    """Whatever is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
