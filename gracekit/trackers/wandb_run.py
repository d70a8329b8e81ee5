"""Weights & Biases: a run of its own, whose curves go by the training step of the checkpoints.

All of wandb's own variables hold: `WANDB_MODE=offline`, `WANDB_ENTITY`, `WANDB_BASE_URL` and so on.
"""

from __future__ import annotations

import os

import wandb

from gracekit.protocols import TrackedRun
from gracekit.version.log_numbers import PREFIX

FINISH_S = 15
"""Seconds that the end waits for an upload; what is left can be sent with `wandb sync`."""


class WandbRun:
    """Logs to the run of the same id at each start."""

    def __init__(self, run: TrackedRun) -> None:
        self._run = wandb.init(
            project=run.project or os.environ.get("WANDB_PROJECT") or "gracekit",
            name=run.name,
            id=run.id,
            resume="allow",
            job_type="coreset",
            dir=os.environ.get("WANDB_DIR") or str(run.folder),
            config=run.config,
            settings=wandb.Settings(
                console="off",
                disable_code=True,
                disable_git=True,
                finish_timeout=FINISH_S,
                x_disable_stats=True,
            ),
        )
        # By the training's step: wandb's own would refuse that of a training that went back.
        self._run.define_metric(f"{PREFIX}step")
        self._run.define_metric(f"{PREFIX}*", step_metric=f"{PREFIX}step")

    def log(self, values: dict[str, float], step: int) -> None:
        """Log one version."""
        self._run.log({**values, f"{PREFIX}step": step})

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()
