"""What systemd is told (`Type=notify`): ready, status, stopping, and a watchdog's pings.

The protocol of sd_notify(3): one datagram of `NAME=value` lines to the socket that `NOTIFY_SOCKET`
names. Without it nothing is sent.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping


class Notifier:
    """Sends to the socket that the service manager named, if it did."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        # A leading @ stands for the zero byte of an abstract socket.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self.watchdog_s = _watchdog_s(environment)
        """Seconds without a ping after which the service manager restarts; None: it does not."""

    def ready(self) -> None:
        """The start is over."""
        self._send("READY=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._send("STATUS=" + " ".join(text.split()))

    def alive(self) -> None:
        """A ping for the watchdog."""
        if self.watchdog_s is not None:
            self._send("WATCHDOG=1")

    def stopping(self) -> None:
        """The end has begun."""
        self._send("STOPPING=1")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        with (
            contextlib.suppress(OSError),  # the daemon works without a listener
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender,
        ):
            sender.sendto(message.encode(errors="backslashreplace"), self._address)


def _watchdog_s(environment: Mapping[str, str]) -> float | None:
    is_ours = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    text = environment.get("WATCHDOG_USEC", "")
    return int(text) / 1e6 if is_ours and text.isdigit() and int(text) else None
