"""A small HTTP/1.1 client that stamps each piece of an answer as it leaves the socket.

A client library's layers cost more for each chunk of a stream than a fast server does, and then the benchmark measures
its client (docs/benchmarking.md has the figures). Here httptools parses inside the protocol's own callback.

    RequestFailed
    +-- CannotConnect     nobody listens, or TLS fails
    +-- ConnectionBroken  the answer did not end, or is not HTTP
"""

import asyncio
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit

import httptools

from server.bench.record import CLOCK

_KEPT_BODY_BYTES = 4 * 2**20
"""Of an answer that does not go to a callback: more is neither an error message nor a list of models."""


class RequestFailed(Exception):
    """No whole answer came."""


class CannotConnect(RequestFailed):
    pass


class ConnectionBroken(RequestFailed):
    pass


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a server listens, taken from its URL."""

    host: str
    port: int
    is_tls: bool
    prefix: str
    """Of every path, without a slash at its end."""

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.is_tls else 80) else f"{host}:{self.port}"


def parse_url(url: str) -> Endpoint:
    """The endpoint of `http://host:port` or `https://host/prefix`; a final `/v1` is taken off.

    Raises:
        ValueError: no such URL.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment or parts.username:
        raise ValueError(f"{url!r} is not a server's URL; write for example http://127.0.0.1:8000")
    is_tls = parts.scheme == "https"
    prefix = parts.path.rstrip("/").removesuffix("/v1")
    return Endpoint(parts.hostname, parts.port or (443 if is_tls else 80), is_tls, prefix)


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: bytes
    """Empty where the body went to the callback."""


OnBody = Callable[[bytes, float], None]
"""Told a piece of the body and when it was read, in seconds of `CLOCK`."""


class HttpClient:
    """Keeps connections open between requests, each used by one request at a time."""

    def __init__(self, endpoint: Endpoint, headers: Mapping[str, str]) -> None:
        self._endpoint = endpoint
        fixed = {"Host": endpoint.authority, "Accept": "text/event-stream, application/json"} | dict(headers)
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in fixed.items())
        self._idle: list[_Connection] = []
        self._tls = ssl.create_default_context() if endpoint.is_tls else None
        self.num_reads = 0
        """Reads from sockets so far, for the cost of one."""

    async def get(self, path: str) -> Answer:
        return await self._ask(f"GET {self._endpoint.prefix}{path} HTTP/1.1\r\n{self._headers}\r\n".encode(), None)

    async def post_json(self, path: str, body: bytes, on_body: OnBody) -> Answer:
        """Posts a body; that of an answer with status 200 goes to `on_body` piece by piece.

        Raises:
            RequestFailed: see the tree above.
        """
        head = (
            f"POST {self._endpoint.prefix}{path} HTTP/1.1\r\n{self._headers}"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return await self._ask(head.encode() + body, on_body)

    def close(self) -> None:
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    async def _ask(self, request: bytes, on_body: OnBody | None) -> Answer:
        connection = self._reusable()
        if connection is not None:
            try:
                return await self._exchange(connection, request, on_body)
            except ConnectionBroken:
                # A server may close a connection that idles at the very moment of the next request. Nothing of the
                # answer has come then, and asking again on a new connection is what every HTTP client does.
                if connection.has_answered:
                    raise
        return await self._exchange(await self._connect(), request, on_body)

    async def _exchange(self, connection: "_Connection", request: bytes, on_body: OnBody | None) -> Answer:
        try:
            answer = await connection.exchange(request, on_body)
        except BaseException:
            connection.close()
            raise
        finally:
            self.num_reads += connection.num_reads
        if connection.is_reusable:
            self._idle.append(connection)
        else:
            connection.close()
        return answer

    def _reusable(self) -> "_Connection | None":
        while self._idle:
            connection = self._idle.pop()
            if connection.is_reusable:
                return connection
            connection.close()
        return None

    async def _connect(self) -> "_Connection":
        endpoint = self._endpoint
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                _Connection, endpoint.host, endpoint.port, ssl=self._tls
            )
        except OSError as err:  # ssl.SSLError is one
            raise CannotConnect(f"cannot connect to {endpoint.authority}: {err.strerror or err}") from err
        return connection


class _Connection(asyncio.Protocol):
    """One socket; the methods named `on_` are called by httptools, the others in lower case by asyncio."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._ended: asyncio.Future[None] | None = None
        self._is_open = False
        self._keeps_alive = True
        self.has_answered = False
        """To the request at hand."""
        self.num_reads = 0

    @property
    def is_reusable(self) -> bool:
        return self._is_open and self._keeps_alive

    async def exchange(self, request: bytes, on_body: OnBody | None) -> Answer:
        """Sends a request and returns when its answer has ended.

        Raises:
            ConnectionBroken: it will not end.
        """
        assert self._transport is not None
        self.has_answered = False
        self.num_reads = 0
        self._keeps_alive = False
        self._on_body = on_body
        self._body = bytearray()
        self._parser = httptools.HttpResponseParser(self)
        self._ended = asyncio.get_running_loop().create_future()
        if not self._is_open:
            raise ConnectionBroken("the server closed the connection")
        self._transport.write(request)
        try:
            await self._ended
        finally:
            self._ended = None
        return Answer(self._parser.get_status_code(), bytes(self._body))

    def close(self) -> None:
        self._is_open = False
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own class is no subclass
        self._is_open = True

    def data_received(self, data: bytes) -> None:
        self._read_s = CLOCK()
        if self._ended is None:  # words that nobody asked for: the connection is of no further use
            self.close()
            return
        self.has_answered = True
        self.num_reads += 1
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError as err:
            self._fail(err.__context__ if isinstance(err.__context__, Exception) else err)  # a bug of our own
        except httptools.HttpParserError as err:
            self._fail(ConnectionBroken(f"the answer is not HTTP: {err}"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_open = False
        reason = f": {exc}" if exc is not None else ""
        self._fail(ConnectionBroken(f"the server closed the connection before its answer ended{reason}"))

    def on_body(self, body: bytes) -> None:
        if self._on_body is not None and self._parser.get_status_code() == 200:
            self._on_body(body, self._read_s)
        elif len(self._body) < _KEPT_BODY_BYTES:
            self._body += body

    def on_message_complete(self) -> None:
        self._keeps_alive = self._parser.should_keep_alive()
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)

    def _fail(self, failure: Exception) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_exception(failure)
