"""What happened from version to version: worth, cost, measuring, uses, and what was replaced."""

from __future__ import annotations

from gracekit.reporting.finding import Bars, Finding, Lines, Section, Series
from gracekit.reporting.questions import Questions, query
from gracekit.reporting.towards_target import towards_target

_WORTH = query("""
    SELECT version, step, 1000 * value AS worth, 1000 * value_low AS worth_low,
           1000 * value_high AS worth_high, 1000 * best AS best, 1000 * best_low AS best_low,
           1000 * best_high AS best_high
    FROM versions WHERE value IS NOT NULL OR best IS NOT NULL ORDER BY version""")
_KEPT = query("""
    SELECT version, step, value_kept, value_kept_low, value_kept_high
    FROM versions WHERE value_kept IS NOT NULL ORDER BY version""")
_COST = query("""
    SELECT version, step, cost_in_all / training_tokens AS share_in_all,
           cost / training_tokens AS share_of_this, cost_seconds / training_seconds AS share_of_time
    FROM versions WHERE training_tokens > 0 ORDER BY version""")
_MEASURED = query("""
    SELECT version, step, measured_fraction, num_measured, rank_correlation,
           rank_correlation_stale
    FROM versions WHERE num_measured IS NOT NULL ORDER BY version""")
_USES = query("""
    SELECT version, count(*) FILTER (uses = 0) AS never, count(*) FILTER (uses = 1) AS once,
           count(*) FILTER (uses = 2) AS twice, count(*) FILTER (uses > 2) AS often
    FROM draws JOIN samples USING (row)
    WHERE (removed_version IS NULL OR removed_version > version)
      AND version > (SELECT max(version) - 60 FROM versions)
    GROUP BY version ORDER BY version""")
_TRUST = query("""
    SELECT version, step, rank_correlation, rank_correlation_stale, rank_correlation_all, num_probe
    FROM versions WHERE rank_correlation IS NOT NULL ORDER BY version""")
_LOSSES = query("""
    WITH largest AS (
        SELECT group_name FROM samples WHERE removed_version IS NULL
        GROUP BY group_name ORDER BY count(*) DESC, group_name LIMIT 8
    )
    SELECT version, coalesce(m.group_name, '') AS group_name, count(*) AS measured,
           avg(loss) AS loss, avg(loss) - 1.645 * stddev_samp(loss) / sqrt(count(*)) AS loss_low,
           avg(loss) + 1.645 * stddev_samp(loss) / sqrt(count(*)) AS loss_high
    FROM measurements m
    WHERE reason IN ('first', 'probe') AND isfinite(loss) AND m.group_name IN (FROM largest)
    GROUP BY ALL ORDER BY group_name, version""")
_CHURN = query("""
    SELECT version, step, churn, 1 - num_selected / num_samples AS churn_random, num_selected
    FROM versions WHERE churn IS NOT NULL ORDER BY version""")
_LIST = query("""
    SELECT version, step, operation, num_samples, num_selected, measured_fraction, value,
           value_kept, cost_in_all / training_tokens AS cost_share, churn,
           CAST(removed_at AS VARCHAR) AS removed_at
    FROM versions ORDER BY version""")
_NO_METER = (
    "No version tells what its coreset is worth: it takes a gradient norm as the importance "
    "score, and enough samples that were measured at random."
)


def timeline(questions: Questions, *, max_cost: float | None) -> Section:
    """The versions as charts and as a table.

    Args:
        questions: To the store.
        max_cost: The recipe's `refresh.max_cost`; None: there is no limit.
    """
    cheap = "near 0" if max_cost is None else "below what refresh.max_cost allows"
    findings = {
        "worth": Finding(
            title="What 1,000 samples of each coreset are worth",
            good="Above 1,000 is better than random rows; the nearer to the dashed line, the "
            "better. Where the band reaches 1,000, a gain is not shown.",
            sql=_WORTH,
            columns=questions.ask(_WORTH),
            chart=Lines(
                x="version",
                x_name="version",
                y_name="random samples (interval of 90 %)",
                series=(
                    Series("worth", "this coreset", "worth_low", "worth_high"),
                    Series("best", "with perfect norms", "best_low", "best_high"),
                ),
                y_format="count",
                level=1000.0,
                level_name="random rows",
            ),
            why_empty=_NO_METER,
        ),
        "kept": Finding(
            title="How much of the gain of perfect norms is kept",
            good="100 % is as good as if every norm were known. Below "
            "0 % the coreset is worth less than random rows.",
            sql=_KEPT,
            columns=questions.ask(_KEPT),
            chart=Lines(
                x="version",
                x_name="version",
                y_name="share of the gain (interval of 90 %)",
                series=(Series("value_kept", "value kept", "value_kept_low", "value_kept_high"),),
                y_format="percent",
                from_zero=True,
            ),
            why_empty=f"{_NO_METER} It is empty, too, where norms have nothing to gain.",
        ),
        "cost": Finding(
            title="What selection has cost so far, of the training's compute",
            good="The lower, the better: it has to be less than what the coreset saves."
            + ("" if max_cost is None else " The dotted line is what refresh.max_cost allows."),
            sql=_COST,
            columns=questions.ask(_COST),
            chart=Lines(
                x="version",
                x_name="version",
                y_name="share of the training's compute",
                series=(
                    Series("share_in_all", "all versions so far"),
                    Series("share_of_this", "this version alone"),
                ),
                y_format="percent",
                level=max_cost,
                level_name="allowed",
                from_zero=True,
            ),
            why_empty="How much of the training that is cannot be told: its pace is not known "
            "(training.samples_a_step and training.steps of the recipe tell it).",
        ),
        "measured": Finding(
            title="Share of the samples that each version measured",
            good="The lower, the cheaper, as long as the value kept stays high. A first version "
            "measures more.",
            sql=_MEASURED,
            columns=questions.ask(_MEASURED),
            chart=Bars(
                x="version",
                x_name="version",
                y_name="share of the samples",
                series=(Series("measured_fraction", "measured"),),
            ),
            why_empty="No version measured anything: the coresets come from scores that were "
            "there.",
        ),
        **towards_target(questions),
        "trust": Finding(
            title="How well the samples that were not measured are known",
            good="Near 1 is good: the order of the estimates is that of the measurements. The "
            "further above the dashed line, the more estimating from similar samples brings.",
            sql=_TRUST,
            columns=questions.ask(_TRUST),
            chart=Lines(
                x="version",
                x_name="version",
                y_name="rank correlation with measurements",
                series=(
                    Series("rank_correlation", "as estimated"),
                    Series("rank_correlation_stale", "had they been left as they were"),
                ),
            ),
            why_empty="No version compared estimates with measurements: everything was measured, "
            "or too little at random.",
        ),
        **_losses(questions),
        "uses": _uses(questions),
        "churn": Finding(
            title="Share of the parent's coreset that each version replaced",
            good="A draw that is spread over time replaces most of it, as random re-drawing does "
            "(the line); a selector that ranks should settle. Neither is bad in itself.",
            sql=_CHURN,
            columns=questions.ask(_CHURN),
            chart=Bars(
                x="version",
                x_name="version",
                y_name="share replaced",
                series=(Series("churn", "replaced"),),
                level="churn_random",
                level_name="a random draw would replace",
            ),
            why_empty="There is no version with a parent yet: the first has nothing to replace.",
        ),
        "versions": Finding(
            title="All versions",
            good="value: random samples that one of the coreset is worth, above 1 is better than "
            "random. value kept: share of the gain of perfect norms, near 1 is good. cost: of the "
            f"training's compute, {cheap} is good.",
            sql=_LIST,
            columns=questions.ask(_LIST),
            why_empty="There is no version yet.",
        ),
    }
    return Section(
        key="timeline",
        title="From version to version",
        about="A version is what one checkpoint led to: some samples measured, the others "
        "estimated, and a coreset drawn.",
        findings=findings,
    )


def _losses(questions: Questions) -> dict[str, Finding]:
    """Losses by group; nothing where losses are no score of the store."""
    if "loss" not in questions.columns_of("measurements"):
        return {}
    return {
        "losses": Finding(
            title="Loss of each group",
            good="All should fall. A group whose loss stays up, or rises, is shown too rarely, or "
            "cannot be learned.",
            sql=_LOSSES,
            columns=questions.ask(_LOSSES),
            chart=Lines(
                x="version",
                x_name="version",
                y_name="mean loss, nats a token (interval of 90 %)",
                series=(Series("loss", "loss", "loss_low", "loss_high"),),
                by="group_name",
            ),
            notes=("Of the eight largest groups, by the samples that were measured at random.",),
            why_empty="No loss was measured at random.",
        )
    }


def _uses(questions: Questions) -> Finding:
    found = questions.ask(_USES)
    is_logged = any(map(sum, zip(*(found[k] for k in ("once", "twice", "often")), strict=True)))
    return Finding(
        title="How often the samples had been used before each version",
        good="While samples remain that were never used, few should be used twice; rows that come "
        "again and again decide long runs.",
        sql=_USES,
        columns=found,
        chart=Bars(
            x="version",
            x_name="version",
            y_name="samples",
            series=(
                Series("never", "never"),
                Series("once", "once"),
                Series("twice", "twice"),
                Series("often", "more often"),
            ),
            y_format="count",
            is_stacked=True,
        ),
        notes=() if is_logged else ("Nothing had been trained on before these versions.",),
        why_empty="No kept version says how often its samples were used: an earlier release made "
        "them, or gc removed them.",
    )
