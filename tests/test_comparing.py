"""`gracekit compare`: runs, what is resumed, how arms are judged, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

import gracekit
from gracekit.cli import main
from gracekit.comparing.arms import CONTROLS, OVERLAYS, Arm, arm_of
from gracekit.comparing.bed import Bed
from gracekit.comparing.controls import Looks, Turn
from gracekit.comparing.course import Course, Watch
from gracekit.comparing.evaluation import padded, row_losses, row_states
from gracekit.comparing.metrics import NEW_TOKENS, ExactMatch, answers
from gracekit.comparing.trainer import _Looks, load_start, train
from gracekit.errors import (
    CheckpointError,
    DataError,
    GracekitError,
    MeasureError,
    RecipeError,
    StoreFormatError,
)
from gracekit.recipe import Recipe
from gracekit.refresher.model import rows_of_target
from gracekit.version.program import program
from tests.patience import until
from tests.tiny import recipe_content, write_checkpoint, write_data

torch.set_num_threads(1)

ROOT = Path(__file__).parent.parent
NUM_ROWS = 160
COMPARE: dict[str, Any] = {
    "start": "models/checkpoint-0", "held_out": 20, "epochs": 3, "evaluations": 3,
    "learning_rate": 3e-3, "seeds": 3, "marks": ["planted"],
}  # fmt: skip


def make_world(folder: Path, **compare: Any) -> Path:
    """Data with marks, a start, a target and a recipe; returns the recipe's path."""
    write_data(folder / "train.jsonl", num_samples=NUM_ROWS)
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    with (folder / "train.jsonl").open("w") as file:
        for place, row in enumerate(rows):
            marks = {"planted": "noise" if place % 8 == 0 else "", "nothing": ""}
            file.write(json.dumps({**row, **marks}) + "\n")
    write_data(folder / "target.jsonl", num_samples=12, seed=9)
    write_checkpoint(folder / "models", 0)
    content = recipe_content(
        selection={"fraction": 0.2},
        compare={**COMPARE, **compare},
        target={"path": "target.jsonl", "max_length": 64},
        refresh={"max_cost": None},
    )
    (folder / "gracekit.yaml").write_text(yaml.safe_dump(content))
    return folder / "gracekit.yaml"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("compare"))


@pytest.fixture(scope="module")
def bed(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Bed:
    return Bed.make(Recipe.load(world), tmp_path_factory.mktemp("cache"))


def test_a_selection_that_measured_nothing_is_told(world: Path, tmp_path: Path) -> None:
    short = {"compare.epochs": 1, "compare.evaluations": 1, "refresh.max_cost": 1e-6}
    found = gracekit.compare(world, arms=["recipe"], seeds=1, output=tmp_path, set=short)
    assert found.arms[0].selection_share == 0
    assert any("`recipe` measured nothing in 1 of 1 run" in remark for remark in found.remarks)
    assert any(remark.startswith("1 epoch of ") for remark in found.remarks)


@pytest.mark.parametrize("arm", ["recipe", "aimed"])
def test_nothing_is_measured_of_data_with_answers_that_are_cut_off(
    world: Path, tmp_path: Path, arm: str
) -> None:
    """A row without an answer left has nothing to be measured: that is no failed measurement."""
    rows = (world.parent / "train.jsonl").read_text().splitlines()
    long = [json.dumps({"prompt": f"{k} " + "red cat " * 80, "response": "dog"}) for k in range(3)]
    (tmp_path / "cut.jsonl").write_text("\n".join([*rows, *long]) + "\n")
    short = {
        "compare.epochs": 1, "compare.evaluations": 1, "compare.marks": [],
        "refresh.max_cost": 1e-6, "data.path": str(tmp_path / "cut.jsonl"), "data.max_length": 64,
    }  # fmt: skip
    found = gracekit.compare(world, arms=[arm], seeds=1, output=tmp_path / "out", set=short)
    assert found.arms[0].selection_share == 0 and found.arms[0].num_distinct == 28


def num_results(output: Path, least: int) -> bool:
    return len(list(output.glob("*-seed*.json"))) >= least


def course_of(bed: Bed, arm: Arm, folder: Path, seed: int = 0) -> Course:
    return train(bed, arm, seed, folder, lambda step: None)


# --- from the recipe to the verdict ---


def test_four_arms_are_compared_and_a_stopped_comparison_goes_on(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All runs once; a result that is missing is made again, the same; nothing else is trained."""
    output = world.parent / "out"
    found = gracekit.compare(world, output=output)
    assert [arm.arm for arm in found.arms] == ["random", "once", "recipe", "full"]
    assert found.missing == 0 and found.control in ("random", "once")
    by_name = {arm.arm: arm for arm in found.arms}
    rows = round(0.2 * (NUM_ROWS - 20))
    assert {by_name[a].num_steps for a in ("random", "once", "recipe")} == {3 * -(-rows // 8)}
    assert by_name["full"].num_steps == 3 * -(-(NUM_ROWS - 20) // 8)
    assert all(arm.losses[-1] < arm.losses[0] for arm in found.arms)
    assert by_name["recipe"].selection_share > 0 and by_name["once"].selection_share == 0
    assert by_name["full"].marked["planted"] == pytest.approx(1 / 8, abs=0.03)
    about = [v for v in found.verdict if "compute of" not in v]
    assert len(about) == 2, found.verdict  # full has other steps; one is the control
    assert any("recipe" in sentence for sentence in found.verdict)
    files = sorted(output.glob("*-seed*.json"))
    before = {file.name: file.read_text() for file in files}
    assert len(files) == 12 and not list(output.glob("*.running"))
    again = next(file for file in files if file.name.startswith("recipe"))
    again.unlink()
    (output / f"{again.stem}.running").mkdir()  # what a kill leaves
    (output / f"{next(file for file in files if file != again).stem}.running").mkdir()
    others = {file: file.stat().st_mtime_ns for file in files if file != again}
    gracekit.compare(world, output=output)
    assert {file: file.stat().st_mtime_ns for file in others} == others
    assert not list(output.glob("*.running"))
    monkeypatch.chdir(world.parent)  # the same recipe by another name
    gracekit.compare(world.name, output="out")
    assert {file: file.stat().st_mtime_ns for file in others} == others
    one, two = json.loads(before[again.name]), json.loads(again.read_text())
    assert [p["losses"] for p in one["points"]] == [p["losses"] for p in two["points"]]
    steps = -(-rows // 8)  # of an epoch; the last epoch's checkpoint gets no version
    assert [aim["step"] for aim in one["aims"]] == [0, steps, 2 * steps]
    assert one["aims"] == two["aims"] and all(aim["target_loss"] > 0 for aim in one["aims"])
    assert json.loads(before["random-seed0.json"])["aims"] == []
    assert json.loads(before["random-seed0.json"])["worths"] == []
    assert [worth["step"] for worth in one["worths"]] == [0, steps, 2 * steps]
    assert one["worths"] == two["worths"] and one["worths"][0]["value"] > 0
    report = gracekit.compare(world, output=output, report_only=True)
    assert report.to_json()["verdict"] == found.verdict
    json.dumps(report.to_json(), allow_nan=False)
    assert Path(report.page).read_text().count("<svg") == 3


def test_the_command_prints_a_table_a_verdict_and_json(world: Path) -> None:
    arms = ["--arms", "random,once", "--seeds", "1", "-o", str(world.parent / "cli")]
    done = CliRunner().invoke(main, ["compare", str(world), *arms])
    assert done.exit_code == 0, done.output
    assert "With 1 seed nothing is shown" in done.output
    done = CliRunner().invoke(main, ["compare", str(world), *arms, "--report-only", "--json"])
    found = json.loads(done.stdout)
    assert [arm["arm"] for arm in found["arms"]] == ["random", "once"]
    assert all(arm["spread"] is None for arm in found["arms"])


def test_results_of_other_settings_are_refused(world: Path) -> None:
    output = world.parent / "out-other"
    arms = {"compare.arms": ["random"], "compare.seeds": 1}
    gracekit.compare(world, output=output, set=arms)
    with pytest.raises(RecipeError, match=r"learning_rate .then 0.003, now 0.001"):
        gracekit.compare(world, output=output, set={**arms, "compare.learning_rate": 1e-3})
    file = next(output.glob("random-seed0.json"))
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "num_steps": 7}))
    with pytest.raises(RecipeError, match="arms with different steps"):
        gracekit.compare(world, output=output, set=arms)
    for spoilt in (
        "{",
        json.dumps({**content, "points": [{**content["points"][0], "losses": [1.0]}]}),
        json.dumps({**content, "num_targets": []}),
        json.dumps({**content, "groups": content["groups"][1:]}),
        json.dumps({**content, "num_targets": [], "groups": [], "points": []}),
    ):
        file.write_text(spoilt)
        with pytest.raises(StoreFormatError, match="remove it, and its run is done again"):
            gracekit.compare(world, output=output, set=arms)


@pytest.mark.parametrize("what", ["config.json", "pytorch_model.bin"])
def test_results_of_another_start_are_refused(world: Path, tmp_path: Path, what: str) -> None:
    """Also where it is the config that changed, or weights that are no safetensors."""
    start = tmp_path / "start"
    shutil.copytree(world.parent / "models/checkpoint-0", start)
    (start / "pytorch_model.bin").write_bytes(b"weights")
    one = {"compare.arms": ["random"], "compare.seeds": 1, "compare.start": str(start),
           "compare.epochs": 1, "compare.evaluations": 1}  # fmt: skip
    gracekit.compare(world, output=tmp_path / "out", set=one)
    assert gracekit.compare(world, output=tmp_path / "out", set=one).missing == 0
    (start / what).write_bytes((start / what).read_bytes() + b"\n")
    with pytest.raises(RecipeError, match="start_besides"):
        gracekit.compare(world, output=tmp_path / "out", set=one)


def test_runs_of_other_code_are_mixed_only_when_told(world: Path) -> None:
    """A complete comparison is shown; one with runs missing goes on with `--mix-code` alone."""
    output = world.parent / "out-code"
    one = {"compare.arms": ["random"], "compare.seeds": 1}
    assert not any("codes" in r for r in gracekit.compare(world, output=output, set=one).remarks)
    file = output / "random-seed0.json"
    content = json.loads(file.read_text())
    assert content["program"] == program()
    file.write_text(json.dumps({**content, "program": {**program(), "source": "0123"}}))
    assert gracekit.compare(world, output=output, set=one).missing == 0
    more = {**one, "compare.arms": ["random", "once"]}
    ours = program()["source"]
    with pytest.raises(RecipeError, match=f"source is 0123 there and {ours} here.*--mix-code"):
        gracekit.compare(world, output=output, set=more)
    assert gracekit.compare(world, output=output, set=more, report_only=True).missing == 1
    del content["program"]  # of a release that did not note it
    file.write_text(json.dumps(content))
    with pytest.raises(RecipeError, match="is not noted"):
        gracekit.compare(world, output=output, set=more)
    names = ["--arms", "random,once", "--seeds", "1", "-o", str(output), "--mix-code", "--json"]
    done = CliRunner().invoke(main, ["compare", str(world), *names])
    assert done.exit_code == 0, done.output
    remark = next(r for r in json.loads(done.stdout)["remarks"] if "2 codes" in r)
    assert "not noted: random 0" in remark and f"source {ours}" in remark
    assert "once 0" in remark


# --- the built-in trainer ---


def test_both_trainers_are_the_same_on_the_same_rows(bed: Bed, tmp_path: Path) -> None:
    """What a selection without weights draws, trained on as a control: the same losses."""
    changes = {"selection.weights": "none"}
    recipe = bed.recipe.override({"compare.changes": {"unweighted": changes}})
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    selected = course_of(bed, arm_of("unweighted", recipe), tmp_path / "a")

    class Replayed:
        def draw(self, epoch: int, looks: Looks) -> Turn:
            return Turn(selected.trained[epoch])

    replayed = Arm(name="replayed", about="", draws=lambda bed, seed: Replayed())
    control = course_of(bed, replayed, tmp_path / "b")
    for own, other in zip(selected.points, control.points, strict=True):
        np.testing.assert_allclose(own.losses, other.losses, atol=2e-5)


def test_the_control_trainer_is_the_stock_trainer(bed: Bed, tmp_path: Path) -> None:
    """Its loss by rows is the model's own: the same weights as by `Trainer` with its sampler."""
    rows = np.random.default_rng(0).permutation(bed.pool)[: bed.num_drawn]

    class Given:
        def draw(self, epoch: int, looks: Looks) -> Turn:
            return Turn(rows)

    own = course_of(bed, Arm(name="x", about="", draws=lambda bed, seed: Given()), tmp_path)

    class Stock(Trainer):  # type: ignore[misc]
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return torch.utils.data.SequentialSampler(range(len(rows)))

    def collate(places: list[int]) -> dict[str, torch.Tensor]:
        ids, mask, labels = padded(bed.tokens, rows[places], 0)
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    settings = bed.recipe.compare
    model = AutoModelForCausalLM.from_pretrained(bed.start)
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "stock"), num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size, learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine", warmup_steps=round(settings.warmup * bed.num_steps),
        logging_strategy="no", save_strategy="no", report_to="none", use_cpu=True,
        dataloader_pin_memory=False, disable_tqdm=True, remove_unused_columns=False,
    )  # fmt: skip
    dataset: Any = list(range(len(rows)))
    Stock(model=model, args=arguments, train_dataset=dataset, data_collator=collate).train()
    for one, two in zip(own.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4)


def test_weights_are_factors_of_the_loss(bed: Bed, tmp_path: Path) -> None:
    """Nothing is trained where nothing counts."""
    rows = bed.pool[: bed.num_drawn]

    class Nothing:
        def draw(self, epoch: int, looks: Looks) -> Turn:
            return Turn(rows, np.zeros(len(rows)))

    course = course_of(bed, Arm(name="w", about="", draws=lambda bed, seed: Nothing()), tmp_path)
    assert course.points[0].losses == course.points[-1].losses


def test_losses_and_states_of_rows_beside_one_row_at_a_time(bed: Bed) -> None:
    model = load_start(bed)
    rows = bed.pool[:9]
    losses, states = (f(model, bed.tokens, rows, 0) for f in (row_losses, row_states))
    for place, row in enumerate(rows):
        ids, has_loss = bed.tokens.take(np.array([row]))[0]
        tokens = torch.from_numpy(ids.astype(np.int64))[None]
        labels = tokens.masked_fill(~torch.from_numpy(has_loss), -100)
        with torch.no_grad():
            out = model(input_ids=tokens, labels=labels, output_hidden_states=True)
        assert losses[place] == pytest.approx(float(out.loss), abs=1e-5)
        hidden = out.hidden_states[-1][0]
        weights = torch.arange(1.0, len(hidden) + 1)[:, None]
        expected = (hidden * weights).sum(0) / weights.sum()
        np.testing.assert_allclose(states[place], expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("name", sorted({*CONTROLS, *OVERLAYS} - {"random", "once", "recipe"}))
def test_every_arm_trains(bed: Bed, tmp_path: Path, name: str) -> None:
    course = course_of(bed, arm_of(name, bed.recipe), tmp_path)
    number = len(bed.pool) if name == "full" else bed.num_drawn
    assert [len(rows) for rows in course.trained] == [number] * 3
    assert set(np.concatenate(course.trained)) <= set(bed.pool)
    assert math.isfinite(course.points[-1].losses[0])
    costs = name in OVERLAYS or name in ("loss-top", "rds")
    assert (course.selection_tokens > 0) == costs


def test_a_training_ends_where_a_version_advises_it(world: Path, tmp_path: Path) -> None:
    """Its steps, looks and rows are those of the same arm that goes on, up to there."""
    wanted = {
        "compare.epochs": 10, "compare.evaluations": 10, "compare.seeds": 1,
        "selection.fraction": 0.6, "compare.arms": ["once", "aimed", "aimed-stopped"],
    }  # fmt: skip
    found = gracekit.compare(world, output=tmp_path / "out", set=wanted)
    whole, ended = (
        json.loads((tmp_path / f"out/{name}-seed0.json").read_text())
        for name in ("aimed", "aimed-stopped")
    )
    advised = next(aim["step"] for aim in whole["aims"] if aim["advice"] is not None)
    end = ended["ended_at"]
    # A trainer looks at what a version wants after the first step of the epoch.
    assert end == advised + 1 < whole["num_steps"] and whole["ended_at"] is None
    assert ended["aims"] == [aim for aim in whole["aims"] if aim["step"] <= advised]
    assert ended["num_trained"] < whole["num_trained"]
    for one, two in zip(whole["points"], ended["points"], strict=True):
        assert one["step"] == two["step"]
        if one["step"] <= advised:
            np.testing.assert_allclose(two["losses"], one["losses"], atol=1e-5)
    assert ended["points"][-1]["losses"] == ended["points"][-2]["losses"]
    assert ended["points"][-1]["trained_tokens"] < whole["points"][-1]["trained_tokens"]
    outcome = next(arm for arm in found.arms if arm.arm == "aimed-stopped")
    assert outcome.ended_at == [end]
    assert f"`aimed-stopped` ended after {end} of {whole['num_steps']} steps" in " ".join(
        found.verdict
    )


def test_target_rows_of_which_nothing_is_left_take_no_rows(bed: Bed, tmp_path: Path) -> None:
    """By hidden states as by everything else: their answers are cut off."""
    target = tmp_path / "target.jsonl"
    cut = json.dumps({"prompt": "red cat " * 80, "response": "dog"}) + "\n"
    target.write_text(cut + (Path(bed.recipe.store).parent / "target.jsonl").read_text() + cut)
    aimed = dataclasses.replace(bed, recipe=bed.recipe.override({"target.path": str(target)}))
    model = load_start(bed)
    found = []
    for number, each in enumerate((bed, aimed)):
        watch = Watch(each, model, 1, lambda step: None)
        watch.cache = tmp_path / str(number)
        found.append(_Looks(each, model, watch, lambda: np.zeros(0)).target_states())
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)


def test_oracles_train_on_what_they_know(bed: Bed, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    course = course_of(bed, arm_of("oracle:source=a", bed.recipe), tmp_path / "a")
    names = np.array(bed.raw.group_names)
    assert set(names[bed.groups[np.concatenate(course.trained)]]) == {"a"}
    course = course_of(bed, arm_of("clean", bed.recipe), tmp_path / "b")
    assert not bed.marks["planted"][np.concatenate(course.trained)].any()


def test_an_arm_may_have_versions_of_another_size(bed: Bed, tmp_path: Path) -> None:
    """Epochs are as long as a draw whatever a version has, so that steps stay equal."""
    own = {"own": {"selection.fraction": 0.5, "selection.selector": "top"}}
    recipe = bed.recipe.override({"compare.changes": own})
    course = course_of(bed, arm_of("own", recipe), tmp_path)
    assert [len(set(rows)) for rows in course.trained] == [bed.num_drawn] * 3


def test_adapters_are_trained_and_followed(bed: Bed, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    recipe = bed.recipe.override({"compare.lora_rank": 2})
    with_adapter = Bed.make(recipe, tmp_path / "cache")
    (tmp_path / "run").mkdir()
    course = course_of(with_adapter, arm_of("recipe", recipe), tmp_path / "run")
    assert course.versions == 3 and course.selection_tokens > 0


def test_many_prompts_are_gone_on_with_as_one_by_one(bed: Bed) -> None:
    """Padding, batches and the cache change nothing, and a model stops where it ends an answer."""
    model, rows = load_start(bed), bed.judges.rows[:7]
    tokenizer, ends = bed.tokenizer, {bed.tokenizer.eos_token_id}
    found = answers(model, bed.judges, tokenizer, rows)
    assert len({text for text, _ in found}) > 1
    for (text, answer), row in zip(found, rows, strict=True):
        ids, has_loss = bed.judges.tokens.take(np.array([row]))[0]
        first = int(np.flatnonzero(has_loss)[0])
        assert answer == tokenizer.decode(ids[has_loss], skip_special_tokens=True)
        written = ids[:first].tolist()
        context = model.config.max_position_embeddings
        for _ in range(min(NEW_TOKENS, context - first)):
            with torch.no_grad():
                written.append(int(model(torch.tensor([written])).logits[0, -1].argmax()))
            if written[-1] in ends:
                break
        assert text == tokenizer.decode(written[first:], skip_special_tokens=True)


def test_answers_that_are_cut_off_are_not_judged(world: Path, tmp_path: Path) -> None:
    lengths = np.sort(Bed.make(Recipe.load(world), tmp_path).judges.tokens.lengths)
    middle = {"data.max_length": int(lengths[len(lengths) // 2]), "compare.metric": "exact-match"}
    judges = Bed.make(Recipe.load(world).override(middle), tmp_path / "middle").judges
    assert 0 < len(judges.whole) < len(judges.rows)
    assert judges.tokens.lengths[judges.whole].max() < judges.max_length
    rows = [json.loads(line) for line in (world.parent / "train.jsonl").read_text().splitlines()]
    long = [{**row, "response": " ".join([row["response"]] * 40)} for row in rows[:5]]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in long))
    evaluation = {"path": str(tmp_path / "long.jsonl"), "max_length": 64}
    short = {"compare.metric": "exact-match", "compare.evaluation": evaluation}
    with pytest.raises(RecipeError, match="every held-out answer is cut off"):
        gracekit.compare(world, output=tmp_path / "out", set=short)


class Length:
    """A metric of a user's own: characters written for each of the answer."""

    def __call__(self, written: str, answer: str) -> float:
        return float(len(written) / len(answer))


class OtherNumbers(Length):
    """The same as NumPy has them."""

    def __call__(self, written: str, answer: str) -> Any:
        return np.float32(super().__call__(written, answer))


class Fails:
    def __call__(self, written: str, answer: str) -> float:
        raise ValueError("oh")


class Words:
    def __call__(self, written: str, answer: str) -> str:
        return "good"


class Needs:
    def __init__(self, what: str) -> None:
        pass


@pytest.mark.parametrize("metric", ["exact-match", f"{__name__}:OtherNumbers"])
def test_what_a_model_writes_is_judged(world: Path, tmp_path: Path, metric: str) -> None:
    changes = {"compare.metric": metric, "compare.metric_rows": 3, "compare.epochs": 1}
    found = gracekit.compare(world, arms=["random"], seeds=1, output=tmp_path, set=changes)
    result = json.loads((tmp_path / "random-seed0.json").read_text())
    assert len(result["metric"]) == 3 and found.arms[0].metric == np.mean(result["metric"])
    assert (found.arms[0].metric > 0.2) == (metric != "exact-match")


# --- what is refused ---


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"compare.arms": ["ramdom"]}, RecipeError, "did you mean 'random'"),
        ({"compare.arms": ["random", "random"]}, RecipeError, "twice"),
        ({"compare.start": None}, RecipeError, "compare.start is missing"),
        ({"compare.start": "nowhere"}, RecipeError, "there is no model at nowhere"),
        ({"compare.metric": "rouge"}, RecipeError, "no metric 'rouge'; known: exact-match"),
        ({"selection.tokens": 900}, RecipeError, "give selection.count"),
        ({"selection.count": 5000}, RecipeError, "a draw has 5000 rows"),
        ({"compare.held_out": 160}, DataError, "hold out fewer"),
        ({"compare.marks": ["sauce"]}, DataError, "sauce"),
        ({"compare.arms": ["clean:sauce"]}, RecipeError, "no column 'sauce'"),
        ({"compare.arms": ["oracle:source=x"]}, RecipeError, "no row of the data has that"),
        ({"compare.arms": ["influence"], "target": None}, RecipeError, "needs a target set"),
        ({"compare.arms": ["rds"], "target": None}, RecipeError, "needs a target set"),
        ({"compare.arms": ["rds"], "target": {"group": "a"}}, RecipeError, "in a file"),
        ({"compare.arms": ["random", "aimed"], "target": {"group": "zz"}}, DataError,
         "has no such group"),
        ({"compare.arms": ["oracle:source=a|b|c"], "compare.marks": []}, RecipeError,
         "every row that may be trained on has that"),
        ({"compare.arms": ["clean"], "compare.marks": ["nothing"]}, RecipeError,
         "none is marked of those"),
        ({"compare.arms": ["oracle:source=a|b", "oracle:source=a-b"]}, RecipeError,
         "would have the same file names"),
        ({"compare.metric": f"{__name__}:Fails"}, MeasureError, "cannot judge by Fails .*oh"),
        ({"compare.metric": f"{__name__}:Words"}, MeasureError, "Words gave 'good'"),
        ({"compare.metric": f"{__name__}:Needs"}, RecipeError, "cannot make the metric"),
        *(({"compare.changes": {name: changes}, "compare.arms": [name]}, RecipeError, words)
          for name, changes, words in (
              ("own", {"selection.alhpa": 1}, "alhpa"),
              ("own", {"compare.epochs": 9}, "'compare.epochs', which all arms have in common"),
              ("own", {"training.stop": "stop"}, "'training.stop', which all arms have in common"),
              ("own", {"selection.never_in": ["x"]}, "never_in names 1 samples that .* 'x'"),
              ("own", {"selection.selector": "bset"}, "bset"),
              ("random", {"selection.alpha": 1}, "'random' is an arm already"),
          )),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_said_before_anything_is_trained(
    world: Path, tmp_path: Path, changes: dict[str, Any], error: type[GracekitError], words: str
) -> None:
    with pytest.raises(error, match=words):
        gracekit.compare(world, output=tmp_path / "out", set=changes)
    assert not list((tmp_path / "out").glob("*.json"))


@pytest.mark.parametrize("arm", ["aimed", "recipe", "rds"])
def test_a_target_of_which_nothing_is_left_is_told_before_any_training(
    world: Path, tmp_path: Path, arm: str
) -> None:
    cut = tmp_path / "target.jsonl"
    cut.write_text(json.dumps({"prompt": "red cat " * 80, "response": "dog"}) + "\n")
    changes = {"compare.arms": ["random", arm], "target.path": str(cut)}
    with pytest.raises(DataError, match=r"no token of .*target.jsonl carries loss"):
        gracekit.compare(world, output=tmp_path / "out", set=changes)
    assert not list((tmp_path / "out").glob("*.json"))


def test_held_out_rows_that_are_in_the_data_are_refused_unless_allowed(
    world: Path, tmp_path: Path
) -> None:
    lines = (world.parent / "train.jsonl").read_text().splitlines(keepends=True)
    held_out = tmp_path / "held-out.jsonl"
    write_data(held_out, num_samples=12, seed=5)
    held_out.write_text(held_out.read_text() + "".join(lines[:3]))
    row = json.loads(lines[3])  # the same in other whitespace, and a held-out row twice
    row |= {"prompt": f" {row['prompt']}", "response": row["response"].replace(" ", "\n", 1)}
    other = held_out.with_name("other.jsonl")
    other.write_text("".join([*held_out.read_text().splitlines(True)[:2] * 2, json.dumps(row)]))
    changes: dict[str, Any] = {
        "compare.evaluation": {"path": str(other), "max_length": 64},
        "compare.arms": ["random"], "compare.seeds": 1,
    }  # fmt: skip
    with pytest.raises(DataError, match=r"1 of 3 held-out rows .*the first is row 4"):
        gracekit.compare(world, output=tmp_path / "out", set=changes)
    changes["compare.evaluation"] = {"path": str(held_out), "max_length": 64}
    with pytest.raises(DataError, match=r"3 of 15 held-out rows .* are in .*the first is row 12"):
        gracekit.compare(world, output=tmp_path / "out", set=changes)
    allowed = {**changes, "compare.allow_overlap": True}
    found = gracekit.compare(world, output=tmp_path / "out", set=allowed)
    told = "3 of 15 held-out rows are in the data too: arms that train on them are judged too well."
    assert found.arms[0].seeds == 1 and told in found.remarks


def test_no_copy_of_a_held_out_row_is_trained_on(world: Path, tmp_path: Path) -> None:
    doubled = tmp_path / "doubled.jsonl"
    text = (world.parent / "train.jsonl").read_text()
    doubled.write_text(text + text.replace('"response": "', '"response": " '))
    recipe = Recipe.load(world).override({"data.path": str(doubled)})
    bed = Bed.make(recipe, tmp_path / "cache")
    assert len(bed.pool) == 2 * NUM_ROWS - 2 * 20 == 2 * NUM_ROWS - len(bed.held_out_ids)


def test_no_list_of_a_recipe_brings_held_out_rows_back(world: Path, tmp_path: Path) -> None:
    always = {"selection.always_in_where": "row % 2 = 0"}
    first = Bed.make(Recipe.load(world), tmp_path / "first")
    odd = next(int(row) for row in first.pool if row % 2)
    own = {"selection.never_in": [first.raw.sample_ids[odd]]}
    changes = {
        "compare.changes": {"own": own}, "selection.count": 100, **always,
        "selection.always_in": list(first.held_out_ids[:2]),
    }  # fmt: skip
    bed = Bed.make(Recipe.load(world).override(changes), tmp_path / "cache")
    assert bed.held_out_ids == first.held_out_ids
    for name in ("own", "recipe"):
        course = course_of(bed, arm_of(name, bed.recipe), tmp_path / name)
        assert set(np.concatenate(course.trained)) <= set(bed.pool)


def test_files_that_an_arm_names_are_taken_from_the_recipes_folder(world: Path) -> None:
    """Wherever the command is given, as for all paths of a recipe."""
    content = yaml.safe_load(world.read_text())
    content["compare"]["changes"] = {
        "other": {"target.path": "target.jsonl"},
        "nested": {"target": {"path": ["target.jsonl"]}, "selection.alpha": 1},
        "absolute": {"selection.reference": "/somewhere/reference.parquet"},
    }
    moved = Recipe.from_dict(content, folder=world.parent).compare.changes
    place = str(world.parent / "target.jsonl")
    assert moved == {
        "other": {"target.path": place},
        "nested": {"target": {"path": [place]}, "selection.alpha": 1},
        "absolute": {"selection.reference": "/somewhere/reference.parquet"},
    }


def test_results_on_other_held_out_rows_are_refused(world: Path, tmp_path: Path) -> None:
    """As many rows of the same data, but others."""
    arms = {"compare.arms": ["random"], "compare.seeds": 1, "compare.epochs": 1}
    gracekit.compare(world, output=tmp_path, set=arms)
    with pytest.raises(RecipeError, match="other settings: held_out_rows"):
        gracekit.compare(world, output=tmp_path, set={**arms, "seed": 1})
    file = tmp_path / "random-seed0.json"
    content = json.loads(file.read_text())
    del content["settings"]["held_out_rows"]  # of a release that did not note it
    file.write_text(json.dumps(content))
    assert gracekit.compare(world, output=tmp_path, set=arms).missing == 0


def test_held_out_rows_that_a_selection_aims_at_are_told(world: Path, tmp_path: Path) -> None:
    given = {
        "compare.evaluation": {"path": str(world.parent / "target.jsonl")},
        "compare.arms": ["random"], "compare.seeds": 1, "compare.epochs": 1,
    }  # fmt: skip
    found = gracekit.compare(world, output=tmp_path, set=given)
    assert any(r.startswith("12 of 12 held-out rows are target samples") for r in found.remarks)
    own = {
        "compare.arms": ["random"], "compare.seeds": 1, "compare.held_out": 80,
        "target": {"group": "a"},
    }  # fmt: skip
    recipe = Recipe.load(world).override(own)
    bed = Bed.make(recipe, tmp_path / "cache")
    found = gracekit.compare(recipe, output=tmp_path / "group")
    both = set(rows_of_target(bed.raw, "a", 48, ()).tolist()) & set(bed.judges.rows.tolist())
    told = f"{len(both)} of 80 held-out rows are target samples"
    assert both and any(r.startswith(told) for r in found.remarks)


def test_a_start_that_cannot_be_loaded_is_an_error_with_its_reason(
    world: Path, tmp_path: Path
) -> None:
    """Weights that are cut off, as by a copy that was stopped, and none at all."""
    start = write_checkpoint(tmp_path / "models", 0)
    weights = start / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:3000])
    one = {"compare.arms": ["random"], "compare.start": str(start)}
    with pytest.raises(CheckpointError, match=r"cannot read .*checkpoint-0: .*metadata"):
        gracekit.compare(world, output=tmp_path / "out", set=one)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"cannot read .*checkpoint-0: .*model\.safetensors"):
        gracekit.compare(world, output=tmp_path / "out", set=one)


def test_a_loss_that_is_not_finite_ends_the_comparison(world: Path, tmp_path: Path) -> None:
    changes = {"compare.learning_rate": 1e30, "compare.arms": ["random"], "compare.seeds": 1}
    with pytest.raises(GracekitError, match=r"not finite.*lower compare\.learning_rate"):
        gracekit.compare(world, output=tmp_path / "out", set=changes)


def test_exact_match_looks_at_the_last_number() -> None:
    match = ExactMatch()
    assert match("so 3 + 4 = 1,234.", "#### 1234") == 1
    assert match("it is $7.0", "7") == 1
    assert match("12 or 13", "12") == 0
    assert match("it is 18%", "#### 18") == match("**18**", "18") == match("9*2=18", "18") == 1
    assert match("She has 5.\n#### 5\n#### 7", "#### 5") == 1, "what follows the result is no part"
    assert match("#### -3", "-3") == 1 and match("5-3", "-3") == 0
    assert match("0.50", ".5") == 1 and match("#### ", "#### ") == 1
    assert match(" yes", "yes") == 1 and match("no", "yes") == 0


def test_a_killed_comparison_goes_on(world: Path, tmp_path: Path) -> None:
    """SIGKILL as soon as a result is there, twice: what was done stays, the rest is made."""
    arms = ["--arms", "random,once", "--seeds", "2", "-o", str(tmp_path / "out")]
    command = [sys.executable, "-m", "gracekit", "compare", str(world), *arms]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    kept: dict[Path, int] = {}
    for number in (1, 2):
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            done = partial(num_results, tmp_path / "out", number)
            until(done, f"{number} results")
            process.kill()
        found = {f: f.stat().st_mtime_ns for f in (tmp_path / "out").glob("*-seed*.json")}
        assert kept.items() <= found.items()
        kept = found
    whole = gracekit.compare(world, arms=["random", "once"], seeds=2, output=tmp_path / "out")
    assert whole.missing == 0 and [arm.seeds for arm in whole.arms] == [2, 2]
    assert (
        kept.items()
        <= {f: f.stat().st_mtime_ns for f in (tmp_path / "out").glob("*-seed*.json")}.items()
    )
    assert not list((tmp_path / "out").glob("*.running"))
