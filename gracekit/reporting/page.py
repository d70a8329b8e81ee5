"""The page of a report: one HTML file that needs no network and, but for hovering, no script."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from html import escape
from itertools import groupby

from gracekit.reporting.answer import Answer
from gracekit.reporting.charts import bar_chart, line_chart, row_chart
from gracekit.reporting.finding import Bars, Finding, Lines, Pairs, Rows, Section, Texts
from gracekit.reporting.glossary import GLOSSARY
from gracekit.reporting.lists import pair_list, sample_list, table
from gracekit.reporting.script import SCRIPT
from gracekit.reporting.style import STYLE
from gracekit.reporting.texts import LONGEST_NAME, plain, script_json, sentence
from gracekit.types import Json

MARK = '<meta name="generator" content="gracekit report">'
"""By which a file is known as one that a report may replace."""
LAYOUT_ID = "map-layout"
MOST_IN_SIGHT = 12
"""Rows of a table that is not folded away."""


def page(
    *,
    name: str,
    facts: Sequence[str],
    answer: Answer,
    status: Sequence[str],
    sections: Sequence[Section],
    pictures: dict[str, str],
    layout: Json | None,
) -> str:
    """The whole file.

    Args:
        name: What the report is about, of the user.
        facts: Short ones, below the title.
        answer: The three sentences.
        status: The same in more words, a paragraph an entry.
        sections: In their order.
        pictures: HTML of findings that are drawn elsewhere, by "section/finding".
        layout: Of the map, for the next report; None: there is no map.
    """
    title = f"gracekit report: {plain(name, LONGEST_NAME)}"
    links = "".join(f'<li><a href="#{s.key}">{escape(s.title)}</a></li>' for s in sections)
    body = "".join(_section(section, pictures) for section in sections)
    kept = ""
    if layout is not None:
        kept = f'<script type="application/json" id="{LAYOUT_ID}">{script_json(layout)}</script>'
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">{MARK}\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        f"style-src {_hash(STYLE)}; script-src {_hash(SCRIPT)}; base-uri 'none'; "
        "form-action 'none'\">\n"
        f'<meta name="color-scheme" content="light dark"><title>{escape(title)}</title>\n'
        f"<style>{STYLE}</style></head>\n<body><header><h1>{escape(title)}</h1>"
        f'<p class="facts">{escape(" · ".join(facts))}</p></header>\n'
        f'<main><ul class="answer" aria-label="The answer">'
        f"<li>{sentence(answer.worth)}</li><li>{sentence(answer.cost)}</li>"
        f"<li>{sentence(answer.advice)}</li></ul>\n"
        f"<details><summary>The same in more words</summary>"
        f"{''.join(f'<p>{sentence(plain(text, 4000))}</p>' for text in status)}</details>\n"
        f'<nav aria-label="Parts of this report"><ul>{links}'
        f'<li><a href="#words">Words</a></li></ul></nav>\n{body}{_words()}</main>\n'
        "<footer>Numbers were read from the store with the queries below the pictures; "
        "<code>gracekit sql QUERY</code> asks them again. Texts are the first characters of the "
        "samples.</footer>\n"
        f"{kept}<script>{SCRIPT}</script></body></html>\n"
    )


def _words() -> str:
    items = "".join(
        f"<dt>{escape(word)}</dt><dd>{escape(about)}</dd>" for word, about in GLOSSARY.items()
    )
    return (
        '<section class="words" id="words" aria-labelledby="words-title">'
        f'<h2 id="words-title">Words</h2><dl>{items}</dl></section>\n'
    )


def _hash(content: str) -> str:
    """What allows one script or style sheet and no other."""
    digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def _section(section: Section, pictures: dict[str, str]) -> str:
    grids = []
    for are_lists, named in groupby(section.findings.items(), key=lambda item: _is_list(item[1])):
        parts = "".join(_finding(f, pictures.get(f"{section.key}/{name}", "")) for name, f in named)
        grids.append(f'<div class="{"grid2 lists" if are_lists else "grid2"}">{parts}</div>')
    return (
        f'<section id="{section.key}" aria-labelledby="{section.key}-title">'
        f'<h2 id="{section.key}-title">{escape(section.title)}</h2>'
        f'<p class="about">{sentence(section.about)}</p>'
        f"{''.join(grids)}</section>\n"
    )


def _is_list(finding: Finding) -> bool:
    return isinstance(finding.chart, Texts)


def _finding(finding: Finding, drawn: str) -> str:
    is_wide = bool(drawn) or (
        bool(finding) and (finding.chart is None or isinstance(finding.chart, Pairs))
    )
    kind = "finding wide" if is_wide else "finding"
    head = (
        f'<div class="{kind}"><h3>{sentence(finding.title)}</h3>'
        f'<p class="good"><b>What is good:</b> {sentence(finding.good)}</p>'
    )
    notes = "".join(f'<p class="note">{sentence(note)}</p>' for note in finding.notes)
    if not finding and not drawn:
        return f'{head}<p class="empty">{sentence(finding.why_empty)}</p></div>'
    return f"{head}{drawn or _drawn(finding)}{notes}{_behind(finding)}</div>"


def _drawn(finding: Finding) -> str:
    chart = finding.chart
    if isinstance(chart, Lines):
        return line_chart(finding, chart)
    if isinstance(chart, Bars):
        return bar_chart(finding, chart)
    if isinstance(chart, Rows):
        return row_chart(finding, chart)
    if isinstance(chart, Texts):
        return sample_list(finding, chart)
    if isinstance(chart, Pairs):
        return pair_list(finding)
    return table(finding, MOST_IN_SIGHT)


def _behind(finding: Finding) -> str:
    """The numbers and the query, folded away."""
    is_chart = isinstance(finding.chart, Lines | Bars | Rows) or (
        finding.chart is None and len(finding) > MOST_IN_SIGHT
    )
    if not finding.sql and not (is_chart and finding):
        return ""
    numbers = table(finding) if is_chart and finding else ""
    query = f'<pre tabindex="0"><code>{escape(finding.sql)}</code></pre>' if finding.sql else ""
    what = " and ".join(word for word, part in (("Numbers", numbers), ("SQL", query)) if part)
    of = f'<span class="hidden"> of: {sentence(finding.title)}</span>'
    return f"<details><summary>{what}{of}</summary>{numbers}{query}</details>"
