"""A Ray cluster: connecting to it, what it has room for, and whether its head still answers."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import socket
import threading
import time
from functools import cached_property
from typing import Any

from gracekit.errors import ClusterError, RecipeError
from gracekit.recipe import ScoringSection

KNOCK_S = 10.0
"""Seconds in which the host of the cluster has to answer."""
KNOCK_AGAIN_S = 5.0
"""Seconds between two looks whether the cluster's head is there."""
LONGEST_SILENCE_S = 30.0
"""Seconds for which it may not be, at two looks at least. After 60 Ray ends every process that is
connected to it."""
_CLIENT = "ray://"
"""Addresses by way of a process on the cluster, which is what the loss of the head would end."""


def import_ray() -> Any:
    """The module; raises `RecipeError` where it is not installed."""
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise RecipeError(
            f"scoring.executor is ray, and Ray cannot be imported ({error}); install gracekit[ray] "
            "here and on all hosts of the cluster"
        ) from None


def connect(ray: Any) -> bool:
    """Connect to the cluster of `RAY_ADDRESS`, or start one here; whether it was started.

    Raises `ClusterError` where the address cannot be reached.
    """
    if ray.is_initialized():
        return False
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    if not os.environ.get("RAY_ADDRESS"):
        settings |= {"address": "local", "include_dashboard": False}
    address = os.environ.get("RAY_ADDRESS") or "this host"
    try:
        _knock(address)
        ray.init(**settings)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise ClusterError(
            f"cannot connect to the Ray cluster at {address}: "
            f"{str(error).partition(chr(10))[0]}; check RAY_ADDRESS, and that the same version of "
            f"Ray ({ray.__version__}) runs there"
        ) from error
    finally:
        if is_main and before is not None:  # Ray's own would end the process without a goodbye
            signal.signal(signal.SIGTERM, before)
    return True


def resources_of(ray: Any) -> dict[str, float]:
    """What the cluster has; raises `ClusterError` where it does not say."""
    try:
        found: dict[str, float] = ray.cluster_resources()
    except (OSError, RuntimeError, ray.exceptions.RayError) as error:
        why = str(error).partition("\n")[0]
        raise ClusterError(f"the Ray cluster does not say what it has: {why}") from error
    return found


def _knock(address: str, timeout_s: float = KNOCK_S) -> None:
    """Raise OSError where nobody listens at an address `host:port`, for which Ray waits minutes."""
    host, _, port = address.removeprefix(_CLIENT).rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s).close()


def room_for(scoring: ScoringSection, threads: int, resources: dict[str, float]) -> tuple[str, int]:
    """The device of each actor, and how many of them the cluster has room for.

    Raises `ClusterError` where that is none: hosts may be still to come.
    """
    num_gpus, num_cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
    kind = scoring.device.partition(":")[0]
    if kind == "auto":
        kind = "cuda" if num_gpus else "cpu"
    room = num_gpus if kind == "cuda" else num_cpus // threads
    if not room:
        raise ClusterError(
            f"the Ray cluster has no room for an actor on {kind} with {threads} threads: it has "
            f"{num_cpus} cores and {num_gpus} GPUs; set scoring.device and scoring.num_threads "
            "to what it has"
        )
    return kind, min(scoring.processes or room, room)


class Head:
    """The host that keeps a cluster together: whether it still answers."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self._last_seen = self._last_asked = time.monotonic()
        self._num_missed = 0
        self.is_lost = False

    @cached_property
    def _address(self) -> str:
        """Where to knock; empty where a process on the cluster stands between."""
        is_direct = not os.environ.get("RAY_ADDRESS", "").startswith(_CLIENT)
        return str(self._ray.get_runtime_context().gcs_address) if is_direct else ""

    def require(self) -> None:
        """Knock now and then; raises `ClusterError` where nobody has answered for long."""
        if time.monotonic() - self._last_asked < KNOCK_AGAIN_S:
            return
        try:
            _knock(self._address, timeout_s=KNOCK_AGAIN_S)
        except OSError as error:
            self._num_missed += 1
            silent_s = time.monotonic() - self._last_seen
            self.is_lost = self._num_missed > 1 and silent_s >= LONGEST_SILENCE_S
            if self.is_lost:
                raise ClusterError(
                    f"the head of the Ray cluster at {self._address} is lost: it has not answered "
                    f"for {silent_s:.0f} s ({error}). What is measured is kept; start the cluster "
                    "again, and this refresh goes on from there"
                ) from None
        else:
            self._last_seen, self._num_missed = time.monotonic(), 0
        self._last_asked = time.monotonic()
