"""Where memory runs out a command ends with one line and exit code 1, whoever meets it first."""

from __future__ import annotations

import errno
import importlib
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner

from gracekit.cli.options import clear_errors
from gracekit.memory import require_room, shortage
from tests.stores import make_draft, make_store

MIB = 2**20
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = make_store(tmp_path_factory.mktemp("memory") / "store", n=6)
    store.commit(make_draft(store, "one"))
    return store.paths.root


def numpy_lacks() -> None:
    np.ones(2**60, np.uint8)


def arrow_lacks() -> None:
    pa.allocate_buffer(2**60)


def torch_lacks() -> None:
    import torch

    torch.empty(2**58, dtype=torch.uint8)


@pytest.mark.parametrize("lack", [numpy_lacks, arrow_lacks, torch_lacks])
def test_what_libraries_raise_is_told_as_a_lack_of_memory(lack: Callable[[], None]) -> None:
    @click.command()
    @clear_errors
    def command() -> None:
        lack()

    result = CliRunner().invoke(command, [])
    assert result.exit_code == 1 and result.output.count("\n") == 1, result.output
    assert result.output.startswith("gracekit: there is not enough memory (")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("can't start new thread"),
        RuntimeError("std::bad_alloc"),
        ImportError("/lib/a.so: failed to map segment from shared object"),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
    ],
    ids=str,
)
def test_the_words_of_a_lack_of_memory(error: Exception) -> None:
    wrapped = ValueError("while something else was done")
    wrapped.__cause__ = error
    for told in (shortage(error), shortage(wrapped)):
        assert told is not None and "\n" not in told and "not enough memory" in told


@pytest.mark.parametrize(
    "error", [ValueError("std::bad"), KeyError("x"), OSError(errno.ENOENT, "x"), ImportError("x")]
)
def test_other_errors_are_not_blamed_on_memory(error: Exception) -> None:
    assert shortage(error) is None


def test_a_library_that_is_loaded_halfway_is_blamed_on_a_limit_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "loaded_halfway.py").write_text("import os\nos.not_there_yet\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(AttributeError) as caught:
        importlib.import_module("loaded_halfway")
    monkeypatch.setattr("gracekit.memory.limit_bytes", lambda: 600 * MIB)
    told = shortage(caught.value)
    assert told is not None and "AttributeError" in told and "600 MiB" in told
    monkeypatch.setattr("gracekit.memory.limit_bytes", lambda: None)
    assert shortage(caught.value) is None


def test_a_library_that_lacks_another_is_not_blamed_on_a_limit_with_room(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "lacks_another.py").write_text(
        "raise ImportError('libstdc++.so.6: version `GLIBCXX_3.4.30` not found')"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ImportError) as error:
        importlib.import_module("lacks_another")
    monkeypatch.setattr("gracekit.memory.limit_bytes", lambda: 2**44)
    assert shortage(error.value) is None


def test_without_a_limit_there_is_always_room() -> None:
    if resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY:
        require_room(2**62, "anything")


@pytest.mark.parametrize("mebibytes", [230, 260])
def test_libraries_that_cannot_be_loaded_are_one_line(root: Path, mebibytes: int) -> None:
    limit = mebibytes * MIB
    done = subprocess.run(
        [sys.executable, "-m", "gracekit", "status", "--store", str(root)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and done.stdout == "", done
    assert done.stderr.count("\n") == 1, done.stderr
    assert f"may take {mebibytes} MiB (`ulimit -v`)" in done.stderr


@pytest.mark.parametrize("left", [8, 32, 64])
def test_a_database_that_would_not_fit_is_told_and_crashes_nothing(root: Path, left: int) -> None:
    script = f"""
import resource, sys
import gracekit.api.asking, gracekit.cli, gracekit.cli.sql, gracekit.store.sql.ask
from gracekit.__main__ import main
taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + {left * MIB},) * 2)
sys.argv = ["gracekit", "sql", "FROM versions", "--store", {str(root)!r}]
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", script], env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 1 and done.stdout == "", done
    assert done.stderr.startswith("gracekit: there is not enough memory ("), done.stderr
    assert done.stderr.count("\n") == 1
