"""The daemon: a version for each checkpoint, for as long as the training runs.

`loop` is the daemon, and says what each kind of error does; `heartbeat` says from a thread of its
own how it is; `signals` stops it; `memory` keeps it small; `notify` speaks to systemd, `metrics` to
Prometheus. docs/daemon.md is for those who run it.
"""

from gracekit.daemon.loop import WatchReport, watch
from gracekit.daemon.metrics import Metrics
from gracekit.daemon.signals import stop_on_signals

__all__ = ["Metrics", "WatchReport", "stop_on_signals", "watch"]
