"""URL -> bytes, through the guard: each hop is parsed, held against the list of hosts, resolved, judged and pinned."""

import asyncio
import ssl
from contextlib import aclosing
from dataclasses import dataclass

import httpcore2

from server.fetch.body import ByteBudget, read_body
from server.fetch.network import INTERNET, Network, PinnedBackend
from server.fetch.refusal import FetchRefused, Reason
from server.version import VERSION
from server.web_url import HostList, InvalidUrl, WebUrl, parse_url

_REDIRECTS = frozenset({301, 302, 303, 307, 308})


@dataclass(frozen=True, slots=True)
class FetchPolicy:
    hosts: HostList | None
    """That may be asked, redirects included. None: every public one."""
    timeout_s: float
    """For everything: names, redirects, handshakes and the body."""
    max_redirects: int
    max_bytes: int
    """Of one picture's file, decoded."""


class Fetcher:
    """Holds no connection and no cookie: two fetches know nothing of each other."""

    def __init__(self, policy: FetchPolicy, network: Network = INTERNET) -> None:
        self._policy = policy
        self._network = network
        self._tls: ssl.SSLContext | None = None

    def check(self, url: str) -> WebUrl:
        """The URL, when it is one that may be asked for; nothing is resolved yet.

        Raises:
            FetchRefused: it is no URL that is ever fetched, or not of a host in the list.
        """
        try:
            parsed = parse_url(url, ports=self._network.ports)
        except InvalidUrl as err:
            raise FetchRefused(Reason.URL, f"the URL cannot be fetched: {err}") from err
        if self._policy.hosts is not None and parsed.host not in self._policy.hosts:
            raise FetchRefused(Reason.HOST, "pictures from this host are not allowed on this server")
        return parsed

    async def fetch(self, url: WebUrl, budget: ByteBudget) -> list[bytes]:
        """What is at the URL, in pieces.

        Args:
            url: from `check`.

        Raises:
            FetchRefused: it may not be fetched, or does not come within the limits.
        """
        try:
            async with asyncio.timeout(self._policy.timeout_s):
                return await self._follow(url, budget)
        except (TimeoutError, httpcore2.TimeoutException) as err:
            raise FetchRefused(
                Reason.TIMEOUT, f"the picture did not arrive within {self._policy.timeout_s:g} seconds"
            ) from err
        except (httpcore2.ConnectError, OSError) as err:
            raise FetchRefused(
                Reason.CONNECT, "the host of the URL could not be reached", detail=_chain_of(err)
            ) from err
        except (httpcore2.NetworkError, httpcore2.ProtocolError) as err:
            raise FetchRefused(
                Reason.BROKEN, "the answer of the host is damaged or incomplete", detail=_chain_of(err)
            ) from err

    async def _follow(self, url: WebUrl, budget: ByteBudget) -> list[bytes]:
        for _ in range(self._policy.max_redirects + 1):
            answer = await self._get(url, budget)
            if isinstance(answer, list):
                return answer
            url = answer
        raise FetchRefused(Reason.REDIRECT, f"the URL redirects more than {self._policy.max_redirects} times")

    async def _get(self, url: WebUrl, budget: ByteBudget) -> list[bytes] | WebUrl:
        """The body, or where the answer leads."""
        addresses = await self._network.addresses_of(url)
        scheme, host = url.scheme.encode(), url.host.encode()
        async with (
            aclosing(PinnedBackend(addresses)) as backend,
            httpcore2.AsyncHTTPConnection(
                httpcore2.Origin(scheme, host, url.port),
                ssl_context=await self._tls_context() if url.scheme == "https" else None,
                network_backend=backend,
            ) as connection,
        ):
            response = await connection.handle_async_request(
                httpcore2.Request(
                    "GET",
                    httpcore2.URL(scheme=scheme, host=host, port=url.port, target=url.target.encode()),
                    headers=_request_headers(url),
                )
            )
            backend.head.is_read = True
            async with aclosing(response):
                if response.status in _REDIRECTS:
                    return self._next(url, response)
                if response.status != 200:
                    raise FetchRefused(Reason.STATUS, f"the host answers with status {response.status}")
                return await read_body(response, max_bytes=self._policy.max_bytes, budget=budget)

    def _next(self, url: WebUrl, response: httpcore2.Response) -> WebUrl:
        places = [value for name, value in response.headers if name.lower() == b"location"]
        try:
            place = url.join(places[0].decode("ascii"))  # one in another encoding would be guesswork
        except (IndexError, ValueError) as err:  # UnicodeDecodeError is one, and urljoin raises one
            raise FetchRefused(Reason.REDIRECT, "the URL redirects to something that is not a URL") from err
        following = self.check(place)
        if url.scheme == "https" and following.scheme == "http":
            raise FetchRefused(Reason.REDIRECT, "the URL redirects from https to http")
        return following

    async def _tls_context(self) -> ssl.SSLContext:
        # Made once, when it is first needed: reading the certificates takes some 50 ms.
        if self._tls is None:
            self._tls = await asyncio.to_thread(self._network.tls)
        return self._tls


def _request_headers(url: WebUrl) -> list[tuple[bytes, bytes]]:
    """All that a host learns of this server besides its address."""
    return [
        (b"Host", url.authority.encode()),
        (b"User-Agent", f"minicpmv/{VERSION}".encode()),
        (b"Accept", b"image/jpeg, image/png, image/webp, image/gif, image/bmp"),
        # Pictures are compressed already; an answer that is compressed all the same is decoded.
        (b"Accept-Encoding", b"identity"),
        (b"Connection", b"close"),
    ]


def _chain_of(err: BaseException) -> str:
    """Names of an error and its causes, whose texts may hold what does not belong into a log."""
    names = []
    cause: BaseException | None = err
    while cause is not None:
        names.append(type(cause).__name__)
        cause = cause.__cause__ or cause.__context__
    return " < ".join(names)
