"""Quantised checkpoints: told apart, dequantised or refused with the way out; bases of QLoRA."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from gracekit import refresh
from gracekit.checkpoints import check_checkpoint, pin
from gracekit.checkpoints.model import load_model
from gracekit.checkpoints.quantised import quantisation_of
from gracekit.errors import CheckpointError
from gracekit.recipe import CheckpointSection
from gracekit.store import Store
from tests.checkpoint_writers import loaded, logits
from tests.families import FEW_HEADS
from tests.test_adapters import write_adapter
from tests.tiny import tiny_recipe, write_checkpoint, write_data

SETTINGS = CheckpointSection(settle_s=0)
LAYER = "model.layers.0.self_attn.q_proj"
F8 = torch.float8_e4m3fn


def tensors(**dtypes: torch.dtype) -> dict[str, torch.Tensor]:
    """Tensors of one layer as a method keeps them, beside the plain ones of the model."""
    return {
        f"{LAYER}.{name.replace('__', '.')}": torch.zeros(4, 4).to(d) for name, d in dtypes.items()
    }


BITSANDBYTES_4 = tensors(
    weight=torch.uint8,
    weight__absmax=torch.uint8,
    weight__quant_map=torch.float32,
    weight__nested_absmax=torch.float32,
    weight__quant_state__bitsandbytes__nf4=torch.uint8,
)
GPTQ = tensors(qweight=torch.int32, qzeros=torch.int32, scales=torch.float16, g_idx=torch.int32)
PACKED = tensors(weight_packed=torch.int32, weight_scale=torch.bfloat16, weight_shape=torch.int64)

CONFIGURED: dict[str, tuple[dict[str, Any], dict[str, torch.Tensor], str]] = {
    "bitsandbytes 4-bit": (
        {
            "quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_compute_dtype": "bfloat16", "bnb_4bit_use_double_quant": True,
        },
        BITSANDBYTES_4,
        r"quantised weights \(bitsandbytes\).*model.dequantize\(\) and save_pretrained",
    ),
    "bitsandbytes 8-bit, before quant_method": (
        {"load_in_8bit": True, "llm_int8_threshold": 6.0},
        tensors(weight=torch.int8, SCB=torch.float32),
        r"\(bitsandbytes\)",
    ),
    "GPTQ": (
        {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False},
        GPTQ,
        r"\(gptq\).*use the full-precision model",
    ),
    "AWQ": (
        {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"},
        tensors(qweight=torch.int32, qzeros=torch.int32, scales=torch.float16),
        r"\(awq\).*use the full-precision model",
    ),
    "compressed-tensors": (
        {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {}},
        PACKED,
        r"\(compressed-tensors\).*run_compressed=False",
    ),
    "torchao": ({"quant_method": "torchao", "quant_type": "int8_weight_only"}, {}, r"\(torchao\)"),
    "something new": ({"bits": 3}, {}, "does not name.*full-precision model"),
}  # fmt: skip

TOLD_BY_TENSORS: dict[str, tuple[dict[str, torch.Tensor], str]] = {
    "bitsandbytes 4-bit": (BITSANDBYTES_4, "bitsandbytes"),
    "bitsandbytes 8-bit": (tensors(weight=torch.int8, SCB=torch.float32), "bitsandbytes"),
    "GPTQ": (GPTQ, "GPTQ or AWQ"),
    "compressed-tensors": (PACKED, "compressed-tensors"),
    "fp8 with scales": (tensors(weight=F8, weight_scale_inv=torch.float32), "fp8"),
    "fp8 alone": (tensors(weight=F8), f"F8_E4M3 in {LAYER}.weight"),
    "integers": (tensors(weight=torch.int64), f"I64 in {LAYER}.weight"),
    "truth values": (tensors(weight=torch.bool), f"BOOL in {LAYER}.weight"),
    "complex numbers": (tensors(weight=torch.complex64), f"C64 in {LAYER}.weight"),
    "mxfp4": (
        {
            f"model.layers.0.mlp.experts.down_proj_{part}": torch.zeros(2, 4, dtype=torch.uint8)
            for part in ("blocks", "scales")
        },
        "mxfp4",
    ),
}


def quantise(directory: Path, settings: dict[str, Any] | None, own: dict[str, Any]) -> None:
    """Put the tensors in the place of the layer's weight, and the settings into config.json."""
    held = load_file(directory / "model.safetensors")
    if own:
        held.pop(f"{LAYER}.weight", None)
    save_file(held | own, directory / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    if settings is not None:
        config["quantization_config"] = settings
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "trainer_state.json").touch()


@pytest.mark.parametrize("case", CONFIGURED)
def test_quantised_weights_are_refused_with_the_way_out(tmp_path: Path, case: str) -> None:
    settings, own, message = CONFIGURED[case]
    checkpoint = write_checkpoint(tmp_path, 10)
    quantise(checkpoint, settings, own)
    with pytest.raises(CheckpointError, match=message):
        check_checkpoint(checkpoint, SETTINGS)


@pytest.mark.parametrize("case", TOLD_BY_TENSORS)
def test_tensors_tell_where_the_config_does_not(tmp_path: Path, case: str) -> None:
    own, message = TOLD_BY_TENSORS[case]
    checkpoint = write_checkpoint(tmp_path, 10)
    quantise(checkpoint, None, own)
    with pytest.raises(CheckpointError, match=f"quantised weights .*({message})"):
        check_checkpoint(checkpoint, SETTINGS)


def test_plain_weights_are_not_taken_for_quantised(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path, 10)
    masks = {"model.layers.0.attn.bias": torch.ones(4, dtype=torch.uint8)}  # old GPT-2's
    quantise(checkpoint, None, masks | tensors(position_ids=torch.int64))
    assert quantisation_of(checkpoint) is None


def test_doubles_are_plain_weights(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path, 10)
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint)
    model.double().save_pretrained(checkpoint)
    (checkpoint / "trainer_state.json").touch()
    found = loaded(checkpoint, SETTINGS, tmp_path / "pins")
    torch.testing.assert_close(found, logits(model.float()), rtol=0, atol=0)


def fp8_checkpoint(folder: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """As DeepSeek's are, float8 with a scale for each 128 x 128; and what it stands for."""
    checkpoint = write_checkpoint(folder, 10)
    plain = load_file(checkpoint / "model.safetensors")
    held = dict(plain)
    for name in [n for n in plain if n.endswith("_proj.weight")]:
        scale = plain[name].abs().max().reshape(1, 1) / 448
        held[name] = (plain[name] / scale).to(F8)
        held[f"{name}_scale_inv"] = scale
        plain[name] = held[name].float() * scale
    save_file(held, checkpoint / "model.safetensors", metadata={"format": "pt"})
    settings = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3",
                "weight_block_size": [128, 128]}  # fmt: skip
    quantise(checkpoint, settings, {})
    return checkpoint, plain


FP4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def mxfp4_checkpoint(folder: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """As GPT-OSS is: experts as pairs of 4-bit floats, with a power of two for each 32."""
    torch.manual_seed(0)
    sizes = {**FEW_HEADS, "intermediate_size": 64, "num_local_experts": 4}
    config = transformers.GptOssConfig(**sizes, head_dim=8, num_experts_per_tok=2)
    checkpoint = folder / "checkpoint-10"
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(checkpoint)
    plain = load_file(checkpoint / "model.safetensors")
    held = dict(plain)
    for name in [n for n in plain if n.endswith(("gate_up_proj", "down_proj"))]:
        num_experts, num_inputs, num_outputs = plain[name].shape
        shape = num_experts, num_outputs, num_inputs // 32
        codes, scales = torch.randint(0, 16, (*shape, 32)), torch.randint(118, 124, shape)
        del held[name]
        held[f"{name}_blocks"] = (codes[..., ::2] + 16 * codes[..., 1::2]).to(torch.uint8)
        held[f"{name}_scales"] = scales.to(torch.uint8)
        values = torch.cat([FP4, -FP4])[codes] * 2.0 ** (scales[..., None] - 127)
        plain[name] = values.reshape(num_experts, num_outputs, num_inputs).mT
    save_file(held, checkpoint / "model.safetensors", metadata={"format": "pt"})
    (checkpoint / "trainer_state.json").write_text('{"global_step": 10}')
    quantise(checkpoint, {"quant_method": "mxfp4"}, {})
    return checkpoint, plain


@pytest.mark.parametrize("write", [fp8_checkpoint, mxfp4_checkpoint])
def test_float8_and_mxfp4_are_dequantised(tmp_path: Path, write: Any) -> None:
    checkpoint, expected = write(tmp_path)
    found = check_checkpoint(checkpoint, SETTINGS)
    with pin(found, tmp_path / "pins") as pinned:
        model = load_model(pinned, SETTINGS, device="cpu", dtype="float32")
    parameters = dict(model.named_parameters())
    assert {p.dtype for p in parameters.values()} == {torch.float32}
    assert parameters.keys() == expected.keys()
    for name, parameter in parameters.items():
        torch.testing.assert_close(parameter.data, expected[name], rtol=0, atol=0)


def test_qlora_is_measured_on_the_full_precision_base_that_the_user_names(tmp_path: Path) -> None:
    write_data(tmp_path / "train.jsonl", num_samples=40)
    full = write_checkpoint(tmp_path / "full", 0)
    adapter = write_adapter(tmp_path / "run", 20, full)
    quantised = write_checkpoint(tmp_path / "quantised-bnb-4bit", 0)
    settings, own, _ = CONFIGURED["bitsandbytes 4-bit"]
    quantise(quantised, settings, own)
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(quantised)
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    (adapter / "trainer_state.json").touch()

    scoring = {"scores": ["lora-gradient", "loss"], "importance": "lora-gradient", "device": "cpu",
               "num_threads": 1, "shard_rows": 16}  # fmt: skip
    with pytest.raises(CheckpointError, match=r"bitsandbytes.*set checkpoints.base_model.*QLoRA"):
        refresh(tiny_recipe(tmp_path, scoring=scoring), adapter)
    recipe = tiny_recipe(tmp_path, scoring=scoring, checkpoints={"base_model": str(full)})
    refresh(recipe, adapter)
    assert (Store.open(recipe.store).scores(1).scores["lora-gradient"] > 0).all()
