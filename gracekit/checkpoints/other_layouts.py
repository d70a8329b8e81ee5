"""Layouts of trainers that are not built on the Trainer of transformers: one class each."""

from __future__ import annotations

import logging
import re
from functools import lru_cache
from pathlib import Path

from gracekit.checkpoints.base_layout import Layout, all_files, step_in_name
from gracekit.checkpoints.inert_pickle import Archive, mapping, read_archive, saved_tensors
from gracekit.checkpoints.model_files import (
    STEP_NAME,
    base_of,
    holds_steps,
    incomplete_model,
    uses_command,
)
from gracekit.checkpoints.weights import ONE_MODEL, has_weights, is_adapter
from gracekit.errors import CheckpointError
from gracekit.foreign import whole_number

logger = logging.getLogger(__name__)

_LAST = 64
"""Bytes of a file that names a step."""
_OF_ACCELERATE = re.compile(
    r"model(?:_(\d{1,6}))?\.safetensors|pytorch_model_fsdp(?:_(\d{1,6}))?(?:_rank\d+)?(?:\.bin)?"
)
"""Weights of one of the models of a state, with its number; without one: the first."""
_OF_DEEPSPEED, _OF_VERL = "latest", "latest_checkpointed_iteration.txt"


class AccelerateLayout(Layout):
    """`accelerator.save_state`: weights without config, then the optimizer, then random states."""

    name = "accelerate"

    def matches(self, path: Path) -> bool:
        """A directory with a state of a random number generator for each process."""
        has_states = next(path.glob("random_states_*.pkl"), None) is not None
        has_optimizer = (path / "optimizer.bin").is_file() or (path / "optimizer_0").is_dir()
        has_own = (path / "trainer_state.json").is_file() or (path / "config.json").is_file()
        is_trainers = has_own or next(path.glob("rng_state*.pth"), None) is not None
        return not is_trainers and (
            has_states
            or (has_optimizer and not (path / "training_args.bin").is_file())
            or _is_begun_state(path)
        )

    def unready(self, path: Path) -> str | None:
        """Why it is not complete: also the random states, which are written last, have to be there.

        Raises `CheckpointError` where no base model is named, whose config it needs, and for
        several models saved by FSDP. Of several in safetensors the first is meant.
        """
        _require_one_model(path, is_for_command=uses_command(self.parts(path), self.settings))
        reason = incomplete_model(self.parts(path), self.settings)
        if reason and not self.settings.base_model and "config.json" in reason:
            base_of(path, self.settings)
        if reason is None and not (path / "random_states_0.pkl").is_file():
            return "random_states_0.pkl, which accelerate writes last, is not there yet"
        return reason

    def files(self, path: Path) -> list[Path]:
        """Weights, tokenizer if there is one, and the random states, by which it is recognised."""
        states = path / "random_states_0.pkl"
        return sorted({*super().files(path), *([states] if states.is_file() else [])})


class LightningLayout(Layout):
    """A `.ckpt` file of Lightning: one file of `torch.save`, renamed into place when it is whole.

    It is looked into without running its pickle.
    """

    name = "lightning"

    def matches(self, path: Path) -> bool:
        """A file called *.ckpt."""
        return path.suffix == ".ckpt" and path.is_file()

    def is_marked(self, path: Path) -> bool:
        """The table at the end of the file is written last."""
        return True

    def step(self, path: Path) -> int:
        """Its `global_step`; 0 where it has none."""
        found = whole_number(mapping(self._archive(path).content).get("global_step"))
        return 0 if found is None else found

    def unready(self, path: Path) -> str | None:
        """Why the file is not whole; raises `CheckpointError` where it cannot be read."""
        try:
            archive = read_archive(path)
            state = mapping(mapping(archive.content).get("state_dict"))
            num_tensors = sum(1 for _ in saved_tensors(archive, state))
        except ValueError as error:
            return str(error)
        if not num_tensors:
            keys = [key[:40] for key in mapping(archive.content) if isinstance(key, str)][:5]
            raise CheckpointError(
                f"{path} has no tensors in a state_dict, as Lightning's checkpoints do; found "
                f"{', '.join(keys) or 'nothing'}"
            )
        if not uses_command(self.parts(path), self.settings):
            base_of(path, self.settings)
        return None

    def files(self, path: Path) -> list[Path]:
        """The file."""
        return [path]

    def weight_files(self, path: Path) -> list[Path]:
        """The file."""
        return [path]

    def _archive(self, path: Path) -> Archive:
        try:
            return read_archive(path)
        except ValueError as error:
            raise CheckpointError(f"cannot tell the training step of {path}: {error}") from None


class AutoModelLayout(Layout):
    """NeMo AutoModel: `epoch_E_step_S/model`, `.incomplete` while it is written.

    It holds an adapter, or the shards of each process with config and tokenizer in `.hf_metadata`,
    and the whole model in `consolidated` at the end of a run or where that was asked for.
    """

    name = "nemo-automodel"

    def matches(self, path: Path) -> bool:
        """A directory called epoch_E_step_S that holds a folder `model`."""
        is_named = re.fullmatch(r"epoch_\d+_step_\d+", path.name) is not None
        return is_named and (path / "model").is_dir()

    def parts(self, path: Path) -> list[Path]:
        """The consolidated model, the folder of an adapter, or that of shards and their config."""
        whole, described = path / "model/consolidated", path / "model/.hf_metadata"
        if whole.is_dir():
            return [whole]
        is_sharded = described.is_dir() and not is_adapter(path / "model")
        return [path / "model", *([described] if is_sharded else [])]


class VerlLayout(Layout):
    """verl: `global_step_N`, or `actor` in it; a file beside it names the last complete step.

    It holds the weights of each process, and in `huggingface` config, tokenizer and, where
    `hf_model` is saved, the whole model.
    """

    name = "verl"

    def matches(self, path: Path) -> bool:
        """A directory called global_step_N that holds the folder of a model."""
        is_named = re.fullmatch(r"global_step_\d+", path.name) is not None
        return is_named and any((path / name).is_dir() for name in ("actor", "huggingface"))

    def is_marked(self, path: Path) -> bool:
        """By the file beside it."""
        return (path.parent / _OF_VERL).is_file()

    def unready(self, path: Path) -> str | None:
        """Why it is not complete; raises `CheckpointError` where it cannot be read."""
        tracker = path.parent / _OF_VERL
        if tracker.is_file():
            text = tracker.read_bytes()[:_LAST].decode("ascii", "replace").strip()
            if not text.isdigit():
                return f"{_OF_VERL} beside it holds no step yet"
            if int(text) < step_in_name(path):
                return f"{_OF_VERL} beside it says {text}, expected {step_in_name(path)}"
        return super().unready(path)

    def parts(self, path: Path) -> list[Path]:
        """The model in the format of Hugging Face; the parts where it was not saved."""
        home = path / "actor" if (path / "actor").is_dir() else path
        for inner in ("huggingface", "lora_adapter"):
            if has_weights(home / inner):
                return [home / inner]
        return [home, home / "huggingface"] if (home / "huggingface").is_dir() else [home]


class DeepSpeedLayout(Layout):
    """DeepSpeed's own `global_stepN`: `latest` beside it names the last complete one."""

    name = "deepspeed"

    def matches(self, path: Path) -> bool:
        """A directory with the states of a model's partitions."""
        return next(path.glob("*_model_states.pt"), None) is not None

    def is_marked(self, path: Path) -> bool:
        """By the file beside it."""
        return (path.parent / _OF_DEEPSPEED).is_file()

    def unready(self, path: Path) -> str | None:
        """Why it is not complete; raises `CheckpointError` where no command converts it."""
        latest = path.parent / _OF_DEEPSPEED
        if latest.is_file():
            name = latest.read_bytes()[:256].decode("utf-8", "replace").strip()
            if name != path.name and step_in_name(Path(name)) < step_in_name(path):
                return f"`latest` beside it names {name}, expected {path.name}"
        return super().unready(path)

    def files(self, path: Path) -> list[Path]:
        """All files."""
        return all_files(path)

    def weight_files(self, path: Path) -> list[Path]:
        """All files: a command reads them."""
        return all_files(path)


TRACKERS = {DeepSpeedLayout.name: _OF_DEEPSPEED, VerlLayout.name: _OF_VERL}
"""By layout the file in a run's folder that names its last complete checkpoint: written after it.
"""


class OwnLayout(Layout):
    """A trainer of one's own, whose checkpoints `checkpoints.convert_cmd` makes models of."""

    name = "own"

    def matches(self, path: Path) -> bool:
        """A directory with the ready marker, or (without one) files and a number in its name.

        Without a marker the folder of a run, which holds those of steps, is none.
        """
        if self.settings.convert_cmd is None or not path.is_dir():
            return False
        if self.settings.ready_marker is not None:
            return (path / self.settings.ready_marker).exists()
        is_numbered = STEP_NAME.search(path.name) is not None
        has_files = is_numbered and any(child.is_file() for child in path.iterdir())
        return has_files and not holds_steps(path)

    def unready(self, path: Path) -> str | None:
        """Nothing but the marker and quiet can tell."""
        return None

    def files(self, path: Path) -> list[Path]:
        """All files below it."""
        return all_files(path)

    def weight_files(self, path: Path) -> list[Path]:
        """All files below it: which are weights is not known."""
        return all_files(path)


def _require_one_model(path: Path, *, is_for_command: bool) -> None:
    first: dict[int, str] = {}
    for child in sorted(path.glob("*")):
        if found := _OF_ACCELERATE.fullmatch(child.name):
            first.setdefault(int(found[1] or found[2] or 0), child.name)
    if len(first) < 2 or is_for_command:
        return
    names = ", ".join(sorted(first.values()))
    if not has_weights(path):
        raise CheckpointError(
            f"{path} holds {len(first)} models ({names}), and nothing tells which one is trained: "
            f"{ONE_MODEL}"
        )
    _tell_of_the_first(path, names)


@lru_cache(maxsize=1024)
def _tell_of_the_first(path: Path, names: str) -> None:
    """Once for each state."""
    logger.warning(
        "%s holds several models (%s): the one that was prepared first is measured. Where another "
        "one is trained, prepare that first, or save it alone", path, names,
    )  # fmt: skip


def _is_begun_state(path: Path) -> bool:
    """Weights alone, beside whole states of accelerate, which writes the rest after them."""
    weights = (*path.glob("model*.safetensors"), *path.glob("pytorch_model_fsdp*.bin"))
    has_weights = any(file.is_file() for file in weights)
    others = path.parent.glob("*/random_states_0.pkl") if has_weights else iter(())
    return next(others, None) is not None
