"""`gracekit status --follow`: a page that renews itself, in a pipe and on a terminal."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from click.testing import CliRunner

from gracekit.cli import main
from gracekit.views.status_words import daemon_in_words
from tests.patience import LAST_RESORT_S, until
from tests.stores import make_draft, make_store


def following(store: Path, **kwargs: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "gracekit", "status", "--follow", "--every", "0.2"]
    return subprocess.Popen([*command, "--store", str(store)], **kwargs)  # type: ignore[call-overload,no-any-return]


def test_a_pipe_gets_a_page_when_something_changed(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    store.commit(make_draft(store, "first"))
    place = tmp_path / "out"
    with place.open("wb") as out:
        process = following(tmp_path / "store", stdout=out)
        until(lambda: b"The latest version is 1" in place.read_bytes(), "the first page")
        store.commit(make_draft(store, "second"))
        until(lambda: b"The latest version is 2" in place.read_bytes(), "the second page")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    text = place.read_text()
    assert "\x1b" not in text and "coreset" in text and "No daemon" in text


def test_sigterm_has_its_own_exit_code(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    store.commit(make_draft(store, "first"))
    process = following(tmp_path / "store", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=LAST_RESORT_S)
    assert (process.returncode, b"ended by SIGTERM" in told) == (143, True)


def test_a_terminal_is_cleared_and_never_overrun(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    for name in ("first", "second", "third"):
        store.commit(make_draft(store, name))
    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "TERM")}
    process = following(
        tmp_path / "store", stdout=theirs, stdin=theirs, env={**environment, "TERM": "xterm"}
    )
    seen = bytearray()

    def read() -> bytes:
        with contextlib.suppress(BlockingIOError):
            seen.extend(os.read(ours, 65536))
        return bytes(seen)

    until(lambda: read().count(b"\x1b[H\x1b[2J") >= 1, "a page")
    store.commit(make_draft(store, "fourth"))
    until(lambda: read().count(b"\x1b[H\x1b[2J") >= 2, "another")
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    pages = bytes(seen).decode().split("\x1b[H\x1b[2J")
    lines = pages[1].splitlines()
    assert len(lines) <= 23 and all(len(line) <= 60 for line in lines)
    assert any(line.startswith("No daemon") for line in lines)
    os.close(ours)
    os.close(theirs)


@pytest.mark.parametrize("other", ["--check", "--json"])
def test_one_answer_and_a_page_exclude_each_other(tmp_path: Path, other: str) -> None:
    make_store(tmp_path / "store")
    shown = CliRunner().invoke(
        main, ["status", "--follow", other, "--store", str(tmp_path / "store")]
    )
    assert shown.exit_code == 2 and other in shown.output


def test_a_refresh_says_how_far_it_is() -> None:
    progress = {"stage": "measure", "num_done": 120, "num_planned": 1400, "seconds_left": 95}
    words = daemon_in_words({"state": "refreshing", "progress": progress})
    assert "120 of 1,400 samples measured, about" in words and "left of this round" in words
    assert daemon_in_words({"state": "refreshing", "progress": None}) == (
        "The daemon makes a new version."
    )
