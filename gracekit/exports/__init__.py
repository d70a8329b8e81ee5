"""Exports: a version as training data, for any framework.

`open_content` reads a version from a store, `export` writes it in one of the `FORMATS`.
"""

from gracekit.exports.exported_rows import Content, open_content
from gracekit.exports.exporting import FORMATS, export

__all__ = ["FORMATS", "Content", "export", "open_content"]
