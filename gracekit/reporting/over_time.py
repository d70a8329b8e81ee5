"""Single samples over all versions: learned, forgotten, volatile, never selected, doubtful."""

from __future__ import annotations

from typing import Any

from gracekit.reporting.finding import Finding, Section, Texts
from gracekit.reporting.questions import Questions, query

NUM_SAMPLES = 5
"""Samples of each list."""
_NO_LOSS = (
    "This store has no score `loss`; with `scoring.scores: [gradient-norm, loss]` in the recipe, "
    "both come from one pass."
)
_SEEN_TWICE = "No sample was measured at two versions yet."

_LOSSES = """seen AS (
    SELECT m.row, count(*) AS times, arg_min(loss, version) AS first_loss,
           arg_max(loss, version) AS last_loss, min(loss) AS lowest_loss,
           min(step) AS first_step, max(step) AS last_step
    FROM measurements m JOIN samples USING (row)
    WHERE isfinite(loss) AND version >= content_version AND removed_version IS NULL
    GROUP BY m.row HAVING count(*) >= 2
)"""
"""Losses of samples that were measured at least twice with their present content."""


def over_time(questions: Questions, version: int | None) -> Section:
    """What became of single samples.

    Args:
        questions: To the store.
        version: The newest version that is kept; None: there is none.
    """
    has_loss = "loss" in questions.columns_of("measurements")
    findings: dict[str, Finding] = {}
    for name, make in (("learned", _learned), ("forgotten", _forgotten), ("doubtful", _doubtful)):
        findings[name] = make(questions if has_loss else None)
    findings["volatile"] = _volatile(questions)
    findings["never_selected"] = _never_selected(questions, version)
    return Section(
        key="samples",
        title="Samples over time",
        about="Losses are those that were measured, in nats a token; estimates do not count here.",
        findings=findings,
    )


def _made(
    questions: Questions | None,
    sql: str,
    count: str,
    *,
    title: str,
    good: str,
    numbers: dict[str, str],
    told: str,
    why_empty: str,
) -> Finding:
    """A list of samples with the exact number of those that it was taken from."""
    found: dict[str, list[Any]] = {} if questions is None else questions.ask(sql)
    notes: tuple[str, ...] = ()
    if questions is not None and any(found.values()):
        of = questions.one(count)
        notes = (told.format(**of),)
    return Finding(
        title=title,
        good=good,
        sql="" if questions is None else sql,
        columns=found,
        chart=Texts(numbers=numbers),
        notes=notes,
        why_empty=_NO_LOSS if questions is None else why_empty,
    )


_FIRST_AND_LAST = {"first_loss": "loss first", "last_loss": "loss last", "times": "times measured"}


def _learned(questions: Questions | None) -> Finding:
    sql = query(f"""
        WITH {_LOSSES}
        SELECT sample_id, group_name, first_loss, last_loss, times, preview
        FROM seen JOIN samples USING (row) WHERE last_loss < first_loss
        ORDER BY first_loss - last_loss DESC, sample_id LIMIT {NUM_SAMPLES}""")
    count = f"""WITH {_LOSSES} SELECT count(*) AS n,
        count(*) FILTER (last_loss < first_loss) AS fell, median(first_loss - last_loss) AS middle
        FROM seen"""
    return _made(
        questions, sql, count,
        title="Learned: the loss fell most",
        good="Most losses should fall. What fell to nearly zero has nothing left to teach.",
        numbers=_FIRST_AND_LAST,
        told="Of {n:,} samples that were measured at least twice, the loss of {fell:,} fell; "
        "the median fall is {middle:.2f}.",
        why_empty=_SEEN_TWICE,
    )  # fmt: skip


def _forgotten(questions: Questions | None) -> Finding:
    sql = query(f"""
        WITH {_LOSSES}
        SELECT sample_id, group_name, lowest_loss, last_loss, times, preview
        FROM seen JOIN samples USING (row) WHERE last_loss > lowest_loss
        ORDER BY last_loss - lowest_loss DESC, sample_id LIMIT {NUM_SAMPLES}""")
    count = f"""WITH {_LOSSES} SELECT count(*) AS n,
        count(*) FILTER (last_loss > lowest_loss) AS rose FROM seen"""
    return _made(
        questions, sql, count,
        title="Forgotten: the loss rose again most",
        good="Few and small is good. Many of one group say that it is shown too rarely.",
        numbers={"lowest_loss": "lowest loss", "last_loss": "loss last", "times": "times measured"},
        told="Of {n:,} samples that were measured at least twice, {rose:,} have a higher loss "
        "now than at their best.",
        why_empty=f"{_SEEN_TWICE[:-1]}, or no loss rose.",
    )  # fmt: skip


def _doubtful(questions: Questions | None) -> Finding:
    suspects = f"""WITH {_LOSSES}, places_at AS (
            SELECT m.row, version, percent_rank() OVER (
                       PARTITION BY version, m.group_name ORDER BY loss) AS place
            FROM measurements m WHERE isfinite(loss)
        ), ranked AS (
            SELECT p.row, place FROM places_at p JOIN samples USING (row)
            WHERE version >= content_version
        ), suspects AS (
            SELECT seen.*, avg(place) AS mean_place
            FROM seen JOIN ranked USING (row)
            WHERE last_loss >= first_loss GROUP BY ALL HAVING min(place) >= 0.9
        )"""
    sql = query(f"""
        {suspects}
        SELECT sample_id, group_name, first_loss, last_loss, mean_place, times, preview
        FROM suspects JOIN samples USING (row)
        ORDER BY mean_place DESC, last_loss DESC, sample_id LIMIT {NUM_SAMPLES}""")
    return _made(
        questions, sql, f"{suspects} SELECT (SELECT count(*) FROM seen) AS n, count(*) AS m "
        "FROM suspects",
        title="Doubtful: maybe a wrong label",
        good="Few is good. Each had one of the highest losses of its group (the upper tenth) at "
        "every measurement, and it never fell. Such a sample is wrong, or hard, or of another "
        "kind: read it. selection.never_in leaves out what is wrong.",
        numbers={**_FIRST_AND_LAST, "mean_place": "rank of its loss in the group"},
        told="{m:,} of {n:,} samples that were measured at least twice are like this.",
        why_empty=f"No sample is like this. {_SEEN_TWICE[:-1]}, or all high losses fell.",
    )  # fmt: skip


_SWINGS = """swings AS (
    SELECT h.row, count(*) AS times, stddev_samp(importance) AS spread,
           min(importance) AS lowest, max(importance) AS highest
    FROM score_history h JOIN samples USING (row)
    WHERE origin = 'measured' AND version >= content_version AND removed_version IS NULL
      AND version > (SELECT max(version) - 20 FROM versions)
    GROUP BY h.row HAVING count(*) >= 2
)"""


def _volatile(questions: Questions) -> Finding:
    sql = query(f"""
        WITH {_SWINGS}
        SELECT sample_id, group_name, spread, lowest, highest, times, preview
        FROM swings JOIN samples USING (row)
        ORDER BY spread DESC, sample_id LIMIT {NUM_SAMPLES}""")
    return _made(
        questions, sql,
        f"WITH {_SWINGS} SELECT count(*) AS n, median(spread) AS middle FROM swings",
        title="Volatile: the importance swings most",
        good="Near 0 a score may be carried over from version to version; ranks drawn at random "
        "would have about 0.29.",
        numbers={"spread": "standard deviation", "lowest": "lowest", "highest": "highest",
                 "times": "times measured"},
        told="{n:,} samples were measured at least twice at the last 20 versions; the median of "
        "their standard deviations is {middle:.2f}, on a scale of 0 to 1.",
        why_empty=_SEEN_TWICE,
    )  # fmt: skip


def _never_selected(questions: Questions, version: int | None) -> Finding:
    unused = "" if version is None else (
        f" AND row NOT IN (SELECT row FROM draws WHERE version = {version} AND uses > 0)"
    )  # fmt: skip
    chosen = f"""never AS (
        SELECT row, sample_id, group_name, preview FROM samples
        WHERE removed_version IS NULL AND row NOT IN (SELECT row FROM coresets){unused}
    )"""
    sql = query(f"""
        WITH {chosen}
        SELECT n.sample_id, n.group_name, importance, origin, preview
        FROM never n LEFT JOIN scores USING (row)
        ORDER BY importance DESC NULLS LAST, n.sample_id LIMIT {NUM_SAMPLES}""")
    count = f"""WITH {chosen} SELECT (SELECT count(*) FROM never) AS m, count(*) AS n
        FROM samples WHERE removed_version IS NULL"""
    return _made(
        questions, sql, count,
        title="Never selected: the most important of them",
        good="Early in a run most samples are here. Later, a draw that is spread over time leaves "
        "few; a selector that cuts leaves many, which you should not need.",
        numbers={"importance": "importance", "origin": "its score was"},
        told="{m:,} of {n:,} samples are in no coreset that is kept and were not trained on.",
        why_empty="Every sample was selected at least once.",
    )  # fmt: skip
