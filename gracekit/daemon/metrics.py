"""Metrics for Prometheus, in a registry of their own, served on loopback unless told otherwise.

`docs/daemon.md` lists them. The library is the extra `gracekit[metrics]`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from gracekit.errors import RecipeError
from gracekit.files import num_bytes_below
from gracekit.types import Json
from gracekit.version import __version__
from gracekit.version.header import Header

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

SECONDS = (1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200)
"""Bounds of the histogram of refreshes."""
_OF_METER = {
    "value": "Random samples that one of the coreset is worth; NaN when not known.",
    "best": "The same with perfect norms; NaN when not known.",
    "value_kept": "Share of that gain which is kept; NaN when there is none.",
    "gradient_error": "Relative error of its mean gradient by sketches; NaN without these.",
    "gradient_error_random": "The same of a random draw of as many.",
}
STATES = ("starting", "waiting", "refreshing", "blocked", "failing", "stuck", "stopped")
STORE_BYTES_S = 60.0
"""Seconds for which the size of the store is taken as known: it costs a look at every file."""


class Metrics:
    """What one daemon counts. Makes nothing public before `serve`.

    Raises `RecipeError` where the library is not installed.
    """

    def __init__(self, store: Path, registry: CollectorRegistry | None = None) -> None:
        try:
            import prometheus_client as client
        except ImportError:
            raise RecipeError(
                "metrics need the library prometheus_client: pip install 'gracekit[metrics]'"
            ) from None
        self._store = store
        self._size = (float("-inf"), 0)
        self.registry = registry or client.CollectorRegistry()
        to = self.registry
        client.ProcessCollector(registry=to)
        client.Info("gracekit_build", "The program.", registry=to).info({"version": __version__})
        self._refresh = client.Histogram(
            "gracekit_refresh_seconds", "Wall time of a refresh.", buckets=SECONDS, registry=to
        )
        self._model_pass = client.Counter(
            "gracekit_model_pass_seconds", "Wall time in the model pass.", registry=to
        )
        self._versions = client.Counter("gracekit_versions", "Versions published.", registry=to)
        self._rows = client.Counter("gracekit_rows_measured", "Rows measured.", registry=to)
        self._skipped = client.Counter(
            "gracekit_checkpoints_skipped", "Checkpoints that could not be used.", registry=to
        )
        self._errors = client.Counter("gracekit_errors", "Errors by kind.", ["kind"], registry=to)
        self._last_version = client.Gauge("gracekit_last_version", "Newest version.", registry=to)
        self._last_step = client.Gauge("gracekit_last_step", "Its training step.", registry=to)
        self._success = client.Gauge(
            "gracekit_last_success_timestamp_seconds", "When it was published.", registry=to
        )
        self._audit = client.Gauge(
            "gracekit_audit_rank_correlation",
            "Of what was carried over with the truth; NaN when all was measured.",
            registry=to,
        )
        self._meter = {
            number: client.Gauge(f"gracekit_coreset_{number}", about, registry=to)
            for number, about in _OF_METER.items()
        }
        self._heartbeat = client.Gauge(
            "gracekit_heartbeat_timestamp_seconds", "Last sign of the daemon.", registry=to
        )
        self._state = client.Gauge(
            "gracekit_state", "1 for the present state.", ["state"], registry=to
        )
        self._done = client.Gauge(
            "gracekit_refresh_rows_done", "Rows of this round of the model pass done.", registry=to
        )
        self._planned = client.Gauge(
            "gracekit_refresh_rows_planned", "Rows of this round of the model pass.", registry=to
        )
        size = client.Gauge("gracekit_store_bytes", "Size of the store on disk.", registry=to)
        size.set_function(self._store_bytes)

    def published(self, header: Header) -> None:
        """Count a new version."""
        timings, stats = header.timings, header.stats
        self._refresh.observe(timings.total_s or 0.0)
        self._model_pass.inc(timings.model_pass_s or 0.0)
        self._versions.inc()
        self._rows.inc(stats.num_measured or 0)
        self._last_version.set(header.version)
        self._last_step.set(header.checkpoint.step)
        self._success.set_to_current_time()
        found = None if header.audit is None else header.audit.rank_correlation
        self._audit.set(float("nan") if found is None else found)
        for number, gauge in self._meter.items():
            gauge.set(float("nan") if header.meter is None else getattr(header.meter, number))

    def failed(self, kind: str) -> None:
        """Count an error, by the name of its class."""
        self._errors.labels(kind).inc()

    def skipped(self) -> None:
        """Count a checkpoint that was given up."""
        self._skipped.inc()

    def beat(self, heartbeat: Json) -> None:
        """Take over what a heartbeat says."""
        self._heartbeat.set(heartbeat["unix_time"])
        for state in STATES:
            self._state.labels(state).set(heartbeat["state"] == state)
        progress = heartbeat.get("progress", {})
        self._done.set(progress.get("num_done", 0))
        self._planned.set(progress.get("num_planned", 0))

    @contextlib.contextmanager
    def serve(self, address: str, port: int) -> Iterator[int]:
        """Answer at http://address:port/metrics; yields the port (one that is free for 0).

        Raises `RecipeError` when the address cannot be had.
        """
        from prometheus_client import start_http_server

        try:
            server, thread = start_http_server(port, addr=address, registry=self.registry)
        except OSError as error:
            raise RecipeError(
                f"cannot serve metrics at {address}:{port}: {error.strerror or error}; name "
                "another port with --metrics-port, or stop what uses this one"
            ) from None
        try:
            yield server.server_port
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def _store_bytes(self) -> int:
        known_at, num_bytes = self._size
        if time.monotonic() - known_at > STORE_BYTES_S:
            num_bytes = num_bytes_below(self._store)
            self._size = (time.monotonic(), num_bytes)
        return num_bytes
