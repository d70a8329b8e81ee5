"""Checkpoints as trainers write them, of a tiny model, and what their models say."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from gracekit.checkpoints import check_checkpoint, pin, require_loadable
from gracekit.checkpoints.model import load_model, load_tokenizer
from gracekit.errors import CheckpointError
from gracekit.recipe import CheckpointSection
from gracekit.types import Checkpoint
from tests.tiny import make_tokenizer

torch.set_num_threads(1)
IDS = torch.tensor([[3, 4, 5, 29, 31, 40, 63]])


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(IDS).logits
    return found


def loaded(path: Path, settings: CheckpointSection, pins: Path) -> torch.Tensor:
    """What our loading of a checkpoint says, with a tokenizer that is there.

    What `gracekit doctor` says before is what loading says.
    """
    checkpoint, told = check_checkpoint(path, settings), None
    try:
        require_loadable(checkpoint, settings)
    except CheckpointError as error:
        told = str(error)
    if told is None:
        return _loaded(checkpoint, settings, pins)
    with pytest.raises(CheckpointError) as said:
        _loaded(checkpoint, settings, pins)
    assert str(said.value) == told
    raise said.value


def _loaded(checkpoint: Checkpoint, settings: CheckpointSection, pins: Path) -> torch.Tensor:
    with pin(checkpoint, pins, settings) as pinned:
        assert len(load_tokenizer(pinned, settings)) == 64 - 33
        found = load_model(pinned, settings, device="cpu", dtype="float32")
    return logits(found)


def spoiled(file: Path) -> Iterator[int | None]:
    """A file away (None), then cut to so many bytes: at every eighth and before its last byte.

    Its time is kept, and in the end it is whole again.
    """
    content, at = file.read_bytes(), file.stat().st_mtime
    sizes = [len(content) * eighths // 8 for eighths in range(8)]
    for size in (None, *sizes, len(content) - 1):
        if size is None:
            file.unlink()
        else:
            file.write_bytes(content[:size])
            os.utime(file, (at, at))
        yield size
    file.write_bytes(content)
    os.utime(file, (at, at))


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
    _prepared, optimizer = accelerator.prepare(model, optimizer)
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


def save_as_trainer(model: Any, run: Path) -> Path:
    """In the order of the Trainer of transformers."""
    place = run / "checkpoint-3"
    model.save_pretrained(place)
    make_tokenizer().save_pretrained(place)
    (place / "chat_template.jinja").write_text("{{ messages }}")
    (place / "training_args.bin").write_bytes(b"a pickle")
    (place / "optimizer.pt").write_bytes(b"another")
    (place / "trainer_state.json").write_text('{"global_step": 3}')
    return place


def save_for_automodel(model: Any, run: Path) -> Path:
    """The shape of NeMo AutoModel's checkpoints, around what transformers saves."""
    save_pretrained(model, run / "x")
    place = run / "epoch_0_step_3/model/consolidated"
    place.parent.mkdir(parents=True)
    (run / "x/epoch_3").rename(place)
    (run / "x").rmdir()
    return run / "epoch_0_step_3"


def save_for_verl(model: Any, run: Path) -> Path:
    """The shape of verl's checkpoints, around what transformers saves."""
    save_pretrained(model, run / "x")
    place = run / "global_step_3/actor/huggingface"
    place.parent.mkdir(parents=True)
    (run / "x/epoch_3").rename(place)
    (run / "x").rmdir()
    (place.parent / "extra_state_world_size_1_rank_0.pt").write_bytes(b"a pickle")
    (run / "latest_checkpointed_iteration.txt").write_text("3")
    return run / "global_step_3"


def save_as_torchtune_does_lora(model: Any, run: Path) -> Path:
    """The merged model, and beside it an adapter that names no base model."""
    place = save_pretrained(model, run)
    matrices = {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(2, 32)}
    save_file(matrices, place / "adapter_model.safetensors", metadata={"format": "pt"})
    torch.save(matrices, place / "adapter_model.pt")
    (place / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 8}')
    return place


# --- weights of which each process saved its own part


def part_of(tensor: torch.Tensor, rank: int, count: int) -> tuple[torch.Tensor, int]:
    """The rows of one process, as FSDP splits them, and at which they begin."""
    chunks = tensor.chunk(count)
    begin = sum(len(chunk) for chunk in chunks[:rank])
    return (chunks[rank] if rank < len(chunks) else tensor[:0]).clone(), begin


def save_ranks(
    whole: dict[str, torch.Tensor],
    place: Path,
    mesh_shape: tuple[int, ...] = (3,),
    file_name: str = "model_world_size_{count}_rank_{rank}.pt",
) -> None:
    """As verl does for each process; of two dimensions the first one repeats the second."""
    count = torch.Size(mesh_shape).numel()
    for rank in range(count):
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=count)
        names = ("ddp", "fsdp")[-len(mesh_shape) :]
        mesh = init_device_mesh("cpu", mesh_shape, mesh_dim_names=names)
        placements = [*[Replicate()] * (len(mesh_shape) - 1), Shard(0)]
        state: dict[str, torch.Tensor] = {}
        for name, tensor in whole.items():
            part, _ = part_of(tensor, rank % mesh_shape[-1], mesh_shape[-1])
            state[name] = DTensor.from_local(
                part, mesh, placements, shape=tensor.shape, stride=tensor.stride()
            )
        state |= {n: whole[n] for n in whole if n.endswith("model.norm.weight")}  # not distributed
        torch.save(state, place / file_name.format(count=count, rank=rank))
        dist.destroy_process_group()


WRITERS: dict[str, Callable[[Any, Path], Path]] = {
    "save_pretrained": save_pretrained,
    "shards of safetensors": save_sharded,
    "as the Trainer": save_as_trainer,
    "in the shape of NeMo AutoModel": save_for_automodel,
    "in the shape of verl": save_for_verl,
    "in the shape of torchtune's LoRA": save_as_torchtune_does_lora,
    "accelerate save_state": save_state,
    "torch distributed": save_distributed,
    "FSDP shards of the Trainer": save_fsdp_of_trainer,
    "Lightning's keys": save_as_lightning_does,
}
