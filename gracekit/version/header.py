"""`Header`: everything that a version says about itself, typed; settings and results apart.

JSON is read and written here and nowhere else: `to_text` makes the strict JSON that manifest and
sidecar hold, `from_json` reads every format up to the present one.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError

from gracekit.recipe import (
    DataSection,
    GraphSection,
    PropagationSection,
    RefreshSection,
    ScoringSection,
    SelectionSection,
)
from gracekit.types import Json
from gracekit.version import FIRST_POSITIONS
from gracekit.version.formats import dataset_of_format_2, header_of_format_2
from gracekit.version.json_text import json_text, plain_json
from gracekit.version.outcomes import Aim, Audit, Cost, Meter, RefreshOutcome, SelectionDetails
from gracekit.version.parts import Number, Part, read_section

Operation = Literal["init", "refresh", "reselect", "rollback"]
"""`init` is the first version of a store, and a refresh like the others."""


def _section(section: Any) -> Any:
    return BeforeValidator(partial(read_section, section))


def _scoring(values: Any) -> Any:
    if isinstance(values, dict) and "feature_projection" not in values:
        values = {**values, "feature_projection": "signs"}  # earlier releases had no other
        values.setdefault("feature_width", None)
    return read_section(ScoringSection, values)


def _selection(values: Any) -> Any:
    if isinstance(values, dict):
        values = {"duplicates": "keep", **values}  # the first releases knew no other
    return read_section(SelectionSection, values)


class DataDescription(Part):
    """Where data comes from and how it is read, without its samples."""

    settings: Annotated[DataSection, _section(DataSection)]
    """The recipe's section, with the path resolved."""
    detected_format: str | None = None
    num_skipped: int = 0
    """Rows that cannot be used."""
    num_unrendered: int = 0
    """Usable rows that have no tokens: the chat template refuses them."""
    tokens_key: str | None = None
    """Hash of tokenizer, chat template and token settings; None in stores of the first release."""
    has_chat_template: bool | None = None
    """Whether the tokenizer had one; None in stores of earlier releases."""
    architecture: dict[str, Any] | None = None
    """Kind and sizes of the model; compared as a whole. None in stores of the first release."""


class DatasetInfo(DataDescription):
    """The data that a version, or at first a store, was made from."""

    fingerprint: str
    """Hash over ids, groups and contents in the data's order: identity of the data."""
    num_samples: int
    """In the data."""
    num_rows: int
    """Of the sample table: with the samples that have left the data."""
    num_source_rows: int
    """Rows of the user's dataset, skipped ones included."""
    positions: str = FIRST_POSITIONS
    """Hash of which sample lies where in the data."""
    sources: dict[str, int] = Field(default_factory=dict)
    """`positions` of all data that the store has followed so far -> its `num_source_rows`."""
    samples_file: str = "samples.parquet"
    """The sample table, relative to the store."""

    @classmethod
    def from_json(cls, content: Json) -> DatasetInfo:
        """Of any format; raises KeyError, TypeError or ValueError for what is none."""
        return cls.model_validate(dataset_of_format_2(content))


class CheckpointInfo(Part):
    """The checkpoint that a version's scores were measured at."""

    step: int
    path: str | None = None
    layout: str | None = None
    completed_at: float | None = None
    """Newest modification time of its files, seconds since the epoch."""
    digest: str | None = None
    """Hash of the weight files' bytes."""
    digest_algo: str = "xxh3_128"


class Settings(Part):
    """The recipe's sections that a version was made with; None: that stage did not run."""

    scoring: Annotated[ScoringSection | None, BeforeValidator(_scoring)] = None
    """Of the version whose scores these are."""
    refresh: Annotated[RefreshSection | None, _section(RefreshSection)] = None
    propagation: Annotated[PropagationSection | None, _section(PropagationSection)] = None
    graph: Annotated[GraphSection | None, _section(GraphSection)] = None
    selection: Annotated[SelectionSection, BeforeValidator(_selection)] = SelectionSection()


class Overlap(Part):
    """With the parent's coreset."""

    jaccard: float
    """Intersection by union."""
    churn: float
    """Share of the parent's coreset that was replaced."""


class Stats(Part):
    """Counts of the coreset and the data."""

    num_samples: int
    """In the data."""
    num_added: int | None = None
    """Samples that joined the data since the version before; None in format 1, as the next two."""
    num_removed: int | None = None
    """Samples that left it."""
    num_changed: int | None = None
    """Samples that stayed with other content."""
    num_selected: int
    weight_sum: Number | None = None
    objective: Number | None = None
    """Value of the selector's objective; 0 where it has none."""
    groups: dict[str, int] = Field(default_factory=dict)
    """Group -> selected samples."""
    overlap_with_parent: Overlap | None = None
    num_measured: int | None = None
    """None where nothing was measured."""
    origins: dict[str, int] | None = None
    """Origin -> rows; None where the scores are another version's."""


class Timings(Part):
    """Wall seconds."""

    model_pass_s: float | None = None
    other_s: float | None = None
    """Outside the model pass: reading the data, where it was read for this refresh, and all stages
    up to the commit; in a process that made the version before, also the commit of that one."""
    total_s: float | None = None
    stages: dict[str, float] = Field(default_factory=dict)
    """Stage -> seconds, without those of the model pass."""


class FileInfo(Part):
    """A file that a version needs."""

    sha256: str
    num_bytes: int


class Header(Part):
    """What a version says about itself: in the Parquet metadata, and in the JSON sidecar."""

    format_version: int
    version: int
    parent_version: int | None
    created_at: str
    """UTC, RFC 3339."""
    gracekit_version: str
    operation: Operation
    refresh_id: str
    """Hash of checkpoint, recipe and samples: a rerun of the same refresh is recognised by it."""
    recipe_digest: str
    scores_version: int
    """The version whose history holds the scores: its own after a refresh; after a reselect that of
    the newest refresh; after a rollback that of the old version."""
    rollback_of: int | None = None
    """After a rollback: the version whose coreset and scores it has."""
    measure_id: str | None = None
    """Of the measurement, by which finished shards are found; None where nothing was measured."""
    dataset: DatasetInfo
    checkpoint: CheckpointInfo
    settings: Settings
    refresh: RefreshOutcome | None = None
    """None after a reselect or rollback."""
    audit: Audit | None = None
    """None when everything was measured, or too little was drawn at random to tell."""
    meter: Meter | None = None
    """None after a reselect or rollback, and in versions of earlier releases."""
    cost: Cost | None = None
    """What measuring cost; None as `meter` is."""
    aim: Aim | None = None
    """What was found of the target; None where none is followed."""
    selection: SelectionDetails = SelectionDetails()
    stats: Stats
    timings: Timings = Timings()
    files: dict[str, FileInfo]
    """Path relative to the store -> what it was written as."""

    def __repr__(self) -> str:
        stats = self.stats
        return (
            f"Header(version {self.version}: {self.operation} at step {self.checkpoint.step}, "
            f"{stats.num_selected} selected, {stats.num_measured} measured, of "
            f"{stats.num_samples} samples; {self.created_at})"
        )

    __str__ = __repr__

    def to_json(self) -> Json:
        """In values that strict JSON has; the inverse of `from_json`."""
        content: Json = self.model_dump(mode="json")
        if self.audit is not None:
            content["audit"]["target_met"] = bool(self.audit.target_met)
        return plain_json(content)  # type: ignore[no-any-return]

    def to_text(self) -> str:
        """The strict JSON text that manifest and sidecar hold."""
        return json_text(self.to_json())

    @classmethod
    def from_json(cls, content: Json) -> Header:
        """Read a header of any format up to the present one.

        Raises ValueError, in one line, for what is no header.
        """
        try:
            if "settings" not in content:
                content = header_of_format_2(content)
            return cls.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ValueError(f"{where or 'the header'}: {first['msg']}") from None
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"it lacks {error}") from None
