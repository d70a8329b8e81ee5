"""`gracekit doctor` says of a checkpoint what loading would, by names and shapes alone."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import gracekit
from gracekit import leftovers
from gracekit.api import doctoring
from gracekit.checkpoints import (
    Finding,
    adapter_patterns,
    check_checkpoint,
    pin,
    require_loadable,
    survey,
)
from gracekit.checkpoints.model import load_model, load_tokenizer
from gracekit.errors import CheckpointError, CheckpointMismatchError, StoreWriteError
from gracekit.recipe import CheckpointSection
from tests.checkpoint_writers import WRITERS, Trap, loaded, logits
from tests.test_adapters import edit, in_a_wrapper, with_a_layer_more, without_one, write_adapter
from tests.tiny import write_checkpoint


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("base"), 0)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model: no adapter and no weights of the base fit it."""
    return write_checkpoint(tmp_path_factory.mktemp("wide"), 0, hidden_size=64)


def refusal(path: Path, settings: CheckpointSection, pins: Path) -> CheckpointError:
    """What both say, which is the same."""
    checkpoint = check_checkpoint(path, settings)
    with pytest.raises(CheckpointError) as told:
        require_loadable(checkpoint, settings)
    with pytest.raises(CheckpointError) as said, pin(checkpoint, pins, settings) as pinned:
        load_model(pinned, settings, device="cpu", dtype="float32")
    assert (str(told.value), type(told.value)) == (str(said.value), type(said.value))
    assert str(pins) not in str(told.value), "names a folder that is gone"
    return told.value


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", WRITERS)
def test_weights_of_another_model_than_the_config(
    name: str, base: Path, wide: Path, tmp_path: Path
) -> None:
    Trap.place = str(tmp_path / "was-run")
    model = AutoModelForCausalLM.from_pretrained(base).eval()
    path = WRITERS[name](model, tmp_path / "run")
    right = CheckpointSection(base_model=str(base), settle_s=0)
    loaded(path, right, tmp_path / "pins")
    for config in path.rglob("config.json") if path.is_dir() else ():
        values = json.loads(config.read_text())
        config.write_text(json.dumps(values | {"hidden_size": 64, "head_dim": 16}))
    error = refusal(path, CheckpointSection(base_model=str(wide), settle_s=0), tmp_path / "pins")
    assert isinstance(error, CheckpointMismatchError)
    assert not (tmp_path / "was-run").exists()


CLAIMS: list[dict[str, Any]] = [
    {"num_hidden_layers": 10_000},
    {"vocab_size": 1 << 33},
    {"model_type": "nonesuch"},
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", WRITERS)
def test_a_config_of_more_than_there_is(name: str, base: Path, tmp_path: Path) -> None:
    """Told of the checkpoint, not of the folder that it was put together in."""
    Trap.place = str(tmp_path / "was-run")
    path = WRITERS[name](AutoModelForCausalLM.from_pretrained(base).eval(), tmp_path / "run")
    claiming = tmp_path / "claiming"
    shutil.copytree(base, claiming)
    of_run = path.rglob("config.json") if path.is_dir() else ()
    right = {config: config.read_text() for config in (claiming / "config.json", *of_run)}
    settings = CheckpointSection(base_model=str(claiming), settle_s=0)
    for claim in CLAIMS:
        for config, values in right.items():
            config.write_text(json.dumps(json.loads(values) | claim))
        error = refusal(path, settings, tmp_path / "pins")
        assert isinstance(error, CheckpointMismatchError)
        assert str(path) in str(error)


def no_rank(directory: Path) -> None:
    edit(r=6)(directory)


def other_layers(directory: Path) -> None:
    edit(target_modules=["c_attn"])(directory)


@pytest.mark.parametrize("spoil", [no_rank, other_layers])
def test_an_adapter_whose_config_is_not_its_own(spoil: Any, base: Path, tmp_path: Path) -> None:
    path = write_adapter(tmp_path / "run", 20, base, spoil=spoil)
    error = refusal(path, CheckpointSection(), tmp_path / "pins")
    assert isinstance(error, CheckpointMismatchError)


def first_key(changes: dict[str, Any]) -> str:
    return next(iter(changes))


def test_an_adapter_over_a_vocabulary_that_grew(base: Path, tmp_path: Path) -> None:
    """PEFT keeps the embeddings as they are beneath the tokens that it trains."""
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(70, mean_resizing=False)
    config = LoraConfig(r=4, target_modules=["q_proj", "up_proj"], trainable_token_indices=[64, 66])
    adapted = get_peft_model(model, config)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    for with_embeddings in (True, False):
        path = write_adapter(tmp_path / f"run-{with_embeddings}", 20, base)
        adapted.save_pretrained(path, save_embedding_layers=with_embeddings)
        config_file = path / "adapter_config.json"
        config_of = json.loads(config_file.read_text()) | {"base_model_name_or_path": str(base)}
        config_file.write_text(json.dumps(config_of))
        (path / "trainer_state.json").write_text(json.dumps({"global_step": 20}))
    right, short = (tmp_path / f"run-{with_embeddings}" for with_embeddings in (True, False))
    found = loaded(right / "checkpoint-20", CheckpointSection(), tmp_path / "pins")
    assert torch.equal(found, logits(adapted.eval()))
    error = refusal(short / "checkpoint-20", CheckpointSection(), tmp_path / "pins")
    assert "trains the token 66" in str(error) and "save_embedding_layers=True" in str(error)


MORE: list[dict[str, Any]] = [
    {"r": 50_000_000},
    {"rank_pattern": {"q_proj": 10**8}},
    {"layer_replication": [[0, 2]] * 20_000},
    {"trainable_token_indices": {"embed_tokens": list(range(50_000))}},
    {"monteclora_config": {"num_samples": 10**9}},
]


@pytest.mark.parametrize("claim", MORE, ids=first_key)
def test_an_adapter_of_more_than_there_is(
    claim: dict[str, Any], base: Path, tmp_path: Path
) -> None:
    """Told before PEFT takes memory for it, which it does before it looks at the weights."""
    path = write_adapter(tmp_path / "run", 20, base, spoil=edit(**claim))
    with pytest.raises(CheckpointMismatchError, match="do not belong together"):
        check_checkpoint(path, CheckpointSection())


@pytest.mark.parametrize(
    "change",
    [
        {"r": -4},
        {"lora_alpha": "much"},
        {"lora_dropout": 2.0},
        {"rank_pattern": None},
        {"rank_pattern": {"(": 4}},
        {"exclude_modules": "("},
        {"target_modules": "("},
        {"modules_to_save": ["("]},
        {"trainable_token_indices": [64]},
    ],
    ids=str,
)
def test_an_adapter_of_numbers_that_peft_refuses(
    change: dict[str, Any], base: Path, tmp_path: Path
) -> None:
    path = write_adapter(tmp_path / "run", 20, base, spoil=edit(**change))
    refusal(path, CheckpointSection(), tmp_path / "pins")


@pytest.mark.parametrize(
    "change",
    [
        {"target_modules": r"([a-z_.0-9]+)+\$"},
        {"exclude_modules": r"([a-z_.0-9]+)+\$"},
        {"rank_pattern": {r"([a-z_.0-9]+)+\$": 4}},
        {"modules_to_save": ["(([a-z._0-9]+)+)+!"]},
        {"target_modules": 16 * ".*" + "z"},
    ],
    ids=first_key,
)
def test_a_pattern_whose_match_does_not_end(
    change: dict[str, Any], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter_patterns, "DEADLINE_S", 3.0)
    path = write_adapter(tmp_path / "run", 20, base, spoil=edit(**change))
    error = refusal(path, CheckpointSection(), tmp_path / "pins")
    assert "name the modules in a list" in str(error)


@pytest.mark.parametrize(
    "pattern",
    [
        r"(?i)MODEL\.(layers\.\d+\.)+(self_attn|mlp)\.(q_proj|up_proj)",
        r"(.*\.)?(q_proj|up_proj){1}",
    ],
)
def test_a_pattern_that_repeats_a_group_is_read(pattern: str, base: Path, tmp_path: Path) -> None:
    settings = CheckpointSection()
    path = write_adapter(tmp_path / "run", 20, base, spoil=edit(target_modules=pattern))
    require_loadable(check_checkpoint(path, settings), settings)
    loaded(path, settings, tmp_path / "pins")


@pytest.mark.parametrize("python", [None, "", "/nonesuch/python", shutil.which("true")])
def test_patterns_where_no_python_can_be_started(
    python: Any, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a program that embeds it: an adapter is not refused for that."""
    monkeypatch.setattr(sys, "_base_executable", python)
    monkeypatch.setattr(sys, "executable", python)
    spoil = edit(target_modules=r".*(q_proj|up_proj)+")
    path = write_adapter(tmp_path / "run", 20, base, spoil=spoil)
    loaded(path, CheckpointSection(), tmp_path / "pins")


def test_a_message_names_no_pin(base: Path, tmp_path: Path) -> None:
    path, gone = tmp_path / "run", tmp_path / "gone"
    shutil.copytree(base, gone)
    path = write_adapter(path, 20, gone)
    checkpoint = check_checkpoint(path, CheckpointSection())
    with pin(checkpoint, tmp_path / "pins", CheckpointSection()) as pinned:
        shutil.rmtree(gone)
        with pytest.raises(CheckpointError) as told:
            load_model(pinned, CheckpointSection(), device="cpu", dtype="float32")
        (pinned.directory / "tokenizer.json").write_text("{}")
        with pytest.raises(CheckpointError) as said:
            load_tokenizer(pinned, CheckpointSection())
    for error in (told.value, said.value):
        assert str(path) in str(error) and "pins" not in str(error)


@pytest.mark.parametrize("change", [without_one, with_a_layer_more, in_a_wrapper])
def test_an_adapter_in_part(change: Any, base: Path, tmp_path: Path) -> None:
    def spoil(directory: Path) -> None:
        file = directory / "adapter_model.safetensors"
        save_file(change(load_file(file)), file, metadata={"format": "pt"})

    path = write_adapter(tmp_path / "run", 20, base, spoil=spoil)
    refusal(path, CheckpointSection(), tmp_path / "pins")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "settings",
    [
        {"use_rslora": True},
        {"use_dora": True},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "olora"},
        {"layer_replication": [(0, 2), (1, 2)]},
        {"modules_to_save": ["embed_tokens", "lm_head"]},
    ],
)
def test_kinds_of_adapters(
    settings: dict[str, Any], base: Path, wide: Path, tmp_path: Path
) -> None:
    """What begins with the base's numbers is looked at too, without these."""
    path = write_adapter(tmp_path / "run", 20, base, **settings)
    require_loadable(check_checkpoint(path, CheckpointSection()), CheckpointSection())
    refusal(path, CheckpointSection(base_model=str(wide)), tmp_path / "pins")


def times_of(folder: Path) -> dict[Path, tuple[int, int]]:
    found = [folder, *folder.rglob("*")]
    return {p: (p.lstat().st_mtime_ns, p.lstat().st_ctime_ns) for p in found}


def test_doctor_says_it_of_an_adapter_of_another_model(
    base: Path, wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that fits, later ones that do not; each is told, and nothing of the run is touched."""
    run = tmp_path / "run"
    write_adapter(run, 10, base)
    write_adapter(run, 20, wide, spoil=edit(base_model_name_or_path=str(base)))
    write_adapter(run, 30, wide, spoil=edit(base_model_name_or_path=str(base)))
    made = list(record_loads(monkeypatch))
    before = times_of(run)
    found = gracekit.doctor(run)
    assert times_of(run) == before
    assert found.ok and found.newest == "checkpoint-10"
    assert [(f.name, f.state) for f in found.checkpoints] == [
        ("checkpoint-10", "complete"),
        ("checkpoint-20", "cannot be used"),
        ("checkpoint-30", "cannot be used"),
    ]
    for finding in found.checkpoints[1:]:
        assert finding.reason is not None and str(finding.path) in finding.reason
        assert "has the shape 4, 64, expected 4, 32. Set checkpoints.base_model" in finding.reason
    assert len(made[0]) == 2, "the third is like the second"
    mended = gracekit.doctor(run, set={"checkpoints.base_model": str(wide)})
    assert mended.newest == "checkpoint-30" and mended.checkpoints[0].state == "cannot be used"
    only = gracekit.doctor(run / "checkpoint-30")
    assert not only.ok and only.reason == only.checkpoints[0].reason


def record_loads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names of checkpoints that were tried."""
    names: list[str] = []
    from gracekit.checkpoints import model

    def tried(checkpoint: Any, settings: Any, known: Any = model.require_loadable) -> None:
        names.append(checkpoint.path.name)
        known(checkpoint, settings)

    monkeypatch.setattr(model, "require_loadable", tried)
    yield names


def test_a_model_that_is_no_language_model(base: Path, tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "run", 3)
    values = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(values | {"model_type": "no-such-model"}))
    os.utime(path / "config.json", (1, 1))
    error = refusal(path, CheckpointSection(), tmp_path / "pins")
    assert "cannot make a causal language model" in str(error)


def test_of_a_file_that_a_command_converts_nothing_is_told(base: Path, tmp_path: Path) -> None:
    """Also of Lightning's: the command makes the model, and doctor does not run it."""
    torch.save({"state_dict": {"x": torch.ones(2)}, "global_step": 3}, tmp_path / "a.ckpt")
    command = "touch ran {src} {dst}"
    found = gracekit.doctor(tmp_path, set={"checkpoints.convert_cmd": command})
    (finding,) = found.checkpoints
    assert found.ok and finding.needs_command
    assert finding.weights == "converted by checkpoints.convert_cmd"
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]


@pytest.mark.parametrize("is_deleted", [False, True])
def test_a_checkpoint_that_changes_while_doctor_looks(
    is_deleted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    spoiled = write_checkpoint(run, 10)
    write_checkpoint(run, 20)

    def changed(root: Path, settings: CheckpointSection) -> list[Finding]:
        found = survey(root, settings)
        if is_deleted:
            shutil.rmtree(spoiled)
        else:
            os.truncate(spoiled / "model.safetensors", 100)
        return found

    monkeypatch.setattr(doctoring, "survey", changed)
    told = gracekit.doctor(run, set={"checkpoints.settle_s": 0})
    assert told.newest == "checkpoint-20" and told.ok
    states = {found.name: found.state for found in told.checkpoints}
    assert states.pop("checkpoint-20") == "complete"
    assert len(states) == (0 if is_deleted else 1) and "complete" not in states.values()
    assert all(found.reason for found in told.checkpoints if found.name in states)


def test_without_a_place_for_temporary_files_none_is_called_unusable(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_place() -> Path:
        raise StoreWriteError("there is no place for temporary files")

    monkeypatch.setattr(leftovers, "temporary_directory", no_place)
    write_checkpoint(tmp_path / "run", 20)
    WRITERS["accelerate save_state"](AutoModelForCausalLM.from_pretrained(base), tmp_path / "other")
    changes = {"checkpoints.settle_s": 0, "checkpoints.base_model": str(base)}
    for run in ("run", "other"):
        told = gracekit.doctor(tmp_path / run, set=changes)
        assert {found.state for found in told.checkpoints} == {"complete"}


def test_doctor_without_a_recipe_says_that_a_tokenizer_is_missing(tmp_path: Path) -> None:
    """It said of such a checkpoint that it can be used, and a refresh refused it."""
    path = write_checkpoint(tmp_path / "run", 5)
    with_one = tmp_path / "tokenizer"
    with_one.mkdir()
    assert not any("tokenizer" in text for text in gracekit.doctor(path.parent).sentences())
    for file in path.glob("token*"):
        file.rename(with_one / file.name)
    found = gracekit.doctor(path.parent)
    assert "it holds no tokenizer" in found.sentences()[-1] and found.checkpoints[0].lacks_tokenizer
    named = gracekit.doctor(path.parent, set={"checkpoints.tokenizer": str(with_one)})
    assert not any("holds no tokenizer" in text for text in named.sentences())


def test_an_index_without_metadata_is_told_so(tmp_path: Path) -> None:
    """Transformers reads none; it was said to lack 'metadata' for a reason nobody could tell."""
    path = write_checkpoint(tmp_path / "run", 5)
    AutoModelForCausalLM.from_pretrained(path).save_pretrained(path, max_shard_size="8KB")
    index = path / "model.safetensors.index.json"
    (path / "model.safetensors").unlink()
    os.utime(path / "trainer_state.json")
    assert gracekit.doctor(path.parent).newest == "checkpoint-5"
    content = json.loads(index.read_text())
    index.write_text(json.dumps({"weight_map": content["weight_map"]}))
    os.utime(path / "trainer_state.json")
    (found,) = gracekit.doctor(path.parent).checkpoints
    assert 'has no "metadata", which transformers asks for' in (found.reason or "")
