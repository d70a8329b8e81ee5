"""Weights of which each process saved its own part: safetensors shards, and files of verl."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from gracekit.checkpoints import check_checkpoint, find_checkpoints
from gracekit.checkpoints.convert import _from_pieces
from gracekit.checkpoints.lora_in_state import adapter_among
from gracekit.checkpoints.pieces import incomplete_pieces, read_pieces, whole_shape
from gracekit.errors import CheckpointError, CheckpointIncompleteError
from gracekit.recipe import CheckpointSection
from tests.checkpoint_writers import loaded, logits, part_of, save_ranks
from tests.checkpoint_writers import save_for_automodel as whole_automodel
from tests.checkpoint_writers import save_for_verl as whole_verl
from tests.tiny import write_checkpoint

SETTINGS = CheckpointSection(settle_s=0)


@pytest.fixture
def model(tmp_path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(write_checkpoint(tmp_path / "base", 3))


@pytest.fixture(autouse=True)
def _no_processes() -> Iterator[None]:
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


def save_shards(model: Any, place: Path, count: int = 3) -> None:
    """As NeMo AutoModel names them, with what torch notes in the headers."""
    for rank in range(count):
        tensors, notes = {}, {}
        for name, tensor in model.state_dict().items():
            part, begin = part_of(tensor, rank, count)
            if len(part):
                tensors[name] = part
                notes[name] = {"saved_offsets": [begin] + [0] * (part.ndim - 1)}
        save_file(
            tensors,
            place / f"shard-{rank + 1:05d}-model-00001-of-00001.safetensors",
            {"format": "pt", "DCP_VERSION": "1.0", "DCP_SHARDING_INFO": json.dumps(notes)},
        )


def sharded_automodel(model: Any, run: Path) -> Path:
    """Shards, and config and tokenizer in `.hf_metadata`."""
    checkpoint = whole_automodel(model, run)
    (checkpoint / "model/consolidated").rename(checkpoint / "model/.hf_metadata")
    names = dict.fromkeys(model.state_dict(), 1)
    names_file = checkpoint / "model/.hf_metadata/fqn_to_file_index_mapping.json"
    names_file.write_text(json.dumps(names))
    (checkpoint / "model/.hf_metadata/model.safetensors").unlink()
    save_shards(model, checkpoint / "model")
    return checkpoint


def ranks_of_verl(model: Any, run: Path, mesh_shape: tuple[int, ...] = (3,)) -> Path:
    """The files of processes, and config and tokenizer in `huggingface`."""
    checkpoint = whole_verl(model, run)
    (checkpoint / "actor/huggingface/model.safetensors").unlink()
    save_ranks(model.state_dict(), checkpoint / "actor", mesh_shape)
    return checkpoint


needs_torch_2_8 = pytest.mark.skipif(
    tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 8),
    reason="transformers 5 loads such shards with torch 2.8 or newer only, and says so",
)


@pytest.mark.parametrize(
    "write", [pytest.param(sharded_automodel, marks=needs_torch_2_8), ranks_of_verl]
)
def test_parts_are_put_together(model: Any, tmp_path: Path, write: Any) -> None:
    """Of rows that three processes do not share evenly."""
    checkpoint = write(model, tmp_path / "run")
    assert [c.step for c in find_checkpoints(tmp_path / "run", SETTINGS)] == [3]
    got = loaded(checkpoint, SETTINGS, tmp_path / "pins")
    torch.testing.assert_close(got, logits(model.eval()), atol=0, rtol=0)


def test_groups_of_processes_that_have_the_same(model: Any, tmp_path: Path) -> None:
    checkpoint = ranks_of_verl(model, tmp_path / "run", (2, 2))
    got = loaded(checkpoint, SETTINGS, tmp_path / "pins")
    torch.testing.assert_close(got, logits(model.eval()), atol=0, rtol=0)


@pytest.fixture
def adapted(model: Any) -> Any:
    """The model with a LoRA of rank 2, of which one of three processes has no row."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj", "down_proj"])
    made = peft.get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape) / 4)
    return made


def adapted_verl(adapted: Any, run: Path, state: Any = None) -> Path:
    """As verl saves a model with LoRA: one state, and a note of rank and alpha."""
    checkpoint = whole_verl(adapted.get_base_model(), run)
    (checkpoint / "actor/huggingface/model.safetensors").unlink()
    save_ranks(adapted.state_dict() if state is None else state, checkpoint / "actor")
    (checkpoint / "actor/lora_train_meta.json").write_text('{"r": 2, "lora_alpha": 6}')
    return checkpoint


def test_an_adapter_in_the_state_is_merged(adapted: Any, tmp_path: Path) -> None:
    checkpoint = adapted_verl(adapted, tmp_path / "run")
    got = loaded(checkpoint, SETTINGS, tmp_path / "pins")
    said = logits(adapted.eval())
    torch.testing.assert_close(got, said, atol=1e-5, rtol=1e-5)
    with adapted.disable_adapter():
        assert (logits(adapted) - said).abs().max() > 0.01

    note = checkpoint / "actor/lora_train_meta.json"
    for content, reason in (
        (None, "no lora_train_meta.json, in which verl notes"),
        ('{"r": 0, "lora_alpha": 6}', "has r 0 and lora_alpha 6; expected the rank"),
        ('{"r": 2', "has r None and lora_alpha None"),
        ("[]", "has r None and lora_alpha None"),
        ('{"r": 16, "lora_alpha": 6}', "has r 16, and the adapter of .* has rank 2: the note is"),
    ):
        note.unlink(missing_ok=True)
        if content is not None:
            note.write_text(content)
        with pytest.raises(CheckpointError, match=reason):
            check_checkpoint(checkpoint, SETTINGS)


def test_an_adapter_on_the_head_of_a_tied_model(tmp_path: Path) -> None:
    """The head is then another matrix than the embeddings, whatever the config says of them."""
    peft = pytest.importorskip("peft")

    def tied() -> Any:
        torch.manual_seed(0)
        return LlamaForCausalLM(
            LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
                        num_attention_heads=2, tie_word_embeddings=True)
        )  # fmt: skip

    with pytest.warns(UserWarning, match="tie_word_embeddings"):
        made = peft.get_peft_model(
            tied(), peft.LoraConfig(r=2, lora_alpha=6, target_modules=["lm_head", "q_proj"])
        )
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape) / 4)
    checkpoint = whole_verl(tied(), tmp_path / "run")
    (checkpoint / "actor/huggingface/model.safetensors").unlink()
    save_ranks(made.state_dict(), checkpoint / "actor")
    (checkpoint / "actor/lora_train_meta.json").write_text('{"r": 2, "lora_alpha": 6}')
    got = loaded(checkpoint, SETTINGS, tmp_path / "pins")
    torch.testing.assert_close(got, logits(made.eval()), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda n: n if ".lora_" in n else None, "a LoRA adapter alone"),
        (lambda n: n.replace("lora_A.default", "lora_A.other"), None),
        (lambda n: n.replace("layers.0.", "layers.0._orig_mod."), None),
        (lambda n: n.replace("lora_A", "lora_embedding_A"), "not of one plain LoRA"),
        (lambda n: None if "lora_B" in n else n, "half an adapter of"),
        (lambda n: n.replace("q_proj.lora", "x_proj.lora"), "fits no weight of its model"),
        (
            lambda n: (
                None if "lora_B" in n else n.replace("lora_A.default.weight", "ia3_l.default")
            ),
            r"a whole model and an adapter \(.*q_proj.ia3_l.default\), which would be left out",
        ),
    ],
    ids=[
        "alone",
        "another name",
        "wrapped",
        "of an embedding",
        "half",
        "of another model",
        "of another kind",
    ],
)
def test_adapters_in_the_state_that_cannot_be_merged(
    adapted: Any, tmp_path: Path, change: Any, reason: str | None
) -> None:
    state = {c: t for n, t in adapted.state_dict().items() if (c := change(n)) is not None}
    checkpoint = adapted_verl(adapted, tmp_path / "run", state)
    if reason is None:
        got = loaded(checkpoint, SETTINGS, tmp_path / "pins")
        torch.testing.assert_close(got, logits(adapted.eval()), atol=1e-5, rtol=1e-5)
        return
    with pytest.raises(CheckpointError, match=reason):
        loaded(checkpoint, SETTINGS, tmp_path / "pins")


def test_matrices_of_an_adapter_that_do_not_fit(adapted: Any, tmp_path: Path) -> None:
    state = adapted.state_dict()
    name = next(n for n in state if "q_proj.lora_A" in n)
    for at, matrix in enumerate((torch.ones(5, 32), torch.ones(2))):
        checkpoint = adapted_verl(adapted, tmp_path / f"run{at}", {**state, name: matrix})
        with pytest.raises(CheckpointError, match=r"q_proj' whose matrices are \([25].*expected"):
            check_checkpoint(checkpoint, SETTINGS)
    assert adapter_among(["lm_head.original_module.weight", "norm.weight"]) is None
    trained = "lm_head.modules_to_save.default.weight"
    assert adapter_among(["norm.weight", trained]) == trained


def test_a_command_may_read_what_cannot_be_put_together(adapted: Any, tmp_path: Path) -> None:
    state = {name: t for name, t in adapted.state_dict().items() if ".lora_" in name}
    checkpoint = adapted_verl(adapted, tmp_path / "run", state)
    settings = CheckpointSection(settle_s=0, convert_cmd="merge {src} {dst}")
    assert check_checkpoint(checkpoint, settings).step == 3
    last = checkpoint / "actor/model_world_size_3_rank_2.pt"
    last.write_bytes(last.read_bytes()[:-100])
    with pytest.raises(CheckpointIncompleteError, match=r"rank_2\.pt is cut off"):
        check_checkpoint(checkpoint, settings)


def test_of_a_storage_that_many_share_only_the_own_part_is_read(tmp_path: Path) -> None:
    flat = torch.arange(1_000_000.0)
    state = {"a": flat[1000:2000].view(40, 25).t(), "b": flat[7:8], "c": flat[:0]}
    torch.save(state | {"flat": flat}, tmp_path / "model_world_size_1_rank_0.pt")
    pieces = read_pieces(tmp_path)
    tracemalloc.start()
    got = {name: _from_pieces(pieces[name]) for name in state}
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert all(torch.equal(got[name], value) for name, value in state.items())
    assert peak < 500_000


@pytest.mark.parametrize("write", [sharded_automodel, ranks_of_verl])
def test_what_is_cut_off_is_waited_for(model: Any, tmp_path: Path, write: Any) -> None:
    """Each file cut at every eighth, and each of them missing but the last of the shards."""
    checkpoint = write(model, tmp_path / "run")
    files = sorted(checkpoint.glob("model/shard-*")) or sorted(checkpoint.glob("actor/model_*"))
    assert len(files) == 3
    for file in files:
        content = file.read_bytes()
        for eighths in range(8):
            file.write_bytes(content[: len(content) * eighths // 8])
            assert find_checkpoints(tmp_path / "run", SETTINGS) == [], (file, eighths)
        file.unlink()
        if "shard-00003" not in file.name:
            assert find_checkpoints(tmp_path / "run", SETTINGS) == []
        file.write_bytes(content)
    assert len(find_checkpoints(tmp_path / "run", SETTINGS)) == 1


def test_a_missing_last_shard_is_refused(model: Any, tmp_path: Path) -> None:
    """Nothing tells how many there are; the sizes of the config do."""
    checkpoint = sharded_automodel(model, tmp_path / "run")
    (checkpoint / "model/shard-00003-model-00001-of-00001.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"\(44, 32\).*expected.*\(64, 32\)"):
        loaded(checkpoint, SETTINGS, tmp_path / "pins")


def test_a_tensor_that_no_file_holds(model: Any, tmp_path: Path) -> None:
    checkpoint = sharded_automodel(model, tmp_path / "run")
    names_file = checkpoint / "model/.hf_metadata/fqn_to_file_index_mapping.json"
    names_file.write_text('{"lm_head.weight": 1, "model.more.weight": 2}')
    assert incomplete_pieces(checkpoint / "model") == "no file holds model.more.weight yet"


def test_weights_of_two_runs(model: Any, tmp_path: Path) -> None:
    checkpoint = ranks_of_verl(model, tmp_path / "run")
    actor = checkpoint / "actor"
    shutil.copy(actor / "model_world_size_3_rank_0.pt", actor / "model_world_size_2_rank_0.pt")
    with pytest.raises(CheckpointError, match=r"runs with 2 and 3 processes"):
        check_checkpoint(checkpoint, SETTINGS)


def test_tensors_split_in_two_ways(model: Any, tmp_path: Path) -> None:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("fsdp", "tp"))
    whole = torch.zeros(8, 4)
    state = {"a": DTensor.from_local(whole[:4, :2], mesh, [Shard(0), Shard(1)])}
    for rank in range(4):
        torch.save(state, tmp_path / f"model_world_size_4_rank_{rank}.pt")
    with pytest.raises(CheckpointError, match=r"\(Shard, Shard\).*hf_model"):
        read_pieces(tmp_path)


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ([((0, 0), (2, 2)), ((0, 2), (2, 2)), ((2, 0), (2, 4))], None),
        ([((0, 0), (2, 2)), ((0, 2), (2, 2)), ((2, 0), (2, 2))], "12 of 16"),
        ([((0, 0), (2, 4)), ((0, 0), (2, 4))], "16 of 8"),
        ([((0, 0), (3, 2)), ((2, 0), (2, 2)), ((0, 2), (2, 2)), ((3, 3), (1, 1))], "15 of 16"),
        ([((0, 0), (3, 4)), ((2, 0), (1, 4))], "16 of 12"),
        ([((0, 0), (2, 2)), ((1, 1), (2, 2)), ((2, 0), (1, 1))], "9 of 9"),
    ],
)
def test_parts_have_to_cover(tmp_path: Path, parts: Any, reason: str | None) -> None:
    """In blocks too, without gaps and without lying over each other."""
    for i, (begins, shape) in enumerate(parts):
        notes = {"DCP_SHARDING_INFO": json.dumps({"a": {"saved_offsets": begins}})}
        save_file(
            {"a": torch.zeros(shape)}, tmp_path / f"shard-{i}-model-1-of-1.safetensors", notes
        )
    if reason is None:
        assert whole_shape(read_pieces(tmp_path)["a"]) == (4, 4)
        return
    with pytest.raises(ValueError, match=reason):
        read_pieces(tmp_path)


@pytest.mark.parametrize(
    "note", ["", "[]", '{"a": {}}', '{"b": {"saved_offsets": [0]}}', "[" * 100_000]
)
def test_shards_without_places(tmp_path: Path, note: str) -> None:
    notes = {"DCP_SHARDING_INFO": note} if note else None
    save_file({"a": torch.zeros(2)}, tmp_path / "shard-1-model-1-of-1.safetensors", notes)
    with pytest.raises(CheckpointError, match=r"does not note where its tensors belong"):
        read_pieces(tmp_path)


@pytest.mark.parametrize("begins", [[-1], [0, 0], ["x"], [1.5], [True]])
def test_places_that_make_no_sense(tmp_path: Path, begins: Any) -> None:
    notes = {"DCP_SHARDING_INFO": json.dumps({"a": {"saved_offsets": begins}})}
    save_file({"a": torch.zeros(2)}, tmp_path / "shard-1-model-1-of-1.safetensors", notes)
    with pytest.raises(ValueError, match="damaged"):
        read_pieces(tmp_path)
