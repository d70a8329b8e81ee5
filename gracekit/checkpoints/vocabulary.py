"""Which files are a tokenizer's. No torch."""

from __future__ import annotations

import fnmatch
from pathlib import Path

VOCABULARY_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "vocab.json",
    "vocab.txt",
    "*.tiktoken",
)
"""A directory without any of these has no tokenizer, whatever tokenizer_config.json says."""
_BESIDE = (
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt",
    "*.jinja", "*.bpe", "*.py",
)  # fmt: skip
TOKENIZER_SUFFIXES = {".json", ".jinja", ".txt", ".model", ".tiktoken"}


def has_vocabulary(directory: Path) -> bool:
    """Whether a directory holds a tokenizer."""
    return any(True for pattern in VOCABULARY_FILES for _ in directory.glob(pattern))


def is_of_tokenizer(file: Path) -> bool:
    """Whether a file belongs to a tokenizer."""
    return any(fnmatch.fnmatchcase(file.name, p) for p in (*VOCABULARY_FILES, *_BESIDE))
