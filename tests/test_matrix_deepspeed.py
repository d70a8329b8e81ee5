"""DeepSpeed's shards, which two processes wrote without gathering them, by the real library.

`make matrix` makes the environment. The shards go through the script that DeepSpeed puts beside
them (`checkpoints.convert_cmd`), as docs/checkpoints.md says.
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
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from gracekit.checkpoints import check_checkpoint, find_checkpoints
from gracekit.errors import CheckpointError
from gracekit.recipe import CheckpointSection
from tests.checkpoint_writers import loaded, logits
from tests.matrix import ROWS, Rows, expect_never_early, join_ranks, run_ranks
from tests.tiny import make_tokenizer, write_checkpoint

pytestmark = [pytest.mark.matrix, pytest.mark.filterwarnings("ignore")]
STAGES = pytest.mark.parametrize("stage", [1, 2, 3])
WITHOUT_KERNELS = {
    "train_micro_batch_size_per_gpu": 2,
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("base"), 0)


@pytest.fixture
def converting(base: Path, monkeypatch: pytest.MonkeyPatch) -> CheckpointSection:
    """The recipe's section without its command; DeepSpeed is told that there is no GPU."""
    pytest.importorskip("deepspeed")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    return CheckpointSection(base_model=str(base), settle_s=0)


def documented(place: str) -> str:
    """The command of docs/checkpoints.md whose script lies at the place."""
    docs = (Path(__file__).parents[1] / "docs/checkpoints.md").read_text()
    (command,) = re.findall(rf"convert_cmd: python ({re.escape(place)}.*)$", docs, re.M)
    return f"{sys.executable} {command}"


def save_whole(model: Any, rank: int, run: str) -> None:
    """The model in memory, its partitions put together; every process has to ask."""
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(model.parameters())):
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if rank == 0:
        torch.save(state, f"{run}-whole.pt")
    dist.barrier()
    dist.destroy_process_group()


def expect_whole(path: Path, base: Path, settings: CheckpointSection, pins: Path) -> None:
    """The checkpoint loads to what the trainer's model says."""
    whole = AutoModelForCausalLM.from_pretrained(base)
    whole.load_state_dict(torch.load(f"{path.parent}-whole.pt", weights_only=True))
    got = loaded(path, settings, pins)
    torch.testing.assert_close(got, logits(whole.eval()), atol=0, rtol=0)


def _own_rank(rank: int, port: int, base: str, run: str, stage: int) -> None:
    """A loop of one's own; saves after the first step and after the last."""
    join_ranks(rank, port)
    import deepspeed

    model = AutoModelForCausalLM.from_pretrained(base)
    config = {**WITHOUT_KERNELS, "zero_optimization": {"stage": stage}}
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=torch.optim.AdamW(model.parameters(), lr=1e-3), config=config
    )
    for batch in DataLoader(Rows(), batch_size=2):
        engine.backward(engine(batch, labels=batch).loss)
        engine.step()
        if engine.global_steps in (1, 4):
            engine.save_checkpoint(run)
    save_whole(engine.module, rank, run)


@STAGES
def test_shards_of_a_loop_of_ones_own(
    base: Path, converting: CheckpointSection, tmp_path: Path, stage: int
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    run_ranks(_own_rank, str(base), str(run), stage)
    path = run / "global_step4"
    assert len(list(path.glob("*_optim_states.pt"))) == 2
    with pytest.raises(CheckpointError, match=r"ZeRO shards.*zero_to_fp32\.py"):
        check_checkpoint(path, converting)
    command = documented("{src}/../zero_to_fp32.py")
    settings = converting.model_copy(update={"convert_cmd": command})
    found = find_checkpoints(run, settings)
    assert [(c.step, c.layout) for c in found] == [(1, "deepspeed"), (4, "deepspeed")]
    expect_whole(path, base, settings, tmp_path / "pins")

    for script in run.glob("*.py"):  # beside the checkpoints, and no part of them
        script.unlink()
    shutil.rmtree(run / "global_step1")
    for name in ("alone", "with its run"):
        (tmp_path / name).mkdir()
        source = path if name == "alone" else run
        expect_never_early(source, tmp_path / name, settings, 4)
    for file in path.iterdir():  # whatever `latest` says, a file that is cut off is seen
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2])
        assert find_checkpoints(run, settings) == []
        file.write_bytes(content)
    (run / "latest").write_text("global_step1")
    assert find_checkpoints(run, settings) == []


def _trainers_rank(rank: int, port: int, base: str, run: str, stage: int) -> None:
    """The Trainer of transformers with a configuration of DeepSpeed that gathers nothing."""
    join_ranks(rank, port)
    zero = {"stage": stage, "stage3_gather_16bit_weights_on_model_save": False}
    arguments = TrainingArguments(
        run, max_steps=2, save_steps=2, use_cpu=True, report_to=[], disable_tqdm=True,
        per_device_train_batch_size=2, learning_rate=1e-3,
        deepspeed={**WITHOUT_KERNELS, "zero_optimization": zero},
    )  # fmt: skip
    rows = [{"input_ids": row, "labels": row} for row in ROWS]
    model = AutoModelForCausalLM.from_pretrained(base)
    trainer = Trainer(model, arguments, train_dataset=rows, processing_class=make_tokenizer())
    trainer.train()
    save_whole(trainer.model, rank, run)


@STAGES
def test_shards_of_the_trainer(
    base: Path, converting: CheckpointSection, tmp_path: Path, stage: int
) -> None:
    """ZeRO-1 and 2 save the whole model besides; ZeRO-3 saves its shards alone."""
    run = tmp_path / "run"
    run.mkdir()
    run_ranks(_trainers_rank, str(base), str(run), stage)
    path = run / "checkpoint-2"
    assert len(list(path.glob("global_step2/*_optim_states.pt"))) == 2
    assert (path / "model.safetensors").is_file() == (stage < 3)
    settings = converting
    if stage == 3:
        with pytest.raises(CheckpointError, match=r"ZeRO shards.*zero_to_fp32\.py"):
            check_checkpoint(path, converting)
        command = documented("{src}/zero_to_fp32.py")
        settings = converting.model_copy(update={"convert_cmd": command})
    (found,) = find_checkpoints(run, settings)
    assert (found.step, found.layout) == (2, "hf-trainer")
    expect_whole(path, base, settings, tmp_path / "pins")
    expect_never_early(path, tmp_path, settings, 2)
