"""gracekit follows a fine-tuning run from outside and keeps a fresh coreset for its trainer."""

__version__ = "0.1.0"
