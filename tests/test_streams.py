"""How a command is started: closed streams, streams onto a full disk, odd numbers of seconds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from gracekit.cli import main
from gracekit.store import Store, verify
from tests.stores import make_draft, make_store

REPOSITORY = Path(__file__).parent.parent
ALL_CLOSED = "<&- >&- 2>&-"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = make_store(tmp_path_factory.mktemp("streams") / "store")
    store.commit(make_draft(store, "one"))
    return store.paths.root


def shell(words: str, redirection: str) -> subprocess.CompletedProcess[str]:
    """What a shell makes of a Python program whose streams are redirected like this."""
    return subprocess.run(
        ["sh", "-c", f'exec "$0" {words} {redirection}', sys.executable],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_no_file_gets_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    """Else what a library prints would stand in it."""
    program = tmp_path / "program.py"
    program.write_text(
        "import os, subprocess, sys\n"
        "from gracekit.streams import open_closed\n"
        "open_closed()\n"
        f"number = os.open({str(tmp_path / 'file')!r}, os.O_RDWR | os.O_CREAT)\n"
        "print('out'), print('err', file=sys.stderr), sys.stdin.read()\n"
        "os.write(1, b'out'), os.write(2, b'err'), os.read(0, 1)\n"
        "child = subprocess.run([sys.executable, '-c', 'import os; os.fstat(0), os.fstat(2)'])\n"
        f"open({str(tmp_path / 'told')!r}, 'w').write(f'{{number}} {{child.returncode}}')\n"
    )
    for redirection in (ALL_CLOSED, ">&-", "<&- 2>&-", "</dev/null"):
        done = shell(f"'{program}'", redirection)
        assert done.returncode == 0, done.stderr
        number, child = (tmp_path / "told").read_text().split()
        assert int(number) > 2 and child == "0", redirection
        assert (tmp_path / "file").read_bytes() == b""


def test_commands_with_closed_streams(root: Path) -> None:
    done = shell(f"-m gracekit versions --store '{root}'", ALL_CLOSED)
    assert done.returncode == 0
    done = shell(f"-m gracekit sql --store '{root}' -f -", "<&-")
    assert done.returncode == 1 and "the query is empty" in done.stderr
    done = shell("-m gracekit status --store nowhere", ">&-")
    assert done.returncode == 1 and "there is no store" in done.stderr


@pytest.mark.parametrize(
    "words",
    ["versions", "versions --json", "sql --csv 'SELECT 1'", "sql --csv 'FROM range(99999)'", None],
)
def test_what_is_printed_onto_a_full_disk(root: Path, words: str | None) -> None:
    """Told in one line, and not again when the process ends."""
    command = "--help" if words is None else f"{words} --store '{root}'"
    for unbuffered in ("", "-u "):
        done = shell(f"{unbuffered}-m gracekit {command}", ">/dev/full")
        assert done.returncode == 1
        assert done.stderr.startswith("gracekit: cannot write what it prints: No space left on")
        assert len(done.stderr.splitlines()) == 1


def test_a_full_disk_below_the_log_ends_no_work(root: Path) -> None:
    done = shell(f"-m gracekit gc --keep 1 --store '{root}'", ">/dev/null 2>/dev/full")
    assert done.returncode == 0
    assert verify(Store.open(root)) == []


@pytest.mark.parametrize("seconds", ["nan", "inf", "1e300", "-1"])
def test_seconds_are_a_number_that_can_be_waited_for(root: Path, seconds: str) -> None:
    """With NaN, which is more than nothing and less than nothing, a daemon was well for ever."""
    for arguments in (["--follow", "--every"], ["--check", "--max-age"]):
        done = CliRunner().invoke(main, ["status", *arguments, seconds, "--store", str(root)])
        assert done.exit_code == 2 and "Invalid value for" in done.output
