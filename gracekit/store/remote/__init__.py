"""Versions in an object store: what is published there, and how a trainer reads it."""
