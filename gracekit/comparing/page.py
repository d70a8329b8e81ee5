"""The page of a comparison: verdict, table, curves; one HTML file, and the curves as SVG files."""

from __future__ import annotations

import dataclasses
import math
from html import escape
from pathlib import Path

from gracekit.comparing.comparison import Comparison
from gracekit.comparing.curves import Curve, draw
from gracekit.comparing.outcome import ArmOutcome
from gracekit.files import write_text_atomic

STYLE = """\
body { font-family: sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; font-size: 0.9rem; display: block; overflow-x: auto }
th, td { padding: 0.3rem 0.6rem; border-bottom: 1px solid #ddd; text-align: right }
td { white-space: nowrap }
th:first-child, td:first-child { text-align: left }
th { font-weight: 600; border-bottom: 2px solid #888; vertical-align: bottom }
code { background: #f2f2f2; padding: 0 0.2rem }
svg { width: 100%; height: auto; margin: 1rem 0 }
p.small { color: #555; font-size: 0.85rem }
"""


def write_page(found: Comparison, path: Path) -> Comparison:
    """Write the page and its curves beside it; the comparison, which knows where they are."""
    by_steps = draw(
        [Curve(name=arm.arm, x=arm.steps, y=arm.losses) for arm in found.arms],
        title="Held-out loss over optimizer steps",
        x_name="optimizer steps",
        y_name=f"held-out loss, mean over {found.average}",
    )
    by_compute = draw(
        [Curve(name=arm.arm, x=arm.compute, y=arm.losses) for arm in found.arms],
        title="Held-out loss over compute, selection included",
        x_name="tokens of training (selection counted in the same unit)",
        y_name=f"held-out loss, mean over {found.average}",
    )
    by_seconds = draw(
        [Curve(name=arm.arm, x=arm.seconds, y=arm.losses) for arm in found.arms],
        title="Held-out loss over CPU seconds, selection included",
        x_name="CPU seconds of training and selection",
        y_name=f"held-out loss, mean over {found.average}",
    )
    figures = {"steps": by_steps, "compute": by_compute, "seconds": by_seconds}
    for name, figure in figures.items():
        write_text_atomic(path.with_name(f"{path.stem}-{name}.svg"), figure, tidy=True)
    verdict = "".join(f"<li>{_marked_up(sentence)}</li>" for sentence in found.verdict)
    remarks = "".join(f"<li>{_marked_up(sentence)}</li>" for sentence in found.remarks)
    write_text_atomic(
        path,
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>gracekit compare</title><style>{STYLE}</style></head><body>\n"
        f"<h1>Comparison</h1>\n<h2>Verdict</h2><ul>{verdict}</ul>\n"
        f"<h2>Arms</h2>{_table(found)}{_arms(found)}\n"
        f"<h2>Curves</h2>{by_steps}{by_compute}{by_seconds}\n"
        f"<h2>Remarks</h2><ul>{remarks}</ul></body></html>\n",
        tidy=True,
    )
    return dataclasses.replace(found, page=str(path))


def _table(found: Comparison) -> str:
    heads = ["arm", "seeds", "steps", "held-out loss", "± over seeds"]
    heads += [f"less {found.control}", "95 % interval"] if found.control else []
    heads += ["steps to its loss", "compute to its loss"] if found.control else []
    has_oracle = any(not math.isnan(arm.closed) for arm in found.arms)
    heads += ["of the distance to the oracle"] if has_oracle else []
    heads += ["selection / training", "in CPU seconds", "distinct rows", "most uses"]
    heads += [found.metric] if found.metric else []
    marks = list(found.arms[0].marked)
    heads += [f"marked by {name}" for name in marks]
    lines = ["".join(f"<th>{escape(head)}</th>" for head in heads)]
    for arm in found.arms:
        cells = [
            f"<code>{escape(arm.arm)}</code>", str(arm.seeds), f"{arm.num_taken:,}",
            f"{arm.loss:.4f}", _number(arm.spread, ".4f"),
        ]  # fmt: skip
        if found.control:
            apart = arm.against_control
            cells += (
                ["", ""]
                if apart is None
                else [f"{apart.mean:+.4f}", f"{apart.low:+.4f}, {apart.high:+.4f}"]
            )
            cells += [_number(arm.steps_to_control, ".0%"), _number(arm.compute_to_control, ".0%")]
        cells += [_number(arm.closed, ".2f")] if has_oracle else []
        cells += [
            _number(arm.selection_share, ".1%"), _number(arm.selection_seconds_share, ".1%"),
            f"{arm.num_distinct:,.0f}", str(arm.most_uses),
        ]  # fmt: skip
        cells += [_number(arm.metric, ".3f")] if found.metric else []
        cells += [f"{arm.marked[name]:.1%}" for name in marks]
        lines.append("".join(f"<td>{cell}</td>" for cell in cells))
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def _arms(found: Comparison) -> str:
    def told(arm: ArmOutcome) -> str:
        return f"<li><code>{escape(arm.arm)}</code>: {escape(arm.about)}</li>"

    return f'<ul class="small">{"".join(map(told, found.arms))}</ul>'


def _number(value: float, shape: str) -> str:
    return "–" if math.isnan(value) else format(value, shape)


def _marked_up(sentence: str) -> str:
    parts = escape(sentence).split("`")
    return "".join(f"<code>{p}</code>" if k % 2 else p for k, p in enumerate(parts))
