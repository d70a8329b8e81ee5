"""LoRA checkpoints as PEFT writes them: loading, identity, gradients, a whole refresh."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from gracekit import refresh
from gracekit.checkpoints import describe_architecture, find_checkpoints, model_identity, pin
from gracekit.checkpoints.adapted import _merged
from gracekit.checkpoints.model import load_model, load_tokenizer
from gracekit.errors import CheckpointError, CheckpointMismatchError, MeasureError
from gracekit.model_pass.gradient_scores import GradientNorm, LoraGradientNorm
from gracekit.model_pass.layers import linear_layers
from gracekit.model_pass.sketch import KroneckerSketch, random_signs
from gracekit.recipe import CheckpointSection
from gracekit.store import Store
from tests.stores import outcome
from tests.test_scoring_pass import RELATIVE, make_samples, mean_loss, run, tiny
from tests.tiny import make_tokenizer, tiny_recipe, write_checkpoint, write_data

SETTINGS = CheckpointSection(settle_s=0)
TARGETS = {"llama": ["q_proj", "v_proj", "down_proj"], "gpt2": ["c_attn", "c_proj"]}


def adapted(name: str, **settings: Any) -> Any:
    """A tiny model with LoRA on some layers, B away from zero."""
    model = tiny(name)
    torch.manual_seed(3)
    config = LoraConfig(
        r=3, lora_alpha=5, lora_dropout=0.2, target_modules=TARGETS[name],
        fan_in_fan_out=name == "gpt2", **settings,
    )  # fmt: skip
    peft = get_peft_model(model, config).eval()
    with torch.no_grad():
        for key, parameter in peft.named_parameters():
            if "lora_B" in key:
                parameter.normal_(0, 0.3)
    return peft


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("use_rslora", [False, True])
def test_both_gradients_of_an_adapted_model(name: str, use_rslora: bool) -> None:
    peft, samples = adapted(name, use_rslora=use_rslora), make_samples()
    model = peft.get_base_model()
    own, whole, sketch = run(
        model, [LoraGradientNorm(), GradientNorm(), KroneckerSketch(side=5, seed=1)], samples
    )
    layers = linear_layers(model)
    of_adapter = {layer.name for layer in layers if layer.is_adapter}
    assert len(of_adapter) == 2 * len([n for n in of_adapter if "lora_A" in n]) > 0
    assert all(layer.is_trained == layer.is_adapter for layer in layers)
    model.requires_grad_(True)
    for i, sample in enumerate(samples):
        model.zero_grad()
        torch.autograd.backward(mean_loss(model, sample))
        squares = {True: 0.0, False: 0.0}
        expected = np.zeros((5, 5))
        for layer in layers:
            module: Any = layer.module
            parts = [p.grad.double() for p in module.parameters(recurse=False)]
            squares[layer.is_adapter] += sum(float(g.square().sum()) for g in parts)
            if layer.is_adapter:
                weight = module.weight.grad.double().numpy()
                p = random_signs((weight.shape[0], 5), 1, f"out {layer.name}")
                q = random_signs((weight.shape[1], 5), 1, f"in {weight.shape[1]}")
                expected += p.T @ weight @ q / 5
        assert own[i] == pytest.approx(squares[True] ** 0.5, rel=RELATIVE)
        assert whole[i] == pytest.approx(squares[False] ** 0.5, rel=RELATIVE)
        np.testing.assert_allclose(
            sketch[i].numpy().reshape(5, 5), expected, rtol=1e-3,
            atol=1e-5 * np.abs(expected).max(),
        )  # fmt: skip


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_modules_that_are_trained_whole_count(name: str) -> None:
    """Those of the body; the head is left out as it is everywhere."""
    saved = ["lm_head", "o_proj", "gate"] if name == "mixtral" else ["lm_head", "up_proj"]
    model, samples = tiny(name), make_samples()
    config = LoraConfig(r=3, target_modules=["q_proj"], modules_to_save=saved)
    peft = get_peft_model(model, config).eval()
    trained = {n for n, p in peft.named_parameters() if p.requires_grad and "lm_head" not in n}
    base = peft.get_base_model()
    own, whole = run(base, [LoraGradientNorm(), GradientNorm()], samples)
    peft.requires_grad_(True)
    for i, sample in enumerate(samples):
        peft.zero_grad()
        torch.autograd.backward(mean_loss(base, sample))
        squares = {
            n: float(p.grad.double().square().sum())
            for n, p in peft.named_parameters()
            if p.grad is not None and p.ndim > 1 and "lm_head" not in n and "embed" not in n
        }
        exact = sum(squares[n] for n in trained)
        assert own[i] == pytest.approx(exact**0.5, rel=RELATIVE)
        exact = sum(square for n, square in squares.items() if "lora_" not in n)
        assert whole[i] == pytest.approx(exact**0.5, rel=RELATIVE)


def test_lora_gradient_of_a_full_model_is_refused() -> None:
    with pytest.raises(MeasureError, match="no LoRA layers: the checkpoint is no adapter"):
        run(tiny("llama"), [LoraGradientNorm()], make_samples())


def write_adapter(
    folder: Path, step: int, base: Path, *, rank: int = 4, spoil: Any = None, **settings: Any
) -> Path:
    """`checkpoint-STEP` as the Trainer writes it for a PeftModel."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(step)
    config = LoraConfig(r=rank, target_modules=["q_proj", "up_proj"], **settings)
    peft = get_peft_model(model, config)
    with torch.no_grad():
        for key, parameter in peft.named_parameters():
            if "lora_B" in key:
                parameter.normal_(0, 1e-3 * step)
    directory = folder / f"checkpoint-{step}"
    peft.save_pretrained(directory)
    make_tokenizer().save_pretrained(directory)
    if spoil is not None:
        spoil(directory)
    (directory / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return directory


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "base", 0)


def test_adapter_is_found_pinned_and_loaded(tmp_path: Path, base: Path) -> None:
    written = write_adapter(tmp_path / "run", 20, base)
    (checkpoint,) = find_checkpoints(tmp_path / "run", SETTINGS)
    with pin(checkpoint, tmp_path / "pins") as pinned:
        shutil.rmtree(written)
        model: Any = load_model(pinned, SETTINGS, device="cpu", dtype="float32")
        tokenizer = load_tokenizer(pinned, SETTINGS)
        found = describe_architecture(pinned.directory, SETTINGS)
    assert len(tokenizer) == 31
    assert type(model).__name__ == "LlamaForCausalLM"
    assert not any(p.requires_grad for p in model.parameters()) and not model.training
    assert any(float(p.abs().max()) > 0 for n, p in model.named_parameters() if "lora_B" in n)
    assert found["adapter"]["rank"] == 4 and found["hidden_size"] == 32


def test_identity_covers_the_base(tmp_path: Path, base: Path) -> None:
    written = write_adapter(tmp_path / "run", 20, base)
    one = model_identity(written, SETTINGS)
    assert one == model_identity(written, SETTINGS)
    other = write_checkpoint(tmp_path / "other", 500)
    moved = CheckpointSection(base_model=str(other))
    assert one != model_identity(written, moved)
    shutil.copytree(base, tmp_path / "copy")
    assert one == model_identity(written, CheckpointSection(base_model=str(tmp_path / "copy")))


def edit(**values: Any) -> Any:
    def spoil(directory: Path) -> None:
        path = directory / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return spoil


def pickled(directory: Path) -> None:
    (directory / "adapter_model.safetensors").rename(directory / "adapter_model.bin")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (edit(peft_type="IA3"), "of type IA3, .* merge it"),
        (pickled, "pickled adapter"),
        (edit(alora_invocation_tokens=[5, 6]), "activated LoRA"),
        (edit(init_lora_weights="pissa_niter_4"), "pissa_niter_4: .* random .* merge it"),
        (edit(init_lora_weights="lora_ga"), "lora_ga: .* with data.* merge it"),
        (edit(init_lora_weights="corda"), "corda: .* with data.* merge it"),
    ],
)
def test_adapters_that_cannot_be_read(tmp_path: Path, base: Path, spoil: Any, message: str) -> None:
    from gracekit.checkpoints import check_checkpoint

    written = write_adapter(tmp_path / "run", 20, base, spoil=spoil)
    with pytest.raises(CheckpointError, match=message):
        check_checkpoint(written, SETTINGS)


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=torch.arange(20)[None]).logits
    return logits


@pytest.mark.filterwarnings("ignore::UserWarning:peft")
@pytest.mark.parametrize(
    ("is_tied", "settings"),
    [
        (True, {"target_modules": ["q_proj", "embed_tokens"]}),
        (True, {"target_modules": ["q_proj", "lm_head"]}),
        (True, {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True}),
        (True, {"target_modules": ["q_proj"], "trainable_token_indices": [1, 2]}),
        (True, {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
        (False, {"target_modules": ["q_proj"], "layer_replication": [(0, 2), (1, 2)]}),
    ],
    ids=["embeddings", "head", "both", "tokens", "saved", "replicated layers"],
)
def test_layers_that_share_a_weight_are_merged_each_for_itself(
    tmp_path: Path, base: Path, is_tied: bool, settings: dict[str, Any]
) -> None:
    """DoRA is merged, and what is merged into tied embeddings is not the head's."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(base, tie_word_embeddings=is_tied)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "own")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "own")
    new = {"ensure_weight_tying", "trainable_token_indices"} & settings.keys()
    if not all(hasattr(LoraConfig, name) for name in new):
        pytest.skip(f"this peft has no {new}")
    peft = get_peft_model(model, LoraConfig(r=4, use_dora=True, **settings)).eval()
    torch.manual_seed(3)
    with torch.no_grad():
        for key, parameter in peft.named_parameters():
            if parameter.requires_grad and "lora_A" not in key:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    written = tmp_path / "run" / "checkpoint-20"
    peft.save_pretrained(written)
    make_tokenizer().save_pretrained(written)
    (written / "trainer_state.json").write_text(json.dumps({"global_step": 20}))
    (checkpoint,) = find_checkpoints(tmp_path / "run", SETTINGS)
    with pin(checkpoint, tmp_path / "pins") as pinned:
        if not merges_as_it_counts(peft.get_input_embeddings()):  # peft 0.13
            with pytest.raises(CheckpointError, match=r"merged into another model .* update peft"):
                load_model(pinned, SETTINGS, device="cpu", dtype="float32")
            return
        loaded = load_model(pinned, SETTINGS, device="cpu", dtype="float32")
    torch.testing.assert_close(logits_of(loaded), logits_of(peft), rtol=1e-4, atol=1e-5)


def merges_as_it_counts(layer: Any) -> bool:
    """Whether PEFT's own merging of a layer changes nothing of what it gives."""
    tokens, merged = torch.arange(20), copy.deepcopy(layer)
    if not hasattr(merged, "merge"):
        return True
    with torch.no_grad():
        before = merged(tokens)
        merged.merge()
        return torch.allclose(before, merged(tokens), atol=1e-4)


def without_one(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: t for name, t in tensors.items() if "1.mlp.up_proj.lora_B" not in name}


def with_a_layer_more(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    more = {n.replace("layers.1.", "layers.7."): t.clone() for n, t in tensors.items()}
    return tensors | more


def in_a_wrapper(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.replace("base_model.model", "module"): t for name, t in tensors.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_one, "1 of its tensors are missing, such as .*1.mlp.up_proj.lora_B"),
        (with_a_layer_more, "4 belong to no layer of it, such as .*layers.7"),
        (in_a_wrapper, "8 of its tensors are missing.* and 8 belong to no layer"),
        (lambda tensors: {}, "8 of its tensors are missing"),
    ],
    ids=["one less", "layers more", "wrapper", "none"],
)
def test_an_adapter_of_another_model_is_not_measured_in_part(
    tmp_path: Path, base: Path, change: Any, message: str
) -> None:
    """PEFT only warns, and begins what it lacks anew, so that the base would be measured."""

    def spoil(directory: Path) -> None:
        path = directory / "adapter_model.safetensors"
        notes = {"format": "pt"} if change(load_file(path)) else None  # safetensors 0.4.3
        save_file(change(load_file(path)), path, metadata=notes)

    write_adapter(tmp_path / "run", 20, base, spoil=spoil)
    (checkpoint,) = find_checkpoints(tmp_path / "run", SETTINGS)
    with (
        pin(checkpoint, tmp_path / "pins") as pinned,
        pytest.raises(CheckpointMismatchError, match=message),
    ):
        load_model(pinned, SETTINGS, device="cpu", dtype="float32")


@pytest.mark.parametrize(
    ("base_model", "message"),
    [
        ("no/such", r"'no/such' \(from checkpoints.base_model\) is no directory"),
        ("run/checkpoint-20", "it is an adapter itself"),
        ("empty", "no config.json"),
    ],
)
def test_base_that_is_not_there(tmp_path: Path, base: Path, base_model: str, message: str) -> None:
    written = write_adapter(tmp_path / "run", 20, base)
    (tmp_path / "empty").mkdir()
    named = base_model if base_model == "no/such" else str(tmp_path / base_model)
    with pytest.raises(CheckpointError, match=message):
        describe_architecture(written, CheckpointSection(base_model=named))


def test_half_written_adapter_is_waited_for(tmp_path: Path, base: Path) -> None:
    written = write_adapter(tmp_path / "run", 20, base)
    weights = written / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    assert find_checkpoints(tmp_path / "run", SETTINGS) == []
    weights.write_bytes(whole)
    (written / "adapter_config.json").write_text("{")
    assert find_checkpoints(tmp_path / "run", SETTINGS) == []


VOCABULARIES: dict[str, tuple[int, Any]] = {
    "tokens added": (70, {}),
    "tokens added, saved whole": (70, {"modules_to_save": ["embed_tokens", "lm_head"]}),
    "low rank of the embeddings": (64, {"target_modules": ["q_proj", "embed_tokens"]}),
    "low rank of the head": (64, {"target_modules": ["q_proj", "lm_head"]}),
}
if hasattr(LoraConfig, "trainable_token_indices"):  # since peft 0.15
    some = {"trainable_token_indices": {"embed_tokens": [3, 4]}}
    VOCABULARIES["some tokens trained"] = (64, some)


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
@pytest.mark.parametrize("name", VOCABULARIES)
def test_an_adapter_that_changes_the_vocabulary_is_the_trainers_model(
    tmp_path: Path, base: Path, name: str
) -> None:
    from transformers import AutoModelForCausalLM

    num_tokens, settings = VOCABULARIES[name]
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(num_tokens, mean_resizing=False)
    peft = get_peft_model(model, LoraConfig(**{"r": 3, "target_modules": ["q_proj"]} | settings))
    torch.manual_seed(0)
    with torch.no_grad():
        for key, parameter in peft.named_parameters():
            is_resized = num_tokens > 64 and ("embed_tokens" in key or "lm_head" in key)
            if parameter.requires_grad or is_resized:
                parameter.add_(torch.randn_like(parameter) * 0.02)
    directory = tmp_path / "run/checkpoint-10"
    peft.save_pretrained(directory)
    make_tokenizer().save_pretrained(directory)
    (directory / "trainer_state.json").write_text('{"global_step": 10}')
    write_data(tmp_path / "train.jsonl", num_samples=24)
    recipe = tiny_recipe(tmp_path, refresh={"min_fraction": 0.4, "min_probe": 4})
    refresh(recipe, directory)
    (checkpoint,) = find_checkpoints(tmp_path / "run", SETTINGS)
    with pin(checkpoint, tmp_path / "pins") as pinned:
        loaded: Any = load_model(pinned, SETTINGS, device="cpu", dtype="float32")
    ids = torch.tensor([[3, 4, 5, 29, num_tokens - 1]])
    torch.testing.assert_close(loaded(ids).logits, peft.eval()(ids).logits)


@pytest.mark.parametrize("saved", [None, ["embed_tokens", "lm_head"]])
def test_refreshes_of_an_adapters_run(tmp_path: Path, base: Path, saved: Any) -> None:
    write_data(tmp_path / "train.jsonl")
    recipe = tiny_recipe(
        tmp_path,
        scoring={
            "scores": ["lora-gradient", "loss"], "importance": "lora-gradient",
            "shard_rows": 16, "num_threads": 1, "device": "cpu",
        },
    )  # fmt: skip
    for step in (100, 200):
        refresh(recipe, write_adapter(tmp_path / "run", step, base, modules_to_save=saved))
    store = Store.open(recipe.store)
    assert store.versions() == [1, 2]
    assert (store.scores(2).scores["lora-gradient"] > 0).all()
    assert outcome(store.header(2)).num_measured < 160
    with pytest.raises(CheckpointMismatchError, match="another architecture"):
        refresh(recipe, write_adapter(tmp_path / "run", 300, base, rank=8, modules_to_save=saved))


@pytest.mark.parametrize(("factor", "is_refused"), [(1.0, False), (1.2, True)])
def test_a_wrong_merge_of_small_embeddings_is_refused(factor: float, is_refused: bool) -> None:
    """Embeddings of real models have numbers of about .02."""

    class Adapted(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embeddings = torch.nn.Embedding(64, 32)
            torch.nn.init.normal_(self.embeddings.weight, std=0.02)

        def get_input_embeddings(self) -> torch.nn.Embedding:
            return self.embeddings

        def merge_and_unload(self) -> Adapted:
            self.embeddings.weight.mul_(factor)
            return self

    torch.manual_seed(0)
    if is_refused:
        with pytest.raises(CheckpointError, match="merged into another model"):
            _merged(Adapted(), "it")
    else:
        _merged(Adapted(), "it")
