"""The store's files: where they lie, and how each kind is read and written."""
