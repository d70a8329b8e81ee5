"""The benchmarks still run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_selection_benchmark_prints_its_tables() -> None:
    run = subprocess.run(
        [sys.executable, "benchmarks/selection.py", "--no-peers", "--largest", "10000"],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "| 10,000 | " in run.stdout
    assert "- craig: " in run.stdout
