"""Checkpoints of FSDP that two processes of accelerate and of the Trainer wrote themselves.

On a CPU accelerate takes plain data parallelism. Told that its processes have devices of another
kind, it shards, trains and saves on the CPU by the code that it has for them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM

from gracekit.checkpoints import check_checkpoint, find_checkpoints
from gracekit.errors import CheckpointError
from gracekit.recipe import CheckpointSection
from tests.checkpoint_writers import loaded, logits, spoiled
from tests.matrix import ROWS, Rows, expect_never_early, join_ranks, run_ranks
from tests.tiny import make_tokenizer, write_checkpoint

pytestmark = [pytest.mark.matrix, pytest.mark.filterwarnings("ignore")]
pytest.importorskip("accelerate")

SHARDED, FULL = "SHARDED_STATE_DICT", "FULL_STATE_DICT"
PLUGIN = {
    "fsdp_version": 2, "auto_wrap_policy": "transformer_based_wrap",
    "transformer_cls_names_to_wrap": ["LlamaDecoderLayer"], "cpu_ram_efficient_loading": False,
}  # fmt: skip
WRITES = 2
"""Times that a process writes shards for a checkpoint: of the model, and of the optimizer."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("base"), 0)


@pytest.fixture
def settings(base: Path) -> CheckpointSection:
    return CheckpointSection(base_model=str(base), settle_s=0)


def use_fsdp_on_cpu() -> None:
    """Let accelerate take its way for sharded models, which it does not on a CPU."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    PartialState(cpu=True).distributed_type = DistributedType.MULTI_GPU


def look_at_each_write(run: str, base: str, steps: list[int]) -> None:
    """Before and after each write of shards and table only the checkpoints before are complete."""
    settings = CheckpointSection(base_model=base, settle_s=0)
    written = 0

    def looked(function: Callable[..., Any], *, counts: bool) -> Callable[..., Any]:
        @wraps(function)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            nonlocal written
            at = written if counts else written - 1
            whole = steps[: at // WRITES]
            assert [c.step for c in find_checkpoints(Path(run), settings)] == whole
            result = function(self, *args, **kwargs)
            assert [c.step for c in find_checkpoints(Path(run), settings)] == whole
            written += counts
            return result

        return call

    FileSystemWriter.write_data = looked(FileSystemWriter.write_data, counts=True)  # type: ignore[method-assign]
    FileSystemWriter.finish = looked(FileSystemWriter.finish, counts=False)  # type: ignore[method-assign]


def say(model: Any, rank: int, run: str) -> None:
    said = logits(model.eval())
    if rank == 0:
        torch.save(said, f"{run}/said.pt")
    dist.barrier()
    dist.destroy_process_group()


def expect_said(path: Path, run: Path, settings: CheckpointSection, pins: Path) -> None:
    said = torch.load(run / "said.pt", weights_only=True)
    torch.testing.assert_close(loaded(path, settings, pins), said, atol=0, rtol=0)


def expect_whole_only(path: Path, settings: CheckpointSection, named: str) -> None:
    """Each file of that name away, or cut at every eighth or before its last byte, times kept."""
    files = sorted(f for f in path.rglob("*") if named in str(f.relative_to(path)) and f.is_file())
    assert files
    for file in files:
        for _ in spoiled(file):
            with pytest.raises(CheckpointError, match="is not complete"):
                check_checkpoint(path, settings)
        check_checkpoint(path, settings)


# --- the Trainer


def _trainer_rank(rank: int, port: int, base: str, run: str, kind: str, lora: bool) -> None:
    join_ranks(rank, port)
    from transformers import Trainer, TrainingArguments

    model = AutoModelForCausalLM.from_pretrained(base)
    if lora:
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(
            task_type="CAUSAL_LM", r=4, lora_alpha=32, target_modules=["q_proj", "v_proj"]
        )
        model = get_peft_model(model, config)
    arguments = TrainingArguments(
        run, max_steps=4, save_steps=2, use_cpu=True, report_to=[], disable_tqdm=True,
        per_device_train_batch_size=2, learning_rate=1e-2, fsdp=True,
        fsdp_config={"state_dict_type": kind, "transformer_layer_cls_to_wrap": "LlamaDecoderLayer"},
    )  # fmt: skip
    use_fsdp_on_cpu()
    rows = [{"input_ids": row, "labels": row} for row in ROWS]
    trainer = Trainer(model, arguments, train_dataset=rows, processing_class=make_tokenizer())
    assert trainer.is_fsdp_enabled and trainer.accelerator.is_fsdp2
    if not lora:
        look_at_each_write(run, base, [2, 4])
    trainer.train()
    say(trainer.model, rank, run)


@pytest.mark.parametrize("kind", [SHARDED, FULL])
def test_the_trainer(base: Path, settings: CheckpointSection, tmp_path: Path, kind: str) -> None:
    """Shards alone, with config and tokenizer of the base; the gathered model beside its state."""
    run = tmp_path / "run"
    run.mkdir()
    run_ranks(_trainer_rank, str(base), str(run), kind, False)
    if kind == FULL:
        settings = CheckpointSection(settle_s=0)
    found = find_checkpoints(run, settings)
    assert [(c.step, c.layout) for c in found] == [(2, "hf-trainer"), (4, "hf-trainer")]
    path = found[-1].path
    expect_said(path, run, settings, tmp_path / "pins")
    if kind == SHARDED:
        shards = path / "pytorch_model_fsdp_0"
        assert {f.name for f in shards.iterdir()} == {
            ".metadata", "__0_0.distcp", "__1_0.distcp",
        }  # fmt: skip
        expect_whole_only(path, settings, "pytorch_model_fsdp_0")
    expect_never_early(path, tmp_path, settings, 4)


@pytest.mark.parametrize("kind", [SHARDED, FULL])
def test_lora_of_the_trainer(
    base: Path, settings: CheckpointSection, tmp_path: Path, kind: str
) -> None:
    """Its shards hold the adapter's matrices alone; gathered, PEFT saves the adapter too."""
    peft = pytest.importorskip("peft")
    try:
        peft.import_utils.is_torchao_available()
    except ImportError as error:  # the last torchtune's torchao is older than peft bears beside it
        pytest.skip(str(error))
    run = tmp_path / "run"
    run.mkdir()
    run_ranks(_trainer_rank, str(base), str(run), kind, True)
    if kind == FULL:
        (_, found) = find_checkpoints(run, CheckpointSection(settle_s=0))
        expect_said(found.path, run, settings, tmp_path / "pins")
        expect_whole_only(found.path, settings, "adapter_model.safetensors")
        return
    assert find_checkpoints(run, settings) == []
    with pytest.raises(CheckpointError, match=r"a LoRA adapter alone.*to FULL_STATE_DICT"):
        check_checkpoint(run / "checkpoint-4", settings)


# --- accelerate


def _accelerate_rank(rank: int, port: int, base: str, run: str) -> None:
    """Of one model three checkpoints: shards, a file of each process, the gathered model."""
    join_ranks(rank, port)
    use_fsdp_on_cpu()
    from accelerate import Accelerator
    from accelerate.utils import (
        FullyShardedDataParallelPlugin,
        ProjectConfiguration,
        save_fsdp_model,
    )

    plugin = FullyShardedDataParallelPlugin(state_dict_type=SHARDED, **PLUGIN)
    project = ProjectConfiguration(f"{run}/0", automatic_checkpoint_naming=True)
    accelerator = Accelerator(cpu=True, fsdp_plugin=plugin, project_config=project)
    model = AutoModelForCausalLM.from_pretrained(base)
    model, optimizer, loader = accelerator.prepare(
        model, torch.optim.AdamW(model.parameters(), lr=1e-2), DataLoader(Rows(), batch_size=2)
    )
    assert accelerator.is_fsdp2
    for batch in loader:
        accelerator.backward(model(batch, labels=batch).loss)
        optimizer.step()
        optimizer.zero_grad()
    write, finish = FileSystemWriter.write_data, FileSystemWriter.finish
    look_at_each_write(f"{run}/0", base, [0, 1])
    for _ in range(2):
        accelerator.save_state()
    FileSystemWriter.write_data, FileSystemWriter.finish = write, finish  # type: ignore[method-assign]
    save_fsdp_model(plugin, accelerator, model, f"{run}/1/checkpoint_1", use_dcp=False)
    plugin.set_state_dict_type(FULL)
    project.automatic_checkpoint_naming = False
    accelerator.save_state(f"{run}/2/checkpoint_1")
    say(model, rank, run)


def test_accelerate(base: Path, settings: CheckpointSection, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    run_ranks(_accelerate_rank, str(base), str(run))
    layouts = ("accelerate", "pretrained", "accelerate")
    for kind, layout in enumerate(layouts):
        found = find_checkpoints(run / str(kind), settings)[-1]
        assert (found.step, found.layout) == (1, layout), found
        expect_said(found.path, run, settings, tmp_path / "pins")
        expect_whole_only(found.path, settings, "pytorch_model_fsdp")
        (tmp_path / f"copies-{kind}").mkdir()
        expect_never_early(found.path, tmp_path / f"copies-{kind}", settings, 1)
