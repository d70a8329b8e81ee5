"""`Report`: everything that a report tells, as numbers and as a page."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from gracekit.reporting.answer import Answer
from gracekit.reporting.finding import Finding, Section
from gracekit.reporting.map_picture import MapPicture
from gracekit.reporting.page import page
from gracekit.reporting.texts import without_folders
from gracekit.tabular import ShortRepr, html_table
from gracekit.types import Json


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Report(ShortRepr):
    """What a store comes to, for people who look rather than read."""

    store: str
    """Its directory."""
    data: str
    """Path or name of the training data; empty where it is not known."""
    num_samples: int
    """In the data."""
    versions: tuple[int, ...]
    """Those that are kept, ascending."""
    step: int | None
    """Of the newest version."""
    answer: Answer
    status: tuple[str, ...]
    """What `gracekit status` says, a paragraph an entry."""
    sections: tuple[Section, ...]
    map: MapPicture | None
    """None: there are no features, or too few."""
    created_at: str
    """UTC, RFC 3339."""
    checkpoints: str = ""
    """The folder that a daemon follows or followed; empty: none is known."""
    path: Path | None = None
    """Where the page was written; None: nowhere."""

    def section(self, key: str) -> Section:
        """The section of that name; raises `KeyError` where this report has none."""
        return {section.key: section for section in self.sections}[key]

    def finding(self, section: str, name: str) -> Finding:
        """A finding of a section; raises `KeyError` where there is none."""
        return self.section(section).findings[name]

    def to_json(self) -> Json:
        """As a JSON object: all numbers, with their queries; the map by rows and coordinates."""
        return {
            "store": self.store,
            "data": self.data or None,
            "num_samples": self.num_samples,
            "versions": list(self.versions),
            "step": self.step,
            "created_at": self.created_at,
            "answer": self.answer.to_json(),
            **{section.key: section.to_json() for section in self.sections},
            "map": None if self.map is None else self.map.found.to_json(),
            "page": None if self.path is None else str(self.path),
        }

    def html(self) -> str:
        """The page, one HTML file."""
        facts = [f"{self.num_samples:,} samples"]
        if self.versions:
            kept = "1 version" if len(self.versions) == 1 else f"{len(self.versions):,} versions"
            facts.append(f"{kept} kept, the newest is {self.versions[-1]}")
        if self.step is not None:
            facts.append(f"training step {self.step:,}")
        facts.append(f"made {self.created_at[:16].replace('T', ' ')} UTC")
        told = self.answer
        return page(
            name=Path(self.data).name or Path(self.store).name,
            facts=facts,
            answer=Answer(
                worth=self._given_away(told.worth),
                cost=self._given_away(told.cost),
                advice=self._given_away(told.advice),
            ),
            status=self.status,
            sections=[self._section_given_away(section) for section in self.sections],
            pictures={} if self.map is None else {"map/map": self.map.html()},
            layout=None if self.map is None else self.map.found.projection.to_json(),
        )

    def _given_away(self, text: str) -> str:
        """A text without the folders of store, data and run: a page may be given away."""
        return without_folders(text, self.store, self.data, self.checkpoints)

    def _section_given_away(self, section: Section) -> Section:
        findings = {
            name: replace(
                found,
                why_empty=self._given_away(found.why_empty),
                notes=tuple(map(self._given_away, found.notes)),
            )
            for name, found in section.findings.items()
        }
        return replace(section, findings=findings)

    def _repr_html_(self) -> str:
        told = self.answer
        return html_table(["Report"], [[told.worth], [told.cost], [told.advice]])

    def __repr__(self) -> str:
        newest = f"version {self.versions[-1]}" if self.versions else "no version"
        return f"Report({self.store!r}: {self.num_samples:,} samples, {newest})"
