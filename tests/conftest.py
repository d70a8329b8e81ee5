"""Settings that every test shares."""

from __future__ import annotations

import atexit
import inspect
import logging
import os
import shutil
import tempfile
from collections.abc import Generator, Iterator
from typing import Any

import click.testing
import hypothesis
import pytest

# Two spinning thread pools on a busy machine are ten times slower than one thread each.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Nothing in the tests may wait for a network, or write into the user's caches.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="gracekit-tests-")
os.environ["GRACEKIT_CACHE"] = os.path.join(os.environ["HF_HOME"], "gracekit")  # noqa: PTH118
atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)

if "mix_stderr" in inspect.signature(click.testing.CliRunner).parameters:  # click before 8.2

    class _CliRunner(click.testing.CliRunner):
        """What the tests ask of a runner: stdout, stderr, and both of them as the output."""

        def __init__(self, **settings: Any) -> None:
            super().__init__(mix_stderr=False, **settings)  # type: ignore[call-arg]

    click.testing.CliRunner = _CliRunner  # type: ignore[assignment,misc]
    click.testing.Result.output = property(  # type: ignore[method-assign,assignment]
        lambda self: self.stdout + self.stderr
    )

hypothesis.settings.register_profile(
    "gracekit", derandomize=True, deadline=None, max_examples=50, print_blob=True
)
hypothesis.settings.load_profile("gracekit")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Captured text may hold what UTF-8 cannot, such as odd file names in a log; workers that run
    tests side by side send their reports as UTF-8.
    """
    report = yield
    report.sections = [
        (name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections
    ]
    return report


@pytest.fixture(autouse=True)
def _messages_are_heard() -> Iterator[None]:
    """A command of one test (`gracekit -q`) does not silence the log that another one reads."""
    yield
    logging.getLogger("gracekit").setLevel(logging.NOTSET)
