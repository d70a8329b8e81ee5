"""Real models: what transformers' Trainer writes is found, pinned and loaded."""

from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from gracekit.checkpoints import check_checkpoint, find_checkpoints, pin
from gracekit.checkpoints.devices import resolve_device, resolve_dtype
from gracekit.checkpoints.model import check_compatible, load_model, load_tokenizer
from gracekit.errors import (
    CheckpointError,
    CheckpointIncompleteError,
    CheckpointMismatchError,
    CheckpointVanishedError,
    RecipeError,
    StoreWriteError,
)
from gracekit.recipe import CheckpointSection
from gracekit.types import PinnedCheckpoint

torch.set_num_threads(1)
SETTINGS = CheckpointSection()
IDS = torch.tensor([[72, 101, 108, 108, 111]])


def tiny_tokenizer() -> Any:
    """Bytes as tokens, and an end-of-text token: 257 ids."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>"
    )


def tiny_model(*, tie: bool = True) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=260,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=tie,
    )
    return LlamaForCausalLM(config)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the Trainer: 6 steps, a checkpoint at every second, the last two kept."""
    root = tmp_path_factory.mktemp("run")
    tokenizer = tiny_tokenizer()
    rows = [{"input_ids": (i := tokenizer(f"sample {k}").input_ids), "labels": i} for k in range(6)]
    arguments = transformers.TrainingArguments(
        output_dir=str(root),
        max_steps=6,
        save_steps=2,
        save_total_limit=2,
        per_device_train_batch_size=1,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
        gradient_checkpointing=True,
    )
    trainer = transformers.Trainer(
        model=tiny_model(),
        args=arguments,
        train_dataset=rows,
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model(str(root / "final"))
    return root


@pytest.fixture
def checkpoint_dir(run_dir: Path, tmp_path: Path) -> Path:
    """A copy of the run's last checkpoint, to be harmed."""
    return Path(shutil.copytree(run_dir / "checkpoint-6", tmp_path / "checkpoint-6"))


@contextmanager
def pinned_at(directory: Path, tmp_path: Path) -> Iterator[PinnedCheckpoint]:
    with pin(check_checkpoint(directory, SETTINGS), tmp_path / "pins") as pinned:
        yield pinned


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model(input_ids=IDS).logits
    return out


def reference(directory: Path) -> torch.Tensor:
    """The slow twin: weights put by hand into a model made from the config."""
    model = LlamaForCausalLM(LlamaConfig.from_pretrained(directory)).eval()
    weights: dict[str, torch.Tensor] = {}
    for file in directory.glob("model*.safetensors"):
        weights |= load_file(file)
    model.load_state_dict(weights, strict=False)
    model.tie_weights()
    return logits(model)


def test_what_the_trainer_writes_is_found(run_dir: Path) -> None:
    found = find_checkpoints(run_dir, SETTINGS)
    assert [(c.step, c.path.name, c.layout) for c in found] == [
        (4, "checkpoint-4", "hf-trainer"),
        (6, "checkpoint-6", "hf-trainer"),
        (6, "final", "pretrained"),  # without a number: the step of the last before it
    ]


def test_the_loaded_model_is_that_of_the_checkpoint(
    run_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    capfd.readouterr()
    digests = set()
    for name in ("checkpoint-4", "checkpoint-6"):
        with pinned_at(run_dir / name, tmp_path) as pinned:
            model = load_model(pinned, SETTINGS, device="cpu", dtype="float32")
            tokenizer = load_tokenizer(pinned, SETTINGS)
            check_compatible(model, tokenizer)
            digests.add(pinned.digest)
        torch.testing.assert_close(logits(model), reference(run_dir / name))
        assert tokenizer.decode(tokenizer("Hé, you").input_ids) == "Hé, you"
    assert len(digests) == 2
    assert capfd.readouterr() == ("", "")
    assert isinstance(model, LlamaForCausalLM)
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert model.config.use_cache is False and not model.is_gradient_checkpointing
    assert model.config._attn_implementation == "sdpa"
    assert transformers.utils.logging.is_progress_bar_enabled()  # as it was


def test_shards_are_loaded(tmp_path: Path) -> None:
    tiny_model(tie=False).save_pretrained(tmp_path / "step-3", max_shard_size="20KB")
    assert len(list((tmp_path / "step-3").glob("model-*"))) > 3
    with pinned_at(tmp_path / "step-3", tmp_path) as pinned:
        model = load_model(pinned, SETTINGS, device="cpu", dtype="auto")
    torch.testing.assert_close(logits(model), reference(tmp_path / "step-3"))


def test_the_dtype_is_as_asked(run_dir: Path, tmp_path: Path) -> None:
    with pinned_at(run_dir / "checkpoint-6", tmp_path) as pinned:
        model = load_model(pinned, SETTINGS, device=torch.device("cpu"), dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_an_attention_kernel_of_the_trainer_is_not_needed(
    checkpoint_dir: Path, tmp_path: Path
) -> None:
    _edit_config(checkpoint_dir, attn_implementation="flash_attention_2")
    with pinned_at(checkpoint_dir, tmp_path) as pinned:
        model = load_model(pinned, SETTINGS, device="cpu", dtype="float32")
    assert isinstance(model, LlamaForCausalLM) and model.config._attn_implementation == "sdpa"


def test_loading_touches_no_network(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pinned_at(run_dir / "checkpoint-6", tmp_path) as pinned:
        load_model(pinned, SETTINGS, device="cpu", dtype="float32")
        load_tokenizer(pinned, SETTINGS)


def test_a_deleted_checkpoint_still_loads_while_pinned(
    checkpoint_dir: Path, tmp_path: Path
) -> None:
    expected = reference(checkpoint_dir)
    with pinned_at(checkpoint_dir, tmp_path) as pinned:
        shutil.rmtree(checkpoint_dir)
        model = load_model(pinned, SETTINGS, device="cpu", dtype="float32")
        load_tokenizer(pinned, SETTINGS)
    torch.testing.assert_close(logits(model), expected)


def test_a_loaded_model_does_not_change_with_its_files(
    checkpoint_dir: Path, tmp_path: Path
) -> None:
    """Written again in place, as a resumed run does: the pin shares its bytes with the original."""
    with pinned_at(checkpoint_dir, tmp_path) as pinned:
        model = load_model(pinned, SETTINGS, device="cpu", dtype="float32")
        expected = logits(model)
        weights = checkpoint_dir / "model.safetensors"
        num_bytes = weights.stat().st_size
        with weights.open("r+b") as file:
            file.write(b"\0" * num_bytes)
        torch.testing.assert_close(logits(model), expected)
        os.truncate(weights, 0)
        torch.testing.assert_close(logits(model), expected)
        with pytest.raises(CheckpointIncompleteError, match="written again"):
            load_model(pinned, SETTINGS, device="cpu", dtype="float32")


def test_weights_cut_off_or_gone_after_pinning(checkpoint_dir: Path, tmp_path: Path) -> None:
    with pinned_at(checkpoint_dir, tmp_path) as pinned:
        weights = pinned.directory / "model.safetensors"
        times = weights.stat()
        os.truncate(weights, times.st_size - 4)
        os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
        with pytest.raises(CheckpointIncompleteError, match="truncated"):
            load_model(pinned, SETTINGS, device="cpu", dtype="float32")
        weights.unlink()
        with pytest.raises(CheckpointIncompleteError, match="not there"):
            load_model(pinned, SETTINGS, device="cpu", dtype="float32")


@pytest.mark.parametrize("what", ["model.safetensors", "config.json", "everything"])
def test_read_in_place_it_may_vanish(checkpoint_dir: Path, what: str) -> None:
    checkpoint = check_checkpoint(checkpoint_dir, SETTINGS)
    in_place = PinnedCheckpoint(
        checkpoint=checkpoint, directory=checkpoint.path, digest="", is_linked=False
    )
    load_model(in_place, SETTINGS, device="cpu", dtype="float32")
    if what == "everything":
        shutil.rmtree(checkpoint_dir)
        with pytest.raises(CheckpointVanishedError):
            load_tokenizer(in_place, SETTINGS)
    else:
        (checkpoint_dir / what).unlink()
    with pytest.raises(CheckpointVanishedError, match="save_total_limit"):
        load_model(in_place, SETTINGS, device="cpu", dtype="float32")


def _edit_config(directory: Path, **changes: Any) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | changes))


def _edit_weights(
    change: Callable[[dict[str, torch.Tensor]], object],
) -> Callable[[Path], None]:
    def edit(directory: Path) -> None:
        weights = load_file(directory / "model.safetensors")
        change(weights)
        save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
        os.utime(directory / "trainer_state.json")

    return edit


Q_PROJ = "model.layers.0.self_attn.q_proj.weight"
MISMATCHES: dict[str, tuple[Callable[[Path], object], type[CheckpointError], str]] = {
    "missing weights": (
        _edit_weights(lambda w: w.pop(Q_PROJ)),
        CheckpointMismatchError,
        rf"does not hold all weights of its model: {Q_PROJ} missing\.",
    ),
    "wrapped weights": (
        _edit_weights(lambda w: [w.update({f"_orig_mod.{n}": w.pop(n)}) for n in list(w)]),
        CheckpointMismatchError,
        r"more missing; found instead _orig_mod\.model\.",
    ),
    "another shape": (
        _edit_weights(lambda w: w.update({Q_PROJ: torch.zeros(8, 32)})),
        CheckpointMismatchError,
        rf"{Q_PROJ} \(8, 32\) not \(32, 32\)",
    ),
    "unknown architecture": (
        lambda d: _edit_config(d, model_type="nosuch"),
        CheckpointMismatchError,
        r"cannot make a causal language model of .*model_type 'nosuch'",
    ),
    "no language model": (
        lambda d: _edit_config(d, model_type="clip"),
        CheckpointMismatchError,
        r"cannot make a causal language model of .*model_type 'clip'",
    ),
    "own code": (
        lambda d: _edit_config(
            d, model_type="mine", auto_map={"AutoConfig": "mine.C", "AutoModelForCausalLM": "m.M"}
        ),
        CheckpointError,
        "brings its own model code; .* checkpoints.trust_remote_code: true",
    ),
}


@pytest.mark.parametrize(("harm", "error", "reason"), MISMATCHES.values(), ids=MISMATCHES.keys())
def test_a_model_that_does_not_fit_says_why(
    checkpoint_dir: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    harm: Callable[[Path], object],
    error: type[CheckpointError],
    reason: str,
) -> None:
    harm(checkpoint_dir)
    capfd.readouterr()
    with (
        pinned_at(checkpoint_dir, tmp_path) as pinned,
        pytest.raises(error, match=reason) as caught,
    ):
        load_model(pinned, SETTINGS, device="cpu", dtype="float32")
    assert type(caught.value) is error and "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_extra_weights_do_no_harm_and_are_named(
    checkpoint_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = reference(checkpoint_dir)
    _edit_weights(lambda w: w.update({"value_head.weight": torch.zeros(1, 32)}))(checkpoint_dir)
    with pinned_at(checkpoint_dir, tmp_path) as pinned:
        model = load_model(pinned, SETTINGS, device="cpu", dtype="float32")
    torch.testing.assert_close(logits(model), expected)
    assert "no place for, which are left out: value_head.weight." in caplog.text


def test_model_code_runs_only_when_trusted(
    checkpoint_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "m"))
    (checkpoint_dir / "mine.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class MyConfig(LlamaConfig):\n    model_type = 'mine'\n"
        "class MyModel(LlamaForCausalLM):\n    config_class = MyConfig\n"
    )
    auto_map = {"AutoConfig": "mine.MyConfig", "AutoModelForCausalLM": "mine.MyModel"}
    _edit_config(checkpoint_dir, model_type="mine", auto_map=auto_map)
    os.utime(checkpoint_dir / "trainer_state.json")
    trusting = CheckpointSection(trust_remote_code=True)
    with pinned_at(checkpoint_dir, tmp_path) as pinned:
        model = load_model(pinned, trusting, device="cpu", dtype="float32")
        assert type(model).__name__ == "MyModel"
        with pytest.raises(CheckpointError, match="trust_remote_code"):
            load_model(pinned, SETTINGS, device="cpu", dtype="float32")


def test_the_tokenizer_may_lie_elsewhere(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "step-1")
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    with pinned_at(tmp_path / "step-1", tmp_path) as pinned:
        with pytest.raises(CheckpointError, match=r"holds no tokenizer; name a directory"):
            load_tokenizer(pinned, SETTINGS)
        with pytest.raises(CheckpointError, match=r"checkpoints.tokenizer: expected a directory"):
            load_tokenizer(pinned, CheckpointSection(tokenizer=str(tmp_path / "nowhere")))
        elsewhere = CheckpointSection(tokenizer=str(tmp_path / "tokenizer"))
        assert len(load_tokenizer(pinned, elsewhere)) == 257
        (tmp_path / "tokenizer/tokenizer.json").write_text("{")
        with pytest.raises(CheckpointError, match=r"cannot load the tokenizer of .*tokenizer: "):
            load_tokenizer(pinned, elsewhere)


def test_a_tokenizer_with_more_ids_than_the_model_is_refused() -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    check_compatible(model, tokenizer)
    tokenizer.add_tokens([f"<{i}>" for i in range(3)])
    check_compatible(model, tokenizer)
    tokenizer.add_tokens(["<one more>"])
    with pytest.raises(CheckpointMismatchError, match=r"ids up to 260, .* embeds only 260"):
        check_compatible(model, tokenizer)


def test_devices_and_dtypes() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type in ("cpu", "cuda", "mps")
    assert resolve_dtype("auto", torch.device("cpu")) == torch.float32
    assert resolve_dtype("auto", torch.device("cuda")) == torch.bfloat16
    assert resolve_dtype("float16", torch.device("cpu")) == torch.float16
    for name, reason in [("cuda:99", "finds no cuda:99 here"), ("gpu", "'gpu' is no device")]:
        with pytest.raises(RecipeError, match=reason):
            resolve_device(name)
    with pytest.raises(RecipeError, match="use auto, float32"):
        resolve_dtype("int8", torch.device("cpu"))


@pytest.mark.parametrize(
    ("claim", "what"),
    [({"num_hidden_layers": 2**31}, "layers"), ({"vocab_size": 10**8}, "parameters")],
)
def test_a_config_that_claims_more_than_the_weights_takes_no_memory(
    tmp_path: Path, claim: dict[str, int], what: str
) -> None:
    """The layers are not made one by one, nor what is missing filled with random numbers."""
    tiny_model().save_pretrained(tmp_path / "step-1")
    content = json.loads((tmp_path / "step-1/config.json").read_text()) | claim
    (tmp_path / "step-1/config.json").write_text(json.dumps(content))
    with (
        pinned_at(tmp_path / "step-1", tmp_path) as pinned,
        pytest.raises(CheckpointMismatchError, match=rf"{what}, and its weights"),
    ):
        load_model(pinned, SETTINGS, device="cpu")


def test_no_place_for_temporary_files_is_not_the_checkpoints_fault(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch asks for one as it is loaded."""
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/nowhere/at/all"])
    with (
        pinned_at(run_dir / "checkpoint-6", tmp_path) as pinned,
        pytest.raises(StoreWriteError, match=r"temporary files anywhere: .*set TMPDIR"),
    ):
        load_model(pinned, SETTINGS)
