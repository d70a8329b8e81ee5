"""Checkpoints of other trainers: complete only when they are, and loaded to the same logits.

The files are written by accelerate, torch and transformers themselves; what Lightning and nested
layouts hold has their shape. Libraries in environments of their own are in test_matrix.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from gracekit.checkpoints import find_checkpoints
from gracekit.recipe import CheckpointSection
from tests.checkpoint_writers import WRITERS, Trap, loaded, logits
from tests.half_copies import ORDERS, Copy
from tests.tiny import write_checkpoint


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("base"), 0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the trainer has in memory."""
    saved = write_checkpoint(tmp_path_factory.mktemp("trained"), 30)
    return AutoModelForCausalLM.from_pretrained(saved).eval()


@pytest.fixture(params=WRITERS)
def written(
    request: pytest.FixtureRequest, model: Any, tmp_path: Path
) -> tuple[Path, torch.Tensor]:
    """A checkpoint, and what its model says."""
    if request.param == "accelerate save_state":
        pytest.importorskip("accelerate")
    Trap.place = str(tmp_path / "was-run")
    return WRITERS[request.param](model, tmp_path / "run"), logits(model)


@pytest.mark.filterwarnings("ignore")
def test_each_layout_loads_to_the_same_logits(
    written: tuple[Path, torch.Tensor], base: Path, tmp_path: Path
) -> None:
    path, expected = written
    settings = CheckpointSection(base_model=str(base), settle_s=0)
    torch.testing.assert_close(loaded(path, settings, tmp_path / "pins"), expected, atol=0, rtol=0)
    (found,) = find_checkpoints(tmp_path / "run", settings)
    assert (found.path, found.step) == (path, 3)
    assert not (tmp_path / "was-run").exists()
    assert list((tmp_path / "pins").iterdir()) == []


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("order", ORDERS)
def test_half_copied_it_is_never_picked_up_and_never_lost(
    written: tuple[Path, torch.Tensor],
    base: Path,
    tmp_path: Path,
    order: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At every boundary of two files, and in the middle of every file, with a look in between."""
    path, _ = written
    settings = CheckpointSection(base_model=str(base), settle_s=12, poll_interval_s=5)
    copy = Copy(path, tmp_path / "copy", order)
    copy.set_clocks(monkeypatch)
    seen = list(copy.watched(settings))
    assert [c.step for c in seen] == [3] and copy.is_whole
