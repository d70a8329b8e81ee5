"""Settings that every test shares."""

from __future__ import annotations

import os

import hypothesis

# Two spinning thread pools on a busy machine are ten times slower than one thread each.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Nothing in the tests may wait for a network.
os.environ["HF_HUB_OFFLINE"] = "1"

hypothesis.settings.register_profile(
    "gracekit", derandomize=True, deadline=None, max_examples=50, print_blob=True
)
hypothesis.settings.load_profile("gracekit")
