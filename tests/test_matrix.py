"""Checkpoints written by the trainers' own libraries, each in an environment of its own.

`make matrix` makes the environments under runs/ and runs what each can. A library that is not
installed skips its tests. docs/checkpoints.md has the versions.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM

from gracekit.checkpoints import check_checkpoint, describe_checkpoint, find_checkpoints
from gracekit.errors import CheckpointError
from gracekit.recipe import CheckpointSection
from tests.checkpoint_writers import IDS, loaded, logits
from tests.matrix import ROWS, Rows, expect_never_early, expect_same, join_ranks, run_ranks
from tests.tiny import make_tokenizer, write_checkpoint

pytestmark = [pytest.mark.matrix, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("base"), 0)


@pytest.fixture
def settings(base: Path) -> CheckpointSection:
    return CheckpointSection(base_model=str(base), settle_s=0)


def test_lightning(base: Path, settings: CheckpointSection, tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.save_hyperparameters({"path": Path("here"), "rate": 1e-3})
            self.network = AutoModelForCausalLM.from_pretrained(base)

        def training_step(self, batch: Any, index: int) -> Any:
            return self.network(batch, labels=batch).loss

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

    module = Module()
    from lightning.pytorch.callbacks import ModelCheckpoint

    keep = ModelCheckpoint(every_n_train_steps=2, save_top_k=-1, save_last=True)
    trainer = lightning.Trainer(
        default_root_dir=tmp_path / "run", accelerator="cpu", max_steps=4, logger=True,
        callbacks=[keep], enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader(Rows(), batch_size=2))
    found = find_checkpoints(tmp_path / "run", settings)
    assert [c.step for c in found] == [2, 4]  # last.ckpt is the same as the last
    expect_same(found[-1].path, module.network, settings, tmp_path / "pins")
    expect_same(found[-1].path.with_name("last.ckpt"), module.network, settings, tmp_path / "pins")
    expect_never_early(found[-1].path, tmp_path, settings, 4)


def test_accelerate(base: Path, settings: CheckpointSection, tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    from accelerate.utils import ProjectConfiguration

    project = ProjectConfiguration(tmp_path / "run", automatic_checkpoint_naming=True)
    accelerator = accelerate.Accelerator(cpu=True, project_config=project)
    model = AutoModelForCausalLM.from_pretrained(base)
    model, optimizer, loader = accelerator.prepare(
        model, torch.optim.AdamW(model.parameters(), lr=1e-3), DataLoader(Rows(), batch_size=2)
    )
    for batch in loader:
        accelerator.backward(model(batch, labels=batch).loss)
        optimizer.step()
        optimizer.zero_grad()
    for _ in range(2):
        accelerator.save_state()
    found = find_checkpoints(tmp_path / "run", settings)
    assert [(c.step, c.layout) for c in found] == [(0, "accelerate"), (1, "accelerate")]
    expect_same(found[-1].path, accelerator.unwrap_model(model), settings, tmp_path / "pins")
    expect_never_early(found[-1].path, tmp_path, settings, 1)
    with pytest.raises(CheckpointError, match=r"set checkpoints\.base_model"):
        check_checkpoint(found[-1].path, CheckpointSection())


def test_transformers(base: Path, settings: CheckpointSection, tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    pytest.importorskip("accelerate")
    model = AutoModelForCausalLM.from_pretrained(base)
    arguments = TrainingArguments(
        str(tmp_path / "run/v0-1"), max_steps=4, save_steps=2, use_cpu=True, report_to=[],
        per_device_train_batch_size=2, disable_tqdm=True,
    )  # fmt: skip
    rows = [{"input_ids": row, "labels": row} for row in ROWS]
    trainer = Trainer(model, arguments, train_dataset=rows, processing_class=make_tokenizer())
    trainer.train()
    trainer.save_model()
    found = find_checkpoints(tmp_path / "run", CheckpointSection(settle_s=0))
    assert [(c.step, c.layout) for c in found] == [
        (2, "hf-trainer"),
        (4, "hf-trainer"),
        (4, "pretrained"),
    ]
    for checkpoint in found[1:]:
        expect_same(checkpoint.path, model, CheckpointSection(), tmp_path / "pins")
    expect_never_early(found[1].path, tmp_path, settings, 4)
    state = json.loads((found[1].path / "trainer_state.json").read_text())
    assert state["global_step"] == 4


def _fsdp_rank(rank: int, port: int, base: str, run: str) -> None:
    """One of two processes that train with torch's FSDP2 and save their shards."""
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_model_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    join_ranks(rank, port)
    model = AutoModelForCausalLM.from_pretrained(base)
    mesh = init_device_mesh("cpu", (2,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for batch in DataLoader(Rows(), batch_size=2):
        model(batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    said = logits(model)
    dcp.save(  # type: ignore[attr-defined]
        {"model": get_model_state_dict(model), "optim": optimizer.state_dict()},
        checkpoint_id=f"{run}/step-4",
    )
    if rank == 0:
        torch.save(said, f"{run}/said.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_fsdp_of_torch(base: Path, settings: CheckpointSection, tmp_path: Path) -> None:
    """Shards of two processes."""
    (tmp_path / "run").mkdir()
    run_ranks(_fsdp_rank, str(base), str(tmp_path / "run"))
    (found,) = find_checkpoints(tmp_path / "run", settings)
    assert found.step == 4 and len(list(found.path.glob("*.distcp"))) == 2
    said = torch.load(tmp_path / "run/said.pt", weights_only=True)
    got = loaded(found.path, settings, tmp_path / "pins")
    torch.testing.assert_close(got, said, atol=0, rtol=0)
    expect_never_early(found.path, tmp_path, settings, 4)


@pytest.mark.parametrize("adapter_only", [False, True], ids=["merged", "adapter alone"])
def test_torchtune_with_lora(
    base: Path, tmp_path: Path, adapter_only: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It saves the merged model with the adapter beside it, which names no base model.

    PEFT refuses the torchao that torchtune needs, where gracekit is in torchtune's environment.
    """
    training = pytest.importorskip("torchtune.training")
    import peft.tuners.lora.torchao
    from torchtune.models.llama2 import lora_llama2
    from torchtune.modules.peft import get_adapter_state_dict, get_merged_lora_ckpt

    monkeypatch.setattr(peft.tuners.lora.torchao, "is_torchao_available", lambda: False)
    clean = shutil.copytree(base, tmp_path / "base")
    (clean / "trainer_state.json").unlink()
    checkpointer = training.FullModelHFCheckpointer(
        checkpoint_dir=str(clean), checkpoint_files=["model.safetensors"], model_type="LLAMA2",
        output_dir=str(tmp_path / "run"),
    )  # fmt: skip
    config = json.loads((base / "config.json").read_text())
    rank, alpha, modules = 2, 8, ["q_proj", "v_proj"]
    model = lora_llama2(
        modules, vocab_size=64, num_layers=2, num_heads=2, num_kv_heads=2, embed_dim=32,
        intermediate_dim=48, max_seq_len=128, norm_eps=config["rms_norm_eps"],
        lora_rank=rank, lora_alpha=alpha,
    ).eval()  # fmt: skip
    model.load_state_dict(checkpointer.load_checkpoint()["model"], strict=False)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.3)
    with torch.no_grad():
        expected = model(IDS).float()
    state = model.state_dict()
    adapter = get_adapter_state_dict(state)
    checkpointer.save_checkpoint(
        {
            "model": get_merged_lora_ckpt(dict(state), rank, alpha),
            "adapter": adapter,
            "adapter_config": {
                "r": rank, "lora_alpha": alpha, "target_modules": modules, "peft_type": "LORA",
            },
        },
        epoch=2, adapter_only=adapter_only,
    )  # fmt: skip
    section = CheckpointSection(settle_s=0, base_model=str(base) if adapter_only else None)
    (found,) = find_checkpoints(tmp_path / "run", section)
    assert (found.step, found.layout) == (2, "pretrained")
    got = loaded(found.path, section, tmp_path / "pins")
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    if adapter_only:
        with pytest.raises(CheckpointError, match=r"its base model None .* set checkpoints"):
            describe_checkpoint(found, CheckpointSection())
    expect_never_early(found.path, tmp_path, section, 2)


def test_torchtune(base: Path, tmp_path: Path) -> None:
    """Its checkpointer for Hugging Face models: weights under our names, and config, in epoch_N."""
    training = pytest.importorskip("torchtune.training")
    clean = shutil.copytree(base, tmp_path / "base")
    (clean / "trainer_state.json").unlink()  # it copies what it does not know into each checkpoint
    checkpointer = training.FullModelHFCheckpointer(
        checkpoint_dir=str(clean), checkpoint_files=["model.safetensors"], model_type="LLAMA2",
        output_dir=str(tmp_path / "run"),
    )  # fmt: skip
    state = checkpointer.load_checkpoint()
    with torch.no_grad():
        state["model"]["layers.0.mlp.w1.weight"] += 0.01
    checkpointer.save_checkpoint(state, epoch=2)
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        model.model.layers[0].mlp.gate_proj.weight += 0.01
    settings = CheckpointSection(settle_s=0)
    (found,) = find_checkpoints(tmp_path / "run", settings)
    assert (found.step, found.layout) == (2, "pretrained")
    expect_same(found.path, model, settings, tmp_path / "pins")
    expect_never_early(found.path, tmp_path, settings, 2)
