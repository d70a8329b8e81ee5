"""The tables and views of `scores.duckdb`, described once: SQL, comments and all.

The comments are in the database itself; in DuckDB, `FROM duckdb_columns()` shows them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

SCHEMA_VERSION = 7
"""A database of another schema is not read: it is built anew from the files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """A table or view: what it is, and its columns. Score columns come on top."""

    about: str
    columns: dict[str, str]
    """name -> meaning, in order."""


_ROW = "position in the sample store; joins all tables"
_SCORE_ROW = {
    "row": _ROW,
    "origin": "measured at this version, propagated from measured rows, stale (kept as it was), "
    "never measured, invalid (not finite, or nothing to train on), or removed from the data",
    "measured_step": "training step of the last measurement; -1: never",
    "measured_version": "version of the last measurement; 0: never",
    "confidence": "0 nothing is known … 1 measured now",
    "importance": "the score that selection uses, 0 to 1: corrected for length, ranked; NULL when "
    "removed",
}

SAMPLES = Described(
    about="One row per training sample, those that left the data included",
    columns={
        "row": _ROW,
        "sample_id": "the user's id, or a hash of the content",
        "group_name": "the user's label (source, task, category)",
        "num_prompt_tokens": "tokens without loss",
        "num_response_tokens": "tokens that carry loss",
        "content_hash": "hash of the content",
        "source_row": "position in the data file, counted from 0; NULL when removed",
        "preview": "first characters of the sample",
        "added_version": "version that the sample came with",
        "removed_version": "version since which it is no longer in the data; NULL: it is",
        "content_version": "version since which its content is what it is",
    },
)
SCORES = Described(about="Present scores of every sample: those of the latest version",
                   columns=_SCORE_ROW)  # fmt: skip
VERSIONS = Described(
    about="One row per version, kept or removed, from the manifests' headers",
    columns={
        "version": "1, 2, 3 …",
        "parent_version": "the version before it",
        "created_at": "UTC",
        "operation": "init (first), refresh, reselect (other selection from the newest scores), or "
        "rollback (coreset and scores of an old version)",
        "step": "training step of the checkpoint",
        "scores_version": "version whose history holds the scores",
        "rollback_of": "version that a rollback went back to",
        "num_measured": "rows measured; NULL after a reselect",
        "measured_fraction": "share of the samples measured",
        "num_probe": "audit: measured rows drawn at random that were predicted from the others",
        "rank_correlation": "audit: Spearman of their predicted and measured importance",
        "rank_correlation_stale": "the same, had the scores been left as they were",
        "rank_correlation_all": "the same over all rows, measured ones included",
        "mean_abs_error": "audit: mean absolute error of importance",
        "mean_abs_error_stale": "the same, had the scores been left as they were",
        "feature_cosine": "audit: mean cosine of predicted and measured features",
        "feature_cosine_stale": "the same, had the features been left as they were",
        "calibration": "errors relative to what the confidences promised; above 1: too confident",
        "num_samples": "samples in the data",
        "num_added": "samples that joined the data since the version before",
        "num_removed": "samples that left it",
        "num_changed": "samples that stayed with other content",
        "num_selected": "size of the coreset",
        "churn": "share of the parent's coreset that was replaced",
        "jaccard": "overlap with the parent's coreset: intersection by union",
        "model_pass_s": "seconds in the model pass",
        "other_s": "seconds outside it",
        "total_s": "seconds of the refresh",
        "refresh_id": "hash of checkpoint, recipe and samples",
        "recipe_digest": "hash of the recipe",
        "removed_at": "UTC, when gc removed its coreset and scores; NULL while they are kept",
        "header": "the whole header, JSON",
    },
)
CHECKPOINTS = Described(
    about="Checkpoints that versions were made from",
    columns={
        "step": "training step",
        "path": "directory, when it was read",
        "layout": "the trainer's family",
        "digest": "hash of the weights",
        "first_version": "first version made from it",
        "last_version": "last version made from it",
    },
)
CORESETS = Described(
    about="Selected samples of every version that is kept",
    columns={
        "version": "version of the coreset",
        "row": _ROW,
        "weight": "how many samples it stands for, divided by the mean",
        "rank": "0 was picked first",
        "gain": "increase of the objective when picked",
        "importance": "importance when selected",
        "origin": "where its score came from",
        "measured_step": "training step of its last measurement",
    },
)
STORE = Described(
    about="One row: the store, and this database",
    columns={
        "schema_version": "schema of this database",
        "gracekit_version": "version that published it",
        "fingerprint": "identity of the data",
        "num_samples": "samples in the data",
        "latest_version": "version that scores holds; NULL before the first",
    },
)
SCORE_HISTORY = Described(
    about="Scores of every sample at every version that has its own scores and is kept",
    columns={"version": "version", "step": "training step of the checkpoint", **_SCORE_ROW},
)
MEASUREMENTS = Described(
    about="What the model pass measured at every version, also at removed ones",
    columns={
        "version": "version",
        "row": _ROW,
        "reason": "why: first (everything), never_measured, priority (the plan), probe (random, "
        "for the audit), or invalid (not finite the last time)",
        "step": "training step of the checkpoint",
    },
)

TABLES = {
    "samples": SAMPLES,
    "scores": SCORES,
    "versions": VERSIONS,
    "checkpoints": CHECKPOINTS,
    "store": STORE,
}
VIEWS = {"coresets": CORESETS, "score_history": SCORE_HISTORY, "measurements": MEASUREMENTS}

EMPTY_VIEWS = {
    "coresets": "SELECT NULL::INTEGER AS version, NULL::BIGINT AS row, NULL::FLOAT AS weight, "
    "NULL::INTEGER AS rank, NULL::FLOAT AS gain, NULL::FLOAT AS importance, "
    "NULL::VARCHAR AS origin, NULL::BIGINT AS measured_step LIMIT 0",
    "score_history": "SELECT NULL::INTEGER AS version, NULL::BIGINT AS step, s.* FROM scores s "
    "LIMIT 0",
    "measurements": "SELECT NULL::INTEGER AS version, NULL::BIGINT AS row, NULL::VARCHAR AS "
    "reason, NULL::BIGINT AS step LIMIT 0",
}
"""The views before the first version."""


def view_select(view: str, alike: Mapping[tuple[str, ...] | None, list[str]]) -> str:
    """The query behind a view over Parquet files: one per version, of the manifests or the history.

    Exactly the files of committed versions are named: one that is being written is not seen.

    Args:
        view: Its name.
        alike: Files that are known to have the same columns; None: not known. Of those with the
            same columns DuckDB opens one to make the view, of the others each.
    """
    if not alike:
        return EMPTY_VIEWS[view]
    # Hive partitioning would take every key=value directory above the store for a column as well.
    options = "filename = true, hive_partitioning = false"
    if view == "coresets":
        columns = ", ".join(name for name in CORESETS.columns if name != "version")
        version = r"regexp_extract(filename, 'v(\d+)\.parquet$', 1)::INTEGER"
        return f"SELECT {version} AS version, {columns} FROM {_parquet(alike[()], options)}"
    version = r"regexp_extract(filename, 'version=(\d+)/[^/]*$', 1)::INTEGER"
    # Scores differ between versions when the recipe changes: missing ones are NULL.
    history = " UNION ALL BY NAME ".join(
        f"SELECT {version} AS version, * EXCLUDE (filename) FROM "
        + _parquet(files, options if columns else f"{options}, union_by_name = true")
        for columns, files in alike.items()
    )
    if view == "measurements":
        return history
    return (
        "SELECT h.version, v.step, h.* EXCLUDE (version) "
        f"FROM ({history}) h JOIN versions v USING (version)"
    )


def _parquet(files: list[str], options: str) -> str:
    return f"read_parquet([{', '.join(map(quote, files))}], {options})"


def quote(text: str) -> str:
    """An SQL string."""
    return "'" + text.replace("'", "''") + "'"


def as_pattern(path: str) -> str:
    """A path for DuckDB's file functions, which take * ? [ for wildcards."""
    return "".join(f"[{sign}]" if sign in "*?[" else sign for sign in path)


def describe(connection: DuckDBPyConnection, name: str, described: Described, *, kind: str) -> None:
    """Comment a table or view (`kind`) and its columns; those not described are scores."""
    connection.execute(f"COMMENT ON {kind} {name} IS {quote(described.about)}")
    # Unlike DESCRIBE, the catalog does not open every file of a view again.
    sql = f"SELECT column_name FROM duckdb_columns() WHERE table_name = {quote(name)}"
    own = f"{sql} AND database_name = current_database()"
    for (column,) in connection.execute(own).fetchall():
        meaning = described.columns.get(column, "score, as the model pass gives it; see the recipe")
        quoted = column.replace('"', '""')
        connection.execute(f'COMMENT ON COLUMN {name}."{quoted}" IS {quote(meaning)}')
