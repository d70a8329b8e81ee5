"""Checkpoints that two processes of torchtitan, NeMo AutoModel and verl wrote together.

Each library's own code shards, converts and writes on a CPU. `make matrix` makes the environments.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM, AutoTokenizer

from gracekit.checkpoints import check_checkpoint, find_checkpoints
from gracekit.errors import CheckpointError, CheckpointMismatchError
from gracekit.recipe import CheckpointSection
from tests.checkpoint_writers import loaded, logits
from tests.matrix import ROWS, expect_never_early, join_ranks, run_ranks
from tests.tiny import write_checkpoint

pytestmark = [pytest.mark.matrix, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("base"), 0)


def expect_said(path: Path, run: Path, settings: CheckpointSection, pins: Path) -> None:
    """The checkpoint loads to what the trainer's model said after it was saved."""
    said = torch.load(run / "said.pt", weights_only=True)
    torch.testing.assert_close(loaded(path, settings, pins), said, atol=0, rtol=0)


def step_of(model: Any, optimizer: Any, row: torch.Tensor) -> None:
    """One step of training."""
    model(row[None], labels=row[None]).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def say(model: Any, rank: int, run: str) -> None:
    """What the model says now, for the test; then the processes part."""
    said = logits(model.eval())
    if rank == 0:
        torch.save(said, f"{run}/said.pt")
    dist.barrier()
    dist.destroy_process_group()


def sharded(model: Any, layers: Any) -> Any:
    """The model over two processes."""
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("fsdp",))
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


# --- torchtitan

MY_RUN = '''
from torchtitan.models import llama3
from torchtitan.models.common import ComplexRoPE, Embedding, Linear, RMSNorm
from torchtitan.models.common.attention import ScaledDotProductAttention


def model_config():
    """A Llama of 2 layers with its norms as transformers has them; flex attention needs a GPU."""
    layers = llama3._build_llama3_layers(
        n_layers=2, dim=32, n_heads=2, hidden_dim=48, attn_backend="flex",
        rope=ComplexRoPE.Config(dim=16, max_seq_len=128),
    )
    norm = {"normalized_shape": 32, "eps": 1e-6, "param_init": llama3._NORM_INIT}
    for layer in layers:
        layer.attention.inner_attention = ScaledDotProductAttention.Config()
        layer.attention_norm, layer.ffn_norm = RMSNorm.Config(**norm), RMSNorm.Config(**norm)
    return llama3.Llama3Model.Config(
        dim=32, vocab_size=64, layers=layers, norm=RMSNorm.Config(**norm),
        tok_embeddings=Embedding.Config(
            num_embeddings=64, embedding_dim=32, param_init=llama3._EMBEDDING_INIT
        ),
        lm_head=Linear.Config(
            in_features=32, out_features=64, param_init=llama3._output_linear_init(32)
        ),
    )
'''


class TrainState:
    """The step, as torchtitan's trainer saves it."""

    step = 0

    def state_dict(self) -> dict[str, Any]:
        return {"step": torch.tensor(self.step)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        raise NotImplementedError


def _torchtitan_rank(rank: int, port: int, base: str, run: str) -> None:
    """Trains with torchtitan's model, optimizer and schedule; its last checkpoint is for HF."""
    join_ranks(rank, port)
    from torchtitan.components.checkpointer import CheckpointManager
    from torchtitan.components.optimizer import LRSchedulersContainer, default_adamw
    from torchtitan.models.llama3.state_dict_adapter import Llama3StateDictAdapter

    place: dict[str, Any] = {}
    exec(MY_RUN, place)  # as the command imports it
    config = place["model_config"]()
    model = config.build()
    model.init_weights(buffer_device=torch.device("cpu"))
    adapter = Llama3StateDictAdapter(config, base)
    start = AutoModelForCausalLM.from_pretrained(base)
    model.load_state_dict(adapter.from_hf(start.state_dict()))
    sharded(model, model.layers.values())
    optimizers = default_adamw(lr=1e-3).build(model_parts=[model])
    schedule = LRSchedulersContainer.Config(warmup_steps=1)
    schedulers = schedule.build(optimizers=optimizers, training_steps=4)
    state = TrainState()
    writer = CheckpointManager.Config(enable=True, interval=2, last_save_in_hf=True).build(
        dataloader=None, model_parts=[model], optimizers=optimizers, lr_schedulers=schedulers,
        states={"train_state": state}, sd_adapter=adapter, base_folder=run,
    )  # fmt: skip
    for state.step in range(1, 5):
        row = ROWS[state.step][None]
        loss: Any = torch.nn.functional.cross_entropy(model(row)[0, :-1], row[0, 1:])
        loss.backward()
        optimizers.step()
        schedulers.step()
        optimizers.zero_grad()
        writer.save(state.step, last_step=state.step == 4)
        if state.step % 2 == 0:
            whole = {name: value.full_tensor() for name, value in model.state_dict().items()}
            ours = {name: value.contiguous() for name, value in adapter.to_hf(whole).items()}
            start.load_state_dict(ours)
            said = logits(start.eval())
            with torch.no_grad():
                theirs = model(torch.tensor([[3, 4, 5, 29, 31, 40, 63]]))
            torch.testing.assert_close(said, theirs, atol=1e-5, rtol=1e-5)
            if rank == 0:
                torch.save(said, f"{run}/said-{state.step}.pt")
    writer.close()
    dist.barrier()
    dist.destroy_process_group()


def test_torchtitan(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own names by a command, as documented; what it saves for Hugging Face as it is."""
    pytest.importorskip("torchtitan")
    run = tmp_path / "run"
    run.mkdir()
    run_ranks(_torchtitan_rank, str(base), str(run))
    settings = CheckpointSection(base_model=str(base), settle_s=0)
    found = find_checkpoints(run, settings)
    assert [(c.step, c.layout) for c in found] == [(2, "pretrained"), (4, "pretrained")]
    said = torch.load(run / "said-4.pt", weights_only=True)
    got = loaded(found[1].path, settings, tmp_path / "pins")
    torch.testing.assert_close(got, said, atol=0, rtol=0)
    with pytest.raises(CheckpointMismatchError, match=r"names of transformers.*convert_cmd"):
        loaded(found[0].path, settings, tmp_path / "pins")

    docs = Path(__file__).parents[1] / "docs/checkpoints.md"
    (script,) = re.findall(r"```python\n(# to_hf\.py.*?)```", docs.read_text(), re.S)
    (tmp_path / "to_hf.py").write_text(script)
    (tmp_path / "my_run.py").write_text(MY_RUN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    command = f"{sys.executable} {tmp_path / 'to_hf.py'} {{src}} {{dst}}"
    converting = settings.model_copy(update={"convert_cmd": command})
    said = torch.load(run / "said-2.pt", weights_only=True)
    got = loaded(found[0].path, converting, tmp_path / "pins")
    torch.testing.assert_close(got, said, atol=0, rtol=0)
    for checkpoint in found:
        folder = tmp_path / f"copies-{checkpoint.step}"
        folder.mkdir()
        expect_never_early(checkpoint.path, folder, settings, checkpoint.step)


# --- NeMo AutoModel


def _automodel_rank(rank: int, port: int, base: str, run: str, kind: str) -> None:
    """Trains and saves by the steps of AutoModel's own recipes."""
    join_ranks(rank, port)
    from nemo_automodel.components.checkpoint.config import CheckpointingConfig

    model, peft = AutoModelForCausalLM.from_pretrained(base), None
    if kind == "adapter":
        from nemo_automodel.components._peft.lora import PeftConfig, apply_lora_to_linear_modules

        peft = PeftConfig(target_modules=["*q_proj", "*v_proj"], dim=4, alpha=8)
        apply_lora_to_linear_modules(model, peft)
    sharded(model, model.model.layers)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    checkpointer = CheckpointingConfig(
        checkpoint_dir=run, model_repo_id=base, is_peft=kind == "adapter",
        save_consolidated="every" if kind == "consolidated" else "final",
    ).build(dp_rank=rank, tp_rank=0, pp_rank=0)  # fmt: skip
    for step in range(1, 5):
        step_of(model, optimizer, ROWS[step])
    place = f"{run}/epoch_0_step_4"
    checkpointer.lifecycle.reserve(place)
    tokenizer = AutoTokenizer.from_pretrained(base)
    checkpointer.save_model(model, place, peft_config=peft, tokenizer=tokenizer)
    checkpointer.save_optimizer(optimizer, model, place)
    if rank == 0:
        assert find_checkpoints(Path(run), CheckpointSection(settle_s=0)) == []  # .incomplete
    dist.barrier()
    checkpointer.lifecycle.publish(place, best_val_metric=None, metric_key=None)
    checkpointer.close()
    say(model, rank, run)


@pytest.mark.parametrize("kind", ["shards", "consolidated", "adapter"])
def test_automodel(base: Path, tmp_path: Path, kind: str) -> None:
    """Shards alone, which are the default before the last step; the whole model; an adapter."""
    pytest.importorskip("nemo_automodel")
    run = tmp_path / "run"
    run.mkdir()
    run_ranks(_automodel_rank, str(base), str(run), kind)
    settings = CheckpointSection(settle_s=0)  # config and tokenizer are in it
    (found,) = find_checkpoints(run, settings)
    assert (found.step, found.layout) == (4, "nemo-automodel")
    assert (found.path / "model/consolidated").is_dir() == (kind == "consolidated")
    expect_said(found.path, run, settings, tmp_path / "pins")
    (tmp_path / "copies").mkdir()
    expect_never_early(found.path, tmp_path / "copies", settings, 4)
    if kind == "shards":
        shutil.copytree(found.path, tmp_path / "less/epoch_0_step_4")
        next((tmp_path / "less").glob("*/model/shard-00001-*")).unlink()
        assert find_checkpoints(tmp_path / "less", settings) == []


# --- verl


def _verl_rank(
    rank: int, port: int, base: str, run: str, contents: list[str], lora: dict[str, Any]
) -> None:
    """Trains, and saves by verl's manager and handler; its engine itself asks for a GPU."""
    join_ranks(rank, port)
    from verl.trainer.config import CheckpointConfig
    from verl.utils.checkpoint.checkpoint_handler import CheckpointHandler
    from verl.utils.checkpoint.fsdp_checkpoint_manager import FSDPCheckpointManager

    model = AutoModelForCausalLM.from_pretrained(base)
    layers = model.model.layers
    if lora:
        from peft import LoraConfig, get_peft_model

        model.enable_input_require_grads()  # as verl's engine does
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", bias="none", **lora))
    sharded(model, layers)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    manager = FSDPCheckpointManager(
        model, optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer),
        AutoTokenizer.from_pretrained(base),
        checkpoint_config=CheckpointConfig(save_contents=contents, load_contents=contents),
    )  # fmt: skip

    class Engine:
        save_checkpoint = staticmethod(manager.save_checkpoint)

        def is_mp_src_rank_with_outputs(self) -> bool:
            return True

        def get_data_parallel_rank(self) -> int:
            return rank

    class Loader:
        def state_dict(self) -> dict[str, int]:
            return {"at": rank}

    handler = CheckpointHandler(Engine(), Loader(), default_local_dir=run)
    for step in range(1, 5):
        step_of(model, optimizer, ROWS[step])
    handler.save_checkpoint(4)
    say(model, rank, run)


@pytest.mark.parametrize("also", [[], ["hf_model"]], ids=["its default", "hf_model"])
def test_verl(base: Path, tmp_path: Path, also: list[str]) -> None:
    """The weights of each process, which are its default, and the whole model beside them."""
    pytest.importorskip("verl")
    run = tmp_path / "run"
    run.mkdir()
    run_ranks(_verl_rank, str(base), str(run), ["model", "optimizer", "extra", *also], {})
    settings = CheckpointSection(settle_s=0)  # config and tokenizer are in it
    (found,) = find_checkpoints(run, settings)
    assert (found.step, found.layout) == (4, "verl")
    expect_said(found.path, run, settings, tmp_path / "pins")
    (tmp_path / "copies").mkdir()
    expect_never_early(found.path, tmp_path / "copies", settings, 4)
    (run / "latest_checkpointed_iteration.txt").write_text("2")
    assert find_checkpoints(run, settings) == []
    (run / "latest_checkpointed_iteration.txt").write_text("4")

    actor = tmp_path / "rl/global_step_4/actor"  # as its trainers of reinforcement learning do
    shutil.copytree(found.path, actor)
    shutil.copy(run / "latest_checkpointed_iteration.txt", tmp_path / "rl")
    expect_said(actor.parent, run, settings, tmp_path / "pins")
    if not also:
        (actor / "model_world_size_2_rank_1.pt").unlink()
        with pytest.raises(CheckpointError, match=r"weights of 1 of 2 processes"):
            check_checkpoint(actor.parent, settings)


def test_verl_with_lora(base: Path, tmp_path: Path) -> None:
    """Base and adapter in one state, of which one of two processes has no row of the adapter."""
    pytest.importorskip("verl")
    run = tmp_path / "run"
    run.mkdir()
    lora = {"r": 1, "lora_alpha": 64, "target_modules": "all-linear"}
    run_ranks(_verl_rank, str(base), str(run), ["model", "optimizer", "extra"], lora)
    settings = CheckpointSection(settle_s=0)
    (found,) = find_checkpoints(run, settings)
    said = torch.load(run / "said.pt", weights_only=True)
    got = loaded(found.path, settings, tmp_path / "pins")
    torch.testing.assert_close(got, said, atol=1e-5, rtol=1e-5)
    first = logits(AutoModelForCausalLM.from_pretrained(base).eval())
    assert (first - said).abs().max() > 1e-3
    (tmp_path / "copies").mkdir()
    expect_never_early(found.path, tmp_path / "copies", settings, 4)
