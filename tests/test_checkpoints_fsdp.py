"""Weights that accelerate's FSDP saves: shards, a file of each process, or one of all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch.distributed._shard.sharded_tensor import init_from_local_shards
from torch.distributed._shard.sharded_tensor.shard import Shard
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import AutoModelForCausalLM

from gracekit.checkpoints import check_checkpoint, find_checkpoints
from gracekit.checkpoints.layouts import layout_of
from gracekit.errors import CheckpointError, CheckpointIncompleteError
from gracekit.recipe import CheckpointSection
from tests.checkpoint_writers import loaded, logits, save_as_trainer, save_ranks, spoiled
from tests.tiny import write_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "base", 3)


@pytest.fixture
def model(base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(base)


@pytest.fixture
def settings(base: Path) -> CheckpointSection:
    return CheckpointSection(base_model=str(base), settle_s=0)


@pytest.fixture(autouse=True)
def _no_processes() -> Iterator[None]:
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


def table_of_shards(state: dict[str, torch.Tensor], place: Path) -> None:
    dcp.save({"model": state}, checkpoint_id=str(place / "pytorch_model_fsdp_0"))  # type: ignore[attr-defined]


def file_of_each(state: dict[str, torch.Tensor], place: Path) -> None:
    save_ranks(state, place, file_name="pytorch_model_fsdp_0_rank{rank}.bin")


def one_file(state: dict[str, torch.Tensor], place: Path) -> None:
    torch.save(state, place / "pytorch_model_fsdp.bin")


FORMS = [table_of_shards, file_of_each, one_file]


def save_state(
    write: Callable[..., None], state: dict[str, torch.Tensor], run: Path, step: int = 3
) -> Path:
    """The order of `accelerator.save_state`: weights, optimizer, random states."""
    place = run / f"checkpoint_{step}"
    place.mkdir(parents=True)
    write(state, place)
    (place / "optimizer.bin").write_bytes(b"a pickle")
    (place / "random_states_0.pkl").write_bytes(b"another")
    return place


@pytest.mark.parametrize("write", FORMS)
def test_each_form_is_read(
    model: Any, settings: CheckpointSection, tmp_path: Path, write: Any
) -> None:
    place = save_state(write, model.state_dict(), tmp_path / "run")
    (found,) = find_checkpoints(tmp_path / "run", settings)
    assert (found.step, found.layout) == (3, "accelerate")
    got = loaded(place, settings, tmp_path / "pins")
    torch.testing.assert_close(got, logits(model.eval()), atol=0, rtol=0)
    with pytest.raises(CheckpointError, match=r"set checkpoints\.base_model"):
        check_checkpoint(place, CheckpointSection())


@pytest.mark.parametrize("write", FORMS)
def test_no_form_is_read_before_it_is_whole(
    model: Any, settings: CheckpointSection, tmp_path: Path, write: Any
) -> None:
    """Each file of weights away, and cut at every eighth and before its last byte."""
    place = save_state(write, model.state_dict(), tmp_path / "run")
    files = sorted(f for f in place.rglob("*") if "fsdp" in str(f.relative_to(place)))
    files = [file for file in files if file.is_file()]
    for file in files:
        for size in spoiled(file):
            assert find_checkpoints(tmp_path / "run", settings) == [], (file, size)
        assert len(find_checkpoints(tmp_path / "run", settings)) == 1


@pytest.mark.parametrize("write", FORMS)
def test_weights_alone_wait_for_the_rest_of_the_state(
    model: Any, settings: CheckpointSection, tmp_path: Path, write: Any
) -> None:
    """Beside a whole state, however long ago they were written."""
    save_state(write, model.state_dict(), tmp_path / "run")
    place = save_state(write, model.state_dict(), tmp_path / "run", step=4)
    for name in ("random_states_0.pkl", "optimizer.bin"):
        (place / name).unlink()
        for file in place.rglob("*"):
            os.utime(file, (0, 0))
        assert [c.step for c in find_checkpoints(tmp_path / "run", settings)] == [3]


def test_a_part_of_a_file_without_the_last_process(
    model: Any, settings: CheckpointSection, tmp_path: Path
) -> None:
    """Nothing tells how many processes there were but the sizes of the whole tensors."""
    place = save_state(file_of_each, model.state_dict(), tmp_path / "run")
    (place / "pytorch_model_fsdp_0_rank2.bin").unlink()
    with pytest.raises(CheckpointIncompleteError, match=r"hold 44 of 64 rows of"):
        check_checkpoint(place, settings)
    (place / "pytorch_model_fsdp_0_rank0.bin").unlink()
    with pytest.raises(CheckpointIncompleteError, match=r"rank0\.bin is not there yet"):
        check_checkpoint(place, settings)


@pytest.mark.parametrize(("old", "new", "written"), [(2, 4, (0, 2)), (4, 2, (0,)), (4, 2, (1,))])
def test_files_of_runs_with_other_numbers_of_processes_make_no_model(
    model: Any,
    settings: CheckpointSection,
    tmp_path: Path,
    old: int,
    new: int,
    written: tuple[int, ...],
) -> None:
    """A run that was begun again writes into the folder: its first files add up to whole tensors.

    Of the same number of processes nothing tells the files apart.
    """
    name = "pytorch_model_fsdp_0_rank{rank}.bin"
    state = model.state_dict()
    save_ranks(state, tmp_path, (new,), file_name=name)
    place = save_state(lambda s, p: save_ranks(s, p, (old,), file_name=name), state, tmp_path / "r")
    for rank in written:
        shutil.copy(tmp_path / name.format(rank=rank), place)
    with pytest.raises(CheckpointIncompleteError, match=r"runs with different numbers of"):
        check_checkpoint(place, settings)


@pytest.mark.parametrize("mesh", [(7,), (2, 3)])
def test_files_of_any_number_of_processes_are_read(
    model: Any, settings: CheckpointSection, tmp_path: Path, mesh: tuple[int, ...]
) -> None:
    """Also of groups of processes that have the same, and beside those of an older, larger run."""
    name = "pytorch_model_fsdp_0_rank{rank}.bin"

    def older_and_newer(state: dict[str, torch.Tensor], place: Path) -> None:
        older = {key: torch.zeros_like(tensor) for key, tensor in state.items()}
        save_ranks(older, place, (9,), file_name=name)
        save_ranks(state, place, mesh, file_name=name)

    place = save_state(older_and_newer, model.state_dict(), tmp_path / "run")
    got = loaded(place, settings, tmp_path / "pins")
    torch.testing.assert_close(got, logits(model.eval()), atol=0, rtol=0)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"base_model.model.lm_head.weight": torch.ones(64, 32)},
        {"base_model.model.model.layers.0.self_attn.q_proj.bias": torch.ones(32)},
        {"base_model.model.model.layers.0.self_attn.q_proj.base_layer.bias": torch.ones(32)},
    ],
    ids=["matrices", "modules_to_save", "bias", "bias of base_layer"],
)
@pytest.mark.parametrize("write", FORMS)
def test_an_adapter_alone_is_refused_with_the_way_out(
    settings: CheckpointSection, tmp_path: Path, write: Any, more: dict[str, torch.Tensor]
) -> None:
    """As the Trainer's FSDP saves LoRA in shards: without rank, alpha or modules."""
    prefix = "base_model.model.model.layers.0.self_attn.q_proj"
    adapter = {f"{prefix}.lora_A.weight": torch.ones(4, 32)}
    adapter |= {
        f"{prefix}.lora_B.weight": torch.ones(32, 4),
        f"{prefix}.lora_C.weight": torch.ones(4, 4),
    }
    place = save_state(write, adapter | more, tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"a LoRA adapter alone.*to FULL_STATE_DICT"):
        check_checkpoint(place, settings)
    by_command = settings.model_copy(update={"convert_cmd": "merge {src} {dst}"})
    assert check_checkpoint(place, by_command).step == 3


def test_the_gathered_state_beside_the_model_is_left_out(model: Any, tmp_path: Path) -> None:
    """The Trainer saves both with `FULL_STATE_DICT`; only what is loaded is looked at."""
    place = save_as_trainer(model, tmp_path / "run")
    one_file(model.state_dict(), place)
    (place / "pytorch_model_fsdp.bin").write_bytes(b"cut off")
    os.utime(place / "trainer_state.json")
    settings = CheckpointSection(settle_s=0)
    (found,) = find_checkpoints(tmp_path / "run", settings)
    assert "pytorch_model_fsdp.bin" not in {f.name for f in layout_of(found).files(place)}


@pytest.mark.parametrize(("first", "then"), permutations(FORMS, 2))
def test_of_two_forms_in_a_folder_neither_is_read(
    model: Any, settings: CheckpointSection, tmp_path: Path, first: Any, then: Any
) -> None:
    """A run that is begun again with another `state_dict_type` saves beside what is there."""

    def both(state: dict[str, torch.Tensor], place: Path) -> None:
        first({name: torch.zeros_like(tensor) for name, tensor in state.items()}, place)
        then(state, place)

    place = save_state(both, model.state_dict(), tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"in 2 forms \(.*nothing tells which are the last"):
        check_checkpoint(place, settings)
    by_command = settings.model_copy(update={"convert_cmd": "merge {src} {dst}"})
    assert check_checkpoint(place, by_command).step == 3


@pytest.mark.parametrize("write", FORMS)
def test_shards_beside_an_older_whole_model_are_of_another_run(
    model: Any, tmp_path: Path, write: Any
) -> None:
    """The one file is not: `FULL_STATE_DICT` of the Trainer saves it beside the model.

    Nor are shards that the model was merged from, as `accelerate merge-weights` does.
    """
    place = save_as_trainer(model, tmp_path / "run")
    write(model.state_dict(), place)
    os.utime(place / "trainer_state.json")
    settings = CheckpointSection(settle_s=0)
    if write is one_file:
        assert check_checkpoint(place, settings).step == 3
        return
    with pytest.raises(CheckpointError, match=r"2 forms \(safetensors, .*remove the older ones"):
        check_checkpoint(place, settings)
    for file in (*place.glob("model*.safetensors"), place / "trainer_state.json"):
        os.utime(file)
    assert check_checkpoint(place, settings).step == 3


def test_parts_of_fsdp1_are_refused_with_the_way_out(
    settings: CheckpointSection, tmp_path: Path
) -> None:
    def sharded_tensors(state: dict[str, torch.Tensor], place: Path) -> None:
        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=1)
        shard = Shard.from_tensor_and_offsets(state["weight"], [0, 0], 0)
        saved = {"weight": init_from_local_shards([shard], *state["weight"].shape)}
        torch.save(saved, place / "pytorch_model_fsdp_0_rank0.bin")

    def flattened(state: dict[str, torch.Tensor], place: Path) -> None:
        for rank in range(2):
            part = {"_flat_param": state["weight"].flatten()}
            torch.save(part, place / f"pytorch_model_fsdp_rank{rank}.bin")

    weight = {"weight": torch.ones(4, 2)}
    place = save_state(sharded_tensors, weight, tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"\(ShardedTensor\).*save with use_dcp=True, or"):
        check_checkpoint(place, settings)
    place = save_state(flattened, weight, tmp_path / "run", step=4)
    with pytest.raises(CheckpointError, match=r"\(LOCAL_STATE_DICT\).*set state_dict_type to FULL"):
        check_checkpoint(place, settings)


@pytest.mark.parametrize(
    "names",
    [
        ("pytorch_model_fsdp.bin", "pytorch_model_fsdp_1.bin"),
        ("pytorch_model_fsdp_0_rank0.bin", "pytorch_model_fsdp_1_rank0.bin"),
        ("pytorch_model_fsdp_0", "pytorch_model_fsdp_1"),
    ],
)
def test_of_a_state_of_two_models_neither_is_read(
    model: Any, settings: CheckpointSection, tmp_path: Path, names: tuple[str, str]
) -> None:
    def both(state: dict[str, torch.Tensor], place: Path) -> None:
        for name in names:
            if name.endswith(".bin"):
                torch.save(state, place / name)
            else:
                dcp.save({"model": state}, checkpoint_id=str(place / name))  # type: ignore[attr-defined]

    place = save_state(both, model.state_dict(), tmp_path / "run")
    with pytest.raises(CheckpointError, match=rf"2 models \({names[0]}, {names[1]}\).*save only"):
        check_checkpoint(place, settings)
    second = place / names[1]
    shutil.rmtree(second) if second.is_dir() else second.unlink()
    assert check_checkpoint(place, settings).step == 3


def test_of_a_state_of_two_models_in_safetensors_the_first_is_meant(
    model: Any, settings: CheckpointSection, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One that learns and its mean over time, say: told once, for the watcher looks often."""

    def both(state: dict[str, torch.Tensor], place: Path) -> None:
        for name in ("model.safetensors", "model_1.safetensors"):
            save_file(state, place / name, metadata={"format": "pt"})

    place = save_state(both, model.state_dict(), tmp_path / "run")
    for _ in range(2):
        assert check_checkpoint(place, settings).step == 3
    told = [r.getMessage() for r in caplog.records if "several models" in r.getMessage()]
    assert len(told) == 1 and "model.safetensors, model_1.safetensors" in told[0]
