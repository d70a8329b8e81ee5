"""The version of gracekit, written into every manifest."""

__version__ = "0.1.0"
