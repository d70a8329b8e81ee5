"""The guides of docs/trainers: their code runs as it stands there, and trains on the coreset."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from transformers import LlamaConfig, LlamaForCausalLM

import gracekit
from gracekit.cli import main
from gracekit.recipe import Recipe
from gracekit.store import StoreReader
from gracekit.training import Coreset
from gracekit.training.measured import Measured
from gracekit.types import Json
from tests.guides import (
    DOCS,
    NUM_ROWS,
    axolotl_configuration,
    blocks,
    guide,
    make_world_of_templates,
    run_swift,
    swift_plugin,
    write_rows,
)
from tests.tiny import make_tokenizer, write_checkpoint

torch.set_num_threads(1)
GUIDES = sorted(path.stem for path in (DOCS / "trainers").glob("*.md"))
MOST_LINES = 20


def commands(name: str) -> list[list[str]]:
    return [shlex.split(line)[1:] for line in re.findall(r"^    (gracekit .*)$", guide(name), re.M)]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """A store and a recipe by the names that the guides use, in the present directory."""
    monkeypatch.chdir(tmp_path)
    write_rows()
    gracekit.init("train.jsonl")
    found = Recipe.load("gracekit.yaml").override(
        {"scoring.device": "cpu", "selection.fraction": 0.34, "refresh.max_cost": None}
    )
    gracekit.refresh(found, write_checkpoint(tmp_path / "run", 10))
    return found


def selected() -> set[int]:
    return set(Coreset.load("gracekit-store").source_rows.tolist())


def measured_rows() -> list[Json]:
    """What a trainer's dataset has: the tokens that were measured, in the order of the data."""
    measured = Measured.of_store(StoreReader.open("gracekit-store"))
    rows = []
    for position in range(NUM_ROWS):
        tokens = measured.tokens(measured.row_at[position])
        assert tokens is not None
        ids, has_loss = tokens
        labels = np.where(has_loss, ids, -100).tolist()
        rows.append({"input_ids": ids.tolist(), "labels": labels})
    return rows


PADDING = {"input_ids": 0, "labels": -100, "attention_mask": 0}


def collate(rows: list[Json]) -> dict[str, torch.Tensor]:
    rows = [{**row, "attention_mask": [1] * len(row["input_ids"])} for row in rows]
    length = max(len(row["input_ids"]) for row in rows)
    return {
        name: torch.tensor([row[name] + [pad] * (length - len(row[name])) for row in rows])
        for name, pad in PADDING.items()
    }


def positions(batch: Any) -> list[int]:
    """Places in the data of the rows of a batch, by their tokens."""
    place = {tuple(row["input_ids"]): k for k, row in enumerate(measured_rows())}
    assert len(place) == NUM_ROWS
    pad = PADDING["input_ids"]
    return [place[tuple(t for t in row if t != pad)] for row in batch["input_ids"].tolist()]


def with_own_coreset(code: str) -> str:
    """A guide's code that draws the version's own coreset, so that it is known what is drawn."""
    made = r'(= Coreset\w+\(\s*"gracekit-store"(?:[^()]|\([^()]*\))*?),?\s*\)$'
    found = re.sub(made, r'\1, redraw="never")', code, flags=re.M)
    assert found != code
    return found


def require_selected(epochs: list[list[int]]) -> None:
    """Each epoch has all selected rows and no others, each as often."""
    for drawn in epochs:
        assert set(drawn) == selected()
        assert set(Counter(drawn).values()) == {len(drawn) // len(selected())}


@pytest.mark.parametrize("name", GUIDES)
def test_a_guide_is_short_and_is_listed(name: str) -> None:
    code = "".join(blocks(name, "python") + blocks(name, "yaml"))
    shown = [line for line in code.splitlines() if line.strip()] + commands(name)
    assert 0 < len(shown) <= MOST_LINES
    assert f"(trainers/{name}.md)" in (DOCS / "trainers.md").read_text("utf-8")


@pytest.mark.parametrize("name", [name for name in GUIDES if commands(name)])
def test_the_exports_of_a_guide_are_written(world: Recipe, name: str) -> None:
    Path("data").mkdir()
    for arguments in commands(name):
        done = CliRunner().invoke(main, [*arguments, "--json"], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        written = json.loads(done.stdout)
        assert written["num_rows"] == len(Coreset.load("gracekit-store"))
        place = "--versions-in" if "--versions-in" in arguments else "-o"
        named = Path(arguments[arguments.index(place) + 1])
        assert all((Path(written["path"]) / file).exists() for file in written["files"])
        assert (named / "latest").exists() == (place == "--versions-in")
    if name == "llamafactory":
        (told,) = (yaml.safe_load(text) for text in blocks(name, "yaml"))
        assert Path(told["dataset_dir"]).absolute() == Path(written["dataset_dir"])
        assert told["dataset"] == written["dataset"]


def run_loop(name: str, edit: Callable[[str], str]) -> tuple[list[list[int]], int]:
    """Positions of each batch that a guide's own loop trains on, and the version at its end."""
    (code,) = blocks(name, "python")
    fed: list[list[int]] = []
    space: dict[str, Any] = {
        "dataset": measured_rows(),
        "collate": collate,
        "train_step": lambda batch: fed.append(positions(batch)),
        "save_checkpoint": lambda step: None,
    }
    exec(compile(edit(code), f"docs/trainers/{name}.md", "exec"), space)
    if name == "torchtune":
        fed += [positions(batch) for batch in space["loader"]]
    sampler = space["stream"].sampler if name == "streaming" else space["sampler"]
    return fed, sampler.version


@pytest.mark.parametrize("name", ["pytorch", "streaming", "torchtune"])
@pytest.mark.usefixtures("world")
def test_loops_train_on_the_coreset(name: str) -> None:
    num_samples = NUM_ROWS if name == "torchtune" else NUM_ROWS // 3
    num_epochs = 1 if name == "torchtune" else 3
    fed, version = run_loop(name, str)
    assert version == 1
    assert sum(map(len, fed)) == num_samples * num_epochs
    fed, version = run_loop(name, with_own_coreset)
    assert version == 1
    drawn = [p for batch in fed for p in batch]
    require_selected([drawn[k : k + num_samples] for k in range(0, len(drawn), num_samples)])


def make_model() -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=64, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                    num_attention_heads=1)
    )  # fmt: skip


def note_batches(model: Any) -> list[list[int]]:
    fed: list[list[int]] = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: fed.append(positions(kwargs)),
        with_kwargs=True,
    )
    return fed


EDITS = pytest.mark.parametrize("edit", [str, with_own_coreset], ids=["as it is", "own coreset"])


def require_coresets(fed: list[list[int]], state: Any, *, is_own: bool) -> None:
    """Of two epochs, each as long as the coreset, in batches of four."""
    drawn = [p for batch in fed for p in batch]
    assert len(drawn) == 2 * (NUM_ROWS // 3)
    versions = [e["coreset_version"] for e in state.log_history if "coreset_version" in e]
    assert versions == [1, 1]
    if is_own:
        require_selected([drawn[: NUM_ROWS // 3], drawn[NUM_ROWS // 3 :]])


@EDITS
@pytest.mark.usefixtures("world")
def test_the_trainer_of_hugging_face(tmp_path: Path, edit: Callable[[str], str]) -> None:
    from transformers import TrainingArguments

    model = make_model()
    fed = note_batches(model)
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "out"), num_train_epochs=2, per_device_train_batch_size=4,
        save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True,
        dataloader_pin_memory=False,
    )  # fmt: skip
    space: dict[str, Any] = {"model": model, "args": arguments, "train_dataset": measured_rows()}
    (code,) = blocks("huggingface", "python")
    code = edit(code).replace("args=args,", "args=args, data_collator=collate,")
    space["collate"] = collate
    exec(compile(code, "docs/trainers/huggingface.md", "exec"), space)
    require_coresets(fed, space["trainer"].state, is_own=edit is not str)
    names = {name for entry in space["trainer"].state.log_history for name in entry}
    assert {"coreset/version", "coreset_version"} <= names
    for name in re.findall(r"`(coreset/\w+)`", guide("huggingface")):
        assert name.removeprefix("coreset/") in ["version", "value", "churn", "cost_share"]


@EDITS
@pytest.mark.trl
@pytest.mark.filterwarnings("default")
@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="not installed")
def test_trl(world: Recipe, tmp_path: Path, edit: Callable[[str], str]) -> None:
    import trl

    model = make_model()
    arguments = trl.SFTConfig(
        output_dir=str(tmp_path / "out"), num_train_epochs=2, per_device_train_batch_size=4,
        save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True, bf16=False,
        dataloader_pin_memory=False, gradient_checkpointing=False, max_length=64,
    )  # fmt: skip
    space: dict[str, Any] = {
        "model": model,
        "args": arguments,
        "train_dataset": datasets.Dataset.from_list(measured_rows()),
        "tokenizer": make_tokenizer(),
    }
    fed = note_batches(model)
    (code,) = blocks("trl", "python")
    exec(compile(edit(code), "docs/trainers/trl.md", "exec"), space)
    require_coresets(fed, space["trainer"].state, is_own=edit is not str)
    # The file, too: what SFTTrainer makes of it are the rows of the coreset.
    gracekit.export(world.store, "data/subset", format="trl")
    loaded = datasets.load_dataset("data/subset", split="train", cache_dir=str(tmp_path / "cache"))
    assert set(loaded["sample_id"]) == set(Coreset.load("gracekit-store").sample_ids)


@pytest.mark.formats
@pytest.mark.filterwarnings("default")
@pytest.mark.skipif(importlib.util.find_spec("lightning") is None, reason="not installed")
@pytest.mark.usefixtures("world")
def test_lightning(tmp_path: Path) -> None:
    import lightning

    fed: dict[int, list[int]] = {}

    class Module(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = make_model()

        def training_step(self, batch: Any, index: int) -> Any:
            found = fed.setdefault(self.current_epoch, [])
            found.extend(positions(batch))
            return self.model(**batch).loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, default_root_dir=tmp_path,
    )  # fmt: skip
    space: dict[str, Any] = {
        "dataset": measured_rows(), "collate": collate, "trainer": trainer, "module": Module(),
    }  # fmt: skip
    (code,) = blocks("lightning", "python")
    exec(compile(code, "docs/trainers/lightning.md", "exec"), space)
    sampler = space["sampler"]
    assert [turn.epoch for turn in sampler.version_log] == [0, 1]
    for epoch in (0, 1):
        assert fed[epoch] == sampler.order(epoch).tolist()


def test_the_lines_for_axolotl_are_those_of_the_plugin() -> None:
    (text,) = blocks("axolotl", "yaml")
    told = yaml.safe_load(text)
    module, name = told["plugins"][0].rsplit(".", 1)
    source = Path(*module.split(".")).with_suffix(".py")
    assert f"class {name}(" in (DOCS.parent / source).read_text("utf-8")
    assert told["gracekit"].keys() <= {"store", "num_samples"}


def require_exactly_the_coreset(record: Path) -> None:
    """Of two epochs, each as long as the coreset."""
    drawn = [json.loads(line) for line in record.read_text().splitlines()]
    coreset = Coreset.load("gracekit-store")
    assert [(line["epoch"], line["version"]) for line in drawn] == [(1, 1), (2, 1)]
    for line in drawn:
        assert len(coreset) == len(line["sample_ids"]) == 8
        assert set(line["sample_ids"]) == set(coreset.sample_ids)


@pytest.mark.axolotl
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("rendering", ["axolotl", "auto"])
def test_axolotl_trains_on_the_coreset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rendering: str
) -> None:
    """Its own training with the guide's plugin, with its own shuffle of the data."""
    pytest.importorskip("axolotl.train", exc_type=ImportError)
    from axolotl.cli.config import load_cfg
    from axolotl.common.datasets import load_datasets
    from axolotl.train import train

    monkeypatch.chdir(tmp_path)
    tokens = make_world_of_templates(**{"data.rendering": rendering})
    Path("axolotl.yaml").write_text(axolotl_configuration(tokens.pad_token))
    cfg = load_cfg("axolotl.yaml")
    data = load_datasets(cfg=cfg)
    order = [tokens.decode(ids) for ids in data.train_dataset["input_ids"]]
    assert [f"is {i} large" in text for i, text in enumerate(order)] != [True] * NUM_ROWS
    train(cfg=cfg, dataset_meta=data)
    require_exactly_the_coreset(Path("drawn.jsonl"))


SWIFT = pytest.mark.skipif(importlib.util.find_spec("swift") is None, reason="not installed")


@pytest.mark.swift
@pytest.mark.filterwarnings("default")
@SWIFT
def test_ms_swift_trains_on_the_coreset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_world_of_templates(**{"data.loss_on": "all"})
    Path("coresets.py").write_text(swift_plugin())
    run_swift()
    require_exactly_the_coreset(Path("drawn.jsonl"))


@pytest.mark.swift
@pytest.mark.filterwarnings("default")
@SWIFT
def test_ms_swift_keeps_its_loader_where_nothing_can_be_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The rows have other tokens than those that were measured."""
    monkeypatch.chdir(tmp_path)
    make_world_of_templates(**{"data.rendering": "plain"})
    Path("coresets.py").write_text(swift_plugin())
    run_swift()
    assert "keeps its own data loader, without coresets: no coreset can be drawn" in caplog.text
    assert not Path("drawn.jsonl").exists()
