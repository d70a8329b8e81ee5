"""Checkpoints of other trainers: found, complete only when they are, and loaded to the same logits.

The files are written by accelerate, torch and PEFT themselves where they are installed; nested
layouts hold models that transformers saved. Libraries in environments of their own are in
test_matrix.py.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from gracekit.checkpoints import check_checkpoint, find_checkpoints, pin, watch_checkpoints
from gracekit.checkpoints.model import load_model, load_tokenizer
from gracekit.recipe import CheckpointSection
from gracekit.types import Checkpoint
from tests.tiny import make_tokenizer, write_checkpoint

torch.set_num_threads(1)
IDS = torch.tensor([[3, 4, 5, 29, 31, 40, 63]])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("base"), 0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the trainer has in memory."""
    saved = write_checkpoint(tmp_path_factory.mktemp("trained"), 30)
    return AutoModelForCausalLM.from_pretrained(saved).eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(IDS).logits
    return found


def loaded(path: Path, settings: CheckpointSection, pins: Path) -> torch.Tensor:
    """What our loading of a checkpoint says, with a tokenizer that is there."""
    with pin(check_checkpoint(path, settings), pins, settings) as pinned:
        assert len(load_tokenizer(pinned, settings)) == 64 - 33
        found = load_model(pinned, settings, device="cpu", dtype="float32")
    return logits(found)


# --- writers: each gives the checkpoint's path


def save_pretrained(model: Any, run: Path) -> Path:
    model.save_pretrained(run / "epoch_3")
    make_tokenizer().save_pretrained(run / "epoch_3")
    return run / "epoch_3"


def save_sharded(model: Any, run: Path) -> Path:
    model.save_pretrained(run / "step_3", max_shard_size="20KB")
    make_tokenizer().save_pretrained(run / "step_3")
    assert (run / "step_3/model.safetensors.index.json").is_file()
    return run / "step_3"


def save_state(model: Any, run: Path) -> Path:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    optimizer = torch.optim.AdamW(model.parameters())
    prepared, optimizer = accelerator.prepare(model, optimizer)
    accelerator.save_state(str(run / "checkpoint_3"))
    accelerator.free_memory()
    return run / "checkpoint_3"


def save_distributed(model: Any, run: Path) -> Path:
    """As torchtitan and plain torch write it, with the optimizer's state beside the model."""
    import torch.distributed.checkpoint as dcp

    state = {"model": model.state_dict(), "optim": {"a": torch.ones(3)}, "step": 3}
    dcp.save(state, checkpoint_id=str(run / "step-3"))  # type: ignore[attr-defined]
    return run / "step-3"


def save_fsdp_of_trainer(model: Any, run: Path) -> Path:
    """`SHARDED_STATE_DICT` in the Trainer: accelerate's names, and trainer_state.json."""
    import torch.distributed.checkpoint as dcp

    place = run / "checkpoint-3"
    dcp.save(  # type: ignore[attr-defined]
        {"model": {f"_fsdp_wrapped_module.{n}": t for n, t in model.state_dict().items()}},
        checkpoint_id=str(place / "pytorch_model_fsdp_0"),
    )
    make_tokenizer().save_pretrained(place)
    (place / "trainer_state.json").write_text('{"global_step": 3}')
    return place


def save_as_lightning_does(model: Any, run: Path) -> Path:
    """A file of torch.save with the keys of Lightning, and an object that must not be made."""
    run.mkdir(parents=True, exist_ok=True)
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    content = {"state_dict": state, "global_step": 3, "hyper_parameters": Trap()}
    torch.save(content, run / "last.ckpt")
    return run / "last.ckpt"


class Trap:
    """Makes a file where it is unpickled."""

    place = ""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path(Trap.place),)


WRITERS: dict[str, Callable[[Any, Path], Path]] = {
    "save_pretrained": save_pretrained,
    "shards of safetensors": save_sharded,
    "accelerate save_state": save_state,
    "torch distributed": save_distributed,
    "FSDP shards of the Trainer": save_fsdp_of_trainer,
    "Lightning's keys": save_as_lightning_does,
}


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
@pytest.mark.parametrize("order", ["name", "size", "large first", "reversed", "marker first"])
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
    begun = time.time()
    monkeypatch.setattr("gracekit.checkpoints.base_layout.time.time", lambda: begun + copy.now)
    seen = list(copy.watched(settings))
    assert [c.step for c in seen] == [3] and copy.is_whole


class Copy:
    """A copy of a checkpoint that goes on while the watcher waits, without keeping times."""

    def __init__(self, source: Path, target: Path, order: str) -> None:
        self._root = target
        self._single = source.is_file()
        files = [source] if self._single else [f for f in source.rglob("*") if f.is_file()]
        home = source.parent
        target.mkdir()
        keys: dict[str, Callable[[Path], Any]] = {
            "name": str,
            "size": lambda f: (f.stat().st_size, str(f)),
            "large first": lambda f: (-f.stat().st_size, str(f)),
            "reversed": str,
            "marker first": lambda f: (not _is_marker(f), str(f)),
        }
        files.sort(key=keys[order], reverse=order == "reversed")
        self._left = [
            (target / f.relative_to(home), part) for f in files for part in _halves(f.read_bytes())
        ]
        self._started: set[Path] = set()
        self.now = 0.0
        self.is_whole = False
        self._more = 40

    def wait(self, seconds: float) -> bool:
        self.now += seconds
        if self._left:
            target, part = self._left.pop(0)
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("ab" if target in self._started else "wb") as file:
                file.write(part)
            self._started.add(target)
            return False
        self._more -= 1
        return self._more == 0

    def watched(self, settings: CheckpointSection) -> Iterator[Checkpoint]:
        for checkpoint in watch_checkpoints(
            self._root, settings, is_done=lambda c: False, stop=threading.Event(),
            clock=lambda: self.now, wait=self.wait,
        ):  # fmt: skip
            assert not self._left, f"picked up with {len(self._left)} parts to come"
            self.is_whole = True
            yield checkpoint


def _is_marker(file: Path) -> bool:
    return file.name in ("trainer_state.json", ".metadata", "random_states_0.pkl")


def _halves(content: bytes) -> list[bytes]:
    half = len(content) // 2
    return [content[:half], content[half:]]
