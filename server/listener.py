"""The socket and the HTTP server on it: uvicorn, with limits on connections, and with signals left to the caller."""

import asyncio
import socket
from collections.abc import Generator
from contextlib import contextmanager

import orjson
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from server.api.errors import error_object
from server.errors import ApiError, EngineUnavailable, InvalidRequest
from server.settings import Settings

_SHUTDOWN_WAIT_S = 5
"""For connections that still send an error event or a refusal when the server stops."""
_BODY_GRACE_S = 2
"""So that a route's own refusal, which says why, comes before the connection is closed."""
_RETRY_AFTER_S = 5


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


def http_server(app: ASGIApp, settings: Settings) -> "HttpServer":
    """A server for `HttpServer.serve(sockets=[...])`, with the settings' limits on connections."""

    class Protocol(GuardedProtocol):
        timeout_s = settings.client_timeout_s
        max_header_bytes = settings.max_header_bytes
        max_connections = settings.max_connections

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
    """Bounds what uvicorn does not: connections, bytes and time of headers, time of a body that nobody reads, and time
    for which a client leaves an answer unread."""

    timeout_s: float
    max_header_bytes: int
    max_connections: int

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._body_deadline: asyncio.TimerHandle | None = None
        self._expect_headers()
        if len(self.connections) > self.max_connections:
            self._refuse(
                EngineUnavailable(f"the server has {self.max_connections} connections, which is the limit"),
                f"503 Service Unavailable\r\nretry-after: {_RETRY_AFTER_S}",
            )

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        # The parser keeps a header until its end has come, so what has no end is counted as it arrives.
        if self._header_deadline is not None:
            self._arrived_bytes += len(data)
            if self._arrived_bytes > self.max_header_bytes and not self.transport.is_closing():
                self.send_400_response(self._too_long)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._header_deadline is None:
            self._expect_headers()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._stop_expecting()
        # A route that reads its body has refused by then; this is for bodies that no route reads.
        self._body_deadline = self.loop.call_later(self.timeout_s + _BODY_GRACE_S, self._give_up)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._stop_expecting()
        super().on_message_complete()

    def timeout_keep_alive_handler(self) -> None:
        """The connection has been idle; what a client has not read by then it gets a last while to read."""
        super().timeout_keep_alive_handler()
        self._abort_later()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_expecting()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """OpenAI's error object here too, where no application has seen the request yet."""
        if self._header_bytes > self.max_header_bytes:
            msg = self._too_long
        self._refuse(InvalidRequest(msg, code="invalid_http"), "400 Bad Request")

    @property
    def _too_long(self) -> str:
        return f"the request headers are larger than {self.max_header_bytes} bytes"

    def _count(self, num_bytes: int) -> None:
        self._header_bytes += num_bytes
        if self._header_bytes > self.max_header_bytes:
            raise ValueError(self._too_long)  # the parser gives up, and uvicorn asks for a 400

    def _refuse(self, err: ApiError, status: str) -> None:
        body = orjson.dumps(error_object(err))
        head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        self.transport.write(head.encode() + b"connection: close\r\n\r\n" + body)
        self._give_up()

    def _give_up(self) -> None:
        self.transport.close()
        self._abort_later()

    def _abort_later(self) -> None:
        """`close` waits for ever for a client that does not read what is left."""
        self.loop.call_later(self.timeout_s, self.transport.abort)

    def _expect_headers(self) -> None:
        self._header_bytes = self._arrived_bytes = 0
        self._header_deadline: asyncio.TimerHandle | None = self.loop.call_later(self.timeout_s, self._give_up)

    def _stop_expecting(self) -> None:
        for deadline in (self._header_deadline, self._body_deadline):
            if deadline is not None:
                deadline.cancel()
        self._header_deadline = self._body_deadline = None
