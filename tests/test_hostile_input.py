"""Data, names, checkpoints and recipes that mean harm: nothing of them is run, none ends in a
traceback, and none steers the user's terminal."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pickle
import re
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner, Result

from gracekit import documents
from gracekit.checkpoints import check_checkpoint, pin
from gracekit.checkpoints.model import load_model, load_tokenizer
from gracekit.cli import main
from gracekit.cli.terminal import LogLines
from gracekit.errors import CheckpointError, DataError, RecipeError
from gracekit.recipe import CheckpointSection, DataSection, Recipe
from gracekit.samples import load_samples
from gracekit.samples.formats import Conversation
from gracekit.samples.render import Renderer
from gracekit.store import Store
from gracekit.store.sql.ask import run_sql
from tests.stores import optimizer_of
from tests.tiny import make_tokenizer, recipe_content, write_checkpoint, write_data

torch.set_num_threads(1)

STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2066-\u2069]")
"""What moves a cursor, changes colours or titles, or turns text; line ends and tabs may stay."""


def invoke(*arguments: str) -> Result:
    """Run a command; a traceback is a failure, and so is output that steers a terminal."""
    result = CliRunner().invoke(main, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert not STEERING.search(result.stdout), arguments
    assert not STEERING.search(result.stderr), (arguments, result.stderr)
    return result


def ok(*arguments: str) -> str:
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


# --- text ---

TEXTS = {
    "colour": "\x1b[31mred\x1b[0m",
    "title": "\x1b]0;owned\x07",
    "clear": "\x1b[2J\x1b[H",
    "c1": "\x9b31m and \x90q\x9c",
    "overwrite": "real\rfake\b\b",
    "right to left": "\u202etxt.exe\u2066",
    "invisible": "a\u200bb\ufeffc\u2028d",
    "nul": "before\x00after",
    "markup": "[bold red]x[/] <script>alert(1)</script> {{7*7}} %s {0} ${HOME}",
    "sql": "'; DROP TABLE samples; --",
    "half a pair": "half \ud83d of it",
    "alphabets": "سلام 你好 नमस्ते 🙂‍🔧 e\u0301 ﷽",
    "long": "word " * 200_000,
    "one word": "x" * 1_000_000,
    "white": "\u00a0\t\n\u3000.",
    "dashes": "--help -rf /",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of hostile samples under a hostile name, with two versions."""
    folder = tmp_path_factory.mktemp("hostile") / "it's -a \x1b[31m [folder]*\nwith lines"
    folder.mkdir()
    write_data(folder / "train.jsonl")
    with (folder / "train.jsonl").open("a") as file:
        for name, text in TEXTS.items():
            row = {"id": f"{text[:40]}|{name}", "prompt": text, "response": f"{text} yes",
                   "source": text[:60]}  # fmt: skip
            file.write(json.dumps(row) + "\n")
    lines = (folder / "train.jsonl").read_text().splitlines()
    for k, line in enumerate(lines):
        row = json.loads(line)
        row.setdefault("id", f"plain-{k}")
        lines[k] = json.dumps(row)
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")
    content = recipe_content(data={"id_column": "id"})
    (folder / "gracekit.yaml").write_text(yaml.safe_dump(content))
    for step in (10, 20):
        write_checkpoint(folder / "run\x1b[2J", step)
        ok("refresh", str(folder / "run\x1b[2J" / f"checkpoint-{step}"),
           "-r", str(folder / "gracekit.yaml"))  # fmt: skip
    return folder


def test_no_command_lets_samples_steer_the_terminal(world: Path, tmp_path: Path) -> None:
    recipe = ["-r", str(world / "gracekit.yaml")]
    for arguments in (
        ["status"], ["versions"], ["diff", "1", "2"], ["verify"], ["sql", "FROM samples", "--all"],
        ["sql", "FROM checkpoints"], ["sql", "SELECT header FROM versions"], ["sql", "--schema"],
        ["plan", str(world / "run\x1b[2J" / "checkpoint-20")],
        ["export", "--format", "jsonl", "-o", str(tmp_path / "a\x1b[31mb")],
        ["select", "--compare", "coverage,random"],
    ):  # fmt: skip
        ok(*arguments, *recipe)
        if arguments[0] != "export" and "--all" not in arguments:
            ok(*arguments, "--json", *recipe)
    ids = [row["sample_id"] for row in json.loads(ok("sql", "--json", "FROM samples", *recipe))]
    hostile = [sample_id for sample_id in ids if "|" in sample_id]
    assert len(hostile) == len(TEXTS)
    for sample_id in hostile:
        for command in ("explain", "similar"):
            ok(command, *recipe, "--", sample_id)
            ok(command, "--json", *recipe, "--", sample_id)
    assert invoke("explain", *recipe, "--", "\x1b[31mnobody").exit_code == 1


def test_hostile_samples_are_kept_as_they_are(world: Path) -> None:
    store = Store.open(world / "store")
    groups = set(store.samples().group_names)
    for name, text in TEXTS.items():
        expected = text[:60].replace("\ud83d", "\N{REPLACEMENT CHARACTER}")
        assert expected in groups, name
    sql = "SELECT count(*) FROM score_history WHERE version = 2"
    assert run_sql(world / "store", sql)[1] == [(len(store.samples()),)]


def test_log_lines_are_safe_and_nobody_writes_a_line_of_his_own(world: Path) -> None:
    """A checkpoint's name is in the log, in the same second as a line of the daemon might be."""
    name = "checkpoint-9\n12:00:00 version 99 \x1b[31m"
    fake = world / "fake" / name
    fake.mkdir(parents=True)
    (fake / "model-00001-of-00002.safetensors").write_bytes(b"short")
    result = invoke("watch", str(world / "fake"), "--once", "-r", str(world / "gracekit.yaml"))
    assert r"version 99 \x1b[31m" in result.stderr
    record = logging.makeLogRecord({"msg": "skipping %s", "args": (name,)})
    for line in (result.stderr + LogLines().format(record)).splitlines():
        assert not line.startswith("12:00:00 version 99")


# --- data files ---


def deep(depth: int) -> str:
    return "[" * depth + "]" * depth


@pytest.mark.parametrize(
    "content",
    [
        '{"prompt": "a", "response": "b"}\n{"prompt": ' + deep(100_000) + ', "response": "b"}\n',
        deep(200_000),
        '{"prompt": "a", "response": "b", "more": ' + '{"a":' * 50_000 + "1" + "}" * 50_000 + "}\n",
        "[" * 300_000,
    ],
    ids=["field", "file", "objects", "open"],
)
def test_deep_json_is_no_crash(tmp_path: Path, content: str) -> None:
    (tmp_path / "train.jsonl").write_text(content)
    with pytest.raises(DataError, match=r"train\.jsonl"):
        load_samples(DataSection(path=str(tmp_path / "train.jsonl")))


@pytest.mark.parametrize(
    "name", ["a b\n'c'.jsonl", "-rf.jsonl", "[a]*?.jsonl", "é語.jsonl", "$(id).csv"]
)
def test_odd_names_of_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    if name.endswith(".csv"):
        (tmp_path / name).write_text("prompt,response\na,b\n")
    else:
        write_data(tmp_path / name, num_samples=5)
    monkeypatch.chdir(tmp_path)
    assert len(load_samples(DataSection(path=name))) > 0
    ok("init", "-o", "-recipe.yaml", "--", name)
    assert len(load_samples(Recipe.load("-recipe.yaml").data)) > 0


def test_data_that_is_a_pipe_or_a_device_is_told(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "device.jsonl").symlink_to("/dev/zero")
    for name in ("pipe.jsonl", "device.jsonl"):
        with pytest.raises(DataError, match=f"{name} is a pipe or a device, expected a file"):
            load_samples(DataSection(path=str(tmp_path / name)))


def test_a_data_folder_brings_no_code_and_no_loops(tmp_path: Path, traps: Traps) -> None:
    write_data(tmp_path / "train.jsonl", num_samples=5)
    (tmp_path / f"{tmp_path.name}.py").write_text(traps.python("loading script"))
    (tmp_path / "state.pkl").write_bytes(traps.pickle("pickle"))
    (tmp_path / "again").symlink_to(tmp_path)
    assert len(load_samples(DataSection(path=str(tmp_path)))) == 5
    assert traps.sprung() == []


# --- what must never run ---


class Traps:
    """Pieces of code that leave a file when they run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def python(self, name: str) -> str:
        return f"import pathlib\npathlib.Path({str(self._folder / name)!r}).touch()\n"

    def pickle(self, name: str) -> bytes:
        return pickle.dumps(_Bomb(str(self._folder / name)))

    def torch_file(self, path: Path, name: str) -> None:
        torch.save({"state": _Bomb(str(self._folder / name)), "param_groups": []}, path)

    def sprung(self) -> list[str]:
        return sorted(path.name for path in self._folder.iterdir())


class _Bomb:
    def __init__(self, path: str) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (self._path,)


@pytest.fixture
def traps(tmp_path_factory: pytest.TempPathFactory) -> Traps:
    return Traps(tmp_path_factory.mktemp("traps"))


def test_the_traps_work(traps: Traps, tmp_path: Path) -> None:
    pickle.loads(traps.pickle("pickle"))
    exec(traps.python("python"))
    traps.torch_file(tmp_path / "x.pt", "torch")
    torch.load(tmp_path / "x.pt", weights_only=False)
    assert traps.sprung() == ["pickle", "python", "torch"]


def test_pickles_and_code_beside_the_weights_never_run(tmp_path: Path, traps: Traps) -> None:
    write_data(tmp_path / "train.jsonl")
    content = recipe_content(scoring={"scores": ["gradient-norm", "loss", "adam-norm"]})
    (tmp_path / "gracekit.yaml").write_text(yaml.safe_dump(content))
    checkpoint = write_checkpoint(tmp_path / "run", 10)
    for name in ("pytorch_model.bin", "optimizer.pt", "scheduler.pt", "training_args.bin",
                 "rng_state.pth", "rng_state_0.pth", "adapter_model.bin", "scaler.pt"):  # fmt: skip
        traps.torch_file(checkpoint / name, name)
    for name in ("modeling_llama.py", "tokenization_llama.py", "sitecustomize.py", "conftest.py"):
        (checkpoint / name).write_text(traps.python(name))
    (checkpoint / "vocab.pkl").write_bytes(traps.pickle("vocab.pkl"))
    os.utime(checkpoint / "trainer_state.json")
    ok("refresh", str(checkpoint), "-r", str(tmp_path / "gracekit.yaml"))
    assert traps.sprung() == []
    assert optimizer_of(Store.open(tmp_path / "store").header(1))["used"] is False


AUTO_MAPS: dict[str, dict[str, Any]] = {
    "config.json": {
        "model_type": "evil",
        "auto_map": {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.Evil"},
    },
    "tokenizer_config.json": {
        "tokenizer_class": "EvilTokenizer",
        "auto_map": {"AutoTokenizer": ["evil.EvilTokenizer", "evil.EvilTokenizer"]},
    },
}


@pytest.mark.parametrize("name", AUTO_MAPS)
def test_code_of_a_checkpoint_does_not_run(tmp_path: Path, traps: Traps, name: str) -> None:
    checkpoint = write_checkpoint(tmp_path / "run", 10)
    (checkpoint / "evil.py").write_text(traps.python("evil"))
    content = json.loads((checkpoint / name).read_text())
    (checkpoint / name).write_text(json.dumps(content | AUTO_MAPS[name]))
    os.utime(checkpoint / "trainer_state.json")
    if name == "config.json":
        with pytest.raises(CheckpointError, match="trust_remote_code"):
            use(checkpoint, tmp_path / "pins")
    else:
        with contextlib.suppress(CheckpointError):
            use(checkpoint, tmp_path / "pins")
    assert traps.sprung() == []


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.mkdir('{trap}') }}",
        "{{ self.__init__.__globals__ }}",
        "{{ messages.append(1) }}",
        "{{ (''|attr('__class__')).mro() }}",
        "{% include '/etc/passwd' %}",
        "{% for i in range(10 ** 9) %}x{% endfor %}",
        "{{ raise_exception('no') }}",
        "{% for %}",
        "{{ ",
    ],
)
def test_chat_templates_are_in_a_sandbox(template: str, traps: Traps) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template.replace("{trap}", f"{traps._folder}/jinja")
    messages = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})
    with pytest.raises(DataError, match="chat template"):
        Renderer(tokenizer, DataSection(path="-")).render(Conversation(messages=messages))
    assert traps.sprung() == []


# --- checkpoints ---


def use(checkpoint: Path, pins: Path) -> None:
    """All that a refresh reads of a checkpoint."""
    settings = CheckpointSection()
    with pin(check_checkpoint(checkpoint, settings), pins) as pinned:
        load_tokenizer(pinned, settings)
        load_model(pinned, settings, device="cpu")


def holds(name: str, text: str) -> Callable[[Path], object]:
    return lambda checkpoint: (checkpoint / name).write_text(text)


def index(text: str) -> Callable[[Path], object]:
    """Shards by this index, and no whole file."""

    def spoil(checkpoint: Path) -> None:
        (checkpoint / "model.safetensors").unlink()
        (checkpoint / "model.safetensors.index.json").write_text(text)

    return spoil


def claim(checkpoint: Path, **sizes: int) -> None:
    content = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(content | sizes))


def grow(name: str) -> Callable[[Path], object]:
    """A file of a gigabyte, of which nothing is on the disk."""
    return lambda checkpoint: os.truncate(checkpoint / name, 1 << 30)


def safetensors_header(length: int, text: bytes = b"") -> Callable[[Path], object]:
    content = length.to_bytes(8, "little") + text
    return lambda checkpoint: (checkpoint / "model.safetensors").write_bytes(content)


SPOILED: dict[str, Callable[[Path], object]] = {
    "deep config": holds("config.json", deep(100_000)),
    "deep state": holds("trainer_state.json", '{"global_step": ' + deep(100_000) + "}"),
    "deep adapter": holds("adapter_config.json", deep(100_000)),
    "deep index": index(deep(100_000)),
    "deep tokenizer": holds("tokenizer.json", '{"model": ' + deep(100_000) + "}"),
    "deep header": safetensors_header(200_000, deep(100_000).encode()),
    "large config": grow("config.json"),
    "large state": grow("trainer_state.json"),
    "large tokenizer": grow("tokenizer.json"),
    "large tokenizer config": grow("tokenizer_config.json"),
    "header that claims everything": safetensors_header(2**63, b"{}"),
    "header that claims a gigabyte": safetensors_header(10**9, b"{}"),
    "huge numbers": holds("trainer_state.json", '{"global_step": 1' + "0" * 5000 + "}"),
    "vocabulary claim": lambda c: claim(c, vocab_size=10**12),
    "width claim": lambda c: claim(c, hidden_size=10**9),
    "list, not object": holds("config.json", "[]"),
    "index out of the folder": index('{"weight_map": {"a": "../../other/model.safetensors"}}'),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILED)
def test_spoiled_checkpoints_are_clear_errors(tmp_path: Path, name: str) -> None:
    checkpoint = write_checkpoint(tmp_path / "run", 10)
    SPOILED[name](checkpoint)
    for path in checkpoint.iterdir():
        os.utime(path, (1e9, 1e9))
    with pytest.raises(CheckpointError):
        use(checkpoint, tmp_path / "pins")


@pytest.mark.parametrize("name", ["config.json", "trainer_state.json", "tokenizer.json"])
def test_pipes_and_devices_do_not_block(tmp_path: Path, name: str) -> None:
    for k, special in enumerate(("pipe", "device", "loop", "directory")):
        checkpoint = write_checkpoint(tmp_path / str(k), 10)
        (checkpoint / name).unlink()
        if special == "pipe":
            os.mkfifo(checkpoint / name)
        elif special == "directory":
            (checkpoint / name).mkdir()
        else:
            target = "/dev/zero" if special == "device" else name
            (checkpoint / name).symlink_to(target)
        with pytest.raises(CheckpointError):
            use(checkpoint, tmp_path / "pins")


def test_links_to_files_elsewhere_are_read_and_never_written_through(tmp_path: Path) -> None:
    """A snapshot of a model hub is a folder of links to blobs elsewhere: it has to work."""
    blobs = write_checkpoint(tmp_path / "blobs", 10)
    snapshot = tmp_path / "run" / "checkpoint-10"
    snapshot.mkdir(parents=True)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(Path("..", "..", "blobs", blobs.name, path.name))
    before = {p: (p.read_bytes(), p.stat().st_mode, p.stat().st_mtime) for p in blobs.iterdir()}
    write_data(tmp_path / "train.jsonl")
    (tmp_path / "gracekit.yaml").write_text(yaml.safe_dump(recipe_content()))
    ok("refresh", str(snapshot), "-r", str(tmp_path / "gracekit.yaml"))
    assert {p: (p.read_bytes(), p.stat().st_mode, p.stat().st_mtime)
            for p in blobs.iterdir()} == before  # fmt: skip


# --- recipes ---

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + k)}: &{chr(98 + k)} [{', '.join([f'*{chr(97 + k)}'] * 9)}]\n" for k in range(9)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: !!python/object/apply:os.mkdir ['{trap}/yaml']", "not valid YAML"),
        ("data: !!python/name:os.system ''", "not valid YAML"),
        ("data: !!python/module:antigravity ''", "not valid YAML"),
        ("data: !mine {{path: a}}", "not valid YAML"),
        (BOMB, r"alias \*a is not read"),
        ("data: &a [*a]", r"alias \*a is not read"),
        ("data: " + "[" * 20_000, "nested too deep"),
        ("seed: 1" + "0" * 5000, "not valid YAML"),
        ("seed: 2024-99-99", "not valid YAML"),
        ("data: {{path: 'a\x1b[31m'}}", "not valid YAML"),
        ("data: {{path: a}}\n---\ndata: {{path: b}}", "not valid YAML"),
        ("{{[]: 1}}", "not valid YAML"),
        ("1: 2", "1"),
        ("data: {{path: a, ? [x] : 1}}", "not valid YAML"),
        ("data: {{path: a}}\nseed: 1\ndata: {{path: b}}", "the key 'data' stands in lines 1 and 3"),
        ("data: {{path: a, path: b}}", "the key 'path' stands in lines 1 and 1"),
        ('data: {{path: "a\\0b"}}', "data.path holds .* a NUL character"),
        ('data: {{path: a}}\nstore: "a\\ud800b"', "store holds .* half a surrogate pair"),
        ('data: {{path: a}}\nselection: {{never_in: [b, "\\0"]}}', "selection.never_in holds"),
        ("data: {{path: a}}\nretention: {{keep: yes}}", "retention.keep should be a number.* true"),
        ("data: {{path: a}}\nselection: {{fraction: on}}", "selection.fraction should be a number"),
        ("data: {{path: a}}\nrefresh: {{max_cost: .inf}}", "refresh.max_cost.* finite"),
        ("data: {{path: a}}\ncheckpoints: {{poll_interval_s: 1e300}}", "less than or equal to"),
        ("data: {{path: a}}\nscoring: {{num_threads: 99999999}}", "less than or equal to"),
    ],
)
def test_recipes_are_plain_values(tmp_path: Path, traps: Traps, text: str, message: str) -> None:
    path = tmp_path / "gracekit.yaml"
    text = text.replace("{trap}", str(traps._folder)).replace("{{", "{").replace("}}", "}")
    path.write_text(text)
    with pytest.raises(RecipeError, match=message) as caught:
        Recipe.load(path)
    assert len(str(caught.value)) < 2000
    assert traps.sprung() == []


def test_recipes_as_editors_and_shells_leave_them(world: Path, tmp_path: Path) -> None:
    """With a byte order mark or other ends of lines, through a pipe, or as no text at all."""
    text = (world / "gracekit.yaml").read_text()
    path = tmp_path / "gracekit.yaml"
    expected = Recipe.from_dict(yaml.safe_load(text), folder=tmp_path)
    for content in (text.encode("utf-8-sig"), text.replace("\n", "\r\n").encode()):
        path.write_bytes(content)
        assert Recipe.load(path) == expected
    path.write_bytes(text.encode("utf-16"))
    with pytest.raises(RecipeError, match="it is not UTF-8: byte 0 is 0xff; save it as UTF-8"):
        Recipe.load(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(RecipeError, match="keys and values"):
        Recipe.load(path)  # nobody writes to it, so nothing comes
    reading, writing = os.pipe()  # as a shell makes one for `<(command)`

    def write() -> None:
        with os.fdopen(writing, "w") as file:
            file.write(text)

    writer = threading.Thread(target=write)
    writer.start()
    assert Recipe.load(Path(f"/dev/fd/{reading}")).selection == expected.selection
    writer.join()
    os.close(reading)
    for device in ("/dev/zero", "/dev/null"):
        with pytest.raises(RecipeError, match=f"{device}: it is a device or a socket"):
            Recipe.load(device)


def test_texts_that_a_user_names_are_files_or_pipes(world: Path, tmp_path: Path) -> None:
    """For `sql --file` and the comparison of a report, as for recipes."""
    store = ["--store", str(world / "store")]
    for device in ("/dev/zero", "/dev/urandom"):
        result = invoke("sql", "-f", device, *store)
        assert result.exit_code == 2 and "it is a device" in result.stderr
        result = invoke("report", *store, "--comparison", device, "-o", str(tmp_path / "r.html"))
        assert result.exit_code == 2 and "it is a device" in result.stderr
    os.mkfifo(tmp_path / "pipe")
    for arguments in (
        ["sql", "-f", str(tmp_path / "pipe"), *store],
        ["report", *store, "--comparison", str(tmp_path / "pipe")],
        ["report", *store, "-o", str(tmp_path / "pipe")],
    ):
        assert invoke(*arguments).exit_code in (1, 2)


def test_options_are_plain_values_too(world: Path, traps: Traps) -> None:
    recipe = ["-r", str(world / "gracekit.yaml")]
    for value in (f"!!python/object/apply:os.mkdir ['{traps._folder}/x']", "[" * 9000, "&a [*a]"):
        result = invoke("select", "--set", f"selection.count={value}", *recipe)
        assert result.exit_code == 2
    assert traps.sprung() == []


def test_conditions_of_a_recipe_see_the_store_only(world: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.csv"
    recipe = ["-r", str(world / "gracekit.yaml")]
    for condition in (
        "(SELECT count(*) FROM read_csv('/etc/passwd')) > 0",
        f"row IN (WITH x AS (COPY samples TO '{target}') SELECT 1)",
        f"true); COPY samples TO '{target}'; SELECT (1",
    ):
        result = invoke("select", "--set", f"selection.never_in_where={json.dumps(condition)}",
                        *recipe)  # fmt: skip
        assert result.exit_code == 2 and "never_in_where" in result.stderr
    assert not target.exists()


def test_a_document_is_read_up_to_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "MAX_JSON_BYTES", 10)
    (tmp_path / "a.json").write_text('{"a": 123}')
    assert documents.read_json(tmp_path / "a.json") == {"a": 123}
    (tmp_path / "a.json").write_text('{"a": 1234}')
    with pytest.raises(ValueError, match="larger than 10 bytes"):
        documents.read_json(tmp_path / "a.json")


def test_a_small_document_takes_little_memory(tmp_path: Path) -> None:
    """Not as much as the largest one that is read: where memory is limited, it could not be had."""
    (tmp_path / "a.json").write_text('{"a": 123}')
    for read in (documents.read_json, documents.read_named_text):
        tracemalloc.start()
        read(tmp_path / "a.json")
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert most < 1 << 20
