"""The socket and the HTTP server on it: uvicorn, with limits on headers and with signals left to the caller."""

import asyncio
import socket
from collections.abc import Generator
from contextlib import contextmanager

import orjson
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from server.api.errors import error_object
from server.errors import InvalidRequest

MAX_HEADER_BYTES = 64 * 1024
_SHUTDOWN_WAIT_S = 5
"""For connections that still send an error event or a refusal when the server stops."""


class CannotListen(Exception):
    """The address is taken, or is none of this machine's; the message says which."""


def bind_socket(host: str, port: int) -> socket.socket:
    """A bound socket that does not listen yet. Port 0 takes a free one.

    Raises:
        CannotListen: the system refuses.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as err:
        raise CannotListen(f"cannot listen on {host} port {port}: {err.strerror}") from err
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as err:
        bound.close()
        raise CannotListen(f"cannot listen on {host} port {port}: {err.strerror}") from err
    return bound


def url_of(bound: socket.socket) -> str:
    """Where a browser on this machine finds the server; "every address" becomes the loopback one."""
    host, port = bound.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def http_server(app: ASGIApp, *, header_timeout_s: float) -> "HttpServer":
    """A server for `HttpServer.serve(sockets=[...])`."""

    class Protocol(GuardedProtocol):
        timeout_s = header_timeout_s

    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        # Behind a proxy or not, nothing here depends on who the client says it is.
        proxy_headers=False,
        timeout_graceful_shutdown=_SHUTDOWN_WAIT_S,
    )
    return HttpServer(config)


class HttpServer(uvicorn.Server):
    """uvicorn without its signal handlers: they would close the listener while requests drain."""

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


class GuardedProtocol(HttpToolsProtocol):
    """Closes connections whose headers are too slow or too large; uvicorn waits for ever and keeps every byte."""

    timeout_s: float

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._expect_headers()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        # Counted once a chunk: headers that end within it were at most a chunk too long.
        if self._header_deadline is not None:
            self._header_bytes += len(data)
            if self._header_bytes > MAX_HEADER_BYTES and not self.transport.is_closing():
                self.send_400_response(f"the request headers are larger than {MAX_HEADER_BYTES} bytes")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._header_deadline is None:
            self._expect_headers()

    def on_headers_complete(self) -> None:
        self._stop_expecting()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_expecting()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """OpenAI's error object here too, where no application has seen the request yet."""
        body = orjson.dumps(error_object(InvalidRequest(msg, code="invalid_http")))
        head = f"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        self.transport.write(head.encode() + b"connection: close\r\n\r\n" + body)
        self.transport.close()

    def _expect_headers(self) -> None:
        self._header_bytes = 0
        self._header_deadline: asyncio.TimerHandle | None = self.loop.call_later(self.timeout_s, self.transport.close)

    def _stop_expecting(self) -> None:
        if self._header_deadline is not None:
            self._header_deadline.cancel()
            self._header_deadline = None
