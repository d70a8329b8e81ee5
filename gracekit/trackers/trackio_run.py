"""trackio: a run in its local database, which `trackio show` draws.

All of trackio's own variables hold: `TRACKIO_DIR`, `TRACKIO_SPACE_ID`, `TRACKIO_SERVER_URL`.
"""

from __future__ import annotations

import trackio

from gracekit.protocols import TrackedRun


class TrackioRun:
    """Logs to the run of the same name at each start."""

    def __init__(self, run: TrackedRun) -> None:
        self._run = trackio.init(
            project=run.project or "gracekit",
            name=f"{run.name}-{run.id}",  # its runs are told apart by their names
            resume="allow",
            config=run.config,
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, values: dict[str, float], step: int) -> None:
        """Log one version."""
        self._run.log(values, step=step)

    def close(self) -> None:
        """Write what is left and finish the run."""
        self._run.finish()
