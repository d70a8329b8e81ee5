"""What the newest coreset is: its groups, lengths and importance beside the data, and examples."""

from __future__ import annotations

from typing import Any

from gracekit.reporting.finding import Bars, Finding, Rows, Section, Series, Texts
from gracekit.reporting.questions import Questions, query

NUM_EXAMPLES = 5
"""Samples of each list."""
_BOTH = (Series("data_share", "data"), Series("coreset_share", "coreset"))


def newest_coreset(
    questions: Questions, version: int, parent: int | None, *, is_aimed: bool
) -> Section:
    """The coreset of one version.

    Args:
        questions: To the store.
        version: A version that is kept.
        parent: The version before it, if it is kept.
        is_aimed: Whether there is a target set, likeness to which is shown.
    """
    return Section(
        key="coreset",
        title=f"What the newest coreset is (version {version})",
        about="Each picture has all samples of the data beside those of the coreset.",
        findings={
            "groups": _groups(questions, version),
            **({"likeness": _likeness(questions, version)} if is_aimed else {}),
            "lengths": _lengths(questions, version),
            "importance": _importance(questions, version),
            **_examples(questions, version, parent),
        },
    )


def _groups(questions: Questions, version: int) -> Finding:
    sql = query(f"""
        WITH data AS (
            SELECT group_name, count(*) AS samples FROM samples
            WHERE removed_version IS NULL GROUP BY ALL
        ), picked AS (
            SELECT group_name, count(*) AS selected, sum(weight) AS weight FROM coresets
            WHERE version = {version} GROUP BY ALL
        )
        SELECT coalesce(data.group_name, picked.group_name, '') AS group_name,
               coalesce(samples, 0) AS samples, coalesce(selected, 0) AS selected,
               coalesce(samples, 0) / sum(samples) OVER () AS data_share,
               coalesce(selected, 0) / sum(selected) OVER () AS coreset_share,
               coalesce(weight, 0) / sum(weight) OVER () AS weight_share
        FROM data FULL JOIN picked ON data.group_name IS NOT DISTINCT FROM picked.group_name
        ORDER BY samples DESC, group_name""")
    return Finding(
        title="Groups: share of the data and of the coreset",
        good="A group that should not lose its place has a coreset bar about as long as its data "
        "bar; with a target, the groups that serve it are longer. With weights in the loss, the "
        "column weight_share is what counts.",
        sql=sql,
        columns=questions.ask(sql),
        chart=Rows(label="group_name", x_name="share of all samples", series=_BOTH),
        why_empty="The data has no samples.",
    )


def _likeness(questions: Questions, version: int) -> Finding:
    sql = query(f"""
        WITH known AS (
            SELECT p.row, signal_likeness AS likeness, c.row IS NOT NULL AS is_selected
            FROM places p LEFT JOIN coresets c ON c.row = p.row AND c.version = p.version
            WHERE p.version = {version} AND signal_likeness IS NOT NULL
        ), bounds AS (
            SELECT min(likeness) AS low, greatest(max(likeness) - min(likeness), 1e-9) / 20 AS width
            FROM known
        )
        SELECT round(low + width * least(floor((likeness - low) / width), 19), 4) AS from_likeness,
               count(*) AS samples, count(*) FILTER (is_selected) AS selected,
               count(*) / sum(count(*)) OVER () AS data_share,
               count(*) FILTER (is_selected)
                   / nullif(sum(count(*) FILTER (is_selected)) OVER (), 0) AS coreset_share
        FROM known, bounds GROUP BY 1 ORDER BY 1""")
    return Finding(
        title="Likeness to the target set",
        good="Aimed at a target, the coreset should stand to the right of the data. Where the two "
        "are alike, selection follows something else, or nothing.",
        sql=sql,
        columns=questions.ask(sql),
        chart=Bars(
            x="from_likeness",
            x_name="mean cosine of features with the target's",
            y_name="share of the samples",
            series=_BOTH,
        ),
        why_empty="Nothing is known of likeness to the target set at this version.",
    )


def _lengths(questions: Questions, version: int) -> Finding:
    sql = query(f"""
        SELECT CAST(if(num_response_tokens < 1, 0, 2 ** floor(log2(num_response_tokens))) AS BIGINT)
                   AS from_tokens,
               count(*) AS samples, count(c.row) AS selected,
               count(*) / sum(count(*)) OVER () AS data_share,
               count(c.row) / nullif(sum(count(c.row)) OVER (), 0) AS coreset_share
        FROM samples s LEFT JOIN coresets c ON c.row = s.row AND c.version = {version}
        WHERE removed_version IS NULL
        GROUP BY 1 ORDER BY 1""")
    return Finding(
        title="Length of the answers",
        good="About the same shape is good. A coreset far to the right gains by length alone, "
        "which random rows with long answers have for nothing; far to the left, it is full of "
        "short answers.",
        sql=sql,
        columns=questions.ask(sql),
        chart=Bars(
            x="from_tokens",
            x_name="tokens that carry loss, at least",
            y_name="share of the samples",
            series=_BOTH,
        ),
        why_empty="The data has no samples.",
    )


def _importance(questions: Questions, version: int) -> Finding:
    sql = query(f"""
        SELECT least(floor(20 * h.importance), 19) / 20 AS from_importance,
               count(*) AS samples, count(c.row) AS selected,
               count(*) / sum(count(*)) OVER () AS data_share,
               count(c.row) / nullif(sum(count(c.row)) OVER (), 0) AS coreset_share
        FROM score_history h LEFT JOIN coresets c ON c.row = h.row AND c.version = {version}
        WHERE h.version = (SELECT scores_version FROM versions WHERE version = {version})
          AND h.origin NOT IN ('removed', 'never', 'invalid')
        GROUP BY 1 ORDER BY 1""")
    return Finding(
        title="Importance",
        good="A draw by norms leans to the right and still has all of the data; a coreset at the "
        "right edge alone is full of wrong labels as well as of hard samples.",
        sql=sql,
        columns=questions.ask(sql),
        chart=Bars(
            x="from_importance",
            x_name="importance, 0 to 1 (a rank within the group)",
            y_name="share of the samples",
            series=_BOTH,
        ),
        why_empty="The scores of this version are not kept, or no sample has one.",
    )


_IMPORTANCE = {"importance": "importance", "weight": "weight"}


def _examples(questions: Questions, version: int, parent: int | None) -> dict[str, Finding]:
    both = f"version = {version}"
    entered = _sql(
        version,
        f"row NOT IN (SELECT row FROM coresets WHERE version = {parent})",
        "hash(s.sample_id)",
    )
    left = _sql(
        parent or version,
        f"row NOT IN (SELECT row FROM coresets WHERE {both})",
        "hash(s.sample_id)",
    )
    no_parent = (
        "There is no version before this one that is kept."
        if parent is None
        else "Both versions have the same samples."
    )
    since = "since the version before" if parent is None else f"since version {parent}"
    lists = {
        "entered": (
            f"Samples that entered {since}, some at random",
            "They should look like what you want more of now.",
            entered if parent is not None else "",
            no_parent,
        ),
        "left": (
            f"Samples that left {since}, some at random",
            "Losing them should not hurt: they come again when it is their turn.",
            left if parent is not None else "",
            no_parent,
        ),
        "most_important": (
            "The most important samples of the coreset",
            "They should be hard and right. Wrong answers here are what selection.drop_hardest "
            "is for.",
            _sql(version, "true", "c.importance DESC NULLS LAST, s.sample_id"),
            "The coreset is empty.",
        ),
        "least_important": (
            "The least important samples of the coreset",
            "Easy samples are here so that nothing is forgotten; they weigh more, for they stand "
            "for many.",
            _sql(version, "true", "c.importance NULLS LAST, s.sample_id"),
            "The coreset is empty.",
        ),
    }
    return {
        name: Finding(
            title=title,
            good=good,
            sql=sql,
            columns=questions.ask(sql) if sql else _NOTHING,
            chart=Texts(numbers=_IMPORTANCE),
            why_empty=why,
        )
        for name, (title, good, sql, why) in lists.items()
    }


_NOTHING: dict[str, list[Any]] = {}


def _sql(version: int, condition: str, order: str) -> str:
    return query(f"""
        SELECT s.sample_id, s.group_name, c.importance, c.weight, preview
        FROM coresets c JOIN samples s USING (row)
        WHERE version = {version} AND {condition}
        ORDER BY {order} LIMIT {NUM_EXAMPLES}""")
