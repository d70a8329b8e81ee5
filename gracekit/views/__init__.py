"""What people look at: status, versions, diff, explain, similar, compare. Nothing is changed."""

from gracekit.views.compare import compare
from gracekit.views.diff import diff
from gracekit.views.explain import explain, similar
from gracekit.views.status import audit_in_words, status
from gracekit.views.versions import versions_table

__all__ = ["audit_in_words", "compare", "diff", "explain", "similar", "status", "versions_table"]
