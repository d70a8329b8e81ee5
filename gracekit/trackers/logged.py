"""`trackers/*/logged.json`: which run a tracker logs a store to, and up to which version it did.

It is written after a version was logged. So a daemon that starts anew logs none twice, and one that
could not log for a while goes on where it was. Without the file a new run begins.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from gracekit import files
from gracekit.documents import read_json
from gracekit.errors import StoreFormatError
from gracekit.foreign import foreign, whole_number
from gracekit.version.json_text import json_text

FILE = "logged.json"


@dataclass(frozen=True, slots=True)
class Logged:
    """What a run has."""

    run: str
    """Its id."""
    version: int = 0
    """The highest version that it has; 0: none."""

    @classmethod
    def begin(cls, folder: Path) -> Self:
        """What the folder's run has; a new run where there is none.

        Raises:
            StoreFormatError: The file is not what was written.
            OSError: The folder cannot be read or written.
        """
        path = folder / FILE
        if path.exists():
            with foreign(path, StoreFormatError):
                return cls._from_json(read_json(path))
        files.make_directory(folder)
        made = cls(secrets.token_hex(4))
        made.save(folder)
        return made

    @classmethod
    def _from_json(cls, content: object) -> Self:
        content = content if isinstance(content, dict) else {}
        run, version = content.get("run"), whole_number(content.get("version"))
        if not isinstance(run, str) or not re.fullmatch("[0-9a-f]{8}", run) or version is None:
            raise StoreFormatError(
                "expected a run of eight hexadecimal digits and a version, found "
                f"{str(content)[:80]!r}; remove logged.json, and a new run begins"
            )
        return cls(run, version)

    def up_to(self, version: int) -> Self:
        """With that version logged."""
        return replace(self, version=version)

    def save(self, folder: Path) -> None:
        """Write it; raises OSError."""
        content = {"run": self.run, "version": self.version}
        files.write_text_atomic(folder / FILE, json_text(content), tidy=True)
