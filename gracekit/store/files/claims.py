"""A claim on a shard of shared work: a file that one worker makes, and renews while it measures.

How others judge it is in `shared_work`.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gracekit import files
from gracekit.process import birth_of, pid_namespace
from gracekit.store.files.sealing import sealed_json


class Claim:
    """The right to measure one shard, for as long as it is renewed."""

    def __init__(self, path: Path, shard: int) -> None:
        self.shard = shard
        self._path, self._number = path, 0
        self._token = secrets.token_hex(8)
        self._over = threading.Event()

    def make(self) -> bool:
        """Whether nobody else has made it; raises `StoreWriteError`."""
        with files.clear_write_errors(self._path):
            try:
                files.create(self._path, self._text())
            except (FileExistsError, FileNotFoundError):  # not found: the work is over
                return False
        return True

    def finish(self, state: str) -> None:
        """Say that the shard is `done`, or `released` to others."""
        with suppress(OSError):
            self._write(state)

    @contextmanager
    def kept(self, every_s: float) -> Iterator[None]:
        """Renew it for as long as the block runs."""
        self._over.clear()
        thread = threading.Thread(target=self._renew, args=(every_s,), name="claim", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def _renew(self, every_s: float) -> None:
        while not self._over.wait(every_s):
            self._number += 1
            with suppress(OSError):  # it may be abandoned then, which costs another one's time
                self._write("held")

    def _write(self, state: str) -> None:
        temporary = files.temporary_path(self._path)
        try:
            files.fill(temporary, lambda path: _write_text(path, self._text(state)))
            files.replace(temporary, self._path)
        finally:
            files.remove(temporary)

    def _text(self, state: str = "held") -> str:
        return sealed_json(
            {
                "state": state,
                "number": self._number,
                "token": self._token,
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "birth": birth_of(os.getpid()),
                "pid_namespace": pid_namespace(),
            }
        )


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
