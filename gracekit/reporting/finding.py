"""`Finding`: the numbers of one part of a report, and how they are drawn.

A finding is a small table. It has a title that says what one sees, a sentence that says what is
good, and the SQL that it was read with; where it has no rows it says why.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from gracekit.tabular import ShortRepr
from gracekit.types import Json
from gracekit.version.json_text import plain_json

Format = Literal["count", "number", "percent", "text"]
"""How the numbers of an axis or a column are shown."""


@dataclass(frozen=True, slots=True)
class Series:
    """A column that is drawn, and what it is called in the legend."""

    column: str
    name: str
    low: str = ""
    """Column of the lower end of its interval; empty: it has none."""
    high: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lines:
    """Lines over a column of numbers that ascend, with intervals as bands."""

    x: str
    x_name: str
    y_name: str
    series: tuple[Series, ...]
    y_format: Format = "number"
    level: float | None = None
    """A level that the lines are to be compared with."""
    level_name: str = ""
    by: str = ""
    """Column whose values make a line each, of the first series; empty: a line for each series."""
    from_zero: bool = False
    """Whether the axis begins at zero."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bars:
    """Vertical bars over a column; side by side, or on top of each other."""

    x: str
    x_name: str
    y_name: str
    series: tuple[Series, ...]
    y_format: Format = "percent"
    is_stacked: bool = False
    level: str = ""
    """Column with a level to compare each bar with, drawn as a line."""
    level_name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Horizontal bars, one group of them for each row; for names of any length."""

    label: str
    x_name: str
    series: tuple[Series, ...]
    x_format: Format = "percent"


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """A list of samples: id, group, the named numbers, and the first characters of the text."""

    numbers: Mapping[str, str] = field(default_factory=dict)
    """Column -> what it is called."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """A list of two samples each, with both texts."""


Chart = Lines | Bars | Rows | Texts | Pairs


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Finding(ShortRepr):
    """A table with its meaning."""

    title: str
    """What one sees."""
    good: str
    """What is good, in a sentence."""
    columns: Mapping[str, list[Any]] = field(default_factory=dict)
    """Name -> values, all of one length; None where nothing is known."""
    sql: str = ""
    """The query that it was read with; empty: it comes from elsewhere, as `notes` say."""
    chart: Chart | None = None
    """None: it is shown as a table."""
    notes: tuple[str, ...] = ()
    """Further sentences."""
    why_empty: str = ""
    """Why there are no rows."""

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), []))

    def __bool__(self) -> bool:
        return len(self) > 0

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows one by one."""
        for values in zip(*self.columns.values(), strict=True):
            yield dict(zip(self.columns, values, strict=True))

    def to_json(self) -> Json:
        """As a JSON object; the chart is left out."""
        content: Json = plain_json(
            {
                "title": self.title,
                "good": self.good,
                "notes": list(self.notes),
                "why_empty": self.why_empty or None,
                "sql": self.sql or None,
                "rows": list(self.rows()),
            }
        )
        return content


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """Findings that belong together."""

    key: str
    """Its name in JSON and in the address of the page."""
    title: str
    about: str
    """A sentence or two: what is shown here."""
    findings: dict[str, Finding]

    def to_json(self) -> Json:
        """As a JSON object: the findings by their names."""
        return {name: finding.to_json() for name, finding in self.findings.items()}
