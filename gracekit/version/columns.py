"""The one place where columns are written down: their names, types, meanings and values.

Made from it: the Parquet files of the store, the tables, views and comments of `scores.duckdb`,
the table that the SQL conditions of a recipe see, the records of `gracekit versions`, and the
tables of docs/sql.md. A score adds a column of its own to each table that holds scores. Above 400
lines, as it is the one place.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from gracekit.types import Json, Origin, Places, Reason, SampleTable, ScoreTable
from gracekit.version import __version__
from gracekit.version.header import Header
from gracekit.version.outcomes import Aim, Audit, Cost, Meter
from gracekit.version.sources import (
    DrawnRows,
    ListedVersion,
    MeasuredRows,
    PublishedStore,
    SelectedRows,
)
from gracekit.version.table import Column, Named, Table

ORIGIN_NAMES = [origin.name.lower() for origin in Origin]
"""`origin` in files and SQL: never, propagated, measured, invalid, stale, removed."""
REASON_NAMES = [reason.name.lower() for reason in Reason]
"""`reason` in files and SQL: first, never_measured, priority, probe, invalid."""
SCORE_ABOUT = "score, as the model pass gives it; see the recipe"
"""The meaning of a score's column."""

# --- columns that several tables have ---

_VERSION: Column[Any] = Column("version", "int32", "number of the version")
_STEP: Column[Any] = Column("step", "int64", "training step of the checkpoint")
_ROW: Column[Any] = Column(
    "row",
    "int64",
    "position in the sample store; the same sample in all tables",
    lambda table: np.arange(len(table), dtype=np.int64),
    packing="ascending",
)
_SAMPLE_ID: Column[Any] = Column(
    "sample_id",
    "string",
    "the user's id, or a hash of the content",
    lambda samples: samples.sample_ids,
    packing="plain",
)
_GROUP_NAME: Column[Any] = Column(
    "group_name",
    "string",
    "the user's label (source, task, category)",
    lambda samples: Named(samples.groups, samples.group_names),
    in_file="group",  # a word of SQL, which would need quotes there
)
IDENTITY = (_SAMPLE_ID, _GROUP_NAME)
"""Which sample a row is, in every table that has `row`."""

# --- samples and their scores ---

_OF_SAMPLES: tuple[Column[SampleTable], ...] = (
    Column("num_prompt_tokens", "int32", "tokens without loss", lambda s: s.num_prompt_tokens),
    Column(
        "num_response_tokens", "int32", "tokens that carry loss", lambda s: s.num_response_tokens
    ),
    Column(
        "content_hash",
        "string",
        "hash of the content",
        lambda s: s.content_hashes,
        packing="plain",
    ),
    Column(
        "source_row",
        "int64",
        "position in the data file, counted from 0; NULL when removed",
        lambda s: np.ma.array(s.source_rows, mask=~s.present),
        packing="ascending",
    ),
    Column(
        "preview",
        "string",
        "first characters of the sample",
        lambda s: s.previews,
        packing="plain",
    ),
    Column(
        "added_version", "int64", "version that the sample came with", lambda s: s.added_versions
    ),
    Column(
        "removed_version",
        "int64",
        "first version without the sample; NULL while it is in the data",
        lambda s: np.ma.array(s.removed_versions, mask=s.present),
    ),
    Column(
        "content_version",
        "int64",
        "first version with the sample's present content",
        lambda s: s.content_versions,
    ),
    Column(
        "token_hash",
        "int64",
        "hash of the token ids; NULL where an earlier release made the sample",
        lambda s: np.ma.array(s.token_hashes, mask=s.token_hashes == 0),
        packing="plain",
    ),
    Column(
        "loss_hash",
        "int64",
        "hash of which tokens carry loss; NULL where an earlier release made the sample",
        lambda s: np.ma.array(s.loss_hashes, mask=s.loss_hashes == 0),
        packing="plain",
    ),
)
SAMPLES = Table(
    name="samples",
    kind="table",
    about="One row per training sample, those that left the data included",
    columns=(_ROW, *IDENTITY, *_OF_SAMPLES),
)

OF_SCORES: tuple[Column[ScoreTable], ...] = (
    Column(
        "origin",
        "string",
        "measured at this version, propagated from measured rows, stale (kept as it was), never "
        "measured, invalid (not finite, or nothing to train on), or removed from the data",
        lambda s: Named(s.origin, ORIGIN_NAMES),
    ),
    Column(
        "measured_step",
        "int64",
        "training step of the last measurement; -1: never",
        lambda s: s.measured_step,
    ),
    Column(
        "measured_version",
        "int64",
        "version of the last measurement; 0: never",
        lambda s: s.measured_version,
    ),
    Column(
        "confidence",
        "float32",
        "from 0, nothing is known, to 1, measured at this version",
        lambda s: s.confidence,
    ),
    Column(
        "importance",
        "float32",
        "the score that selection uses, 0 to 1: corrected for length, ranked; NULL when removed",
        lambda s: np.ma.array(s.importance, mask=s.origin == Origin.REMOVED),
    ),
)
"""What is known of each row beside its scores."""
SCORES = Table(
    name="scores",
    kind="table",
    about="Present scores of every sample: those of the latest version",
    columns=(_ROW, *IDENTITY, *OF_SCORES),
)
SCORES_FILE = Table(
    name="scores.parquet",
    kind="file",
    about="Scores of every sample at one version",
    columns=(_ROW, *OF_SCORES),
)
SCORE_HISTORY = Table(
    name="score_history",
    kind="view",
    about="Scores of every sample at every version that has its own scores and is kept",
    columns=(_VERSION, _STEP, _ROW, *IDENTITY, *OF_SCORES),
)

# --- what was measured ---

_REASON: Column[MeasuredRows] = Column(
    "reason",
    "string",
    "why: first (everything), never_measured, priority (the plan), probe (random, for the audit), "
    "or invalid (not finite the last time)",
    lambda m: Named(m.reasons, REASON_NAMES),
)
_MEASURED_ROW = replace(_ROW, get=lambda m: m.rows)
_MEASURED_STEP = replace(_STEP, get=lambda m: np.full(len(m.rows), m.step, np.int64))
MEASURED_FILE = Table(
    name="measured.parquet",
    kind="file",
    about="What the model pass measured at one version",
    columns=(_MEASURED_ROW, _REASON, _MEASURED_STEP),
)
MEASUREMENTS = Table(
    name="measurements",
    kind="view",
    about="What the model pass measured at every version, also at removed ones",
    columns=(_VERSION, _ROW, *IDENTITY, _REASON, _STEP),
)

# --- coresets ---

_SELECTED_VERSION = replace(
    _VERSION,
    about="version of the coreset",
    get=lambda c: np.full(len(c), c.version, np.int32),
)
_SELECTED_ROW = replace(_ROW, get=lambda c: c.rows)
_SELECTED_ID = replace(_SAMPLE_ID, get=lambda c: c.samples.sample_ids[c.rows])
_SELECTED_GROUP = replace(
    _GROUP_NAME,
    about="the user's label when the sample was selected",
    get=lambda c: Named(c.samples.groups[c.rows], c.samples.group_names),
)
_SOURCE_ROW: Column[SelectedRows] = Column(
    "source_row",
    "int64",
    "position in the data file at that version",
    lambda c: c.samples.source_rows[c.rows],
    packing="ascending",
)
_PICKED: tuple[Column[SelectedRows], ...] = (
    Column(
        "weight",
        "float32",
        "how many samples it stands for, divided by the mean",
        lambda c: c.selection.weights[c.ranks],
    ),
    Column("rank", "int32", "0 was picked first", lambda c: c.ranks),
    Column(
        "gain",
        "float32",
        "increase of the objective when picked",
        lambda c: c.selection.gains[c.ranks],
    ),
    Column(
        "importance",
        "float32",
        "importance when selected",
        lambda c: c.scores.importance[c.rows],
    ),
    Column(
        "origin",
        "string",
        "where its score came from",
        lambda c: Named(c.scores.origin[c.rows], ORIGIN_NAMES),
    ),
    Column(
        "measured_step",
        "int64",
        "training step of its last measurement",
        lambda c: c.scores.measured_step[c.rows],
    ),
)
MANIFEST = Table(
    name="manifest",
    kind="file",
    about="The coreset of one version; formats 1 and 2 have no column `version`",
    columns=(
        _SELECTED_VERSION,
        _SELECTED_ID,
        _SELECTED_ROW,
        _SOURCE_ROW,
        _SELECTED_GROUP,
        *_PICKED,
    ),
)
CORESETS = Table(
    name="coresets",
    kind="view",
    about="Selected samples of every version that is kept",
    columns=(_SELECTED_VERSION, _SELECTED_ROW, _SELECTED_ID, _SELECTED_GROUP, *_PICKED),
)

# --- draws ---


def _of_draw(name: str) -> Callable[[DrawnRows], Any]:
    """The array of a draw; NULL in all rows without one."""

    def get(drawn: DrawnRows) -> Any:
        if drawn.draw is None:
            return np.ma.array(np.zeros(len(drawn)), mask=True)
        return getattr(drawn.draw, name)

    return get


_DRAWN: tuple[Column[DrawnRows], ...] = (
    Column(
        "inclusion_probability",
        "float64",
        "how likely the row was to be selected; NULL where the selector does not draw with known "
        "probabilities",
        _of_draw("probabilities"),
    ),
    Column(
        "uses",
        "int32",
        "times it was trained on before this version; handed out, where no trainer logged its uses",
        lambda d: d.state.uses,
    ),
    Column(
        "owed",
        "float64",
        "sum of its inclusion probabilities over the draws before this version, less its uses",
        lambda d: d.state.owed,
    ),
)
DRAW_FILE = Table(
    name="draw.parquet",
    kind="file",
    about="How one version was drawn: what a trainer needs to draw anew",
    columns=(
        _ROW,
        *_DRAWN,
        Column(
            "start_low",
            "float64",
            "of the starts that fit the uses so far the lowest",
            lambda d: d.state.start_low,
        ),
        Column("start_high", "float64", "and the end of them", lambda d: d.state.start_high),
        Column("draw_weight", "float32", "its weight where it is drawn", _of_draw("weights")),
        Column(
            "place",
            "int32",
            "in an order in which neighbours of the graph are near each other",
            _of_draw("places"),
        ),
        Column(
            "part",
            "int32",
            "rows of a part are as many in every draw as their probabilities add up to",
            _of_draw("parts"),
        ),
    ),
)
DRAWS = Table(
    name="draws",
    kind="view",
    about="How likely every sample was to be selected at every version that is kept, how often it "
    "was used before, and what it was owed",
    columns=(_VERSION, _ROW, *IDENTITY, *_DRAWN),
)

# --- places ---

FACTORS = {
    "allowed": "factor_allowed",
    "aim": "factor_aim",
    "dose": "factor_dose",
    "copies": "factor_copies",
    "trust": "factor_trust",
    "excess": "factor_excess",
    "group": "factor_group",
    "learned": "factor_learned",
}
"""Factors of the target t, and their columns."""
SIGNALS = {
    "influence": "signal_influence",
    "likeness": "signal_likeness",
    "group": "signal_group",
    "influence_mass": "influence_mass",
    "evidence": "evidence",
}
"""What the factors `aim` and `trust` are made from, and the columns."""
COPY_OF = "copy_of"


def _copy_of(places: Places) -> Any:
    """The first row that says the same; NULL where none does."""
    if places.copy_of is None:
        return np.ma.array(np.zeros(len(places), np.int64), mask=True)
    return np.ma.array(places.copy_of, mask=places.copy_of < 0)


def _factor(name: str) -> Callable[[Places], Any]:
    """A factor; NULL in all rows where there is none."""

    def get(places: Places) -> Any:
        if name not in places.factors:
            return np.ma.array(np.zeros(len(places), np.float32), mask=True)
        return places.factors[name]

    return get


def _signal(name: str) -> Callable[[Places], Any]:
    """A signal; NULL where nothing is known."""

    def get(places: Places) -> Any:
        found = places.signals.get(name)
        if found is None:
            return np.ma.array(np.zeros(len(places), np.float32), mask=True)
        return np.ma.masked_invalid(found)

    return get


_PLACED: tuple[Column[Places], ...] = (
    Column(
        "place",
        "float64",
        "how often the row is wanted beside a plain one: the product of its factors",
        lambda places: places.total(len(places)),
    ),
    Column(
        "factor_aim",
        "float32",
        "by the signals that follow the target; NULL without a target",
        _factor("aim"),
    ),
    Column(
        "factor_allowed",
        "float32",
        "0: it has the content of a target sample and is not trained on; NULL where there is none",
        _factor("allowed"),
    ),
    Column("factor_dose", "float32", "by how often it was used", _factor("dose")),
    Column(
        "factor_copies",
        "float32",
        "1 / the samples that say the same and may be drawn, which share its place; NULL where no "
        "sample of the version shares one",
        _factor("copies"),
    ),
    Column(
        COPY_OF,
        "int64",
        "the first row that says the same, with which it shares a place; NULL where none does",
        _copy_of,
    ),
    Column(
        "factor_trust",
        "float32",
        "by what its prompt tells a reference model; NULL without selection.trust",
        _factor("trust"),
    ),
    Column(
        "factor_excess",
        "float32",
        "by its loss above that under a reference model; NULL without selection.excess",
        _factor("excess"),
    ),
    Column(
        "factor_group",
        "float32",
        "by what is left to learn of its group; NULL without selection.group_quota: learned",
        _factor("group"),
    ),
    Column(
        "factor_learned",
        "float32",
        "below 1: its loss is below the mean; NULL without selection.learned",
        _factor("learned"),
    ),
    Column(
        "evidence",
        "float32",
        "that its response belongs to its prompt, by a reference model; NULL where not known",
        _signal("evidence"),
    ),
    Column(
        "signal_influence",
        "float32",
        "smoothed influence on the target, in standard deviations; NULL where nothing is known",
        _signal("influence"),
    ),
    Column(
        "influence_mass",
        "float32",
        "how much of what was measured is within its reach in the graph",
        _signal("influence_mass"),
    ),
    Column(
        "signal_likeness",
        "float32",
        "mean cosine of its features with those of the target, centred",
        _signal("likeness"),
    ),
    Column(
        "signal_group",
        "float32",
        "mean cosine of the gradients of its group with that of the target, less that of all rows",
        _signal("group"),
    ),
)
PLACES_FILE = Table(
    name="places.parquet",
    kind="file",
    about="What one version was to be trained on, factor by factor",
    columns=(_ROW, *_PLACED),
)
PLACES = Table(
    name="places",
    kind="view",
    about="How often every sample is wanted beside a plain one at every version that is kept, and "
    "why; of versions for which not all samples are wanted alike (of a rollback: look at the "
    "version that `versions.rollback_of` names)",
    columns=(_VERSION, _ROW, *IDENTITY, *_PLACED),
)

# --- versions ---


def _columns_of(
    part: type[Audit] | type[Meter] | type[Cost] | type[Aim],
    of_header: Callable[[Header], Audit | Meter | Cost | Aim | None],
) -> tuple[Column[ListedVersion], ...]:
    """Each field of a part of the header that is declared with `audit_number`."""
    return tuple(
        Column(
            name,
            "int64" if field.annotation is int else "float64",
            field.description or "",
            lambda v, name=name: _finite(of_header(v.header), name),  # type: ignore[misc]
        )
        for name, field in part.model_fields.items()
        if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("is_column")
    )


def _finite(part: Audit | Meter | Cost | Aim | None, name: str) -> float | None:
    value = None if part is None else getattr(part, name)
    return value if value is not None and math.isfinite(value) else None


def _measured_fraction(version: ListedVersion) -> float | None:
    stats = version.header.stats
    if stats.num_measured is None or not stats.num_samples:
        return None
    return stats.num_measured / stats.num_samples


def _churn(version: ListedVersion) -> float | None:
    overlap = version.header.stats.overlap_with_parent
    return None if overlap is None else overlap.churn


def _jaccard(version: ListedVersion) -> float | None:
    overlap = version.header.stats.overlap_with_parent
    return None if overlap is None else overlap.jaccard


_DATA_CHANGES: tuple[Column[ListedVersion], ...] = (
    Column(
        "num_added",
        "int64",
        "samples that joined the data since the version before",
        lambda v: v.header.stats.num_added,
    ),
    Column("num_removed", "int64", "samples that left it", lambda v: v.header.stats.num_removed),
    Column(
        "num_changed",
        "int64",
        "samples that stayed with other content",
        lambda v: v.header.stats.num_changed,
    ),
)
DATA_COLUMNS = tuple(column.name for column in _DATA_CHANGES)
"""How the data of a version differs from that before; NULL in stores of format 1."""

_HEADER: Column[ListedVersion] = Column(
    "header", "json", "the whole header, JSON", lambda v: v.header.to_text()
)
_SUMMARY: tuple[Column[ListedVersion], ...] = (
    replace(_VERSION, about="1, 2, 3 …", get=lambda v: v.header.version),
    Column("parent_version", "int32", "the version before it", lambda v: v.header.parent_version),
    Column("created_at", "timestamp[ms]", "UTC", lambda v: v.header.created_at),
    Column(
        "operation",
        "string",
        "init (first), refresh, reselect (other selection from the newest scores), or rollback "
        "(coreset and scores of an old version)",
        lambda v: v.header.operation,
    ),
    replace(_STEP, get=lambda v: v.header.checkpoint.step),
    Column(
        "scores_version",
        "int32",
        "version whose history holds the scores",
        lambda v: v.header.scores_version,
    ),
    Column(
        "rollback_of",
        "int32",
        "version that a rollback went back to",
        lambda v: v.header.rollback_of,
    ),
    Column(
        "num_measured",
        "int64",
        "rows measured; NULL after a reselect or rollback",
        lambda v: v.header.stats.num_measured,
    ),
    Column("measured_fraction", "float64", "share of the samples measured", _measured_fraction),
    *_columns_of(Audit, lambda header: header.audit),
    *_columns_of(Meter, lambda header: header.meter),
    *_columns_of(Cost, lambda header: header.cost),
    *_columns_of(Aim, lambda header: header.aim),
    Column("num_samples", "int64", "samples in the data", lambda v: v.header.stats.num_samples),
    *_DATA_CHANGES,
    Column("num_selected", "int64", "size of the coreset", lambda v: v.header.stats.num_selected),
    Column(
        "num_distinct",
        "int64",
        "samples used at least once up to and including this version; NULL in older releases",
        lambda v: v.header.selection.num_distinct,
    ),
    Column(
        "num_distinct_random",
        "float64",
        "as many as random draws of the same sizes would have used by now, on average",
        lambda v: v.header.selection.num_distinct_random,
    ),
    Column("churn", "float64", "share of the parent's coreset that was replaced", _churn),
    Column(
        "jaccard",
        "float64",
        "overlap with the parent's coreset: intersection by union",
        _jaccard,
    ),
    Column(
        "model_pass_s",
        "float64",
        "seconds in the model pass",
        lambda v: v.header.timings.model_pass_s,
    ),
    Column("other_s", "float64", "seconds outside it", lambda v: v.header.timings.other_s),
    Column("total_s", "float64", "seconds of the refresh", lambda v: v.header.timings.total_s),
    Column(
        "refresh_id",
        "string",
        "hash of checkpoint, recipe and samples",
        lambda v: v.header.refresh_id,
    ),
    Column("recipe_digest", "string", "hash of the recipe", lambda v: v.header.recipe_digest),
    Column(
        "removed_at",
        "timestamp[ms]",
        "UTC, when gc removed its coreset and scores; NULL while they are kept",
        lambda v: v.removed_at,
    ),
)
VERSIONS = Table(
    name="versions",
    kind="table",
    about="One row per version, kept or removed, from the manifests' headers",
    columns=(*_SUMMARY, _HEADER),
)


def version_record(version: ListedVersion) -> Json:
    """The row of `versions` without the header itself; None where a version has no such value."""
    return {column.name: column.get(version) for column in _SUMMARY if column.get is not None}


CHECKPOINTS = Table(
    name="checkpoints",
    kind="table",
    about="Checkpoints that versions were made from",
    columns=(
        Column("step", "int64", "training step", sql="step"),
        Column("path", "string", "directory, when it was read", sql="arg_max(found[1], version)"),
        Column("layout", "string", "the trainer's family", sql="arg_max(found[2], version)"),
        Column("digest", "string", "hash of the weights", sql="found[3]"),
        Column("first_version", "int32", "first version made from it", sql="min(version)"),
        Column("last_version", "int32", "last version made from it", sql="max(version)"),
    ),
)
CHECKPOINT_PATHS = ("$.checkpoint.path", "$.checkpoint.layout", "$.checkpoint.digest")
"""Where `header` has what the columns of `checkpoints` call `found`, in that order."""

_OF_STORE: tuple[Column[PublishedStore], ...] = (
    Column(
        "schema_version", "int32", "number of these tables and columns", lambda s: SCHEMA_VERSION
    ),
    Column("gracekit_version", "string", "release that published it", lambda s: __version__),
    Column("fingerprint", "string", "identity of the data", lambda s: s.dataset.fingerprint),
    Column("num_samples", "int64", "samples in the data", lambda s: s.dataset.num_samples),
    Column(
        "latest_version",
        "int32",
        "version whose scores the table scores holds; NULL before the first",
        lambda s: s.latest_version,
    ),
)
STORE = Table(
    name="store", kind="table", about="One row: the store, and this database", columns=_OF_STORE
)

# --- all of them ---

TABLES = {table.name: table for table in (SAMPLES, SCORES, VERSIONS, CHECKPOINTS, STORE)}
"""Whole in `scores.duckdb`."""
VIEWS = {view.name: view for view in (CORESETS, DRAWS, PLACES, SCORE_HISTORY, MEASUREMENTS)}
"""Over the manifests and the history."""


def _schema_version() -> int:
    """Another number, from 0 to 2^31 - 1, for every other set of tables, columns and meanings."""
    columns = [
        (table.name, table.about, column.name, column.type, column.about, column.sql)
        for table in (TABLES | VIEWS).values()
        for column in table.columns
    ]
    return zlib.crc32(repr(("one table behind samples and scores", columns)).encode()) & 0x7FFFFFFF


SCHEMA_VERSION: int = _schema_version()
"""Of `scores.duckdb`. A database of another schema is not read: it is built anew from the files."""
