"""What a version says about itself: `header`, and `columns`, the one table of what SQL shows of it.

`gracekit.version.__version__` is the version of the program. Importing this package loads nothing
else.
"""

__version__ = "0.1.0"

FIRST_POSITIONS = "first"
"""Stands for the positions of the first data where its store, of format 1, has no hash."""

FORMAT_VERSION = 4
"""Format of the store and its manifests; readers refuse a higher one.

2: data may change from version to version (sample tables by version, origin `removed`).
3: a typed header with settings and results apart; the history's two tables in directories of their
own; a manifest carries its version as a column, and no JSON file lies beside it.
4: everything has a checksum: Parquet and JSON files their own, and the first sample table one in
`store.json`.
"""
