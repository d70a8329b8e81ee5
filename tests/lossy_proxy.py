"""An HTTP proxy before a server of the S3 interface that loses answers, throttles or cuts bodies.

The faults are on the wire, below the library that talks to the server and its retries.
"""

from __future__ import annotations

import contextlib
import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Fault = str
"""`lose`: the server does it, and the connection ends without an answer. `drop`: it never gets
there. `throttle`: 503 SlowDown. `deny`: 403 AccessDenied. `cut`: half of the answer's body."""

_DENIED = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
_SLOW = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


class LossyProxy:
    """Forwards to `port`; `fault` says what happens to the k-th request of a method and path."""

    def __init__(self, port: int) -> None:
        self.fault: Callable[[int, str, str], Fault | None] = lambda k, method, path: None
        self.seen: list[str] = []
        self._port = port
        self._lock = threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _handle(self) -> None:
                proxy.handle(self)

            do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _handle  # noqa: N815

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        """Forward one request, or let it meet its fault."""
        method, path = request.command, request.path
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        with self._lock:
            self.seen.append(f"{method} {path}")
            fault = self.fault(len(self.seen), method, path)
        if fault == "drop":
            request.close_connection = True
            return
        if fault in ("throttle", "deny"):
            status, answer = (503, _SLOW) if fault == "throttle" else (403, _DENIED)
            _answer(request, status, {"Content-Type": "application/xml"}, answer)
            return
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        # As it came: the signature covers the name of the host.
        connection.request(method, path, body, dict(request.headers.items()))
        response = connection.getresponse()
        content = response.read()
        headers = dict(response.getheaders())
        connection.close()
        if fault == "lose":
            request.close_connection = True
            return
        if fault == "cut" and content:
            _answer(request, response.status, headers, content, sent=len(content) // 2)
            request.close_connection = True
            return
        _answer(request, response.status, headers, content)


def _answer(
    request: BaseHTTPRequestHandler,
    status: int,
    headers: dict[str, str],
    content: bytes,
    *,
    sent: int | None = None,
) -> None:
    request.send_response_only(status)
    for name, value in headers.items():
        if name.lower() not in ("content-length", "transfer-encoding", "connection"):
            request.send_header(name, value)
    is_head = request.command == "HEAD"
    length = headers.get("Content-Length") if is_head else None
    request.send_header("Content-Length", length or str(len(content)))
    with contextlib.suppress(ConnectionError):  # the client did not wait for it
        request.end_headers()
        request.wfile.write(b"" if is_head else content if sent is None else content[:sent])
        request.wfile.flush()


@contextmanager
def lossy_proxy(port: int) -> Iterator[LossyProxy]:
    """A proxy that runs until the end of the block."""
    proxy = LossyProxy(port)
    thread = threading.Thread(target=proxy.server.serve_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.server.shutdown()
        proxy.server.server_close()
        thread.join()
