"""The network as pictures may use it: names are resolved once, every address is judged, and only judged addresses are
connected to."""

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

import certifi
import httpcore2

from server.fetch.addresses import is_public
from server.fetch.refusal import FetchRefused, Reason
from server.web_url import Address, WebUrl

_MAX_ADDRESSES = 4
"""Of a host, tried one after the other."""
_CONNECT_S = 3.0
"""Before the next address is tried: one that does not answer must not take the whole time."""
_MAX_HEAD_BYTES = 64 * 1024
_HEAD_READ_BYTES = 4096
"""Of the head, parsed in one go in pure Python: a flood of `100 Continue` must not hold the event loop."""

_NO_PUBLIC_ADDRESS = "the host of the URL has no public address"
"""Also where it has none at all, or clients could ask which names there are inside."""


async def resolve_by_system(host: str, port: int) -> list[str]:
    """All addresses of a name, as the system's resolver knows them. Raises OSError where there are none."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    # A set loses the order, which says what is reachable from here.
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def public_tls() -> ssl.SSLContext:
    """Certificates are checked against certifi's list; no variable of the environment adds to it or records keys."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(certifi.where())
    return context


@dataclass(frozen=True, slots=True)
class Network:
    """What the guard stands on. The defaults are the internet; no setting changes them, tests pass their own."""

    resolve: Callable[[str, int], Awaitable[Sequence[str]]] = resolve_by_system
    admits: Callable[[Address], bool] = is_public
    ports: frozenset[int] = frozenset({80, 443})
    tls: Callable[[], ssl.SSLContext] = public_tls

    async def addresses_of(self, url: WebUrl) -> tuple[Address, ...]:
        """Every address of the URL's host.

        Raises:
            FetchRefused: it has none, or one of them is not admitted.
        """
        if url.address is not None:
            addresses: tuple[Address, ...] = (url.address,)
        else:
            try:
                addresses = tuple(map(ipaddress.ip_address, await self.resolve(url.host, url.port)))
            except (OSError, ValueError) as err:  # UnicodeError, which the resolver raises too, is a ValueError
                raise FetchRefused(Reason.NAME, _NO_PUBLIC_ADDRESS, detail=type(err).__name__) from err
        if not addresses:
            raise FetchRefused(Reason.NAME, _NO_PUBLIC_ADDRESS)
        for address in addresses:
            if not self.admits(address):
                raise FetchRefused(Reason.ADDRESS, _NO_PUBLIC_ADDRESS, detail=str(address))
        return addresses


INTERNET = Network()


class PinnedBackend(httpcore2.AsyncNetworkBackend):
    """Connects to the given addresses, whatever host it is told: it has no resolver. TLS still proves the name."""

    def __init__(self, addresses: Sequence[Address]) -> None:
        self._addresses = addresses[:_MAX_ADDRESSES]
        self._streams: list[httpcore2.AsyncNetworkStream] = []
        self.head = HeadBudget()

    async def connect_tcp(
        self,
        host: str,  # noqa: ARG002 - the signature is httpcore's
        port: int,
        timeout: float | None = None,  # noqa: ARG002, ASYNC109
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """A connection to the first address that answers. Raises ConnectError or ConnectTimeout when none does."""
        failure: Exception | None = None
        for address in self._addresses:
            try:
                stream = await httpcore2.AnyIOBackend().connect_tcp(
                    str(address), port, _CONNECT_S, local_address, socket_options
                )
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as err:
                failure = err
                continue
            self._streams.append(stream)
            return _HeadLimitedStream(stream, self.head)
        assert failure is not None
        raise failure

    async def aclose(self) -> None:
        """Close what was opened, also where a handshake was left half done."""
        for stream in self._streams:
            await stream.aclose()


class HeadBudget:
    """Bytes that may come before the body."""

    def __init__(self) -> None:
        self._left = _MAX_HEAD_BYTES
        self.is_read = False
        """Set by whoever has got the response's head: from then on reads are large and not counted."""

    def size(self, max_bytes: int) -> int:
        """How much to read at once."""
        return max_bytes if self.is_read else min(max_bytes, _HEAD_READ_BYTES)

    def take(self, num_bytes: int) -> None:
        """Raises RemoteProtocolError when the head is too long."""
        if not self.is_read:
            self._left -= num_bytes
            if self._left < 0:
                raise httpcore2.RemoteProtocolError("the head of the answer is too long")


class _HeadLimitedStream(httpcore2.AsyncNetworkStream):
    def __init__(self, stream: httpcore2.AsyncNetworkStream, head: HeadBudget) -> None:
        self._stream = stream
        self._head = head

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109 - httpcore's
        data = await self._stream.read(self._head.size(max_bytes), timeout)
        self._head.take(len(data))
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore2.AsyncNetworkStream:
        return _HeadLimitedStream(await self._stream.start_tls(ssl_context, server_hostname, timeout), self._head)

    def get_extra_info(self, info: str) -> object:
        return self._stream.get_extra_info(info)
