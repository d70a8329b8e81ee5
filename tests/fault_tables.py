"""Tables of faults: every operation of a piece of work with every fault, and what came of it."""

from __future__ import annotations

from collections import Counter, defaultdict


class FaultTable:
    """What came of each fault, counted.

    Args:
        columns: Outcomes, in order; nothing else may come of a fault.
    """

    def __init__(self, columns: tuple[str, ...]) -> None:
        self._columns = columns
        self._rows: defaultdict[str, Counter[str]] = defaultdict(Counter)

    def note(self, fault: str, outcome: str) -> None:
        assert outcome in self._columns, f"{fault}: {outcome}"
        self._rows[fault][outcome] += 1

    @property
    def num_states(self) -> int:
        return sum(sum(row.values()) for row in self._rows.values())

    def __str__(self) -> str:
        """As Markdown."""
        lines = [
            f"| | {' | '.join(self._columns)} |",
            f"|---|{'--:|' * len(self._columns)}",
            *(
                f"| {fault} | {' | '.join(str(row[name]) for name in self._columns)} |"
                for fault, row in self._rows.items()
            ),
        ]
        return "\n".join(lines)
