"""Whole training runs of libraries that read an export: what they are fed is the version.

`make matrix` makes the environments.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import gracekit
from gracekit.checkpoints import find_checkpoints
from gracekit.recipe import CheckpointSection
from gracekit.store import StoreReader
from gracekit.training import Coreset
from gracekit.training.measured import Measured
from tests.guides import DOCS, blocks, make_world_of_templates, refresh_at
from tests.patience import LAST_RESORT_S
from tests.torchtune_components import FED

pytestmark = [pytest.mark.matrix, pytest.mark.filterwarnings("ignore")]


def questions() -> list[str]:
    """Of each row of the data."""
    lines = Path("train.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line)["messages"][0]["content"] for line in lines]


NUM_SELECTED = 8
"""Rows of the version of the world."""


# --- torchtune


def sentencepiece_model(path: Path) -> Any:
    """A tokenizer of the kind that torchtune reads for Llama 2, of the words of the data."""
    sentencepiece = pytest.importorskip("sentencepiece")
    texts = [m["content"] for line in Path("train.jsonl").read_text().splitlines()
             for m in json.loads(line)["messages"]]  # fmt: skip
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*texts, "[INST] [/INST]"]), model_prefix=str(path / "tokenizer"),
        vocab_size=60, model_type="char", pad_id=3, minloglevel=2, character_coverage=1.0,
        hard_vocab_limit=False,
    )  # fmt: skip
    return sentencepiece.SentencePieceProcessor(str(path / "tokenizer.model"))


def torchtune_configuration(dataset: str) -> dict[str, Any]:
    """The recipe's configuration for the world, a CPU and two epochs, with an export's dataset."""
    vocab_size = json.loads(Path("base/config.json").read_text())["vocab_size"]
    return {
        **yaml.safe_load(Path(dataset).read_text()),
        "output_dir": "out",
        "tokenizer": {"_component_": "torchtune.models.llama2.llama2_tokenizer",
                      "path": "tokenizer.model", "max_seq_len": 128},
        "model": {"_component_": "tests.torchtune_components.llama2", "vocab_size": vocab_size,
                  "num_layers": 1, "num_heads": 2, "num_kv_heads": 2, "embed_dim": 16,
                  "intermediate_dim": 16, "max_seq_len": 256, "norm_eps": 1e-6},
        "checkpointer": {"_component_": "torchtune.training.FullModelHFCheckpointer",
                         "checkpoint_dir": "base", "checkpoint_files": ["model.safetensors"],
                         "recipe_checkpoint": None, "output_dir": "out", "model_type": "LLAMA2"},
        "resume_from_checkpoint": False, "seed": 0, "shuffle": True, "batch_size": 4,
        "epochs": 2, "optimizer": {"_component_": "torch.optim.AdamW", "lr": 1e-3},
        "optimizer_in_bwd": False, "loss": {"_component_": "torch.nn.CrossEntropyLoss"},
        "max_steps_per_epoch": None, "gradient_accumulation_steps": 1, "clip_grad_norm": None,
        "compile": False, "device": "cpu", "dtype": "fp32",
        "enable_activation_checkpointing": False, "enable_activation_offloading": False,
        "metric_logger": {"_component_": "torchtune.training.metric_logging.DiskLogger",
                          "log_dir": "out/logs"},
        "log_every_n_steps": 1, "log_peak_memory_stats": False,
        "collate_fn": "tests.torchtune_components.noting",
    }  # fmt: skip


def tune(num_ranks: int) -> None:
    """`tune run` as its users call it."""
    recipe = ["full_finetune_single_device"]
    if num_ranks > 1:
        recipe = ["--nproc_per_node", str(num_ranks), "full_finetune_distributed"]
    done = subprocess.run(
        [sys.executable, "-m", "torchtune._cli.tune", "run", *recipe, "--config", "tune.yaml"],
        env={**os.environ, "PYTHONPATH": str(DOCS.parent)}, capture_output=True, text=True,
        timeout=LAST_RESORT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


@pytest.fixture
def pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The world in the present directory, and torchtune's tokenizer for it."""
    pytest.importorskip("torchtune")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    tokens = make_world_of_templates()
    made = sentencepiece_model(Path())
    assert made.vocab_size() <= len(tokens)
    return made


def tune_on_export(
    name: str, pieces: Any, *, goes_on_at: Path | None = None, num_ranks: int = 1, **changes: Any
) -> list[int]:
    """The version exported and trained on; the rows that were fed, in their order."""
    gracekit.export("gracekit-store", name, format="torchtune", weights="repeat")
    told = torchtune_configuration(f"{name}/torchtune.yaml")
    if goes_on_at is not None:
        (weights,) = goes_on_at.glob("*.safetensors")
        changes["resume_from_checkpoint"] = True
        told["checkpointer"]["checkpoint_files"] = [str(weights.relative_to("out"))]
    Path("tune.yaml").write_text(yaml.safe_dump(told | changes))
    Path(FED).unlink(missing_ok=True)
    tune(num_ranks)
    asked = questions()
    batches = [json.loads(line) for line in Path(FED).read_text().splitlines()]
    texts = [pieces.decode(row) for fed in batches for row in fed]
    named = [[k for k, question in enumerate(asked) if question in text] for text in texts]
    assert all(len(found) == 1 for found in named), texts
    return [found[0] for found in named]


def selected() -> list[int]:
    return sorted(Coreset.load("gracekit-store").source_rows.tolist())


@pytest.mark.parametrize("batch", [4, 3])
def test_torchtune_trains_on_an_export(pieces: Any, batch: int) -> None:
    """Each epoch, shuffled by torchtune, is the version.

    Of a last batch that is not full torchtune drops the rows.
    """
    rows = tune_on_export("subset", pieces, batch_size=batch)
    wanted = selected()
    assert len(wanted) == NUM_SELECTED
    num_fed = NUM_SELECTED // batch * batch
    epochs = rows[:num_fed], rows[num_fed:]
    for epoch in epochs:
        assert len(epoch) == num_fed == len(set(epoch))
        assert set(epoch) <= set(wanted)
    assert epochs[0] != epochs[1]


def test_two_ranks_of_torchtune(pieces: Any) -> None:
    """Sharded by FSDP2; each epoch of both together is the version."""
    rows = tune_on_export("subset", pieces, num_ranks=2, batch_size=2, epochs=1)
    assert sorted(rows) == selected()
    found = find_checkpoints(Path("out"), CheckpointSection(settle_s=0))
    assert [(c.step, c.layout) for c in found] == [(0, "pretrained")]
    refresh_at(found[-1].path)
    assert Coreset.load("gracekit-store").version == 2


def test_torchtune_goes_on_with_a_new_version(pieces: Any) -> None:
    """Measured with the checkpoint of the first epoch, and trained on in the second one.

    As when the run is stopped in its second epoch: after the last torchtune keeps no state.
    """
    first = selected()
    assert sorted(tune_on_export("subset-1", pieces)) == sorted(2 * first)
    found = find_checkpoints(Path("out"), CheckpointSection(settle_s=0))
    assert [(c.step, c.layout) for c in found] == [(0, "pretrained"), (1, "pretrained")]
    shutil.rmtree(found[1].path)
    refresh_at(found[0].path, **{"selection.fraction": 0.5})
    assert Coreset.load("gracekit-store").version == 2
    rows = tune_on_export("subset-2", pieces, goes_on_at=Path("out/epoch_0"), batch_size=1)
    asked = questions()
    lines = Path("subset-2/coreset.jsonl").read_text("utf-8").splitlines()
    exported = [json.loads(line) for line in lines]
    wanted = [asked.index(row["messages"][0]["content"]) for row in exported]
    assert sorted(rows) == sorted(wanted)  # with their copies
    assert set(first) != set(rows) <= set(selected())
    found = find_checkpoints(Path("out"), CheckpointSection(settle_s=0))
    assert [c.step for c in found] == [0, 1]


# --- torchtitan


def documents(loader: Any, num: int) -> list[tuple[list[int], list[int]]]:
    """The first rows that a loader packs, taken apart: tokens and labels, padding left out."""
    found: list[tuple[list[int], list[int]]] = []
    for batch, labels in loader:
        for tokens, positions, row_labels in zip(
            batch["input"].tolist(), batch["positions"].tolist(), labels.tolist(), strict=True
        ):
            begins = [i for i, position in enumerate(positions) if position == 0]
            for begin, end in zip(begins, [*begins[1:], len(tokens)], strict=True):
                if any(label >= 0 for label in row_labels[begin:end]):
                    found.append((tokens[begin:end], row_labels[begin:end]))
        if len(found) >= num:
            break
    return found[:num]


def test_torchtitan_reads_an_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its loader packs exactly the version, epoch by epoch, and the parts of two ranks make it up.

    The tokens and those with loss are what was measured, but for one that it puts before them, and
    a line break after the end, which it cuts off.
    """
    pytest.importorskip("torchtitan")
    from torchtitan.components.tokenizer import HuggingFaceTokenizer

    monkeypatch.chdir(tmp_path)
    tokens = make_world_of_templates()
    gracekit.export("gracekit-store", "data/subset", format="torchtune", weights="repeat")
    space: dict[str, Any] = {}
    (code,) = blocks("torchtitan", "python")
    exec(compile(code, "docs/trainers/torchtitan.md", "exec"), space)
    config = space["dataloader"]
    config.load_dataset_kwargs["cache_dir"] = str(tmp_path / "cache")
    template = Path("base/chat_template.jinja")
    template.write_text(re.sub(r"{%-? (end)?generation -?%}", "", template.read_text()))
    theirs = HuggingFaceTokenizer(tokenizer_path="base")

    def loader(rank: int, num_ranks: int, *, infinite: bool) -> Any:
        config.infinite = infinite
        return config.build(
            dp_world_size=num_ranks, dp_rank=rank, tokenizer=theirs, seq_len=64, local_batch_size=2
        )

    measured = Measured.of_store(StoreReader.open("gracekit-store"))
    asked = questions()

    def rows_of(packed: list[tuple[list[int], list[int]]]) -> list[int]:
        named = [[k for k, q in enumerate(asked) if q in tokens.decode(ids)] for ids, _ in packed]
        assert all(len(found) == 1 for found in named), named
        return [found[0] for found in named]

    wanted = sorted(Coreset.load("gracekit-store").source_rows.tolist())
    packed = documents(loader(0, 1, infinite=False), 10 * NUM_SELECTED)
    assert sorted(rows_of(packed)) == wanted
    for row, (ids, labels) in zip(rows_of(packed), packed, strict=True):
        told = measured.tokens(measured.row_at[row])
        assert told is not None
        ours, has_loss = told[0].tolist(), told[1].tolist()
        assert tokens.decode(ours[-1:]) == "\n" and has_loss[-1]
        assert [*ids, labels[-1]] == [tokens.bos_token_id, *ours[:-1]]
        assert [label >= 0 for label in labels] == has_loss[:-1]
    both = [documents(loader(rank, 2, infinite=False), 10 * NUM_SELECTED) for rank in (0, 1)]
    assert sorted(rows_of([*both[0], *both[1]])) == wanted
    epochs = rows_of(documents(loader(0, 1, infinite=True), 2 * NUM_SELECTED))
    assert sorted(epochs[:NUM_SELECTED]) == sorted(epochs[NUM_SELECTED:]) == wanted
    assert epochs[:NUM_SELECTED] != epochs[NUM_SELECTED:]
