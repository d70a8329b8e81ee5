"""What people look at: status, versions, diff, explain, similar, compare. Nothing is changed.

Each module makes one of them from an open store as a typed value that can be turned into JSON and,
where it has rows, into Arrow, pandas and polars. `gracekit.api` opens the store and calls them; the
command line prints what they return.
"""
