"""The Adam direction against a real step of torch's optimizer, and how its state is found."""

from __future__ import annotations

import copy
import logging
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from gracekit import refresh
from gracekit.checkpoints.optimizer import AdamState, read_adam_state
from gracekit.model_pass.adam import AdamNorm
from gracekit.model_pass.context import LocalContext
from gracekit.model_pass.gradient_scores import GradientNorm
from gracekit.model_pass.layers import linear_layers
from gracekit.model_pass.sketch import KroneckerSketch
from gracekit.protocols import Reader
from gracekit.store import Store
from tests.stores import optimizer_of
from tests.test_scoring_experts import experts
from tests.test_scoring_pass import RELATIVE, Sample, make_samples, mean_loss, run, tiny
from tests.tiny import tiny_recipe, write_checkpoint, write_data

LEARNING_RATE = 1e-3


def trained(model: Any, optimizer: torch.optim.Optimizer, samples: list[Sample]) -> None:
    """Some steps on other samples, so that the moments are what moments are."""
    for sample in samples:
        optimizer.zero_grad()
        torch.autograd.backward(mean_loss(model, sample))
        optimizer.step()
    optimizer.zero_grad()


def adam_norms(model: Any, state: AdamState, samples: list[Sample]) -> torch.Tensor:
    reader: Reader = AdamNorm()
    reader.bind(LocalContext(sketch=KroneckerSketch(4, 0), optimizer=state))
    return run(model, [reader], samples)[0]


@pytest.mark.parametrize(
    "name",
    ["llama", "llama-tied-bias", "gpt2", "qwen2", "mixtral", "gpt-oss", "mixtral with LoRA"],
)
@pytest.mark.parametrize("eps", [1e-8, 1e-3])
def test_direction_is_what_a_real_step_moves_by(tmp_path: Path, name: str, eps: float) -> None:
    model = experts(name)
    moving = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(moving, lr=LEARNING_RATE, eps=eps, betas=(0.8, 0.95))
    trained(model, optimizer, make_samples((9, 8, 7), seed=5))
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    state = read_adam_state(tmp_path, model)
    assert state.reason is None and state.step == 3 and state.betas == (0.8, 0.95)
    samples = make_samples()
    found = adam_norms(model, state, samples)
    layers = [layer for layer in linear_layers(model) if layer.is_trained]
    weights = {id(p) for layer in layers for p in (layer.parameter, layer.bias)}
    for i, sample in enumerate(samples):
        moved = copy.deepcopy(model)
        moving = [p for p in moved.parameters() if p.requires_grad]
        after = torch.optim.Adam(moving, lr=LEARNING_RATE, eps=eps)
        after.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        torch.autograd.backward(mean_loss(moved, sample))
        moved.double()  # the step itself in float64: a difference of weights keeps few digits
        for parameter in moved.parameters():
            if parameter in after.state:
                entry = after.state[parameter]
                entry["exp_avg"] = entry["exp_avg"].double()
                entry["exp_avg_sq"] = entry["exp_avg_sq"].double()
        before = [p.detach().clone() for p in moved.parameters()]
        after.step()
        squares = sum(
            float(((new.detach() - old) / LEARNING_RATE).square().sum())
            for old, new, ours in zip(before, moved.parameters(), model.parameters(), strict=True)
            if id(ours) in weights
        )
        assert found[i] == pytest.approx(squares**0.5, rel=RELATIVE)


def trainer_checkpoint(folder: Path, base: Path, **settings: Any) -> tuple[Any, Any]:
    """A real Trainer's run of three steps: its model, and its optimizer."""
    model = AutoModelForCausalLM.from_pretrained(base)
    if lora := settings.pop("lora", ""):
        saved = ["o_proj"] if lora == "with modules" else None
        config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], modules_to_save=saved)
        model = get_peft_model(model, config)
    rows = [
        {"input_ids": ids.tolist(), "labels": ids.tolist()}
        for ids, _ in make_samples((8,) * 6, seed=2)
    ]
    for row in rows:
        row["input_ids"] = row["labels"] = [i % 60 for i in row["input_ids"]]
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=3, per_device_train_batch_size=2, save_steps=3,
        report_to=[], use_cpu=True, disable_tqdm=True, **settings,
    )  # fmt: skip
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    trainer.train()
    return trainer.model, trainer.optimizer


@pytest.mark.parametrize("lora", ["", "alone", "with modules"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_state_of_a_real_trainer_is_matched(tmp_path: Path, lora: str, weight_decay: float) -> None:
    base = write_checkpoint(tmp_path / "base", 0)
    model, optimizer = trainer_checkpoint(
        tmp_path / "run", base, weight_decay=weight_decay, lora=lora
    )
    wrapped = getattr(optimizer, "optimizer", optimizer)
    plain = model.get_base_model() if lora else model
    state = read_adam_state(tmp_path / "run/checkpoint-3", plain)
    assert state.reason is None, state.reason
    assert state.facts()["matched_by"] in ("name", "the Trainer's order, and shape")
    assert state.step == 3
    trainable = [p for p in plain.parameters() if p.requires_grad]
    assert len(state.parameters) == len(trainable) > 0
    for parameter in trainable:
        moments = state.moments(parameter)
        assert moments is not None
        torch.testing.assert_close(moments[0], wrapped.state[parameter]["exp_avg"])
        torch.testing.assert_close(moments[1], wrapped.state[parameter]["exp_avg_sq"])


def test_names_are_believed_before_order(tmp_path: Path) -> None:
    model = tiny("llama")
    parameters = list(model.named_parameters())[::-1]
    optimizer = torch.optim.AdamW([(f"module.{n}", p) for n, p in parameters], lr=1e-3)
    trained(model, optimizer, make_samples((9, 8)))
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    state = read_adam_state(tmp_path, model)
    assert state.how == "name"
    for _, parameter in parameters:
        moments = state.moments(parameter)
        assert moments is not None
        torch.testing.assert_close(moments[0], optimizer.state[parameter]["exp_avg"])


class Explosive:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("exploded"),)


def save_sgd(directory: Path, model: Any) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    trained(model, optimizer, make_samples((9,)))
    torch.save(optimizer.state_dict(), directory / "optimizer.pt")


def save_part(directory: Path, model: Any) -> None:
    optimizer = torch.optim.Adam(list(model.parameters())[:5], lr=0.1)
    trained(model, optimizer, make_samples((9,)))
    torch.save(optimizer.state_dict(), directory / "optimizer.pt")


def save_amsgrad(directory: Path, model: Any) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, amsgrad=True)
    trained(model, optimizer, make_samples((9,)))
    torch.save(optimizer.state_dict(), directory / "optimizer.pt")


def save_pickle(directory: Path, model: Any) -> None:
    (directory / "optimizer.pt").write_bytes(pickle.dumps(Explosive()))


def save_list(directory: Path, model: Any) -> None:
    torch.save([1, 2], directory / "optimizer.pt")


@pytest.mark.parametrize(
    ("save", "reason"),
    [
        (lambda directory, model: None, "there is no optimizer.pt or optimizer.bin"),
        (save_sgd, "exp_avg_sq for every parameter, found \\['momentum_buffer'\\]"),
        (save_part, "its 5 parameters fit the model's neither by name nor"),
        (save_amsgrad, "AMSGrad"),
        (save_pickle, "cannot read optimizer.pt: "),
        (save_list, "is not the state of a torch optimizer"),
    ],
)
def test_state_that_cannot_be_used_is_said_aloud(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    save: Any,
    reason: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    model = tiny("llama")
    save(tmp_path, model)
    state = read_adam_state(tmp_path, model)
    assert not Path("exploded").exists()
    assert re.search(reason, state.reason or "")
    assert "plain gradients are used instead" in caplog.text
    samples = make_samples()
    model.requires_grad_(False)
    torch.testing.assert_close(
        adam_norms(model, state, samples),
        run(model, [GradientNorm()], samples)[0]
        * torch.tensor([float(mask[1:].sum()) for _, mask in samples]).sqrt(),
    )


def test_refresh_says_in_the_header_what_was_matched(tmp_path: Path) -> None:
    write_data(tmp_path / "train.jsonl", num_samples=60)
    base = write_checkpoint(tmp_path / "base", 0)
    trainer_checkpoint(tmp_path / "trained", base)
    scoring = {"scores": ["adam-norm", "loss"], "importance": "adam-norm", "device": "cpu",
               "num_threads": 1, "shard_rows": 16}  # fmt: skip
    recipe = tiny_recipe(tmp_path, scoring=scoring)
    run_dir = tmp_path / "run"
    for step in (100, 200):
        directory = write_checkpoint(run_dir, step)
        if step == 100:
            state = (tmp_path / "trained/checkpoint-3/optimizer.pt").read_bytes()
            (directory / "optimizer.pt").write_bytes(state)
        refresh(recipe, directory)
    store = Store.open(recipe.store)
    first, second = (optimizer_of(store.header(v)) for v in (1, 2))
    assert first["used"] and first["num_parameters"] == 21 and first["step"] == 3
    assert not second["used"] and "there is no optimizer.pt" in second["reason"]
    assert np.isfinite(store.scores(2).scores["adam-norm"]).all()


def test_adapters_direction_is_of_the_adapter(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", 0)
    model, _ = trainer_checkpoint(tmp_path / "run", base, lora="alone")
    plain = model.get_base_model()
    state = read_adam_state(tmp_path / "run/checkpoint-3", plain)
    reader = AdamNorm()
    wanted = [layer.is_adapter for layer in linear_layers(plain) if reader.wants(layer)]
    assert wanted and all(wanted)
    samples = [(ids % 60, mask) for ids, mask in make_samples()]
    assert (adam_norms(plain, state, samples) > 0).all()
