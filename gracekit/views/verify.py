"""`gracekit verify`: what a check of the whole store found."""

from __future__ import annotations

from dataclasses import dataclass

from gracekit.store import Problem
from gracekit.tabular import ShortRepr
from gracekit.types import Json


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Verification(ShortRepr):
    """What is wrong with a store."""

    versions: tuple[int, ...]
    """Versions that can be read, ascending."""
    problems: tuple[Problem, ...]
    """Worst first; empty when the store is whole."""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def to_json(self) -> Json:
        """As a JSON object."""
        return {
            "ok": self.ok,
            "versions": list(self.versions),
            "problems": [
                {"path": str(p.path), "what": p.what, "advice": p.advice} for p in self.problems
            ],
        }
