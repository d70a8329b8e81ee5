"""Weeks in half an hour: a fast fake trainer, the real daemon, and what a thousand refreshes leave.

    python benchmarks/soak.py --num-checkpoints 1000 -o runs/soak.json
    python benchmarks/soak.py --people-for-s 600     # people at work beside it, for ten minutes

The trainer writes tiny but real Hugging Face checkpoints and keeps one (`save_total_limit=1`). It
writes the next as soon as the daemon has begun to read the last, which is then deleted while it is
read; and every tenth time it writes three at once. `gracekit watch` is a process of its own, as
users start it. Told at the end: versions, skipped checkpoints and errors by the daemon's JSON
logs; resident memory, open files and CPU seconds a refresh, early and late; the CPU share of a
daemon that waits, at the default poll interval; and what `gracekit verify` says.

With people (`benchmarks/people.py`), eight readers and five others work on the store meanwhile, and
the trainer goes on until their time is over; told besides is what each of them met.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
import numpy as np
import torch
import yaml
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks import people

NUM_SAMPLES = 64
WORDS = [
    "red", "green", "blue", "one", "two", "three", "cat", "dog", "tree", "house", "is", "the",
    "small", "large", "of", "sum",
]  # fmt: skip
LONG_S = 600.0
"""Seconds that a version may take on a busy machine."""
IDLE_S = 60.0
LINKING_S = 0.05
"""From the first link to a checkpoint until it is deleted: mostly enough to link all of it."""


class Trainer:
    """Writes checkpoint after checkpoint of a tiny Llama, each a little further, and keeps one."""

    def __init__(self, folder: Path) -> None:
        self.run = folder / "run"
        self._template = folder / "template"
        self._rng = np.random.default_rng(0)
        self.step = 0
        _write_model(self._template)
        self._weights = load_file(self._template / "model.safetensors")

    def save(self) -> None:
        """One checkpoint, its state last, as the Hugging Face trainer does; then the rotation."""
        self.step += 10
        directory = self.run / f"checkpoint-{self.step}"
        directory.mkdir(parents=True)
        for name, weight in self._weights.items():
            step = self._rng.normal(size=weight.shape).astype(np.float32)
            self._weights[name] = weight + 2e-3 * step
        save_file(self._weights, directory / "model.safetensors", metadata={"format": "pt"})
        for file in self._template.iterdir():
            if file.name != "model.safetensors":
                shutil.copy(file, directory)
        (directory / "trainer_state.json").write_text(json.dumps({"global_step": self.step}))
        for older in self.run.iterdir():
            if older != directory:
                shutil.rmtree(older)


@dataclass
class Watched:
    """A running daemon, and what its process took when each version was there."""

    process: subprocess.Popen[str]
    store: Path
    samples: list[dict[str, float]] = field(default_factory=list)

    def note(self, version: int) -> None:
        """Take down the process's counters."""
        self.samples.append({"version": version, **counters(self.process.pid)})

    def version(self) -> int:
        """The newest version; 0 before the first."""
        try:
            return int((self.store / "LATEST").read_text())
        except OSError:
            return 0


def main() -> None:
    """Parse, soak, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--num-checkpoints", type=int, default=1000)
    parser.add_argument("--idle-s", type=float, default=IDLE_S)
    parser.add_argument("--people-for-s", type=float, default=0.0,
                        help="seconds that people work beside the daemon")  # fmt: skip
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.people_for_s:
            found = among_people(folder, options.people_for_s)
        else:
            found = soak(folder, options.num_checkpoints, options.idle_s)
    for name, value in found.items():
        print(f"{name.replace('_', ' '):<36} {value}")
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(found, indent=2) + "\n")


def among_people(folder: Path, seconds: float) -> dict[str, Any]:
    """Run trainer and daemon among people until their time is over; what was found."""
    prepare(folder)
    trainer = Trainer(folder)
    with (folder / "log.jsonl").open("w") as log:
        daemon = start(folder, log)
        try:
            train(trainer, daemon, 1)
            with people.at_work(folder, seconds) as crowd:
                while crowd.is_at_work:
                    train(trainer, daemon, trainer.step // 10 + 1)
        finally:
            code = end(daemon)
    return {
        "num_checkpoints": trainer.step // 10,
        "num_versions": daemon.version(),
        **told_by_the_daemon(folder),
        "daemon_exit_code": code,
        **crowd.told(),
        "verify": verified(folder),
    }


def prepare(folder: Path) -> None:
    """Data and recipe."""
    write_data(folder / "train.jsonl")
    recipe = {
        "data": {"path": "train.jsonl", "group_column": "source", "max_length": 32},
        "store": "store",
        "checkpoints": {"poll_interval_s": 0.05},
        "scoring": {"shard_rows": 32, "num_threads": 1, "device": "cpu"},
        "refresh": {"min_fraction": 0.4, "max_fraction": 0.5, "min_probe": 12},
        "propagation": {"min_measured": 12},
    }
    (folder / "gracekit.yaml").write_text(yaml.safe_dump(recipe))


def told_by_the_daemon(folder: Path) -> dict[str, Any]:
    """What its log says of skipped checkpoints, warnings and errors."""
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {
        "skipped": Counter(r["error"] for r in records if r["message"].startswith("skipping")),
        "errors": Counter(r["error"] for r in records if r["level"] in ("error", "critical")),
    }


def verified(folder: Path) -> str:
    """What `gracekit verify` says of the store."""
    done = subprocess.run(
        [sys.executable, "-m", "gracekit", "verify"], cwd=folder, capture_output=True, text=True
    )
    return (done.stdout + done.stderr).strip()


def soak(folder: Path, num_checkpoints: int, idle_s: float) -> dict[str, Any]:
    """Run trainer and daemon; what was found."""
    prepare(folder)
    trainer, started = Trainer(folder), time.monotonic()
    with (folder / "log.jsonl").open("w") as log:
        daemon = start(folder, log)
        try:
            train(trainer, daemon, num_checkpoints)
        finally:
            code = end(daemon)
    seconds = time.monotonic() - started
    with (folder / "idle.jsonl").open("w") as log:
        idle = start(folder, log, "--set", "checkpoints.poll_interval_s=5")
        try:
            idle_percent = cpu_share(idle, idle_s)
        finally:
            end(idle)
    return {
        "num_checkpoints": num_checkpoints,
        "num_versions": daemon.version(),
        **told_by_the_daemon(folder),
        "daemon_exit_code": code,
        "seconds": round(seconds),
        **growth(daemon.samples),
        "rss_mib_by_version": {
            int(s["version"]): round(s["rss_mib"], 1)
            for s in daemon.samples[:: max(len(daemon.samples) // 20, 1)]
        },
        "idle_cpu_percent": round(idle_percent, 4),
        "store_bytes": sum(f.stat().st_size for f in daemon.store.rglob("*") if f.is_file()),
        "verify": verified(folder),
    }


def train(trainer: Trainer, daemon: Watched, num_checkpoints: int) -> None:
    """Write the checkpoints, each as soon as the daemon reads the last; and wait for the end."""
    version = 0
    while trainer.step < 10 * num_checkpoints:
        for _ in range(3 if trainer.step % 100 == 90 else 1):
            if trainer.step < 10 * num_checkpoints:
                trainer.save()
        deadline = time.monotonic() + LONG_S
        while not is_taken(daemon, trainer.step):
            if daemon.version() > version:
                version = daemon.version()
                daemon.note(version)
            if daemon.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the daemon does not take checkpoint-{trainer.step}")
            time.sleep(0.005)
        time.sleep(LINKING_S)
    deadline = time.monotonic() + LONG_S
    while heartbeat(daemon).get("state") != "waiting" and time.monotonic() < deadline:
        time.sleep(0.1)
    daemon.note(daemon.version())


def is_taken(daemon: Watched, step: int) -> bool:
    """Whether the daemon reads the checkpoint of that step, or has made a version from it."""
    pins = daemon.store / "pins"
    if pins.is_dir() and any(p.name.startswith(f"checkpoint-{step}-") for p in pins.iterdir()):
        return True
    sidecar = daemon.store / f"headers/v{daemon.version():06d}.json"
    return sidecar.exists() and bool(json.loads(sidecar.read_text())["checkpoint"]["step"] == step)


def heartbeat(daemon: Watched) -> dict[str, Any]:
    """What the daemon says of itself."""
    try:
        content: dict[str, Any] = json.loads((daemon.store / "heartbeat.json").read_text())
    except OSError:
        return {}
    return content


def start(folder: Path, log: Any, *arguments: str) -> Watched:
    """A daemon that logs JSON."""
    command = [sys.executable, "-m", "gracekit", "--log-format", "json", "watch", "run"]
    process = subprocess.Popen(
        [*command, *arguments], cwd=folder, stdout=subprocess.DEVNULL, stderr=log, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return Watched(process, folder / "store")


def end(daemon: Watched) -> int:
    """Stop it as a service manager does; its exit code."""
    daemon.process.send_signal(signal.SIGTERM)
    return daemon.process.wait(LONG_S)


def cpu_share(daemon: Watched, seconds: float) -> float:
    """Percent of one CPU that a waiting daemon takes."""
    pid, deadline = daemon.process.pid, time.monotonic() + LONG_S
    while heartbeat(daemon).get("pid") != pid or heartbeat(daemon)["state"] != "waiting":
        if time.monotonic() > deadline:
            raise SystemExit("the daemon does not start again")
        time.sleep(0.1)
    time.sleep(min(10.0, seconds))  # what starts up settles
    before, started = counters(pid)["cpu_s"], time.monotonic()
    time.sleep(seconds)
    return 100 * (counters(pid)["cpu_s"] - before) / (time.monotonic() - started)


def counters(pid: int) -> dict[str, float]:
    """CPU seconds, resident MiB and open files of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return {
        "cpu_s": (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"),
        "rss_mib": int(fields[21]) * os.sysconf("SC_PAGE_SIZE") / 2**20,
        "num_files": len(os.listdir(f"/proc/{pid}/fd")),
    }


def growth(samples: list[dict[str, float]]) -> dict[str, Any]:
    """Medians of the tenth of the samples after a warm-up of a tenth, and of the last tenth."""
    tenth = max(len(samples) // 10, 2)
    found: dict[str, Any] = {}
    for name, window in (("early", samples[tenth : 2 * tenth]), ("late", samples[-tenth:])):
        versions = window[-1]["version"] - window[0]["version"]
        cpu = (window[-1]["cpu_s"] - window[0]["cpu_s"]) / max(versions, 1)
        found[f"versions_{name}"] = f"{window[0]['version']:.0f} to {window[-1]['version']:.0f}"
        found[f"cpu_s_a_refresh_{name}"] = round(cpu, 3)
        found[f"rss_mib_{name}"] = round(statistics.median(s["rss_mib"] for s in window), 1)
        found[f"open_files_{name}"] = statistics.median(s["num_files"] for s in window)
    return found | {
        "rss_growth_percent": round(100 * (found["rss_mib_late"] / found["rss_mib_early"] - 1), 2)
    }


def write_data(path: Path) -> None:
    """Prompts and responses of random words."""
    rng = np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as file:
        for i in range(NUM_SAMPLES):
            words = rng.choice(WORDS, 12).tolist()
            row = {"prompt": " ".join(words[:3]), "response": " ".join(words[3:]) + f" {i}",
                   "source": "abc"[i % 3]}  # fmt: skip
            file.write(json.dumps(row) + "\n")


def _write_model(directory: Path) -> None:
    torch.manual_seed(0)
    special = ["<pad>", "<eos>", "<unk>"]
    vocabulary = {t: i for i, t in enumerate([*special, *map(str, range(10)), *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True)]
    )
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64,
        pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(directory)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    ).save_pretrained(directory)


if __name__ == "__main__":
    main()
