"""The pictures of docs/report.md: parts of real reports, as Chromium shows them.

    python -m tests.report_pictures runs/quickstart/store runs/target/store

Needs Chromium, and the stores that `make run` and `make run-target` leave.
"""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import gracekit
from gracekit.reporting import Report

DOCS = Path(__file__).parent.parent / "docs"
CHARTS = ("groups", "likeness", "lengths", "importance")


def only(report: Report, key: str, findings: Sequence[str] | None = None) -> Report:
    """The report with one section, and of it some findings."""
    section = report.section(key)
    if findings is not None:
        kept = {name: f for name, f in section.findings.items() if name in findings}
        section = dataclasses.replace(section, findings=kept)
    return dataclasses.replace(report, sections=(section,))


def photograph(report: Report, name: str, width: int, height: int, *, is_dark: bool) -> None:
    """A picture of the page, from its top on."""
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        html = report.html()
        if len(report.sections) == 1:  # without what stands above it
            html = re.sub("<body>.*?<section", "<body><main><section", html, flags=re.DOTALL)
        page.write_text(html, encoding="utf-8")
        subprocess.run(
            ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
             f"--user-data-dir={folder}/profile", f"--window-size={width},{height}",
             f"--blink-settings=preferredColorScheme={0 if is_dark else 1}",
             f"--screenshot={DOCS / name}", page.as_uri()],
            check=True, capture_output=True, timeout=300,
        )  # fmt: skip


def main(quickstart: str, target: str) -> None:
    """Write all of them."""
    unaimed, aimed = gracekit.report(quickstart), gracekit.report(target)
    photograph(unaimed, "report-answer.png", 900, 900, is_dark=False)
    photograph(only(aimed, "coreset", CHARTS), "report-coreset.png", 900, 990, is_dark=True)
    photograph(only(aimed, "map"), "report-map.png", 480, 720, is_dark=False)
    photograph(unaimed, "report-phone.png", 360, 900, is_dark=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
