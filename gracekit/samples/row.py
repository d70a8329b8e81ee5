"""`Row`: one row of the data, asked by what is in a column instead of by the column's name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gracekit.samples.messages import MalformedRowError, as_text, read_messages
from gracekit.types import Json


@dataclass(frozen=True, slots=True)
class Row:
    """One row, and which of its columns may hold what."""

    values: Json
    names: Mapping[str, tuple[str, ...]]
    """What -> columns that may hold it, of which the first that is not null does."""
    roles: Mapping[str, str]

    def get(self, what: str) -> Any:
        """The value; None where there is none."""
        for name in self.names.get(what, ()):
            value = self.values.get(name)
            if value is not None:
                return value
        return None

    def text(self, what: str) -> str:
        """The value as text; `MalformedRowError` where it is missing or cannot be one."""
        value = self.get(what)
        if value is None:
            raise MalformedRowError(f"{self.shown(what)} is missing")
        return as_text(value, repr(self.names[what][0]))

    def shown(self, what: str) -> str:
        """The columns for messages: `'completion' or 'response'`."""
        return " or ".join(map(repr, self.names[what]))

    def messages(self, what: str) -> list[Json]:
        """The value as messages."""
        return read_messages(self.get(what), self.shown(what), self.roles)

    def system(self) -> list[Json]:
        """The system message, if there is one."""
        return [{"role": "system", "content": self.text("system")}] if self.get("system") else []
