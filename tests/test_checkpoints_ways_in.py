"""Adapters under names of their own, commands that convert, and refusals with their way out."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import gracekit
from gracekit.checkpoints import check_checkpoint, find_checkpoints, pin, survey, why_none
from gracekit.checkpoints.model import load_model
from gracekit.checkpoints.model_files import incomplete_model
from gracekit.checkpoints.pins import require_unchanged
from gracekit.errors import CheckpointError, CheckpointMismatchError
from gracekit.recipe import CheckpointSection
from gracekit.types import PinnedCheckpoint
from tests.checkpoint_writers import WRITERS, Trap, loaded, logits, save_pretrained
from tests.tiny import make_tokenizer, tiny_recipe, write_checkpoint, write_data


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("base"), 0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the trainer has in memory."""
    saved = write_checkpoint(tmp_path_factory.mktemp("trained"), 30)
    return AutoModelForCausalLM.from_pretrained(saved).eval()


# --- adapters


def trained_adapter(base: Path, **settings: Any) -> Any:
    """A PEFT model on the base, with its changes away from zero."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_pretrained(base)
    config = peft.LoraConfig(r=3, target_modules=["q_proj", "up_proj"], **settings)
    adapted = peft.get_peft_model(model, config, adapter_name="policy").eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name or "magnitude" in name or "trainable_tokens_delta" in name:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return adapted


ADAPTERS: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "DoRA": {"use_dora": True},
    "trainable tokens": {"trainable_token_indices": {"embed_tokens": [3, 4]}},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize("folder", ["checkpoint-3", "step_3"])
def test_an_adapter_under_a_name_of_its_own(
    base: Path, tmp_path: Path, name: str, folder: str
) -> None:
    """PEFT saves it in a folder of its name; tokenizer and state are those of the checkpoint."""
    adapted = trained_adapter(base, **ADAPTERS[name])
    path = tmp_path / "run" / folder
    adapted.save_pretrained(path)
    assert (path / "policy/adapter_config.json").is_file()
    make_tokenizer().save_pretrained(path)
    if folder == "checkpoint-3":
        (path / "trainer_state.json").write_text('{"global_step": 3}')
    settings = CheckpointSection(settle_s=0)
    found = loaded(path, settings, tmp_path / "pins")
    torch.testing.assert_close(found, logits(adapted), atol=1e-5, rtol=1e-5)
    (checkpoint,) = find_checkpoints(tmp_path / "run", settings)
    assert checkpoint.step == 3
    (finding,) = survey(tmp_path / "run", settings)
    assert (finding.weights, finding.base) == ("an adapter", str(base))


@pytest.mark.parametrize("names", [("policy", "reference"), ("expert_1", "my expert-2")])
def test_of_several_adapters_one_is_named(
    base: Path, tmp_path: Path, names: tuple[str, str]
) -> None:
    path = tmp_path / "run/checkpoint-3"
    for name in names:
        trained_adapter(base).save_pretrained(tmp_path / "x")
        shutil.copytree(tmp_path / "x/policy", path / name)
    (path / "trainer_state.json").write_text('{"global_step": 3}')
    both = ", ".join(names)
    with pytest.raises(CheckpointError, match=rf"several adapters \({both}\); name the"):
        check_checkpoint(path, CheckpointSection())
    assert find_checkpoints(tmp_path / "run", CheckpointSection()) == []
    settings = CheckpointSection(adapter=names[1], settle_s=0)
    assert [c.path for c in find_checkpoints(tmp_path / "run", settings)] == [path]
    assert check_checkpoint(path, settings).step == 3
    with pytest.raises(CheckpointError, match=rf"no adapter 'other' .* holds {both}"):
        check_checkpoint(path, CheckpointSection(adapter="other"))


# --- commands and markers

TO_MODEL = """
import shutil, sys
from pathlib import Path
source, target, step = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
if (source / "fail").exists():
    sys.exit("this one has no weights")
if (source / "adapter").exists():
    (target / "lora_adapter").mkdir()
    (target / "lora_adapter/adapter_config.json").write_text("{}")
if not (source / "nothing").exists():
    shutil.copy(source / "weights.own", target / "model.safetensors")
with (source.parent / "log").open("a") as log:
    print(step, file=log)
"""


def save_own(model: Any, run: Path, tmp_path: Path) -> tuple[Path, str]:
    """A checkpoint in a form of its own, and the command that makes a model of it."""
    save_pretrained(model, tmp_path / "x")
    path = run / "it-12"
    path.mkdir(parents=True)
    shutil.copy(tmp_path / "x/epoch_3/model.safetensors", path / "weights.own")
    (tmp_path / "to model.py").write_text(TO_MODEL)
    return path, f"'{sys.executable}' '{tmp_path}/to model.py' {{src}} {{dst}} {{step}}"


@pytest.mark.parametrize("marker", [None, "DONE"])
def test_a_command_makes_models_of_other_checkpoints(
    model: Any, base: Path, tmp_path: Path, marker: str | None
) -> None:
    path, command = save_own(model, tmp_path / "run", tmp_path)
    settings = CheckpointSection(
        base_model=str(base), settle_s=0, convert_cmd=command, ready_marker=marker
    )
    if marker is not None:
        assert find_checkpoints(tmp_path / "run", settings) == []
        (path / marker).touch()
    (found,) = find_checkpoints(tmp_path / "run", settings)
    assert (found.step, found.layout) == (12, "own")
    for _ in range(2):  # it is run once, and what it made is kept
        pinned = pin(found, tmp_path / "pins", settings, conversions=tmp_path / "converted")
        with pinned as checkpoint:
            got = load_model(checkpoint, settings, device="cpu", dtype="float32")
        torch.testing.assert_close(logits(got), logits(model), atol=0, rtol=0)
    assert (tmp_path / "run/log").read_text() == "12\n"


def test_weights_for_a_command_are_no_archive_by_chance(tmp_path: Path) -> None:
    """A header of 19,280 bytes begins a file with the letters PK, as an archive does."""
    header = b"{}".ljust(0x4B50)
    weights = tmp_path / "ft-model-00001-of-00001.safetensors"
    weights.write_bytes(len(header).to_bytes(8, "little") + header)
    settings = CheckpointSection(convert_cmd="convert {src} {dst}")
    assert incomplete_model([tmp_path], settings) is None
    weights.write_bytes(b"")
    assert incomplete_model([tmp_path], settings) == f"{weights.name} is cut off"


@pytest.mark.parametrize(
    ("spoil", "command", "message"),
    [
        ("fail", None, r"ended with code 1 for .*it-12; it said:\s+this one has no weights"),
        (
            "adapter",
            None,
            r"made a model of .*it-12 and beside it an adapter \(lora_adapter\), which",
        ),
        ("nothing", None, r"made no model of .*it-12 in \{dst\}: model.safetensors .* not there"),
        ("", "no-such-command {src} {dst}", r"cannot be run for .*: No such file .*no-such"),
        ("", "cp {src}", r"cannot be run: expected \{src\} and \{dst\} in it"),
    ],
)
def test_a_command_that_fails_says_why(
    model: Any, base: Path, tmp_path: Path, spoil: str, command: str | None, message: str
) -> None:
    path, own = save_own(model, tmp_path / "run", tmp_path)
    (path / (spoil or "log")).touch()
    settings = CheckpointSection(base_model=str(base), convert_cmd=command or own)
    found = check_checkpoint(path, settings)
    with pytest.raises(CheckpointError, match=message), pin(found, tmp_path / "pins", settings):
        pass
    assert list((tmp_path / "pins").iterdir()) == []


def test_the_command_runs_for_a_refresh_and_not_to_look(
    model: Any, base: Path, tmp_path: Path
) -> None:
    """What it made for the store is there for a plan as well."""
    path, _ = save_own(model, tmp_path / "run", tmp_path)
    log, script = tmp_path / "ran.txt", tmp_path / "count.py"
    source = str(base / "model.safetensors")
    script.write_text(
        f"import shutil, sys\nopen({str(log)!r}, 'a').write('x')\n"
        f"shutil.copy({source!r}, sys.argv[2])\n"
    )
    write_data(tmp_path / "train.jsonl")
    command = f"{sys.executable} {script} {{src}} {{dst}}"
    recipe = tiny_recipe(
        tmp_path, checkpoints={"base_model": str(base), "convert_cmd": command, "settle_s": 0}
    )
    seen = gracekit.doctor(path.parent, recipe)
    assert seen.ok and seen.plan is None and seen.needs_command
    assert "`gracekit plan` runs the command" in seen.sentences()[-1]
    assert not log.exists()
    gracekit.refresh(recipe, path)
    assert log.read_text() == "x"
    lines = (tmp_path / "train.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "train.jsonl").write_text("".join([*lines, lines[0].replace("0 ", "0 new ", 1)]))
    gracekit.plan(recipe, path)
    assert log.read_text() == "x"


# --- what cannot be loaded


@pytest.mark.parametrize("names", [("policy", "ref"), ("ema", "model"), ("student", "teacher")])
def test_of_two_models_in_one_state_none_is_taken(
    names: tuple[str, str], model: Any, base: Path, tmp_path: Path
) -> None:
    """The same model under two names is one."""
    section = CheckpointSection(base_model=str(base), settle_s=0)
    tensors = model.state_dict()
    state = {f"{name}.{key}": tensor for name in names for key, tensor in tensors.items()}
    torch.save({"state_dict": state, "global_step": 3}, tmp_path / "same.ckpt")
    assert torch.equal(loaded(tmp_path / "same.ckpt", section, tmp_path / "pins"), logits(model))
    two = {key: tensor.clone() for key, tensor in state.items()}
    torch.save({"state_dict": two, "global_step": 3}, tmp_path / "two.ckpt")
    with pytest.raises(CheckpointError, match=rf"holds 2 models.*'{names[0]}\.' and '{names[1]}"):
        loaded(tmp_path / "two.ckpt", section, tmp_path / "pins")
    state = {f"ref.{key}": tensor for key, tensor in tensors.items()}
    state["policy.q_proj.lora_A.default.weight"] = torch.ones(1)
    torch.save({"state_dict": state, "global_step": 3}, tmp_path / "adapter.ckpt")
    with pytest.raises(CheckpointError, match="a whole model and an adapter"):
        loaded(tmp_path / "adapter.ckpt", section, tmp_path / "pins")


def test_files_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    section = CheckpointSection(convert_cmd="convert {src} {dst}")
    step = tmp_path / "step_5"
    for name, at in (("a", 10), ("b", 20)):
        (step / name).mkdir(parents=True)
        (step / name / "x.bin").touch()
        os.utime(step / name / "x.bin", (at, at))
    (step / "info.txt").touch()
    os.utime(step / "info.txt", (5, 5))
    pinned = PinnedCheckpoint(
        checkpoint=check_checkpoint(step, section), directory=step, digest="", is_linked=True
    )
    require_unchanged(pinned, section)
    os.utime(step / "a/x.bin", (30, 30))
    with pytest.raises(CheckpointError, match=r"\(a/x\.bin\)"):
        require_unchanged(pinned, section)


def test_weights_under_other_names_are_refused_with_the_way_out(
    model: Any, base: Path, tmp_path: Path
) -> None:
    """As torchtitan's own models have them."""
    import torch.distributed.checkpoint as dcp

    state = {f"layers.{i}.attention.wq.weight": torch.ones(2, 2) for i in range(3)}
    with pytest.warns(UserWarning, match="single process"):
        dcp.save(state, checkpoint_id=str(tmp_path / "step-5"))  # type: ignore[attr-defined]
    settings = CheckpointSection(base_model=str(base))
    with pytest.raises(CheckpointMismatchError, match=r"names of transformers: expected lm_head"):
        loaded(tmp_path / "step-5", settings, tmp_path / "pins")


@pytest.mark.parametrize("name", ["accelerate save_state", "torch distributed", "Lightning's keys"])
@pytest.mark.filterwarnings("ignore")
def test_without_a_base_model_it_says_so(model: Any, tmp_path: Path, name: str) -> None:
    Trap.place = str(tmp_path / "was-run")
    path = WRITERS[name](model, tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"no config.json .* set checkpoints.base_model"):
        check_checkpoint(path, CheckpointSection())
    assert "set checkpoints.base_model" in why_none(tmp_path / "run", CheckpointSection())
    missing = CheckpointSection(base_model=str(tmp_path / "nowhere"))
    with pytest.raises(CheckpointError, match=r"base_model .*nowhere.* is no directory here"):
        check_checkpoint(path, missing)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["checkpoint-5/trainer_state.json", "checkpoint-5/global_step5/x_model_states.pt"],
         r"ZeRO shards.*convert_cmd"),
        (["global_step5/mp_rank_00_model_states.pt", "global_step6/x"],
         r"ZeRO.*--tag global_step\{step\}"),
    ],
)  # fmt: skip
def test_what_is_known_and_not_read_has_a_way_out(
    tmp_path: Path, files: list[str], message: str
) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('{"global_step": 5}')
    path = tmp_path / files[0].partition("/")[0]
    with pytest.raises(CheckpointError, match=message) as caught:
        check_checkpoint(path, CheckpointSection())
    assert type(caught.value) is CheckpointError
    assert find_checkpoints(tmp_path, CheckpointSection()) == []
