"""What is known of the target from version to version, where there is one."""

from __future__ import annotations

from gracekit.reporting.finding import Bars, Finding, Lines, Series
from gracekit.reporting.questions import Questions, query

_TARGET_LOSS = query("""
    SELECT version, step, target_loss, num_target FROM versions
    WHERE target_loss IS NOT NULL ORDER BY version""")
_FOLLOWED = query("""
    SELECT version, step, share_influence, share_likeness, share_group, share_uniform,
           num_alike, uses_of_alike, steps_left
    FROM versions WHERE share_uniform IS NOT NULL ORDER BY version""")


def towards_target(questions: Questions) -> dict[str, Finding]:
    """What is known of the target at each version; nothing without one."""
    losses, followed = questions.ask(_TARGET_LOSS), questions.ask(_FOLLOWED)
    if not losses["version"] and not followed["version"]:
        return {}
    return {
        "target_loss": Finding(
            title="Loss on the target set",
            good="It should fall. Where it rises from one version to the next and goes on to, the "
            "training has had enough of what is like the target. Versions whose num_target differs "
            "are not of the same samples.",
            sql=_TARGET_LOSS,
            columns=losses,
            chart=Lines(
                x="version",
                x_name="version",
                y_name="mean loss, nats a token",
                series=(Series("target_loss", "target loss"),),
            ),
            why_empty="No version measured the loss on the target set.",
        ),
        "followed": Finding(
            title="What selection followed towards the target",
            good="The more follows a signal, the surer it is that it helps; all samples alike "
            "says that none was found to.",
            sql=_FOLLOWED,
            columns=followed,
            chart=Bars(
                x="version",
                x_name="version",
                y_name="share of what is trained on",
                series=(
                    Series("share_uniform", "all samples alike"),
                    Series("share_likeness", "likeness of features"),
                    Series("share_influence", "smoothed influence"),
                    Series("share_group", "groups"),
                ),
                is_stacked=True,
            ),
            why_empty="No version says what it followed.",
        ),
    }
