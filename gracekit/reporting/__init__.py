"""`gracekit report`: one HTML file that shows what a store has come to.

`making` puts it together: `timeline`, `newest_coreset`, `over_time`, `copies` and `curves` each
make a section of findings (`finding`: numbers, title, what is good, SQL), asked in SQL through
`questions`; `map_section` makes that of the map, which `feature_map` lays out, and `answer` has the
three sentences. `page` writes the file from `charts`, `lists` and `map_picture`. Loads no torch.
"""

from gracekit.reporting.finding import Finding, Section
from gracekit.reporting.making import earlier_projection, is_report, make_report
from gracekit.reporting.report import Report

__all__ = ["Finding", "Report", "Section", "earlier_projection", "is_report", "make_report"]
