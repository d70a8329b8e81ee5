"""Tables, lists of samples and lists of pairs as HTML."""

from __future__ import annotations

from html import escape
from typing import Any

from gracekit.reporting.finding import Finding, Texts
from gracekit.reporting.numbers import format_of, show
from gracekit.reporting.texts import LONGEST_NAME, name, plain, shown

MOST_ROWS = 100
"""Rows of a table at most."""


def table(finding: Finding, most: int = MOST_ROWS) -> str:
    """All columns of a finding; of many rows the first, or of versions the last.

    Columns of which nothing is known are left out.
    """
    rows = list(finding.rows())
    are_versions = "version" in finding.columns
    kept = rows[-most:] if are_versions else rows[:most]
    known = [c for c in finding.columns if any(row[c] is not None for row in kept)]
    is_text = {column: any(isinstance(row[column], str) for row in kept) for column in known}
    head = "".join(
        f'<th scope="col"{" class=t" if is_text[column] else ""}>{column.replace("_", " ")}</th>'
        for column in known
    )
    body = "".join(
        "<tr>" + "".join(_cell(column, row[column], is_text[column]) for column in known) + "</tr>"
        for row in kept
    )
    label = plain(finding.title, LONGEST_NAME)
    more = len(rows) - len(kept)
    rest = (
        (
            f'<p class="note">The {"last" if are_versions else "first"} {len(kept):,} of '
            f"{len(rows):,} rows.</p>"
        )
        if more
        else ""
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="Numbers: {escape(label)}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{rest}"
    )


def _cell(column: str, value: Any, is_text: bool) -> str:
    if is_text:
        return f'<td class="t">{shown("–" if value is None else value, LONGEST_NAME)}</td>'
    return f"<td>{shown(show(value, format_of(column)))}</td>"


def sample_list(finding: Finding, chart: Texts) -> str:
    """Samples with their numbers and the first characters of their texts."""
    items = []
    for row in finding.rows():
        numbers = " · ".join(
            f"{called} {show(row[column], format_of(column), 3)}"
            for column, called in chart.numbers.items()
        )
        items.append(
            f'<li><div class="meta"><b>{name(row["sample_id"])}</b>'
            f"{_group(row['group_name'])} · {numbers}</div>"
            f"{_text(row['preview'])}</li>"
        )
    return f'<ol class="texts">{"".join(items)}</ol>'


def pair_list(finding: Finding) -> str:
    """Two samples beside each other, each pair an entry."""
    items = []
    for row in finding.rows():
        how = (
            f"cosine {row['similarity']:.3f}"
            if "similarity" in row
            else f"{row['copies']:,} samples of this content"
        )
        sides = "".join(
            f'<div><div class="meta"><b>{name(row[f"{side}_id"])}</b>'
            f"{_group(row[f'{side}_group'])}</div>"
            f"{_text(row[f'{side}_text'])}</div>"
            for side in ("first", "second")
        )
        items.append(f'<li><div class="meta">{how}</div><div class="pair">{sides}</div></li>')
    return f'<ol class="texts">{"".join(items)}</ol>'


def _text(value: Any) -> str:
    """The first characters of a sample, in the direction that its language has."""
    text = escape(plain(value or "")) or "(no text)"
    return f'<p class="text" dir="auto">{text}</p>'


def _group(value: Any) -> str:
    return "" if value in (None, "") else f" · {name(value)}"
